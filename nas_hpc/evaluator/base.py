"""What a search sees of an evaluator, whichever it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from nas_hpc.errors import WrongCall
from nas_hpc.plain import check_integers, plain
from nas_hpc.records import Json
from nas_hpc.states import Outcome
from nas_hpc.wire import Pending, Report, Shape

CacheKey = Literal["uuid", "to_dict"] | Callable[[Json], Any]
"""What makes two configurations the same: "uuid" nothing, "to_dict" the whole of it, or a function of it."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One finished evaluation.

    A failure is a value too: its ``objective`` is None, ``outcome`` and ``reason`` say why. Times are UTC
    seconds since the epoch; ``order`` grows in the order in which evaluations were finished.
    """

    id: int
    config: Json
    objective: float | None
    outcome: Outcome
    reason: str
    metadata: Json
    submitted: float
    start: float
    end: float
    attempt: int
    cached: bool
    data: Json
    order: int

    @property
    def ok(self) -> bool:
        """Whether there is an objective."""
        return self.objective is not None


class Evaluator(Protocol):
    """Runs configurations somewhere and gives their results, in the order in which they are finished."""

    @property
    def history(self) -> list[EvaluationResult]:
        """All finished evaluations, those of earlier attempts of the search included, in their order."""

    @property
    def pending(self) -> tuple[Pending, ...]:
        """What earlier attempts of the search had submitted and what was unfinished when this one began."""

    @property
    def in_flight(self) -> int:
        """How many are submitted and not finished."""

    @property
    def next_id(self) -> int:
        """The id that the next configuration will get."""

    @property
    def started(self) -> float:
        """When the search's first attempt began."""

    @property
    def revised(self) -> int:
        """How many results were replaced by later ones, after a person retried them: see ``history``."""

    def submit(
        self,
        configs: Sequence[Mapping[str, Any]],
        resources: Shape | None = None,
        *,
        data: Json | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[int]:
        """Have configurations evaluated; returns their ids, which ``ids`` may give by hand (new ones only).

        Does not wait: a refusal is raised by the next call.
        """

    def gather(
        self, n: int | Literal["all"], timeout_s: float | None = None, *, or_capacity: bool = False
    ) -> list[EvaluationResult]:
        """Wait until ``n`` ("all": all in flight) results are there and return all that are, each once.

        Fewer come when ``timeout_s`` has passed, when less than ``n`` is in flight, or, with ``or_capacity``,
        when the capacity has grown. ``gather(0)`` only looks.
        """

    def cancel(self, ids: Sequence[int]) -> None:
        """End evaluations, waiting or running; they come back as results with outcome "killed"."""

    def capacity(self) -> int:
        """How many evaluations can run at once, now."""

    def report(self, report: Report) -> None:
        """Show the search's progress to whoever watches."""

    def close(self) -> None:
        """Leave. What is in flight goes on; a later attempt of the search finds it."""


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as JSON's own types. Raises WrongCall if it is no dictionary of such."""
    if not isinstance(config, Mapping):
        raise WrongCall(f"the configuration {config!r} is a {type(config).__name__}: give a dictionary")
    result = plain(config)
    check_integers(result)
    return result  # type: ignore[no-any-return]


def canonical(config: Json) -> str:
    """One text for equal configurations: JSON with sorted keys."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def derived_seed(*parts: object) -> int:
    """A seed of 32 bits that depends on ``parts`` alone: the same on every machine and in every process."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
