"""Whether a trial was asked to end: SIGTERM comes first, SIGKILL after the grace (10 s as a rule)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_listening = 0
"""The process that listens; a forked child has the default handlers again and must begin anew."""
_asked = False


def should_stop() -> bool:
    """True once this process has received SIGTERM: save what is needed and return.

    The first call makes the process listen: from then on SIGTERM no longer ends it by itself. A program that
    never calls this is ended by the signal, as usual. Call it first in the main thread, where Python allows
    handlers; called first elsewhere it cannot listen and returns False.
    """
    global _listening, _asked
    if _listening != os.getpid():
        if threading.current_thread() is not threading.main_thread():
            return False
        _asked = False
        _listening = os.getpid()
        _chain(signal.getsignal(signal.SIGTERM))
    return _asked


def _chain(previous: object) -> None:
    """Listen, and let a handler that the program had set before hear the signal too."""

    def note(number: int, frame: FrameType | None) -> None:
        global _asked
        _asked = True
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, note)
