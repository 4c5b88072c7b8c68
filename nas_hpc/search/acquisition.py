"""Acquisition functions for a maximised objective: larger is better."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from nas_hpc.search.space import Floats

NAMES = ("LCB", "EI")


def lower_confidence_bound(mean: Floats, std: Floats, kappa: float) -> Floats:
    """The field's LCB is on the minimised −objective: its negative is mean + kappa·std of the objective."""
    return np.asarray(mean + kappa * std)


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` under a normal distribution (Jones, Schonlau, Welch 1998)."""
    gain = mean - best
    z = gain / std
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    return np.asarray(gain * ndtr(z) + std * density)
