"""A warm interpreter's child: from the fork to the run function.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import _socket
import json
import os

from nas_hpc.processes import child, remains, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from nas_hpc.processes.attempts import Attempt
    from nas_hpc.processes.channel import Channel
    from nas_hpc.processes.warm import WarmModule


def fork(
    order: dict[str, Any],
    warm: WarmModule,
    channel: Channel,
    keeper: int,
    log_fd: int,
    ends: Sequence[socket.socket],
) -> int:
    """Fork a child that evaluates ``order``; its pid. Raises OSError.

    ``keeper`` is this process's pid. The child closes ``log_fd`` and the keeper's ``ends`` of its sockets.
    """
    pid = os.fork()
    if pid == 0:
        _in_child(order, warm, channel, keeper, log_fd, ends)
    return pid


def _in_child(
    order: dict[str, Any],
    warm: WarmModule,
    channel: Channel,
    keeper: int,
    log_fd: int,
    ends: Sequence[socket.socket],
) -> NoReturn:
    try:
        child.leave_keeper(order, keeper, log_fd)
        child.settle_in(order)
        for end in ends:
            _socket.socket.close(end)
        os.close(log_fd)
        warm.call.prepare(order)
        warm.call.answer(order, channel, warm.load)
    except child.StartFailed as error:
        channel.refuse(order["serial"], str(error))
    except BaseException as error:
        channel.refuse(order["serial"], f"cannot start the process: {type(error).__name__}: {error}")
    finally:
        os._exit(127)


def record_refusal(attempt: Attempt, error: OSError) -> None:
    """Record the end of an attempt for which there could be no child."""
    result = results.make(attempt.order, "start_failed", f"cannot fork: {error.strerror}", end=attempt.end)
    left = remains.leave(attempt.order, result)
    attempt.trouble, attempt.kept = left.trouble, left.kept
    attempt.result = json.dumps(result).encode("ascii")
