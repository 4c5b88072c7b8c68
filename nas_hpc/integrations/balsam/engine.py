"""A search becomes one of Balsam's: the entry point of the evaluator's engine "balsam"."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_hpc.errors import LauncherGone, WrongCall
from nas_hpc.evaluator import Settings
from nas_hpc.evaluator.client import RECONNECT_VARIABLE
from nas_hpc.evaluator.place import BALSAM_JOB_VARIABLE, BALSAM_VARIABLE
from nas_hpc.evaluator.select import WORKERS_VARIABLE
from nas_hpc.integrations.balsam.client import PAUSES_S, BalsamClient
from nas_hpc.integrations.balsam.jobs import Owner
from nas_hpc.integrations.balsam.process import Bridge
from nas_hpc.integrations.balsam.protocol import TRIAL_APPLICATION, BridgeError, Link
from nas_hpc.integrations.balsam.workers import MODE_VARIABLE, allocation, shape_under, workers
from nas_hpc.processes import ranks

CAPACITY_FILE = "launchers.jsonl"
TRIAL = ("nas_hpc.integrations.balsam.trial", "one evaluation of a search")
"""Module and description of the application that evaluates."""
_log = logging.getLogger("nas_hpc.evaluator")


def connect(settings: Settings, environ: Mapping[str, str], patience_s: float) -> BalsamClient:
    """The client of the search that ``environ`` says this process is. Everything is checked first.

    Raises WrongCall, ConfigError, PlacementError for what cannot be; LauncherGone for a database that is down
    for ``patience_s``; NasHpcError for a Balsam that cannot be used.
    """
    _check_process(environ)
    link = Bridge(environ=environ)
    try:
        return _connected(link, settings, environ, patience_s)
    except BaseException:
        with contextlib.suppress(Exception):
            link.close()
        raise


def _check_process(environ: Mapping[str, str]) -> None:
    """Raise WrongCall if this process is not the only one of its search that connects."""
    here = ranks.find(environ)
    if environ.get(MODE_VARIABLE) == "mpi" and here is not None and here.rank > 0:
        raise WrongCall(
            f"this search runs as one rank, and Balsam started {here.size or 'several'}: give its job "
            "--num-nodes 1 --ranks-per-node 1"
        )


def _connected(link: Link, settings: Settings, environ: Mapping[str, str], patience_s: float) -> BalsamClient:
    job, database = environ[BALSAM_JOB_VARIABLE], environ[BALSAM_VARIABLE]
    hello = insist(link, patience_s, "hello")
    _log.info("Balsam %s, database %s", hello.get("version", "?"), database)
    search = insist(link, patience_s, "search", job=job)
    here = allocation(environ, search)
    shape = shape_under(settings.shape, here, environ)
    capacity = workers(shape, here)
    if here.mode == "mpi" and settings.shape.node_packing_count > 1 and environ.get(WORKERS_VARIABLE):
        _log.warning(
            "%s counts in serial mode only: in mpi mode Balsam runs one job on a node", WORKERS_VARIABLE
        )
    applications = dict(hello.get("applications") or {})
    if TRIAL_APPLICATION not in applications:
        applications[TRIAL_APPLICATION] = _register(link, patience_s, database)
    past = insist(link, patience_s, "children", job=job)
    insist(link, patience_s, "watch", job=job)  # tells what is news to that
    workflow = str(search["workflow"])
    directory = Path(database, "data", workflow)
    if search.get("others"):
        _log.warning(
            "the workflow %s holds %d jobs of others, too: reports count them; give the next search its own",
            workflow,
            search["others"],
        )
    return BalsamClient(
        link,
        Owner(job, workflow, here.mode, applications, str(directory)),
        attempt=int(search["attempt"]),
        capacity=capacity,
        past=past["jobs"],
        started=float(search.get("started") or 0.0),
        shape=(settings.shape, shape),
        patience_s=patience_s,
        capacity_file=directory / CAPACITY_FILE,
    )


def insist(link: Link, patience_s: float, do: str, **fields: Any) -> dict[str, Any]:
    """The answer to a request that nothing can be done without. Raises LauncherGone, BridgeError."""
    began, tries = time.monotonic(), 0
    while True:
        try:
            return link.call(do, **fields)
        except BridgeError as error:
            if error.kind != "down":
                raise
            if time.monotonic() - began >= patience_s:
                raise LauncherGone(
                    f"{error.message}; no answer for {patience_s:g} s, "
                    f"the time that {RECONNECT_VARIABLE} gives it"
                ) from None
            if not tries:
                _log.warning("%s; asking again for up to %g s", error.message, patience_s)
        pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
        time.sleep(min(pause_s, max(0.0, began + patience_s - time.monotonic())))  # nothing can come
        tries += 1


def command_of(module: str, interpreter: str = sys.executable) -> str:
    """The command of an application. Raises WrongCall for a path that Balsam would split."""
    if len(interpreter.split()) != 1:
        raise WrongCall(
            f"the interpreter {interpreter!r} has a blank in its path, and Balsam splits commands at blanks: "
            "use one without"
        )
    return f"{interpreter} -m {module}"


def _register(link: Link, patience_s: float, database: str) -> str:
    """Have the application that evaluates added, as DeepHyper did with its own."""
    module, described = TRIAL
    executable = command_of(module)
    application = {"name": TRIAL_APPLICATION, "executable": executable, "description": described}
    try:
        insist(link, patience_s, "register", applications=[application], replace=False)
    except BridgeError as error:
        raise WrongCall(
            f"the Balsam database {database} has no application {TRIAL_APPLICATION}, and it cannot be added: "
            f"{error.message}; let its owner type: nas-hpc balsam register {database}"
        ) from None
    _log.info("added the application %s to %s", TRIAL_APPLICATION, database)
    return executable
