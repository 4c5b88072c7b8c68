"""Where an agent's evaluations leave their traces: directories of their own, or lines in its packed file."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nas_hpc.processes.orders import Order
from nas_hpc.processes.packed import PACKED, Done, Packer, line_of
from nas_hpc.processes.scratch import Scratch

EACH = "each"
MODES = (EACH, "failed", PACKED)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt runs, and which of MODES holds for it."""

    directory: str
    mode: str


class Recorder:
    """What the setting ``task_directories`` means for one agent. Lives in its loop."""

    def __init__(self, mode: str, marker: str, on_note: Callable[[str], None]) -> None:
        self._mode = EACH
        self._file = f"{marker}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._loop = asyncio.get_running_loop()
        self._on_note = on_note
        self._packer: Packer | None = None
        self._scratch: Scratch | None = None
        self.use(mode)

    def use(self, mode: str) -> None:
        """Another of MODES, from now on."""
        self._mode = mode
        if mode == PACKED and self._scratch is None:
            try:
                self._scratch = Scratch(os.environ)
            except OSError as error:
                self._on_note(f"evaluations get directories on the site, as none can be made here: {error}")
                self._mode = EACH

    def place(self, order: Order) -> Place:
        """Where to run it. A person's job has its directory always."""
        mode = self._mode if order.expects_result else EACH
        if mode != PACKED or self._scratch is None or order.mpi:
            return Place(order.directory, mode)  # the ranks of an MPI program need one that all nodes see
        job, attempt = order.key
        return Place(os.path.join(self._scratch.path, f"{order.name}_{job[:8]}.{attempt}"), mode)

    def pack(self, order: Order, result: Mapping[str, Any], tail: str, done: Done) -> None:
        """Write the line of an ended attempt; ``done`` is called in the loop when it is durable."""
        if self._packer is None:
            self._packer = Packer(self._deliver)
        workflow = os.path.dirname(order.directory)
        path = os.path.join(workflow, PACKED, self._file)
        self._packer.put(path, line_of(order.job_json, result, tail), done)

    def _deliver(self, batch: list[tuple[Done, str]]) -> None:
        """In the packer's thread."""
        try:
            self._loop.call_soon_threadsafe(self._call, batch)
        except RuntimeError:
            return  # the loop is closed: nobody is told any more

    @staticmethod
    def _call(batch: list[tuple[Done, str]]) -> None:
        for done, trouble in batch:
            done(trouble)

    async def close(self) -> None:
        """Write what waits; remove the private directories."""
        if self._packer is not None:
            await asyncio.to_thread(self._packer.close)
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.close)
