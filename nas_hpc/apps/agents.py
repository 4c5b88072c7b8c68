"""A search by agents that learn together: the loop of the first one.

Agents are the ranks of the search's MPI start. Each draws its own episodes, by random numbers of its own,
from the policy of which all have the same copy (``nas_hpc.apps.copies``). The first agent alone speaks with
the launcher: it has all episodes of a step evaluated, waits, and gives each agent its own with their
rewards; then all take the same steps of the optimizer by the mean of their gradients. Their copies are
compared at every step.

**Resume.** A checkpoint is written when the episodes of a step are drawn, before they are asked for: so a
search that was killed at any point has in it everything that was asked for, what was learned from, and what
was not, and it finds the results where the launcher has them. Without a checkpoint that can be read it draws
everything again, by the same random numbers, and takes what was recorded of a step at a place, if it is the
same architecture. Nothing that was evaluated is evaluated again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.apps import checkpoint
from nas_hpc.apps.architectures import ARCH_SEQ, to_config
from nas_hpc.apps.batches import Batches, Open, Place, Recorded, Worst, by_place, shares, within
from nas_hpc.apps.checkpoint import Checkpoint
from nas_hpc.apps.copies import Shared, learn, undivided
from nas_hpc.apps.exchange import Alone, Hub
from nas_hpc.apps.progress import LOG_S, Progress
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import EvaluationResult, Evaluator
from nas_hpc.search.ppo import Episodes, Losses

_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True)
class Division:
    """How the evaluators are divided among agents."""

    every: bool = False
    """None remains unused."""
    enough: float = 1.0
    """A step goes on when this part of each agent's batch is back."""


