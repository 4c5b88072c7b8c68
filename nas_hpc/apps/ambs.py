"""Asynchronous model-based search: ``python -m nas_hpc.apps.ambs --problem … --run …``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.apps.flags import Named, Whole, search_flags, take_options
from nas_hpc.apps.program import main, run_search

if TYPE_CHECKING:
    from nas_hpc.problem import HpProblem
    from nas_hpc.search.base import Optimizer

EXAMPLE = """\b
Example, with a running launcher:
  nas-hpc app --name AMBS --exec "$(which python) -m nas_hpc.apps.ambs"
  nas-hpc job --name test --workflow TEST --application AMBS --args '--max-evals 50
    --problem nas_hpc.problems.hps.polynome2.Problem --run nas_hpc.problems.hps.polynome2.run'
"""


@click.command(epilog=EXAMPLE)
@search_flags
@click.option(
    "--surrogate-model",
    type=Named(("RF", "ET", "DUMMY"), later=("GBRT", "GP")),
    default="RF",
    show_default=True,
    help="Random forest, extra trees, or none (random points).",
)
@click.option(
    "--liar-strategy",
    type=Named(("cl_max", "cl_mean", "cl_min")),
    default="cl_max",
    show_default=True,
    help="What running evaluations are taken to give: the worst, the mean, the best so far.",
)
@click.option(
    "--acq-func",
    type=Named(("LCB", "EI"), later=("PI", "gp_hedge")),
    default="LCB",
    show_default=True,
    help="Lower confidence bound or expected improvement.",
)
@click.option(
    "--acq-kappa",
    type=click.FloatRange(min=0),
    default=1.96,
    show_default=True,
    help="LCB: how much uncertainty is worth; 0 only exploits.",
)
@click.option(
    "--n-jobs",
    type=Whole(-1),
    default=1,
    show_default=True,
    help="Threads that fit the forest; -1: all cores.",
)
def ambs(**flags: Any) -> None:
    """Fit a forest to what was evaluated and evaluate what it finds most promising, on all workers at
    once."""
    options = take_options(flags)

    def make(problem: HpProblem, seed: int) -> Optimizer:
        from nas_hpc.search.forest import ForestOptimizer

        return ForestOptimizer(
            problem,
            surrogate=flags["surrogate_model"],
            acq_func=flags["acq_func"],
            acq_kappa=flags["acq_kappa"],
            liar_strategy=flags["liar_strategy"],
            seed=seed,
            n_jobs=flags["n_jobs"],
        )

    run_search(options, make)


if __name__ == "__main__":
    sys.exit(main(ambs))
