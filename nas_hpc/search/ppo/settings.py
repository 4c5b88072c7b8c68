"""What can be chosen of PPO, and what it is if nothing is said: flags and constants of DeepHyper 0.1."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import numpy as np

from nas_hpc.errors import WrongCall

NETWORKS = tuple(f"ppo_{kind}_{units}" for kind in ("lstm", "lnlstm") for units in (32, 64, 128))
"""The networks: LSTM or LSTM with layer normalization, and the number of its units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of all agents of a search. Raises WrongCall for a value that cannot be."""

    network: str = "ppo_lnlstm_128"
    """One of NETWORKS."""
    cliprange: float = 0.2
    """So far from 1 the ratio of new to old probability is followed; also the values of the critic."""
    ent_coef: float = 0.01
    """Weight of the entropy: how dear it is to try other things."""
    gamma: float = 1.0
    """Discount from one decision to the next."""
    lam: float = 0.95
    """Of generalized advantage estimation: 0 trusts the critic, 1 the rewards."""
    nminibatches: int = 1
    """Gradients of one pass over the episodes."""
    noptepochs: int = 10
    """Passes over the episodes of an update."""
    learning_rate: float = 3e-4
    """At the start; it falls linearly to 0 at the last evaluation."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Longer gradients are shortened to this length."""
    adam_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise WrongCall(f"network {self.network!r}: give one of {', '.join(NETWORKS)}")
        for name in ("gamma", "lam"):
            self._check_number(name, 0.0, 1.0)
        for name in ("ent_coef", "vf_coef"):
            self._check_number(name, 0.0)
        for name in ("cliprange", "learning_rate", "max_grad_norm", "adam_eps"):
            self._check_number(name, 0.0, above=True)
        for name in ("nminibatches", "noptepochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise WrongCall(f"{name} {value}: give a whole number, 1 or more")

    def _check_number(self, name: str, least: float, most: float = math.inf, *, above: bool = False) -> None:
        value = getattr(self, name)
        right = f"a number above {least:g}" if above else f"a number from {least:g}"
        right += f" to {most:g}" if most < math.inf else "" if above else " up"
        is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
        if not (math.isfinite(number) and least <= number <= most) or (above and number == least):
            raise WrongCall(f"{name} {value!r}: give {right}")

    @property
    def units(self) -> int:
        """Of each LSTM."""
        return int(self.network.rpartition("_")[2])

    @property
    def layer_norm(self) -> bool:
        """Whether the LSTM has layer normalization."""
        return self.network.startswith("ppo_lnlstm")

    @property
    def gradients(self) -> int:
        """How many gradients an update has, the same for every agent."""
        return self.noptepochs * self.nminibatches
