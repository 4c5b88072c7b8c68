"""How fast MPI programs may be started, and how many at a time. Pure: the time is passed in.

Schedulers answer a limited number of starts per second (srun: about 150), and some machines allow a limited
number of MPI programs at a time (ALPS on Theta: 1000).
"""

from __future__ import annotations

from dataclasses import dataclass

APRUN_AT_ONCE = 1000


@dataclass(slots=True)
class Pacer:
    """A bucket of starts that fills with ``per_s`` a second, up to those of one second, and a cap.

    ``per_s`` and ``at_once`` of 0 mean no limit.
    """

    per_s: float = 0.0
    at_once: int = 0
    running: int = 0
    _left: float = -1.0
    """Starts in the bucket; negative before the first."""
    _at: float = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until something may be started; infinite: not before something ends."""
        if self.at_once and self.running >= self.at_once:
            return float("inf")
        if not self.per_s:
            return 0.0
        left = self._bucket(now)
        return 0.0 if left >= 1 else (1 - left) / self.per_s

    def started(self, now: float) -> None:
        """Something is started ``now``."""
        self.running += 1
        if self.per_s:
            self._left, self._at = self._bucket(now) - 1, now

    def ended(self) -> None:
        """Something that was started has ended, or was not started after all."""
        self.running -= 1

    def _bucket(self, now: float) -> float:
        full = max(1.0, self.per_s)
        if self._left < 0 and self._at == 0.0:
            return full
        return min(full, self._left + (now - self._at) * self.per_s + 1e-9)
