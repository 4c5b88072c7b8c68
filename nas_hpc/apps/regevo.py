"""Regularized evolution: ``python -m nas_hpc.apps.regevo --problem … --run …``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.apps.flags import Whole, search_flags, take_options
from nas_hpc.apps.program import main, run_search
from nas_hpc.errors import WrongCall

if TYPE_CHECKING:
    from nas_hpc.problem import HpProblem
    from nas_hpc.search.base import Optimizer

EXAMPLE = """\b
Example, with a running launcher:
  nas-hpc app --name EVO --exec "$(which python) -m nas_hpc.apps.regevo"
  nas-hpc job --name evo_test --workflow evo_test --app EVO --args '--max-evals 1000
    --problem nas_hpc.problems.nas.digits_dense.Problem --run nas_hpc.nas.alpha.run'
"""


@click.command(epilog=EXAMPLE)
@search_flags
@click.option(
    "--population-size",
    type=Whole(2),
    default=100,
    show_default=True,
    help="So many of the youngest successes can have children.",
)
@click.option(
    "--sample-size",
    type=Whole(1),
    default=10,
    show_default=True,
    help="The parent is the best of so many of them, drawn at random.",
)
@click.option(
    "--initial",
    type=Whole(1),
    help="Successful random evaluations before the first child.  [default: 20, the population at most]",
)
@click.option(
    "--allow-duplicates",
    is_flag=True,
    help="Evaluate a child again that was evaluated before; else another one is made.",
)
def regevo(**flags: Any) -> None:
    """Evaluate random configurations, then children of good ones, each with one change; those that are old
    have none."""
    options = take_options(flags)
    if flags["sample_size"] > flags["population_size"]:
        raise WrongCall(
            f"--sample-size {flags['sample_size']}: the population has {flags['population_size']} "
            "(--population-size); give that at most"
        )

    def make(problem: HpProblem, seed: int) -> Optimizer:
        from nas_hpc.search.evolution import AgingEvolution

        return AgingEvolution(
            problem,
            population=flags["population_size"],
            sample=flags["sample_size"],
            initial=flags["initial"],
            duplicates=flags["allow_duplicates"],
            seed=seed,
        )

    run_search(options, make, repeats=flags["allow_duplicates"])


if __name__ == "__main__":
    sys.exit(main(regevo))
