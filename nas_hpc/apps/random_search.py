"""Random search: ``python -m nas_hpc.apps.random_search --problem … --run …``."""

from __future__ import annotations

import sys
from typing import Any

import click

from nas_hpc.apps.flags import search_flags, take_options
from nas_hpc.apps.program import main, run_search

EXAMPLE = """\b
Example, with a running launcher:
  nas-hpc app --name RAN --exec "$(which python) -m nas_hpc.apps.random_search"
  nas-hpc job --name test --workflow TEST --application RAN --args '--max-evals 50
    --problem nas_hpc.problems.hps.polynome2.Problem --run nas_hpc.problems.hps.polynome2.run'
"""


@click.command(epilog=EXAMPLE)
@search_flags
def random_search(**flags: Any) -> None:
    """Evaluate the starting points, then random configurations, none of them twice."""
    from nas_hpc.search.random import RandomSampler

    run_search(take_options(flags), RandomSampler)


if __name__ == "__main__":
    sys.exit(main(random_search))
