"""How many evaluations end in a time. Pure functions on frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from nas_hpc.analytics.frames import Frames, finals
from nas_hpc.analytics.utilization import Array, measure

PARTS = 10


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of time; both from the first dispatch of an evaluation, in seconds."""

    from_s: float
    to_s: float
    n: int
    """Evaluations that ended in it."""

    @property
    def per_hour(self) -> float:
        """The rate."""
        return rate(self.n, self.to_s - self.from_s)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Evaluations that ran and are done, ok or failed, from the first dispatch to the last end."""

    workflow: str
    n: int
    elapsed_s: float
    parts: tuple[Part, ...]
    """Equal ones; none where no evaluation has run."""
    notes: tuple[str, ...]

    @property
    def per_hour(self) -> float:
        """The mean rate."""
        return rate(self.n, self.elapsed_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON objects."""
        parts = [{**asdict(part), "per_hour": part.per_hour} for part in self.parts]
        return {**asdict(self), "per_hour": self.per_hour, "parts": parts, "notes": list(self.notes)}


def rate(n: int, elapsed_s: float) -> float:
    """Per hour; 0 where no time has passed."""
    return 3600 * n / elapsed_s if elapsed_s > 0 else 0.0


def ends_s(last: pd.DataFrame) -> Array:
    """The ends of evaluations that ran and are done, ascending; ``last`` as ``frames.finals`` gives it."""
    done = last[last["status"].isin(["ok", "failed"]) & ~last["cached"]]
    return np.sort(done["end"].to_numpy(dtype=np.float64))


def throughput_of(frames: Frames, parts: int = PARTS) -> Throughput:
    """Count in ``parts`` equal parts of the time."""
    ends = ends_s(finals(frames.attempts))
    used = measure(frames.attempts, frames.launchers, frames.others)
    workflow = frames.location.workflow
    if used is None or not used.end > used.start:
        return Throughput(workflow, len(ends), 0.0, (), frames.notes)
    elapsed = ends - used.start
    length_s = used.end - used.start
    counts, edges = np.histogram(elapsed, bins=parts, range=(0.0, length_s))
    stretches = zip(edges[:-1], edges[1:], counts, strict=True)
    return Throughput(
        workflow,
        len(ends),
        length_s,
        tuple(Part(float(a), float(b), int(n)) for a, b, n in stretches),
        frames.notes,
    )