class Leader:
    """The first agent's loop. Without a ``hub`` it is the only one.

    ``directory``: of checkpoints; None: none are written.
    ``baselines``: configurations that are evaluated beside the first step, and from which nothing is learned.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        progress: Progress,
        shared: Shared,
        division: Division,
        *,
        group: Alone,
        hub: Hub | None,
        directory: Path | None,
        baselines: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._evaluator, self._progress = evaluator, progress
        self._shared, self._division = shared, division
        self._group, self._hub = group, hub
        self._directory = directory
        self._baselines = [to_config(point) for point in baselines]
        self._ppo = shared.make()
        self._batches = Batches(division.enough)
        self._worst = Worst()
        self._step = self._learned = 0
        self._drawn = False
        """Whether the episodes of this step are asked for."""
        self._recorded: dict[Place, Recorded] = {}
        self._sizes: dict[tuple[int, int], int] = {}
        """Of recorded batches, by step and agent."""
        self._logged = 0.0
        self._told: tuple[int, ...] = ()
        self._warned: set[str] = set()

    def run(self) -> None:
        """Search until ``max_evals`` evaluations are finished or the time is over.

        Raises WrongCall for what cannot be, before anything is submitted; WorkFailed if no evaluation gave an
        objective, results.csv could not be written, or the agents' copies are not the same. Interrupted and
        LauncherGone pass through, after everything known was written.
        """
        self._progress.run(self._restore, self._loop)

    def _loop(self) -> None:
        while not self._progress.over:
            if not self._drawn and (self._left() > 0 or self._recorded):
                self._draw()
            if not self._batches.open:
                break
            if not self._wait():
                return
            self._learn()
        while self._evaluator.in_flight and self._gather():
            pass
        self._sample([0] * self._group.size)  # the copies are compared once more
        self._save()

    # -- beginning ---------------------------------------------------------------------------------
    def _restore(self) -> None:
        saved = None if self._directory is None else checkpoint.read(self._directory)
        begun = bool(saved or self._evaluator.history or self._evaluator.pending)
        if not begun:
            self._check()
        self._progress.begin()
        if begun:
            self._resume(saved)
        if self._hub is not None:
            plain = asdict(self._shared) | {"settings": asdict(self._shared.settings)}
            for agent in range(1, self._group.size):
                self._hub.send(agent, "start", plain, self._ppo.state() if begun else {})
        if not begun and self._baselines:
            self._evaluator.submit(self._baselines, data={"baseline": True})

    def _check(self) -> None:
        """Raise WrongCall if this cannot be begun with these evaluators."""
        agents, workers = self._group.size, self._evaluator.capacity()
        if workers < agents:
            missing = agents - workers
            raise WrongCall(
                f"{_count(agents, 'agent')} and {_count(workers, 'evaluator')}: {_count(missing, 'agent')} "
                f"would get none; give the search fewer nodes, or the launcher {missing} more"
            )
        counts = self._environments()
        parts = self._shared.settings.nminibatches
        wrong = min(counts) < parts if self._division.every else bool(counts[0] % parts)
        if wrong:
            right = f"a divisor of {counts[0]}" if not self._division.every else f"{min(counts)} at most"
            raise WrongCall(
                f"--nminibatches {parts} does not divide an agent's batch of {min(counts)} evaluations: "
                f"give {right}"
            )
        least = sum(counts) + len(self._baselines)
        if self._progress.max_evals < least:
            beside = f" and {_count(len(self._baselines), 'baseline')}" if self._baselines else ""
            batch = f"{_count(agents, 'agent')} with {_count(counts[0], 'evaluation')} each{beside}"
            raise WrongCall(
                f"--max-evals {self._progress.max_evals} is less than one batch of all agents ({batch}): "
                f"give {least} or more"
            )

    def _resume(self, saved: Checkpoint | None) -> None:
        """Take up what was recorded, from the checkpoint on."""
        history = {result.id: result for result in self._evaluator.history}
        records = {seq: (dict(one.config), dict(one.data)) for seq, one in history.items()}
        records |= {one.seq: (dict(one.config), dict(one.data)) for one in self._evaluator.pending}
        self._progress.resume()
        known = 0
        if saved is None:
            _log.info("there is no checkpoint: learning anew from what was recorded")
        else:
            known = saved.known
            self._take_up(saved, history, records)
        later = {seq: record for seq, record in records.items() if seq > known}
        self._recorded = by_place(later)
        for place, one in self._recorded.items():
            size = later[one.id][1].get("of")
            if isinstance(size, int):
                self._sizes[place.step, place.agent] = size

    def _take_up(
        self,
        saved: Checkpoint,
        history: Mapping[int, EvaluationResult],
        records: Mapping[int, tuple[dict[str, Any], dict[str, Any]]],
    ) -> None:
        try:
            self._ppo.restore(saved.policy)
        except WrongCall as error:
            raise WrongCall(f"this search's checkpoint does not fit it: {error}") from error
        self._step, self._learned, self._worst.objective = saved.step, saved.learned, saved.worst
        missing = []
        for one in saved.open:
            place = one.place
            if place.agent >= self._group.size:  # there are fewer now
                one.place = Place(place.step, place.agent % self._group.size, place.number)
            if one.id not in records:
                missing.append(one)
            elif records[one.id][0].get(ARCH_SEQ) == one.config:
                self._batches.add([one])
        self._batches.take(history.values())
        missing = missing[: max(0, self._left())]
        self._batches.add(missing)
        self._drawn = any(one.place.step == self._step for one in self._batches.open.values())
        self._submit(missing)
        _log.info("going on from the checkpoint of step %d, %d episodes learned", self._step, self._learned)

    # -- drawing -----------------------------------------------------------------------------------
    def _left(self) -> int:
        """How many evaluations may still be asked for."""
        return self._progress.max_evals - len(self._progress.finished) - self._evaluator.in_flight

    def _environments(self) -> list[int]:
        """How many evaluations each agent may have at once; told when that changes."""
        agents, workers = self._group.size, self._evaluator.capacity()
        counts = shares(workers, agents, every=self._division.every)
        told = (workers, *counts)
        if told != self._told:
            self._told = told
            rest = max(0, workers - sum(counts))
            each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[-1]} or {counts[0]}"
            hint = " (--use-all-workers shares them out)" if rest else ""
            both = f"{_count(agents, 'agent')}, {_count(workers, 'evaluator')}"
            _log.info("%s: %s each, %d unused%s", both, each, rest, hint)
        return counts

    def _counts(self) -> list[int]:
        """How many episodes each agent is to draw: as many as were recorded, else as it has free
        evaluators."""
        agents = range(self._group.size)
        recorded = [self._sizes.get((self._step, agent), 0) for agent in agents]
        if any(recorded):
            return recorded
        wanted = [max(1, count - self._batches.waiting(a)) for a, count in enumerate(self._environments())]
        return within(wanted, self._left())

    def _draw(self) -> None:
        """Draw the episodes of this step, have it on the disk, and have them evaluated."""
        left, following = self._left(), self._evaluator.next_id
        fresh: list[Open] = []
        known: list[Open] = []
        for agent, episodes in enumerate(self._sample(self._counts())):
            for number in range(len(episodes)):
                one = Open(Place(self._step, agent, number), following, episodes.take([number]))
                recorded = self._recorded.pop(one.place, None)
                if recorded is not None and recorded.arch_seq == one.config:
                    one.id = recorded.id
                    known.append(one)
                elif len(fresh) < left:
                    fresh.append(one)
                    following += 1
                if recorded is not None and recorded.arch_seq != one.config:
                    self._warn(
                        "some recorded evaluations are of other architectures than these settings and this "
                        "machine draw: they are kept, and nothing is learned from them"
                    )
        self._batches.add([*known, *fresh])
        if known:
            self._batches.take(self._evaluator.history)
        self._save(following - 1)
        self._submit(fresh)
        self._drawn = True

    def _sample(self, counts: Sequence[int]) -> list[Episodes]:
        """Episodes drawn by all agents. Raises WorkFailed if their copies are not the same."""
        if self._hub is not None:
            for agent, count in enumerate(counts):
                if agent:
                    self._hub.send(agent, "sample", {"step": self._step, "count": count}, {})
        drawn = [self._ppo.sample(counts[0], self._shared.random(0, self._step))]
        if self._hub is None:
            return drawn
        digest = self._ppo.digest()
        for agent, said in sorted(self._hub.gather().items()):
            if said.plain["digest"] != digest:
                raise WorkFailed(
                    f"agent {agent} has another policy than the first one at step {self._step}: their copies "
                    "have to be the same, bit by bit; start the search again, which goes on from its "
                    "checkpoint"
                )
            drawn.append(Episodes(said.arrays["actions"], said.arrays["log_probs"], said.arrays["values"]))
        return drawn

    def _submit(self, several: Sequence[Open]) -> None:
        for (step, agent, first), group in groupby(
            several, lambda one: (one.place.step, one.place.agent, one.id - one.place.number)
        ):
            part = list(group)
            data = {"step": step, "agent": agent, "first": first, "of": self._size_of(step, agent)}
            configs = [{ARCH_SEQ: one.config} for one in part]
            self._evaluator.submit(configs, data=data, ids=[one.id for one in part])

    def _size_of(self, step: int, agent: int) -> int:
        places = (one.place for one in self._batches.open.values())
        return sum(place.step == step and place.agent == agent for place in places)

    def _save(self, known: int | None = None) -> None:
        if self._directory is None:
            return
        state = Checkpoint(
            step=self._step,
            learned=self._learned,
            worst=self._worst.objective,
            known=self._evaluator.next_id - 1 if known is None else known,
            policy=self._ppo.state(),
            open=tuple(self._batches.open.values()),
        )
        try:
            checkpoint.write(self._directory, state)
        except OSError as error:
            self._warn(f"{checkpoint.NAME} cannot be written: {error.strerror}; trying again at every step")

    # -- waiting and learning ----------------------------------------------------------------------
    def _wait(self) -> bool:
        """Wait until enough is back; False: the time is over."""
        later = any(place.step > self._step for place in self._recorded)
        last = self._left() <= 0 and not later
        while not self._batches.ready(self._step, last=last):
            if not self._evaluator.in_flight:  # nothing can come any more
                self._batches.take(self._evaluator.history)
                for one in self._batches.open.values():
                    one.dropped, one.done = one.dropped or not one.done, True
            elif not self._gather():
                return False
        return True

    def _gather(self) -> bool:
        """Wait for something; False: the time is over, and what ran was ended."""
        results = self._evaluator.gather(1, self._progress.patience_s())
        self._batches.take(results)
        self._progress.collect(results)
        if self._progress.over:
            self._progress.cancel_all()
            return False
        return True

    def _learn(self) -> None:
        """All agents learn from what is back."""
        back, rewards = self._worst.impute(self._batches.harvest())
        step, agents = self._step, self._group.size
        if back:
            everyones = np.array(rewards, np.float64)
            of_agent = np.array([one.place.agent for one in back])
            nothing = self._ppo.sample(0, self._shared.random(0, step))
            joined = Episodes.join([nothing, *(one.episode for one in back)])
            parts = [np.flatnonzero(of_agent == agent) for agent in range(agents)]
            with undivided(self._group):
                for agent in range(1, agents):
                    assert self._hub is not None
                    mine = joined.take(parts[agent])
                    arrays = {name: getattr(mine, name) for name in Episodes.__slots__}
                    arrays |= {"rewards": everyones[parts[agent]], "everyones": everyones}
                    self._hub.send(agent, "learn", {"step": step, "learned": self._learned}, arrays)
                losses = learn(
                    self._ppo, self._group, joined.take(parts[0]), everyones[parts[0]], everyones,
                    self._shared.random(0, step, learning=True), self._learned,
                )  # fmt: skip
                self._learned += len(back)
                self._step, self._drawn = step + 1, False
            self._log_step(step, everyones, losses)
        self._step, self._drawn = step + 1, False

    def _log_step(self, step: int, rewards: NDArray[np.float64], losses: Losses) -> None:
        if time.monotonic() - self._logged >= LOG_S:
            self._logged = time.monotonic()
            mean, count = float(rewards.mean()), len(rewards)
            _log.info("step %d: %d episodes, mean %.6g, entropy %.4g", step, count, mean, losses.entropy)

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            _log.warning("%s", line)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
