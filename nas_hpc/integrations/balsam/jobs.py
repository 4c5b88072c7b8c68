"""Evaluations as jobs of Balsam.

Balsam splits a job's command at white space and its environment at colons; so what an evaluation is goes by
files in its directory: job.json, which the trial runner reads, and result.json of one that does not run.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc import wire
from nas_hpc.errors import WrongCall
from nas_hpc.integrations.balsam.children import Asked
from nas_hpc.integrations.balsam.protocol import TRIAL_APPLICATION, job_id

PACKAGE = str(Path(__file__).resolve().parents[3])
"""The directory that holds the package ``nas_hpc``."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The search whose evaluations they are."""

    job: str
    workflow: str
    mode: str
    applications: Mapping[str, str]
    """The database's applications and their executables."""
    directory: str = ""
    """Of the workflow."""


def name_of(seq: int) -> str:
    """The name of an evaluation's job, as in DeepHyper."""
    return f"task{seq}"


def job_of(ask: wire.Ask, owner: Owner, original: wire.Done | None = None) -> dict[str, Any]:
    """What the bridge is to add for ``ask``. ``original``: the finished evaluation whose result is its own.

    What cannot be is a failed evaluation, with the reason, and does not run.
    """
    if original is not None:
        return _finished(ask, owner, original)
    try:
        if ask.failure:
            raise WrongCall(ask.failure)
        return _runnable(ask, owner)
    except WrongCall as error:
        return _failed(ask, owner, error.message)


def _runnable(ask: wire.Ask, owner: Owner) -> dict[str, Any]:
    """Raises WrongCall."""
    shape = ask.shape
    ranks = shape.num_nodes * shape.ranks_per_node
    if owner.mode == "serial" and ranks > 1:
        raise WrongCall(f"{ranks} ranks need mpi mode, and Balsam's launcher runs in serial mode")
    of_trial = not ask.application
    if ask.application and ask.application not in owner.applications:
        raise WrongCall(
            f"the application {ask.application!r} is not in the Balsam database: balsam app --name "
            f"{ask.application} --executable ..."
        )
    own_limit = of_trial and ranks == 1
    return _job(
        ask,
        owner,
        own_limit=own_limit,
        application=ask.application or TRIAL_APPLICATION,
        args=_args(ask.args),
        environ={} if of_trial else _environ({**ask.environ, **_own_environment(ask, owner)}),
        files={"job.json": json.dumps(_record(ask, owner))},
    )


def _job(
    ask: wire.Ask, owner: Owner, *, own_limit: bool = False, cached: bool = False, **more: Any
) -> dict[str, Any]:
    shape = ask.shape
    asked = Asked(
        config=ask.config,
        data=ask.data,
        submitted=time.time(),
        timeout_s=ask.timeout_s,
        retries=ask.retries,
        cached=cached,
        own_limit=own_limit,
    )
    mine = {"creator": owner.job, "seq": ask.seq, "ask": asked.text()}
    return {
        "id": job_id(owner.job, ask.seq),
        "seq": ask.seq,
        "name": name_of(ask.seq),
        "workflow": owner.workflow,
        "num_nodes": shape.num_nodes,
        "ranks_per_node": shape.ranks_per_node,
        "threads_per_rank": shape.threads_per_rank,
        "threads_per_core": shape.threads_per_core,
        "node_packing_count": 1 if owner.mode == "mpi" else shape.node_packing_count,
        "wall_time_minutes": max(1, math.ceil(ask.wall_time_minutes)),
        "data": {**ask.job_data, "nas_hpc": mine},
        **more,
    }


def _record(ask: wire.Ask, owner: Owner) -> dict[str, Any]:
    """job.json: what it is, for the trial runner and for analytics."""
    shape = ask.shape
    return {
        "id": job_id(owner.job, ask.seq),
        "name": name_of(ask.seq),
        "workflow": owner.workflow,
        "creator": owner.job,
        "seq": ask.seq,
        "created": time.time(),
        "application": ask.application,
        "args": ask.args,
        "argv": list(ask.argv),
        "run": ask.run,
        "config": dict(ask.config),
        "seed": ask.seed,
        "data": dict(ask.job_data),
        "timeout_s": ask.timeout_s,
        "environ": dict(ask.environ),
        "num_nodes": shape.num_nodes,
        "ranks_per_node": shape.ranks_per_node,
        "threads_per_rank": shape.threads_per_rank,
        "gpus_per_rank": shape.gpus_per_rank,
        "interpreter": sys.executable,
        "package": PACKAGE,
        "sys_path": [entry for entry in sys.path if entry],
    }


def _failed(ask: wire.Ask, owner: Owner, reason: str) -> dict[str, Any]:
    return _settled(ask, owner, "FAILED", outcome="error", reason=" ".join(reason.split())[:500])


def _finished(ask: wire.Ask, owner: Owner, original: wire.Done) -> dict[str, Any]:
    """A cache hit."""
    return _settled(
        ask,
        owner,
        "JOB_FINISHED",
        cached=True,
        outcome="ok",
        objective=original.objective,
        metadata=dict(original.metadata),
    )


def _settled(
    ask: wire.Ask, owner: Owner, state: str, *, cached: bool = False, **result: Any
) -> dict[str, Any]:
    """A job that does not run: a record with its result."""
    now = time.time()
    content = {
        "job": job_id(owner.job, ask.seq),
        "attempt": 0,
        "objective": None,
        "metadata": {},
        "reason": "",
        "start": now,
        "end": now,
        "return_code": None,
        **result,
    }
    # Balsam wants a job to have an application; one of this state is never started.
    return _job(
        ask,
        owner,
        cached=cached,
        application=TRIAL_APPLICATION,
        args="",
        environ={},
        files={"job.json": json.dumps(_record(ask, owner)), "result.json": json.dumps(content)},
        state=state,
        message=str(result.get("reason") or ("as an earlier evaluation" if cached else "")),
    )


def _args(text: str) -> str:
    """``text``, if Balsam starts the program with these words: it splits the line and joins it with single
    blanks before a shell's rules are applied. Raises WrongCall."""
    words = shlex.split(text)
    taken = shlex.split(" ".join(os.path.expanduser(word) for word in text.split()))
    for word, other in zip(words, [*taken, *words[len(taken) :]], strict=False):
        if word != other:
            raise WrongCall(
                f"the argument {word!r:.80} would reach its program as {other!r:.80}: Balsam changes blanks "
                "and ~ in arguments; write it otherwise, or give argv instead of an application"
            )
    return text


def _own_environment(ask: wire.Ask, owner: Owner) -> dict[str, str]:
    """By which a program finds its job (``nas_hpc.jobs``); nothing where Balsam's list cannot hold it."""
    job = job_id(owner.job, ask.seq)
    place = os.path.join(owner.directory, f"{name_of(ask.seq)}_{job[:8]}")
    if not owner.directory or ":" in place:
        return {}
    return {"NAS_HPC_JOB_ID": job, "NAS_HPC_JOB_DIR": place, "NAS_HPC_ATTEMPT": "1"}


def _environ(given: Mapping[str, str]) -> dict[str, str]:
    """``given``, if Balsam can hold it as ``A=1:B=2``. Raises WrongCall."""
    for name, value in given.items():
        if ":" in name + value or "\n" in name + value:
            raise WrongCall(
                f"the environment variable {name}={value!r:.80} has a colon or a line end, which Balsam's "
                "list of variables cannot hold: give it in the application's own script"
            )
    return dict(given)
