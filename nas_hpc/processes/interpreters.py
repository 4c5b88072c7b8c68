"""Which warm interpreter serves an evaluation, and which modules have to do without."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from nas_hpc.processes.environment import thread_variables
from nas_hpc.processes.link import Link
from nas_hpc.processes.orders import Key, Order

WarmKey = tuple[str, tuple[str, ...], str, int, frozenset[tuple[str, str]]]
"""Interpreter, module search path, run function, width, environment."""

KEPT = 4
_MARKS = 256
OF_ATTEMPT = ("NAS_HPC_JOB_ID", "NAS_HPC_ATTEMPT", "NAS_HPC_JOB_DIR", "BALSAM_JOB_ID")
"""Variables that differ between the evaluations of one warm interpreter; a child gets its own."""


def key_of(order: Order) -> WarmKey:
    """What has to be equal for two orders to share a warm interpreter."""
    assert order.call is not None
    environ = frozenset(item for item in order.environ.items() if item[0] not in OF_ATTEMPT)
    return order.interpreter, order.sys_path, order.call.run, order.threads, environ


def shared_environ(key: WarmKey) -> dict[str, str]:
    """The environment in which a warm interpreter starts: pools are set before anything is imported."""
    return {**dict(key[4]), **thread_variables(key[3])}


@dataclass(slots=True, eq=False)
class Warm:
    """One warm interpreter as its agent sees it."""

    key: WarmKey
    link: Link
    ready: bool = False
    """Its import is done; before, orders wait here: a hanging import hangs nobody else."""
    proven: bool = False
    """A child of it came to an end by itself."""
    waiting: dict[Key, Order] = field(default_factory=dict)
    running: set[Key] = field(default_factory=set)
    canary: asyncio.TimerHandle | None = None

    def quiet(self) -> None:
        """No more looking after its first children."""
        if self.canary is not None:
            self.canary.cancel()
            self.canary = None


class Interpreters:
    """The warm interpreters of an agent, least recently used first, and the modules unfit for one."""

    def __init__(self) -> None:
        self._warm: OrderedDict[WarmKey, Warm] = OrderedDict()
        self._unfit: OrderedDict[WarmKey, str] = OrderedDict()
        self._crashes: set[WarmKey] = set()

    def get(self, key: WarmKey) -> Warm | None:
        """The current one for ``key``."""
        warm = self._warm.get(key)
        if warm is not None:
            self._warm.move_to_end(key)
        return warm

    def add(self, warm: Warm) -> list[Warm]:
        """Keep ``warm``; returns those that have to go for it."""
        self._warm[warm.key] = warm
        gone = []
        while len(self._warm) > KEPT:
            oldest = next((w for w in self._warm.values() if not w.waiting and w is not warm), None)
            if oldest is None:
                break  # all are still importing for somebody
            gone.append(self._warm.pop(oldest.key))
        return gone

    def remove(self, warm: Warm) -> None:
        """Give it no new orders."""
        if self._warm.get(warm.key) is warm:
            del self._warm[warm.key]
        warm.quiet()

    def mark_unfit(self, key: WarmKey, why: str) -> bool:
        """From now on fresh interpreters for ``key``; whether that is news."""
        news = key not in self._unfit
        self._unfit[key] = why
        while len(self._unfit) > _MARKS:
            self._unfit.popitem(last=False)
        return news

    def is_unfit(self, key: WarmKey) -> bool:
        """Whether ``key`` needs fresh interpreters."""
        return key in self._unfit

    def crashed_before(self, key: WarmKey) -> bool:
        """Note that an import killed its interpreter; whether it did so before."""
        before = key in self._crashes
        self._crashes.add(key)
        return before
