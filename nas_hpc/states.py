"""States of a job, outcomes of an attempt, and the one table of allowed transitions.

The names are Balsam's. Nothing else in the package decides what may follow what: the store refuses a
transition that is not in ``TRANSITIONS``, whoever asks for it.
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise


class State(str, Enum):
    """State of a job."""

    CREATED = "CREATED"
    """Inserted; seen only as the origin of the first event."""
    AWAITING_PARENTS = "AWAITING_PARENTS"
    """At least one parent is not JOB_FINISHED."""
    READY = "READY"
    """May be placed by a launcher."""
    PREPROCESSED = "PREPROCESSED"
    """Its parents' files are linked and its preprocess script is done; may be placed."""
    RUNNING = "RUNNING"
    """Claimed by the lease in the job's row; its attempt is starting or running."""
    RUN_DONE = "RUN_DONE"
    """The program ended with a valid result; the postprocess script, if there is one, is due or runs."""
    POSTPROCESSED = "POSTPROCESSED"
    """Its postprocess script is done: entered and left in one commit."""
    JOB_FINISHED = "JOB_FINISHED"
    """Done, with a result. Final."""
    RUN_ERROR = "RUN_ERROR"
    """The program failed, gave no valid result, or passed its own time limit; a script that was asked for
    (post_error_handler, post_timeout_handler) is due or runs."""
    FAILED = "FAILED"
    """No retry is left. Final, until a person says ``retry``."""
    RUN_TIMEOUT = "RUN_TIMEOUT"
    """The allocation ended while it ran; the post_timeout_handler, if asked for, is due or runs."""
    RESTART_READY = "RESTART_READY"
    """May be placed again; the interruption cost it nothing."""
    USER_KILLED = "USER_KILLED"
    """Ended by a person or because its search ended. Final, until a person says ``retry``."""


class Outcome(str, Enum):
    """How an attempt ended."""

    OK = "ok"
    ERROR = "error"
    INVALID_RESULT = "invalid_result"
    TIMEOUT = "timeout"
    START_FAILED = "start_failed"
    WALLTIME = "walltime"
    LOST = "lost"
    KILLED = "killed"


class Actor(str, Enum):
    """Who makes a transition."""

    COMMAND = "command"
    LAUNCHER = "launcher"
    SEARCH = "search"


class BatchState(str, Enum):
    """State of a batch job, as far as it is known."""

    SUBMITTING = "submitting"
    """About to be given to the batch system: its id is not known yet, or never was."""
    QUEUED = "queued"
    HELD = "held"
    """It waits for a person, or for a batch job that it depends on."""
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    """By itself; the exit code tells how, where it is known."""
    TIMEOUT = "timeout"
    """Its walltime was over. Final, as all that follow."""
    CANCELLED = "cancelled"
    LOST = "lost"
    """A node, or the batch system, failed."""
    REFUSED = "refused"
    """The batch system did not take it."""
    GONE = "gone"
    """It is not there any more, and nothing tells how it ended."""


BATCH_FINAL = frozenset(
    {
        BatchState.ENDED,
        BatchState.TIMEOUT,
        BatchState.CANCELLED,
        BatchState.LOST,
        BatchState.REFUSED,
        BatchState.GONE,
    }
)

S, A = State, Actor
_ANYBODY = frozenset(Actor)
_LAUNCHER = frozenset({A.LAUNCHER})
_KILLERS = frozenset({A.COMMAND, A.LAUNCHER, A.SEARCH})

