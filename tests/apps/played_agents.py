"""Agents other than the first one, in its process: real copies that do what it says when it asks for sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nas_hpc.apps.copies import Shared
from nas_hpc.apps.exchange import Alone, Said
from nas_hpc.search.ppo import Episodes, Ppo, Settings, Update


class Played(Alone):
    """Hub and group of a first agent with ``size - 1`` others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.shared: Shared | None = None
        self.copies: dict[int, Ppo] = {}
        self.said: dict[int, Said] = {}
        self.learning: dict[int, tuple[Episodes, Any, int]] = {}
        self.updates: dict[int, Update] = {}
        self.number = 0

    # -- the hub ---------------------------------------------------------------------------------------
    def send(self, agent: int, kind: str, plain: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        if kind == "start":
            settings = Settings(**plain["settings"])
            self.shared = Shared(tuple(plain["choices"]), settings, plain["total"], plain["seed"])
            self.copies[agent] = self.shared.make()
            if arrays:
                self.copies[agent].restore(arrays)
            return
        assert self.shared is not None
        ppo = self.copies[agent]
        if kind == "sample":
            drawn = ppo.sample(plain["count"], self.shared.random(agent, plain["step"]))
            found = {name: getattr(drawn, name) for name in Episodes.__slots__}
            self.said[agent] = Said(agent, "batch", {"digest": ppo.digest()}, found)
        elif kind == "learn":
            ppo.observe(arrays["everyones"])
            mine = Episodes(arrays["actions"], arrays["log_probs"], arrays["values"])
            self.learning[agent] = (mine, arrays["rewards"], plain["learned"])
            self.step = plain["step"]

    def gather(self) -> dict[int, Said]:
        said, self.said = self.said, {}
        return said

    # -- the group -------------------------------------------------------------------------------------
    def add(self, values: Any) -> Any:
        """Of the moments of advantages; all others begin their updates."""
        assert self.shared is not None
        total = values + sum(
            self.copies[agent].moments(mine, rewards) for agent, (mine, rewards, _) in self.learning.items()
        )
        for agent, (mine, rewards, _) in self.learning.items():
            rng = self.shared.random(agent, self.step, learning=True)
            self.updates[agent] = self.copies[agent].begin(mine, rewards, rng, total)
        self.number = 0
        return total

    def mean(self, gradient: Any, weight: int) -> Any:
        parts = [(gradient, weight)]
        parts += [self.copies[a].gradient(update, self.number)[:2] for a, update in self.updates.items()]
        whole = sum(one for _, one in parts)
        total = sum(one.astype(np.float64) * count for one, count in parts)
        mean = (total / max(1, whole)).astype(np.float32)
        for agent, (_, _, learned) in self.learning.items():
            if whole:
                self.copies[agent].apply(mean, learned)
        self.number += 1
        return mean, whole
