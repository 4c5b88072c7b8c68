"""Running a program that may hang, to its end or to a deadline, and leaving nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_GRACE_S = 2.0
_OUTPUT_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Output:
    """How it went."""

    code: int | None
    """As subprocess has it; None: it did not end in time, and was ended."""
    text: str
    """Both streams, their beginning; what is no text is replaced."""


async def run_bounded(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> Output:
    """Run ``argv`` without input. Raises OSError if it cannot be started.

    At the deadline, or when the caller is cancelled, its process group is asked to end, and then killed: MPI
    programs end their ranks when they are asked, not when they are killed.
    """
    with tempfile.TemporaryFile() as file:  # no pipe, which a daemon could keep open
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=dict(environ),
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass
        finally:
            if process.returncode is None:
                await _end(process)
        file.seek(0)
        text = file.read(_OUTPUT_BYTES).decode("utf-8", "replace").replace("\0", "\ufffd")
    return Output(code, text)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
            return
