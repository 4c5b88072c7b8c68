"""An agent's use of an environment that is copied to its node's own disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace

from nas_hpc.processes.orders import Order
from nas_hpc.processes.staging import STAGED_VARIABLE, Staged, StagingFailed, relocate, stage


class Staging:
    """The copy that the setting ``stage_environment`` asks for. Lives in the agent's loop."""

    def __init__(self, on_note: Callable[[str], None], on_done: Callable[[], None]) -> None:
        """``on_done`` is called when a copy is there, or is known not to come."""
        self._on_note, self._on_done = on_note, on_done
        self._source = ""
        self._staged: Staged | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def use(self, source: str) -> None:
        """Copy ``source``, an absolute path, for orders from now on; empty: use none."""
        if source == self._source or self._closed:
            return
        self._source = source
        if self._staged is not None:
            self._staged.close()
            self._staged = None
        if source and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._source and self._staged is None and not self._closed:
            source = self._source
            try:
                staged = await asyncio.to_thread(stage, source, os.environ, lambda: self._closed)  # noqa: B023
            except Exception as error:  # whatever it is, evaluations wait for the end of this
                if not self._closed:
                    known = isinstance(error, StagingFailed)
                    self._on_note(str(error) if known else f"{source} is not copied to this node: {error!r}")
                if source == self._source:
                    break
                continue
            if source == self._source and not self._closed:
                self._staged = staged
            else:
                staged.close()
        self._task = None
        if not self._closed:
            self._on_done()

    def concerns(self, order: Order) -> bool:
        """Whether the order is one for the copy, once that is there: an evaluation on this node alone."""
        return bool(self._source) and order.expects_result and not order.mpi

    @property
    def pending(self) -> bool:
        """Whether the copy is being made."""
        return self._task is not None

    def relocate(self, order: Order) -> Order:
        """The order as it is to run here: interpreter, module search path and program of the copy."""
        if self._staged is None or not self.concerns(order):
            return order
        mapping = self._staged.mapping
        original, local = next(iter(mapping.items()))
        moved = replace(
            order,
            interpreter=relocate(order.interpreter, mapping),
            sys_path=tuple(relocate(entry, mapping) for entry in order.sys_path),
            argv=(relocate(order.argv[0], mapping), *order.argv[1:]) if order.argv else (),
        )
        if moved == order:
            return order
        return replace(moved, environ={**order.environ, STAGED_VARIABLE: f"{local}={original}"})

    async def close(self) -> None:
        """Copy no further; others may remove the copy."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._staged is not None:
            self._staged.close()
