"""The application PROXY_TASKS: ``python -m nas_hpc.apps.proxy --directory DIR``."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nas_hpc.apps.program import main
from nas_hpc.apps.proxy.tool import (
    CURRENT_FILE,
    FAILED,
    PREFIXES,
    RUNNING,
    SEARCH_TASK,
    SELECTION,
    SUCCEEDED,
    VARIANCE,
    follow,
    read_tool,
)
from nas_hpc.apps.trials.runner import connected
from nas_hpc.errors import LauncherGone, NasHpcError
from nas_hpc.evaluator import check_kind, derived_seed, job_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nas_hpc.apps.trials.runner import TrialRunner
    from nas_hpc.apps.trials.spec import TrialsSpec

    Begin = Callable[[TrialsSpec, dict[str, Any], int], Callable[[TrialRunner], None]]

_TOOLS: Final = {VARIANCE: "variance", SELECTION: "selection", SEARCH_TASK: "search"}
"""Modules of this package. Each has ``begin(spec, settings, seed)``, which checks all that can be checked
before anything runs, and gives what runs the tool with the trials of its job."""
_log = logging.getLogger("nas_hpc.apps")
EXAMPLE = """\b
Such a job is made by nas-hpc measure-proxy-task-variance, select-proxy-task-models and search-proxy-task.
"""


@click.command(epilog=EXAMPLE)
@click.option("--directory", required=True, help="The tool's directory, with its search_job_spec.json.")
@click.option("--nodes-per-eval", default=1, hidden=True)  # said for launchers; the specification counts
@click.option("--ranks-per-node", default=1, hidden=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def tool(directory: str, debug: bool, **_: int) -> None:
    """Run a tool that designs a proxy task."""
    spec, settings = read_tool(directory)
    check_kind("auto")
    seed = spec.seed if spec.seed is not None else derived_seed(job_of())
    begin: Begin = importlib.import_module(f"nas_hpc.apps.proxy.{_TOOLS[spec.kind]}").begin
    try:
        _say(spec, RUNNING)
        run = begin(spec, settings, seed)
        with connected(spec) as runner:
            _log.info("%s of %s in %s", PREFIXES[spec.kind], spec.job_name, spec.directory)
            run(runner)
    except LauncherGone:
        raise  # it goes on in the next one
    except NasHpcError:
        _say(spec, FAILED)
        raise
    _say(spec, SUCCEEDED)


def _say(spec: TrialsSpec, state: str) -> None:
    """Tell those who follow the tool."""
    try:
        follow(spec.directory, state=state)
    except OSError as error:
        _log.warning("%s cannot be written: %s", Path(spec.directory, CURRENT_FILE), error.strerror)


if __name__ == "__main__":
    sys.exit(main(tool))
