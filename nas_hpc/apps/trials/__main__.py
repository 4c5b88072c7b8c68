"""The application TRIALS: ``python -m nas_hpc.apps.trials --directory DIR``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from nas_hpc.apps.program import main
from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.trials.loop import TrialLoop
from nas_hpc.apps.trials.runner import connected
from nas_hpc.apps.trials.space import TrialSpace, load_space
from nas_hpc.apps.trials.spec import SEARCH, TrialsSpec, read_spec
from nas_hpc.apps.trials.stage2 import parameters_of
from nas_hpc.evaluator import check_kind, derived_seed, directory_of, job_of

_log = logging.getLogger("nas_hpc.apps")
EXAMPLE = """\b
Such a job is made by nas-hpc search and nas-hpc train:
  nas-hpc search --job-name first --search-space-module my.space --trainer 'python -m my.trainer'
    --root-output-dir ~/searches --nas-target-reward-metric accuracy
  nas-hpc app --name TRIALS --exec "$(which python) -m nas_hpc.apps.trials"
"""


@click.command(epilog=EXAMPLE)
@click.option("--directory", required=True, help="The search's directory, with its search_job_spec.json.")
@click.option("--nodes-per-eval", default=1, hidden=True)  # said for launchers; the specification counts
@click.option("--ranks-per-node", default=1, hidden=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def trials(directory: str, debug: bool, **_: int) -> None:
    """Run the trials of a search, or the full trainings of chosen ones."""
    spec = read_spec(directory)
    check_kind("auto")
    space = load_space(spec.space) if spec.kind == SEARCH else None
    results = _results(spec, space)
    seed = spec.seed if spec.seed is not None else derived_seed(job_of())
    if space is not None:
        space.optimizer(spec.algorithm, seed, spec.max_trials)  # what cannot be is said before anything runs
    with connected(spec) as runner:
        whole = f"full training of {len(spec.chosen)} trials"
        what = whole if space is None else f"{spec.max_trials} trials"
        _log.info("%s: %s in %s", spec.job_name, what, spec.directory)
        TrialLoop(spec, runner, results, space, seed).run()


def _results(spec: TrialsSpec, space: TrialSpace | None) -> ResultsFile:
    """results.csv of the job's own directory, as of every search."""
    place = directory_of()
    if space is not None:
        return ResultsFile(Path(place or "."), space.names, cells=space.searched.cells, link=bool(place))
    names = list(parameters_of(spec.search_directory, spec.chosen[0])[0])
    return ResultsFile(Path(place or "."), names, link=bool(place))


if __name__ == "__main__":
    sys.exit(main(trials))
