"""Who evaluates how much, and what of it is back: the episodes of a search by agents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from nas_hpc.evaluator import EvaluationResult
from nas_hpc.search.ppo import Episodes
from nas_hpc.states import Outcome


def shares(workers: int, agents: int, *, every: bool) -> list[int]:
    """How many evaluations each agent has at once: the same for all, some workers remaining unused; with
    ``every`` none remains. Fewer workers than agents are shared, for each has one evaluation at least."""
    each, rest = divmod(max(workers, 0), agents)
    if not each:
        return [1] * agents
    return [each + (every and agent < rest) for agent in range(agents)]


def within(counts: Sequence[int], limit: int) -> list[int]:
    """``counts`` with a sum of at most ``limit``, as evenly as can be."""
    result = list(counts)
    while sum(result) > max(0, limit):
        most = max(result)
        last = len(result) - 1 - result[::-1].index(most)
        result[last] -= 1
    return result


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Of an episode in a search."""

    step: int
    agent: int
    number: int
    """In the agent's batch of this step, from 0."""


@dataclass(slots=True)
class Open:
    """An episode that was submitted, and from which nothing was learned yet."""

    place: Place
    id: int
    """Of its evaluation."""
    episode: Episodes
    """One."""
    done: bool = False
    objective: float | None = None
    dropped: bool = False
    """It ended without saying anything of the architecture."""

    def finish(self, result: EvaluationResult) -> None:
        """Its evaluation has ended."""
        self.done, self.objective = True, result.objective
        self.dropped = result.outcome is Outcome.KILLED

    @property
    def config(self) -> list[int]:
        """Its architecture."""
        return [int(action) for action in self.episode.actions[0]]


@dataclass(slots=True)
class Batches:
    """The open episodes of all agents. ``enough``: the part of its batch that an agent waits for."""

    enough: float = 1.0
    open: dict[int, Open] = field(default_factory=dict)
    """By the ids of their evaluations."""

    def add(self, several: Iterable[Open]) -> None:
        """Episodes that are submitted now."""
        self.open.update((one.id, one) for one in several)

    def take(self, results: Iterable[EvaluationResult]) -> None:
        """Evaluations have ended; those that are nobody's episodes are passed over."""
        for result in results:
            if result.id in self.open:
                self.open[result.id].finish(result)

    def waiting(self, agent: int) -> int:
        """How many of an agent's evaluations are not back."""
        return sum(not one.done and one.place.agent == agent for one in self.open.values())

    def ready(self, step: int, *, last: bool) -> bool:
        """Whether of each agent enough of step ``step`` is back; of the last step all, and all late ones."""
        if last:
            return all(one.done for one in self.open.values())
        counts: dict[int, list[int]] = {}
        for one in self.open.values():
            if one.place.step == step:
                count = counts.setdefault(one.place.agent, [0, 0])
                count[0] += 1
                count[1] += one.done
        return all(done >= self._needed(size) for size, done in counts.values())

    def _needed(self, size: int) -> int:
        return max(1, min(size, floor(self.enough * size + 1e-9)))

    def harvest(self) -> list[Open]:
        """What is back and says something, in the order of the places; it is open no more."""
        back = sorted((one for one in self.open.values() if one.done), key=lambda one: one.place)
        for one in back:
            del self.open[one.id]
        return [one for one in back if not one.dropped]


@dataclass(slots=True)
class Worst:
    """What a failure is taken to be worth: as little as the worst success so far. Before the first success
    nothing is known of that, and failures teach nothing."""

    objective: float | None = None

    def impute(self, several: Sequence[Open]) -> tuple[list[Open], list[float]]:
        """Those to learn from, and their rewards."""
        found = [one.objective for one in several if one.objective is not None]
        if self.objective is not None:
            found.append(self.objective)
        if not found:
            return [], []
        self.objective = min(found)
        return list(several), [self.objective if o.objective is None else o.objective for o in several]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An evaluation that an earlier attempt of the search asked for, beyond its checkpoint."""

    id: int
    arch_seq: list[int]


def by_place(
    records: Mapping[int, tuple[Mapping[str, object], Mapping[str, object]]],
) -> dict[Place, Recorded]:
    """Evaluations by their places; ``records``: (configuration, data) by id. Those without a place are
    left out."""
    found: dict[Place, Recorded] = {}
    for seq, (config, data) in sorted(records.items()):
        step, agent, first = data.get("step"), data.get("agent"), data.get("first")
        sequence = config.get("arch_seq")
        if (
            isinstance(step, int)
            and isinstance(agent, int)
            and isinstance(first, int)
            and isinstance(sequence, list)
        ):
            found.setdefault(Place(step, agent, seq - first), Recorded(seq, sequence))
    return found
