"""Utilization: how much of what launchers offered was used. Pure functions on arrays and frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from nas_hpc.states import Outcome

Array = npt.NDArray[np.float64]

DEFINITION = (
    "Utilization is busy over available evaluator-seconds, from the first dispatch of an evaluation to the "
    "last end. Available: the evaluator slots that launchers offered, added up over that time; none while no "
    "launcher was alive. Busy: the time in which attempts of every outcome ran, at each moment at most the "
    "slots on offer."
)
EXCESS_SHARE = 0.005
"""More attempts than slots for more than this share of the available time is worth a note."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A step function: ``values[i]`` from ``times[i]`` (ascending, s) to the next; 0 before the first."""

    times: Array
    values: Array

    @classmethod
    def of_changes(cls, times: Array, changes: Array) -> Steps:
        """The running sum of ``changes`` that happen at ``times``, in any order."""
        moments, which = np.unique(times, return_inverse=True)
        return cls(moments, np.cumsum(np.bincount(which, weights=changes, minlength=len(moments))))

    @classmethod
    def of_intervals(cls, starts: Array, ends: Array) -> Steps:
        """How many of the intervals [start, end) hold at each moment."""
        changes = np.concatenate([np.ones(len(starts)), -np.ones(len(ends))])
        return cls.of_changes(np.concatenate([starts, ends]), changes)

    @classmethod
    def constant(cls, value: float, start: float, end: float) -> Steps:
        """``value`` on [start, end), 0 elsewhere."""
        return cls.of_changes(np.array([start, end]), np.array([value, -value]))

    def at(self, times: Array) -> Array:
        """The values at ``times``."""
        index = np.searchsorted(self.times, times, side="right")
        return np.concatenate([[0.0], self.values])[index]

    def integral(self, start: float, end: float) -> float:
        """The integral over [start, end]; 0 for an empty window."""
        if not end > start:
            return 0.0
        inside = self.times[(self.times > start) & (self.times < end)]
        grid = np.concatenate([[start], inside, [end]])
        return float(np.dot(self.at(grid[:-1]), np.diff(grid)))

    def minimum(self, other: Steps) -> Steps:
        """The lesser of the two at each moment."""
        grid = np.union1d(self.times, other.times)
        return Steps(grid, np.minimum(self.at(grid), other.at(grid)))

    def binned(self, start: float, end: float, bins: int) -> Steps:
        """The mean over each of ``bins`` equal parts of [start, end]: what a plot can show."""
        edges = np.linspace(start, end, bins + 1)
        grid = np.union1d(edges, self.times[(self.times > start) & (self.times < end)])
        areas = np.concatenate([[0.0], np.cumsum(self.at(grid[:-1]) * np.diff(grid))])
        at_edges = areas[np.searchsorted(grid, edges)]
        return Steps(edges, np.concatenate([np.diff(at_edges) / np.diff(edges), [0.0]]))


@dataclass(frozen=True, slots=True)
class Utilization:
    """Busy and available evaluator-seconds from ``start`` to ``end`` (seconds since the epoch)."""

    start: float
    end: float
    busy_s: float
    available_s: float
    excess_s: float
    """Evaluator-seconds in which more attempts ran than there were slots; not counted as busy."""
    capacity_known: bool
    running: Steps
    capacity: Steps

    @property
    def share(self) -> float:
        """Busy over available, from 0 to 1."""
        return min(1.0, self.busy_s / self.available_s) if self.available_s > 0 else 0.0

    @property
    def notable_excess(self) -> bool:
        """Whether the excess is more than rounding and clocks explain."""
        return self.excess_s > EXCESS_SHARE * self.available_s


def capacity_steps(launchers: pd.DataFrame, attempts: pd.DataFrame) -> Steps:
    """Slots on offer over time. A launcher without an end was killed: it ends with its last sign of life.

    Signs of life are its own lines, and starts and ends of its attempts, except the end of a lost one, which
    another launcher found out.
    """
    ends = attempts["end"].where(attempts["outcome"] != Outcome.LOST.value)
    last_signs = pd.concat([attempts["start"], ends], axis=1).max(axis=1)
    last_sign = last_signs.groupby(attempts["launcher"]).max()
    times: list[Array] = []
    changes: list[Array] = []
    for launcher, rows in launchers.groupby("launcher", sort=False):
        moments = rows["time"].to_numpy(dtype=np.float64)
        slots = rows["slots"].to_numpy(dtype=np.float64)
        if slots[-1] > 0:
            ended = (rows["event"] == "end").any()
            sign_s = 0.0 if ended else float(np.nan_to_num(last_sign.get(launcher, 0.0)))
            moments, slots = np.append(moments, max(moments[-1], sign_s)), np.append(slots, 0.0)
        times.append(moments)
        changes.append(np.diff(slots, prepend=0.0))
    if not times:
        return Steps(np.empty(0), np.empty(0))
    return Steps.of_changes(np.concatenate(times), np.concatenate(changes))


def measure(
    attempts: pd.DataFrame, launchers: pd.DataFrame, others: pd.DataFrame | None = None
) -> Utilization | None:
    """The utilization by ``attempts``; None if none of them ran.

    ``others`` are attempts of other searches by the same launchers: signs of life, not counted as busy. Where
    the launchers' lines are missing, the greatest number of attempts at once stands for the slots.
    """
    ran = attempts[~attempts["cached"] & attempts["start"].notna()]
    if ran.empty:
        return None
    lost = ran["outcome"] == Outcome.LOST.value
    start = float(ran["start"].min())
    end = float(ran["end"][~lost].max()) if not lost.all() else float(ran["end"].max())
    running = _running(ran)
    capacity = capacity_steps(launchers, ran if others is None else pd.concat([ran, others]))
    available_s = capacity.integral(start, end)
    known = available_s > 0
    if not known:
        capacity = Steps.constant(float(running.values.max(initial=0.0)), start, end)
        available_s = capacity.integral(start, end)
    busy_s = running.minimum(capacity).integral(start, end)
    sure = _running(ran[~lost])
    excess_s = sure.integral(start, end) - sure.minimum(capacity).integral(start, end)
    return Utilization(start, end, busy_s, available_s, max(0.0, excess_s), known, running, capacity)


def _running(ran: pd.DataFrame) -> Steps:
    return Steps.of_intervals(ran["start"].to_numpy(dtype=np.float64), ran["end"].to_numpy(dtype=np.float64))
