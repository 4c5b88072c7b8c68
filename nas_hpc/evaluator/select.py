"""Which evaluator: found in the environment or named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nas_hpc import plugins
from nas_hpc.errors import ConfigError, WrongCall
from nas_hpc.evaluator.client import Client, SearchClient, reconnect_seconds
from nas_hpc.evaluator.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.place import BALSAM_JOB_VARIABLE, BALSAM_VARIABLE
from nas_hpc.wire import ENDPOINT_VARIABLE, Shape

KINDS = ("auto", "balsam", "nas-hpc")
WORKERS_VARIABLE = "DEEPHYPER_WORKERS_PER_NODE"
CORES_VARIABLE = "NAS_HPC_CORES_PER_NODE"
GPUS_VARIABLE = "NAS_HPC_GPUS_PER_NODE"
ENGINES = "nas_hpc.evaluators"
"""The entry points of engines other than this project's launcher: functions of the settings, the environment
and the seconds to wait for a lost connection, that return a connected ``SearchClient``."""
_OF_DEEPHYPER = frozenset(
    ["subprocess", "processPool", "threadPool", "ray", "serial", "thread", "process", "loky", "mpicomm"]
)


def workers_per_node(environ: Mapping[str, str] = os.environ) -> int:
    """How many evaluations share a node: DEEPHYPER_WORKERS_PER_NODE; unset: the cores, at least 2 (mpi mode:
    1).

    Raises ConfigError for a value that is no whole number from 1 on.
    """
    if environ.get(WORKERS_VARIABLE, "").strip():
        return _count(environ, WORKERS_VARIABLE)
    if environ.get("BALSAM_JOB_MODE") == "mpi":
        return 1
    if environ.get(CORES_VARIABLE, "").strip():
        return max(2, _count(environ, CORES_VARIABLE))
    return max(2, os.cpu_count() or 1)


def evaluation_shape(
    nodes: int = 1,
    ranks_per_node: int = 1,
    threads_per_rank: int = 1,
    gpus_per_rank: int = 0,
    environ: Mapping[str, str] = os.environ,
) -> Shape:
    """What each evaluation of a search occupies.

    How many share a node is DEEPHYPER_WORKERS_PER_NODE; where that is unset, evaluations with several ranks
    or nodes have their nodes for themselves, those with GPUs share a node as its GPUs allow, and all others
    as ``workers_per_node`` says. What a problem calls its hyperparameters changes nothing here.

    Raises ConfigError for a value in the environment that is no number, WrongCall for several evaluations on
    several nodes.
    """
    given = bool(environ.get(WORKERS_VARIABLE, "").strip())
    packing = workers_per_node(environ)
    if nodes > 1 and given and packing > 1:
        raise WrongCall(
            f"--nodes-per-eval {nodes} gives each evaluation its nodes for itself, and "
            f"{WORKERS_VARIABLE}={packing} packs {packing} on one: leave one of the two out"
        )
    if not given and (nodes > 1 or ranks_per_node > 1):
        packing = 1
    elif not given and gpus_per_rank and environ.get(GPUS_VARIABLE, "0") != "0":
        packing = min(packing, max(1, _count(environ, GPUS_VARIABLE) // gpus_per_rank))
    return Shape(
        num_nodes=nodes,
        ranks_per_node=ranks_per_node,
        threads_per_rank=threads_per_rank,
        gpus_per_rank=gpus_per_rank,
        node_packing_count=packing,
    )


def check_kind(kind: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise WrongCall, with what would be right, if ``kind`` is no evaluator or has nothing to run on."""
    if kind not in KINDS:
        known = "belongs to DeepHyper's own runs" if kind in _OF_DEEPHYPER else "is unknown"
        raise WrongCall(f"the evaluator {kind!r} {known}: give one of {', '.join(KINDS)}")
    if environ.get(ENDPOINT_VARIABLE):
        for name in ("NAS_HPC_JOB_ID", "NAS_HPC_ATTEMPT"):
            if not environ.get(name):
                raise WrongCall(
                    f"{ENDPOINT_VARIABLE} is set, {name} is not: a search is started by the launcher"
                )
        return
    if environ.get(BALSAM_VARIABLE) and kind != "nas-hpc":
        if not environ.get(BALSAM_JOB_VARIABLE):
            raise WrongCall(
                f"{BALSAM_VARIABLE}={environ[BALSAM_VARIABLE]} names a Balsam database, and "
                f"{BALSAM_JOB_VARIABLE} is not set: a search is started by Balsam's launcher, as a job: "
                "balsam job ..., then balsam launcher ... or balsam submit-launch ..."
            )
        return
    raise WrongCall(
        "no launcher: start the search with nas-hpc run hps|nas ..., or as a job with nas-hpc job ... "
        "and then nas-hpc launcher"
    )


def create(
    kind: str = "auto",
    settings: Settings | None = None,
    *,
    run: str = "",
    environ: Mapping[str, str] = os.environ,
    reconnect_s: float | None = None,
) -> LauncherEvaluator:
    """The evaluator of ``kind`` for this process, connected.

    "auto" and "balsam" mean this launcher wherever its endpoint is in the environment, so that command lines
    written for Balsam work; else a real Balsam where its database is. ``settings`` without a shape of their
    own get ``workers_per_node``.

    Raises:
        WrongCall: unknown kind, no launcher, or a bad value in the environment.
        LauncherGone: the launcher does not answer.
    """
    check_kind(kind, environ)
    settings = settings or Settings(run=run)
    if settings.shape == Shape():
        settings = replace(settings, shape=evaluation_shape(environ=environ))
    patience_s = reconnect_seconds() if reconnect_s is None else reconnect_s
    if not environ.get(ENDPOINT_VARIABLE):
        return LauncherEvaluator(_of_engine("balsam", settings, environ, patience_s), settings)
    client = Client(
        Path(environ[ENDPOINT_VARIABLE]),
        job=environ["NAS_HPC_JOB_ID"],
        attempt=_count(environ, "NAS_HPC_ATTEMPT"),
        shape=settings.shape,
        reconnect_s=patience_s,
    )
    return LauncherEvaluator(client, settings)


def _of_engine(name: str, settings: Settings, environ: Mapping[str, str], patience_s: float) -> SearchClient:
    """A client of the engine ``name``. Raises WrongCall where this installation has none of that name."""
    connect = plugins.load(ENGINES, name)
    if connect is None:
        raise WrongCall(
            f"{BALSAM_VARIABLE} names a Balsam database, and this installation of nas-hpc knows no engine "
            f"{name!r} (entry point {ENGINES}): install nas-hpc again, or run it from a whole checkout"
        )
    client: SearchClient = connect(settings, environ, patience_s)
    return client


def _count(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{name}={text!r}: give a whole number from 1 on")
    return value
