"""From many models to few whose scores are spread well: those that add least are removed first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_hpc.analytics.proxy.curves import Array

LEAST = 2
"""So many are always kept."""
TO_THE_END = 101.0
"""A share of the training that is never reached: the last round is trained to its end."""
_FAR = 100.0
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a round's models, by index."""

    kept: tuple[int, ...]
    """In their order."""
    removed: tuple[int, ...]
    """Valid ones, in the order in which they were taken out."""
    invalid: tuple[int, ...]
    """Without a score, or without a latency where one is needed."""


def desired_pcts(start: int, final: int, remove: int) -> list[tuple[int, float]]:
    """The rounds that take ``start`` models to ``final``, ``remove`` at a time, if none fails: (models,
    percent of the training up to which they are trained), the last one to its end (101).

    Every round trains its K models a K-th of the whole further.
    """
    rounds, count, pct = [], start, 0.0
    while count > final:
        pct += 100.0 / count
        rounds.append((count, pct))
        count -= min(remove, count - final)
    return [*rounds, (count, TO_THE_END)]


def keep(accuracy: Array, latency: Array | None, remove: int, *, pin_extremes: bool = False) -> Kept:
    """Take ``remove`` models out of a round. ``accuracy`` and ``latency``, shape (n,), are not-a-number where
    a model has none; ``latency`` None: it does not matter.

    Models without a score go first and count among ``remove``; at least two valid ones stay. Zero is a score.
    """
    valid = np.isfinite(accuracy)
    if latency is not None:
        valid &= np.isfinite(latency)
    places = np.flatnonzero(valid)
    wanted = max(0, remove - (len(accuracy) - len(places)))
    wanted = max(0, min(wanted, len(places) - LEAST))
    gone = thin(
        accuracy[places], None if latency is None else latency[places], wanted, pin_extremes=pin_extremes
    )
    removed = tuple(int(places[one]) for one in gone)
    kept = tuple(int(place) for place in places if int(place) not in removed)
    return Kept(kept, removed, tuple(int(place) for place in np.flatnonzero(~valid)))


def thin(accuracy: Array, latency: Array | None, remove: int, *, pin_extremes: bool = False) -> list[int]:
    """The indices of ``remove`` points that add least to the spread, in the order in which they are taken
    out; fewer where two would be left. ``accuracy`` and ``latency`` have shape (n,), finite; both are scaled
    to [0, 1] once, so that their units do not matter.

    Each time the closest pair loses one: the first of the points with the smallest distance, or its
    neighbour, whichever is nearer to its second neighbour (ties: the neighbour). With two axes an extreme
    value may be taken out; ``pin_extremes`` keeps the least and the greatest of each axis.
    """
    if not len(accuracy):
        return []
    axes = [accuracy] if latency is None else [accuracy, latency]
    points = np.stack([(axis - axis.min()) / (np.ptp(axis) + _EPSILON) for axis in axes], axis=1)
    pinned = (
        {int(index) for axis in axes for index in (axis.argmin(), axis.argmax())} if pin_extremes else set()
    )
    left = list(range(len(points)))
    gone: list[int] = []
    while len(gone) < remove and len(left) > LEAST:
        candidate = _least_useful(points, left, pinned)
        if candidate is None:
            break
        left.remove(candidate)
        gone.append(candidate)
    return gone


def _least_useful(points: Array, left: Sequence[int], pinned: set[int]) -> int | None:
    nearest: dict[int, tuple[float, int, float]] = {}
    for i in left:
        first, neighbour, second = _FAR, -1, _FAR
        for j in left:
            if j == i:
                continue
            distance = float(np.sqrt(np.sum((points[i] - points[j]) ** 2)))
            if distance < first:
                first, neighbour, second = distance, j, first
            elif distance < second:
                second = distance
        nearest[i] = first, neighbour, second
    free = [i for i in left if i not in pinned]
    if not free:
        return None
    one = min(free, key=lambda i: nearest[i][0])
    other = nearest[one][1]
    return one if other in pinned or nearest[one][2] < nearest[other][2] else other


def described(scores: Array) -> dict[str, float]:
    """How ``scores``, shape (n,), one finite at least, lie: the least and the greatest, the widest gap, and
    how many groups there are, parted by gaps of more than a fifth of the whole range."""
    finite = np.sort(scores[np.isfinite(scores)])
    gaps = np.diff(finite)
    return {
        "least": float(finite[0]),
        "greatest": float(finite[-1]),
        "widest_gap": float(gaps.max()) if len(gaps) else 0.0,
        "groups": 1 + int((gaps > np.ptp(finite) / 5.0).sum()),
    }


def spread(scores: Array) -> str:
    """A warning in one line if ``scores``, shape (n,), cannot show a rank correlation well: all the same, or
    around two values only; empty if they are spread."""
    finite = np.sort(scores[np.isfinite(scores)])
    if len(finite) < 2 or not np.ptp(finite) > 0.0:
        return "the scores are all the same"
    gaps = np.diff(finite)
    widest = int(gaps.argmax())
    rest = (np.ptp(finite[: widest + 1]) + np.ptp(finite[widest + 1 :])) / np.ptp(finite)
    if len(finite) > LEAST + 1 and rest < 0.1 and 0 < widest < len(gaps) - 1:
        around = f"{np.median(finite[: widest + 1]):.4g} and {np.median(finite[widest + 1 :]):.4g}"
        return f"the scores lie around two values, {around}: a rank correlation says little"
    return ""
