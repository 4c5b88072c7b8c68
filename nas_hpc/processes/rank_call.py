"""A run function called by all ranks of a job at once; what rank 0 returns is the result.

Standard library only, Python 3.8 or later: it runs in the user's interpreters. Every rank gets the same
configuration and the same ``job.seed``; the random generators of ``random``, numpy and the training libraries
start from (seed, rank): rank 0's as in an evaluation of one rank, so that data which is the same for all has
to be made from ``job.seed``. What other ranks return is ignored. An exception on any rank ends all, and the
evaluation fails with the first one's class and message.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time

from nas_hpc.processes import call, rank, ranks, results, warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def seed_of(seed: int, number: int) -> int:
    """Where the random generators of a rank start."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode("ascii")).digest()[:8], "big")


def main(arguments: list[str]) -> None:
    """Entry: the job's directory. Returns after a success: MPI libraries finish when the interpreter does."""
    spec = rank.read_file(arguments[0])
    here = ranks.find()
    number = 0 if here is None else here.rank
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    warm.restore_path(spec["sys_path"])
    warm.line_buffered()
    order = {
        **spec,
        "start": time.time(),
        "call": {**spec["call"], "generators": seed_of(spec["call"]["seed"], number)},
    }

    def load() -> Callable[[Any], Any]:
        function = call.find(order["call"]["run"], warm.import_module)
        warm.limit_threads(order["threads"])
        return function

    mine = os.getpid()
    result = call.evaluate(order, load, call.judge if number == 0 else ignore)
    if os.getpid() != mine:
        os._exit(0)  # the run function forked and its child came back here as well
    call.flush()
    if result["outcome"] != "ok":
        rank.fail(spec, number, result)
    if number == 0:
        trouble = results.write(spec["dir"], result)
        if trouble:
            rank.fail(spec, number, {**result, "outcome": "error", "reason": trouble})


def ignore(returned: Any) -> tuple[str, None, dict[str, Any], str]:
    """The judgement of what a rank other than 0 returned."""
    return "ok", None, {}, ""
