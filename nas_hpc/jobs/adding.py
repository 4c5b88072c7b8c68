"""Jobs that a job makes, looks at and ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.errors import ProtocolError, WrongCall
from nas_hpc.jobs.line import Child, ask
from nas_hpc.names import wrong_name
from nas_hpc.plain import check_text
from nas_hpc.specification import JobSpec

if TYPE_CHECKING:
    from nas_hpc import wire

_said: dict[str, wire.NewJob] = {}
"""What was added without a key in this process, by its name."""
_saying = threading.Lock()


def add(
    name: str,
    application: str,
    args: str | Sequence[str] = "",
    *,
    key: str = "",
    workflow: str = "",
    num_nodes: int = 1,
    ranks_per_node: int = 1,
    threads_per_rank: int = 1,
    threads_per_core: int = 1,
    gpus_per_rank: int = 0,
    node_packing_count: int = 1,
    wall_time_minutes: float = 0.0,
    timeout_s: float = 0.0,
    retries: int = 0,
    environ: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    parents: Sequence[str] = (),
    preprocess: str | None = None,
    postprocess: str | None = None,
    input_files: str = "*",
    post_error_handler: bool = False,
    post_timeout_handler: bool = False,
    on_parent_failure: str = "fail",
) -> str:
    """Add a job to the site of this one; returns its id once it is recorded.

    It is a job as any other, in this job's workflow unless ``workflow`` is given, and runs in the same
    allocation when there is room. It starts from where this job was submitted from (directory, module search
    path, interpreter, environment), with ``environ`` added. ``parents`` are ids of jobs that have to be
    finished first: earlier results of ``add``, or ``current().id`` for one that begins after this job. The
    other parameters are those of ``nas-hpc job``.

    A job that is started again runs its program again, and must not make its jobs twice: what has the same
    ``key`` is the same job, and the first one stands. Without a key the name is the key, so that one program
    needs a key for each only where it adds several jobs of one name. All ranks of an MPI program may call
    this; it is one job.

    Raises:
        WrongCall: outside of a job; a value that makes no sense; an unknown application or parent; two
            different jobs of one name without a key.
        LauncherGone: no launcher answered for NAS_HPC_RECONNECT_S (300 s).
    """
    from nas_hpc import wire
    from nas_hpc.evaluator.specified import shape_of

    for what, text in (("name", name), ("workflow", workflow or "W")):
        if not isinstance(text, str) or (wrong := wrong_name(text)):
            raise WrongCall(
                f"jobs.add: the {what} {text!r:.120} {wrong if isinstance(text, str) else 'is no text'}"
            )
    check_text(key, "jobs.add: key")
    try:
        spec = JobSpec(
            application=application,
            args=args,
            num_nodes=num_nodes,
            ranks_per_node=ranks_per_node,
            threads_per_rank=threads_per_rank,
            threads_per_core=threads_per_core,
            gpus_per_rank=gpus_per_rank,
            node_packing_count=node_packing_count,
            wall_time_minutes=wall_time_minutes,
            timeout_s=timeout_s,
            retries=retries,
            environ=environ or {},
            data=data or {},
        )
    except WrongCall as error:
        raise WrongCall(error.message.replace("JobSpec", "jobs.add", 1)) from None
    stages = {
        "preprocess": preprocess,
        "postprocess": postprocess,
        "input_files": input_files,
        "post_error_handler": post_error_handler,
        "post_timeout_handler": post_timeout_handler,
        "on_parent_failure": on_parent_failure,
    }
    new = wire.NewJob(
        key=f"key {key}" if key else f"name {name}",
        name=name,
        application=spec.application,
        args=str(spec.args),
        workflow=workflow,
        environ=spec.environ,
        shape=shape_of(spec, wire.Shape()),
        wall_time_minutes=spec.wall_time_minutes or 0.0,
        timeout_s=spec.timeout_s or 0.0,
        retries=spec.retries or 0,
        parents=identifiers("jobs.add: parents", parents),
        data=spec.data,
        stages=stages,
    )
    if not key:
        _check_same(new)
    answer = ask(lambda asker: wire.AddJobs(asker.protocol, asker.request, asker.job, asker.attempt, (new,)))
    if not isinstance(answer, wire.Added) or len(answer.ids) != 1:
        raise ProtocolError(f"the launcher answered a new job with {type(answer).__name__}")
    return answer.ids[0]


def kill(ids: Sequence[str]) -> None:
    """End jobs, waiting or running, and the evaluations of those that are searches. Ids of finished ones
    change nothing.

    Raises WrongCall outside of a job, for an id that is none, and for this job's own; LauncherGone.
    """
    from nas_hpc import wire

    wanted = identifiers("jobs.kill: ids", ids)
    if wanted:
        ask(lambda asker: wire.KillJobs(asker.protocol, asker.request, asker.job, asker.attempt, wanted))


def children() -> list[Child]:
    """The jobs that this one has added, in all its attempts, in their order, as they are now.

    Raises WrongCall outside of a job; LauncherGone.
    """
    from nas_hpc import wire

    answer = ask(lambda asker: wire.AskChildren(asker.protocol, asker.request, asker.job, asker.attempt))
    if not isinstance(answer, wire.Children):
        raise ProtocolError(f"the launcher answered a question for children with {type(answer).__name__}")
    data = Path(os.environ.get("NAS_HPC_SITE", "")) / "data"
    return [
        Child(
            one.id, one.name, one.workflow, one.application, one.state, one.attempt, one.objective,
            one.reason, data / one.workflow / f"{one.name}_{one.id[:8]}",
        )
        for one in answer.jobs
    ]  # fmt: skip


def identifiers(where: str, given: object) -> tuple[str, ...]:
    """Full ids of jobs. Raises WrongCall for anything else."""
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise WrongCall(f"{where} is {given!r:.120}: give a list of ids, as jobs.add returns them")
    for one in given:
        if not isinstance(one, str) or len(one) != 32 or set(one) - set("0123456789abcdef"):
            raise WrongCall(
                f"{where} has {one!r:.120}: give ids of 32 hexadecimal digits, as jobs.add returns them"
            )
    return tuple(dict.fromkeys(given))


def _check_same(new: wire.NewJob) -> None:
    """Raise WrongCall if another job of that name was added: the first one would stand, silently."""
    with _saying:
        before = _said.setdefault(new.key, new)
    if before != new:
        raise WrongCall(
            f"jobs.add: another job of the name {new.name!r} was added before by this program: give each a "
            "name or a key of its own"
        )
