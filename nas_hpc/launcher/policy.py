"""What follows from what: decisions of the launcher as functions of plain values."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from nas_hpc.errors import WrongCall
from nas_hpc.launcher.strikes import blames_machine
from nas_hpc.processes.start_failures import blames_node_alone, signal_of
from nas_hpc.records import App, Attempt, Job, Node, Resources, Result
from nas_hpc.resources import Request
from nas_hpc.states import RAN, Outcome, State

LAUNCHER_GONE = "its launcher was gone"
"""Reason of an attempt lost with its launcher. Such losses are nobody's fault and are not counted."""
RESTART_MARGIN_S = 120.0
"""A restartable application starts only if so much time remains."""
ENOUGH_SAMPLES = 10
STARTS_LIMIT = 100
"""A job that could not be started so often, however innocent, keeps nobody busy any longer."""

_OWN_FAULT = (Outcome.ERROR, Outcome.INVALID_RESULT, Outcome.TIMEOUT)
_TERM = signal.SIGTERM
_SIGNALS = (signal.SIGKILL, _TERM, signal.SIGINT, signal.SIGHUP)
ENDED_FROM_OUTSIDE = frozenset([-s for s in _SIGNALS] + [128 + s for s in _SIGNALS])
"""Return codes of a program that a signal ended, or that caught it and said so as shells do."""


def request_of(job: Job, mode: str, *, shares_node: bool, mpi_packing: int = 1) -> Request:
    """What ``job`` occupies in ``mode``; a search that shares its node with its evaluators takes no
    share, but the GPUs that it asks for.

    In mpi mode a job has its whole nodes; but up to ``mpi_packing`` jobs of one node that say that they share
    it do so.
    """
    need = job.resources
    gpus = need.gpus_per_rank * need.ranks_per_node
    if shares_node:
        return Request(need.num_nodes, Fraction(0), gpus)
    if need.num_nodes > 1:
        return Request(need.num_nodes, Fraction(1), gpus)
    packing = min(need.node_packing_count, mpi_packing) if mode == "mpi" else need.node_packing_count
    return Request(1, Fraction(1, packing), gpus)


def too_many_threads(need: Resources, nodes: Sequence[Node], *, unknown: int = 0) -> str:
    """Why too few of ``nodes`` run the ranks of a job, each with its threads; "" if enough do, with those
    ``unknown`` ones of which nobody knows.

    One rank may have more threads than there are: they take turns. Ranks that wait for each other must not.
    """
    if need.num_nodes * need.ranks_per_node == 1:
        return ""
    threads = need.ranks_per_node * need.threads_per_rank
    have = [(len(n.cores), max(n.threads_per_core, need.threads_per_core)) for n in nodes]
    if sum(cores * each >= threads for cores, each in have) + unknown >= need.num_nodes:
        return ""
    cores, each = max(have, key=lambda pair: pair[0] * pair[1], default=(0, 1))
    hardware = f" x {each} hardware threads" if each > 1 else ""
    return (
        f"it has {need.ranks_per_node} ranks x {need.threads_per_rank} threads on a node, which are "
        f"{threads}, and a node has {cores} cores{hardware}: give fewer ranks or threads"
    )


def evaluations_of(args: str) -> tuple[int, int]:
    """(nodes, ranks on each) of the evaluations that a search with these arguments will ask for."""
    shape = {"--nodes-per-eval": 1, "--ranks-per-node": 1}
    try:
        words = shlex.split(args)
    except ValueError:
        return 1, 1
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        value = value if equals else following
        if flag in shape and value.isascii() and value.isdigit():
            shape[flag] = max(1, int(value))
    return shape["--nodes-per-eval"], shape["--ranks-per-node"]


def python_of_agents(app: App | None) -> str:
    """The interpreter of an application that is a search of this package; on several ranks its agents meet by
    that one's mpi4py. Empty for other programs, and where a script of the application's own sets up its
    environment, its MPI perhaps."""
    if app is None or app.environment_script:
        return ""
    words = shlex.split(app.executable)
    ours = words[1:2] == ["-m"] and words[2:] and words[2].startswith("nas_hpc.apps.")
    return words[0] if ours else ""


def effective_outcome(result: Result, *, restartable: bool) -> Outcome:
    """A program that a stranger's SIGTERM ended is lost, not in error: so batch systems end a job, every
    process of it at once, and the launcher may hear of that last. A restartable one, which goes on where it
    was, is lost by any signal that comes from outside, also to one of its ranks, of which the MPI program
    tells."""
    if result.outcome is not Outcome.ERROR:
        return result.outcome
    from_outside = result.return_code == -_TERM
    if restartable:
        told = result.return_code is not None and -signal_of(result.reason)
        from_outside = bool({result.return_code, told} & ENDED_FROM_OUTSIDE)
    return Outcome.LOST if from_outside else Outcome.ERROR


