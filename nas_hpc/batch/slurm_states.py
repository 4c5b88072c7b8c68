"""What Slurm's words for the states of its jobs mean."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nas_hpc.batch.system import Status
from nas_hpc.states import BatchState

S = BatchState

STATES: Mapping[str, BatchState] = {
    "PENDING": S.QUEUED,
    "EXPEDITING": S.QUEUED,
    "REQUEUED": S.QUEUED,
    "REQUEUE_FED": S.QUEUED,
    "REQUEUE_HOLD": S.HELD,
    "RESV_DEL_HOLD": S.HELD,
    "SPECIAL_EXIT": S.HELD,
    "CONFIGURING": S.RUNNING,
    "POWER_UP_NODE": S.RUNNING,
    "RUNNING": S.RUNNING,
    "RESIZING": S.RUNNING,
    "SIGNALING": S.RUNNING,
    "STOPPED": S.RUNNING,
    "SUSPENDED": S.RUNNING,
    "COMPLETING": S.ENDING,
    "STAGE_OUT": S.ENDING,
    "UPDATE_DB": S.ENDING,
    "COMPLETED": S.ENDED,
    "FAILED": S.ENDED,
    "OUT_OF_MEMORY": S.ENDED,
    "TIMEOUT": S.TIMEOUT,
    "DEADLINE": S.TIMEOUT,
    "CANCELLED": S.CANCELLED,
    "BOOT_FAIL": S.LOST,
    "LAUNCH_FAILED": S.LOST,
    "NODE_FAIL": S.LOST,
    "PREEMPTED": S.LOST,
    "RECONFIG_FAIL": S.LOST,
    "REVOKED": S.LOST,
}
"""As ``squeue -o %T``, ``scontrol show job`` and sacct have them. A node that boots counts as running: its
walltime may have begun."""

_PLAIN = frozenset({"PENDING", "RUNNING", "COMPLETING", "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"})
"""What the state of the batch job says already."""

_HELD = frozenset(
    {
        "Dependency",
        "DependencyNeverSatisfied",
        "JobHeldAdmin",
        "JobHeldUser",
        "JobHoldMaxRequeue",
        "SpecialExit",
    }
)
_MEANING: Mapping[str, str] = {
    "Dependency": "it waits for the batch jobs that it depends on",
    "DependencyNeverSatisfied": "what it depends on did not end as asked, so it never starts: kill it",
    "JobHeldUser": "it is held by its user: scontrol release lets it go",
    "JobHeldAdmin": "it is held by an administrator",
    "JobHoldMaxRequeue": "it failed to start too often",
    "PartitionConfig": "it asks for more than its partition has, so it does not start",
    "PartitionNodeLimit": "more or fewer nodes than its partition has or allows, so it does not start",
    "PartitionTimeLimit": "its walltime is over its partition's limit, so it does not start",
    "PartitionDown": "its partition starts no jobs now",
    "PartitionInactive": "its partition starts no jobs now",
    "BadConstraints": "no nodes can have what it asks for, so it does not start",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "InvalidAccount": "its account is not known, so it does not start",
    "InvalidQOS": "its QOS is not known, so it does not start",
    "AccountNotAllowed": "its account may not use the partition, so it does not start",
    "QOSNotAllowed": "its QOS may not use the partition, so it does not start",
    "AssocMaxJobsLimit": "as many jobs run as its account allows",
    "QOSMaxJobsPerUserLimit": "its user has as many jobs running as its QOS allows",
}

_NOTHING = frozenset({"", "None", "(null)", "NonZeroExitCode"})


def status_of(state: str, reason: str = "", exit_code: str = "") -> Status | None:
    """What a state (``CANCELLED by 1000``), a reason and an exit code (``3:0``: code and signal) mean; None
    for a state that nobody knows.
    """
    words = state.split()
    word = words[0].rstrip("+") if words else ""
    known = STATES.get(word)
    if known is None:
        return None
    reason = "" if reason.strip() in _NOTHING else reason.strip()
    code, signal = _exit_code(exit_code)
    if known is S.QUEUED and reason.split(",")[0] in _HELD:
        known = S.HELD
    if known is S.ENDED:
        if word == "COMPLETED":
            code, signal = code or 0, 0
        if signal and code is not None:
            code = code or 128 + signal
    else:
        code = None
    if known is S.CANCELLED and reason != "DependencyNeverSatisfied":
        reason = ""  # why it waited
    said = [] if word in _PLAIN else [word]
    if reason and not (known is S.TIMEOUT and reason == "TimeLimit"):
        meaning = _MEANING.get(reason.split(",")[0])
        said.append(f"{reason}: {meaning}" if meaning else reason)
    if known is S.CANCELLED and len(words) > 1:
        said.append(" ".join(words[1:]))
    if known is S.ENDED and signal:
        said.append(f"signal {signal}")
    return Status(known, ", ".join(said), code)


def _exit_code(text: str) -> tuple[int | None, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text.strip(), re.ASCII)
    return (int(match[1]), int(match[2])) if match else (None, 0)