TRANSITIONS: dict[tuple[State, State], frozenset[Actor]] = {
    (S.CREATED, S.READY): _ANYBODY,
    (S.CREATED, S.AWAITING_PARENTS): _ANYBODY,
    (S.CREATED, S.JOB_FINISHED): frozenset({A.SEARCH}),  # a cached evaluation: done before it began
    (S.CREATED, S.FAILED): frozenset({A.SEARCH}),  # its job specification failed: there is nothing to run
    (S.AWAITING_PARENTS, S.READY): _ANYBODY,
    (S.AWAITING_PARENTS, S.FAILED): _LAUNCHER,  # follows, by the store itself, from a parent's end
    (S.READY, S.PREPROCESSED): _LAUNCHER,
    (S.READY, S.FAILED): _LAUNCHER,  # its preprocess script failed
    (S.RESTART_READY, S.PREPROCESSED): _LAUNCHER,  # retried before its first attempt
    (S.RESTART_READY, S.FAILED): _LAUNCHER,
    (S.READY, S.RUNNING): _LAUNCHER,
    (S.PREPROCESSED, S.RUNNING): _LAUNCHER,
    (S.RESTART_READY, S.RUNNING): _LAUNCHER,
    (S.RUNNING, S.RUN_DONE): _LAUNCHER,
    (S.RUN_DONE, S.POSTPROCESSED): _LAUNCHER,
    (S.RUN_DONE, S.JOB_FINISHED): _LAUNCHER,
    (S.RUN_DONE, S.FAILED): _LAUNCHER,  # its postprocess script failed
    (S.POSTPROCESSED, S.JOB_FINISHED): _LAUNCHER,
    (S.RUNNING, S.RUN_ERROR): _LAUNCHER,
    (S.RUN_ERROR, S.RESTART_READY): _LAUNCHER,
    (S.RUN_ERROR, S.FAILED): _LAUNCHER,
    (S.RUN_ERROR, S.POSTPROCESSED): _LAUNCHER,  # post_error_handler, post_timeout_handler
    (S.RUN_TIMEOUT, S.POSTPROCESSED): _LAUNCHER,  # post_timeout_handler
    (S.RUNNING, S.RUN_TIMEOUT): _LAUNCHER,
    (S.RUN_TIMEOUT, S.RESTART_READY): _LAUNCHER,
    (S.RUNNING, S.RESTART_READY): _LAUNCHER,  # start_failed, lost
    (S.RUNNING, S.FAILED): _LAUNCHER,  # lost the third time
    (S.RUNNING, S.USER_KILLED): _KILLERS,
    (S.AWAITING_PARENTS, S.USER_KILLED): _KILLERS,
    (S.READY, S.USER_KILLED): _KILLERS,
    (S.PREPROCESSED, S.USER_KILLED): _KILLERS,
    (S.RESTART_READY, S.USER_KILLED): _KILLERS,
    (S.RUN_DONE, S.USER_KILLED): _KILLERS,
    (S.RUN_ERROR, S.USER_KILLED): _KILLERS,
    (S.RUN_TIMEOUT, S.USER_KILLED): _KILLERS,
    (S.FAILED, S.RESTART_READY): frozenset({A.COMMAND}),  # retry
    (S.USER_KILLED, S.RESTART_READY): frozenset({A.COMMAND}),  # retry
    (S.JOB_FINISHED, S.RESTART_READY): frozenset({A.COMMAND}),  # a search whose limit was raised
    (S.FAILED, S.AWAITING_PARENTS): frozenset({A.COMMAND}),  # retry of it or, if that failed it, a parent
    (S.USER_KILLED, S.AWAITING_PARENTS): frozenset({A.COMMAND}),
    (S.JOB_FINISHED, S.AWAITING_PARENTS): frozenset({A.COMMAND}),
    (S.READY, S.AWAITING_PARENTS): frozenset({A.COMMAND}),  # modify: parents were added
    (S.PREPROCESSED, S.AWAITING_PARENTS): frozenset({A.COMMAND}),
    (S.RESTART_READY, S.AWAITING_PARENTS): frozenset({A.COMMAND}),
}

FINAL = frozenset({S.JOB_FINISHED, S.FAILED, S.USER_KILLED})
RUNNABLE = frozenset({S.READY, S.PREPROCESSED, S.RESTART_READY})
ACTIVE = frozenset({S.RUNNING})
RAN = frozenset({S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT})
"""An attempt has ended and the postprocess script is due: whose lease runs it stands in the job."""
WAITING = frozenset({S.CREATED, S.AWAITING_PARENTS})


def may_follow(old: State, new: State, actor: Actor) -> bool:
    """Whether ``actor`` may move a job from ``old`` to ``new``."""
    return actor in TRANSITIONS.get((old, new), frozenset())


def is_path(states: list[State]) -> bool:
    """Whether consecutive ``states`` are all transitions of the table."""
    return all(pair in TRANSITIONS for pair in pairwise(states))