def follow(
    outcome: Outcome,
    earlier: Sequence[Attempt],
    *,
    retries: int,
    lost_limit: int,
    reason: str = "",
    got_on: bool = False,
) -> tuple[State, ...]:
    """The states that a RUNNING job enters when an attempt ends with ``outcome``.

    ``earlier`` are the job's attempts before this one. Only faults of the program use up its retries;
    only losses and failed starts that it may have caused (its node or keeper died) count towards
    ``lost_limit``; and a search that ``got_on`` (its evaluations ended) before it was lost goes on however
    often that happens.
    """
    if outcome is Outcome.OK:
        return (State.RUN_DONE, State.JOB_FINISHED)
    if outcome is Outcome.KILLED:
        return (State.USER_KILLED,)
    if outcome is Outcome.WALLTIME:
        return (State.RUN_TIMEOUT, State.RESTART_READY)
    results = [a.result for a in earlier if a.result is not None]
    if outcome is Outcome.LOST:
        losses = sum(r.outcome is Outcome.LOST and r.reason != LAUNCHER_GONE for r in results)
        final = reason != LAUNCHER_GONE and not got_on and losses + 1 >= lost_limit
        return (State.FAILED,) if final else (State.RESTART_READY,)
    if outcome is Outcome.START_FAILED:
        starts = [*(r.reason for r in results if r.outcome is Outcome.START_FAILED), reason]
        own = [one for one in starts if not (blames_machine(one) or blames_node_alone(one))]
        final = len(own) >= lost_limit or len(starts) >= STARTS_LIMIT
        return (State.FAILED,) if final else (State.RESTART_READY,)
    faults = sum(r.outcome in _OWN_FAULT for r in results)
    return (State.RUN_ERROR, State.RESTART_READY if faults < retries else State.FAILED)


PREPROCESS, POSTPROCESS = "preprocess", "postprocess"
"""The stages of a job around its attempts; also the names of their scripts' outputs."""
_HANDLERS = {
    Outcome.ERROR: "post_error_handler",
    Outcome.INVALID_RESULT: "post_error_handler",
    Outcome.TIMEOUT: "post_timeout_handler",
    Outcome.WALLTIME: "post_timeout_handler",
}


def script_of(stage: str, job: Job, app: App | None) -> str:
    """The command line that ``job`` has for a stage: its own, else its application's; empty: none."""
    own: str | None = getattr(job.stages, stage)
    if own is not None:
        return own
    return str(getattr(app, stage)) if app is not None else ""


def stage_due(job: Job, app: App | None) -> str:
    """What has to be done before ``job`` is placed or goes on, PREPROCESS or POSTPROCESS; empty: nothing."""
    if job.state in RAN:
        return POSTPROCESS
    if job.attempt or job.state is State.PREPROCESSED:
        return ""
    links = job.parents and job.stages.input_files
    return PREPROCESS if links or script_of(PREPROCESS, job, app) else ""


def paused(job: Job, app: App | None, outcome: Outcome, path: tuple[State, ...]) -> tuple[State, ...]:
    """``path``, the states after an attempt, as far as it goes before the postprocess script has run."""
    if path[0] not in RAN or not script_of(POSTPROCESS, job, app):
        return path
    wanted = outcome is Outcome.OK or getattr(job.stages, _HANDLERS.get(outcome, ""), False)
    return path[:1] if wanted else path


def no_original(seq: int, original: int) -> WrongCall:
    """The error for a cache hit on an evaluation that has no result."""
    return WrongCall(f"evaluation {seq} is to share the result of {original}, which has none (yet)")


def estimate_s(job: Job, durations_s: Sequence[float]) -> float:
    """How long an attempt of ``job`` takes, at a guess: its own limit or estimate, else the 95th percentile
    of ``durations_s`` of its like once there are ten, else 0 (unknown)."""
    own = [v for v in (job.resources.timeout_s, job.resources.wall_time_minutes * 60) if v > 0]
    if own:
        return min(own)
    if len(durations_s) < ENOUGH_SAMPLES:
        return 0.0
    ordered = sorted(durations_s)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def may_start(job: Job, durations_s: Sequence[float], remaining_s: float, *, restartable: bool) -> bool:
    """Whether to start ``job`` when ``remaining_s`` are left (infinite: no end) until jobs are stopped."""
    if remaining_s == float("inf"):
        return True
    if restartable:
        return remaining_s >= RESTART_MARGIN_S or remaining_s >= estimate_s(job, durations_s) > 0
    return remaining_s > 0 and estimate_s(job, durations_s) <= remaining_s
