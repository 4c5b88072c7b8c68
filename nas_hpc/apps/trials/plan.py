"""What trials cost, from numbers alone: batches, hours, node-hours. Pure.

The tools for proxy tasks: variance trains 5 copies; selection begins with 30 models and drops 5 after each
round until 10 are left, which are then trained to the end. A round trains each of its K models by 1/K more
of a training: so it costs one full training, and the last round what is left for 10 models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COPIES = 5
TRIES, TRY_PART = 10, 0.01
"""Models that are tried for the variance, each for so much of a training."""
ROUNDS = (30, 25, 20, 15)
"""Models in the rounds of a selection, before the last one."""
FINAL = 10


@dataclass(frozen=True, slots=True)
class Machine:
    """What trials have to run on."""

    parallel: int
    """Trials at once."""
    nodes_per_trial: int = 1
    trials_per_node: int = 1

    def nodes(self, trials: int) -> float:
        """Nodes that so many trials at once occupy."""
        if self.nodes_per_trial > 1:
            return trials * self.nodes_per_trial
        return math.ceil(trials / self.trials_per_node)


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of a plan."""

    name: str
    trials: int
    parallel: int
    batches: int
    hours: float
    node_hours: float
    said: str = ""


def stage(
    machine: Machine, name: str, trials: int, hours: float, *, parallel: int = 0, said: str = ""
) -> Stage:
    """``trials`` trainings of ``hours`` each, refilled as they finish."""
    at_once = min(parallel or machine.parallel, trials)
    batches = math.ceil(trials / at_once)
    node_hours = _node_hours(machine, trials, hours)
    return Stage(name, trials, at_once, batches, _round(batches * hours), node_hours, said)


def selection(machine: Machine, full_hours: float) -> Stage:
    """Choosing 10 models of 30 for a correlation: about 12 full trainings."""
    rounds = [(count, full_hours / count) for count in ROUNDS]
    left = full_hours * (1 - sum(1 / count for count in ROUNDS))
    rounds.append((FINAL, left))
    hours = sum(math.ceil(count / min(machine.parallel, count)) * each for count, each in rounds)
    trainings = sum(count * each for count, each in rounds) / full_hours
    said = f"{trainings:.1f} full trainings: {', '.join(map(str, (*ROUNDS, FINAL)))} models"
    at_once = min(machine.parallel, ROUNDS[0])
    cost = sum(_node_hours(machine, count, each) for count, each in rounds)
    return Stage(
        "select-proxy-task-models", ROUNDS[0], at_once, len(rounds), _round(hours), _round(cost), said
    )


def stages(
    machine: Machine,
    *,
    trials: int,
    hours: float,
    full_hours: float | None = None,
    train_frequency: int | None = None,
    train_parallel: int = 1,
    proxy_tasks: int = 4,
    proxy_hours: float = 0.0,
) -> list[Stage]:
    """A whole plan: the search, its full trainings, and, with ``full_hours``, the tools before it."""
    made = []
    if full_hours is not None:
        said = f"and up to {TRIES} tries of {TRY_PART:.0%} of a training"
        made.append(stage(machine, "measure-proxy-task-variance", COPIES, full_hours, said=said))
        made.append(selection(machine, full_hours))
        most = f"{proxy_tasks} tasks of {FINAL} models, one after the other, at most"
        one = stage(machine, "search-proxy-task", FINAL, proxy_hours)
        made.append(
            Stage(one.name, FINAL * proxy_tasks, one.parallel, one.batches * proxy_tasks,
                  _round(one.hours * proxy_tasks), _round(one.node_hours * proxy_tasks), most)
        )  # fmt: skip
    made.append(stage(machine, "search", trials, hours))
    count = (trials // train_frequency) * train_parallel if train_frequency else 0
    if count:
        each = full_hours if full_hours is not None else hours
        said = "beside the search"
        made.append(stage(machine, "train", count, each, parallel=train_parallel, said=said))
    return made


def _node_hours(machine: Machine, trials: int, hours: float) -> float:
    if machine.nodes_per_trial > 1:
        return _round(trials * machine.nodes_per_trial * hours)
    return _round(trials * hours / machine.trials_per_node)


def _round(value: float) -> float:
    return round(value, 3)
