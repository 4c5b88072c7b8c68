"""PPO as ``benchmarks.nas`` and tests run it: without a launcher, on objectives that cost nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from benchmarks.nas_spaces import SPACES
from nas_hpc.search.ppo import Episodes, Ppo, Settings

ENOUGH = 0.7
"""A mean objective from which on an agent has learned."""
LATEST = 100
"""Episodes of which it is the mean."""
Value = Callable[[Sequence[int]], float]


@dataclass(frozen=True, slots=True)
class World:
    """Decisions with an objective whose highest value is 1."""

    choices: tuple[int, ...]
    value: Value


def fixed_sequence(seed: int) -> World:
    """The sequence of DeepHyper's tests of PPO (baselines' FixedSequenceEnv): five decisions among ten
    operations, of which one each is right. The objective is the share of the right ones; it is known after
    the last decision, as that of an architecture, where the reference gave a reward after each."""
    right = np.random.default_rng([seed, 6]).integers(0, 9, size=5)
    return World((10,) * 5, lambda actions: float(np.mean(right == np.asarray(actions))))


def hidden(seed: int) -> World:
    """``benchmarks.nas_spaces.hidden``: random architectures have 0 in the mean."""
    known = SPACES["hidden"](seed)
    return World(tuple(known.space.choices), known.value)


WORLDS: dict[str, Callable[[int], World]] = {"fixed": fixed_sequence, "hidden": hidden}


@dataclass(frozen=True, slots=True)
class Learned:
    """How soon the mean of the last episodes reached ENOUGH; None: it did not."""

    evaluations: int | None
    """Of all agents."""
    updates: int
    mean: float
    """Of the last LATEST episodes, drawn by the policy while it learned."""
    digests: tuple[str, ...]
    """Of the agents' copies at the end."""


def learned(
    world: World, settings: Settings, *, seed: int, most: int, batch: int = 10, agents: int = 1
) -> Learned:
    """Let ``agents`` learn together, ``batch`` episodes each a step, until it is ENOUGH, or ``most``
    evaluations are done."""
    copies = [Ppo(world.choices, settings, total=most, seed=seed) for _ in range(agents)]
    rngs = [np.random.default_rng([seed, 7, agent]) for agent in range(agents)]
    objectives: list[float] = []
    updates, mean, reached = 0, -np.inf, None
    while reached is None and len(objectives) + agents * batch <= most:
        drawn = [copy.sample(batch, rng) for copy, rng in zip(copies, rngs, strict=True)]
        rewards = [[world.value(one) for one in mine.actions.tolist()] for mine in drawn]
        update(copies, rngs, drawn, rewards, len(objectives))
        objectives += [one for mine in rewards for one in mine]
        updates += 1
        mean = float(np.mean(objectives[-LATEST:]))
        if len(objectives) >= LATEST and mean >= ENOUGH:
            reached = len(objectives)
    return Learned(reached, updates, mean, tuple(copy.digest() for copy in copies))


def update(
    copies: Sequence[Ppo],
    rngs: Sequence[np.random.Generator],
    drawn: Sequence[Episodes],
    rewards: Sequence[Sequence[float]],
    done: int,
) -> None:
    """One update of all agents together, as they make it over MPI."""
    for copy in copies:
        copy.observe([one for mine in rewards for one in mine])
    several = list(zip(copies, drawn, rewards, rngs, strict=True))
    moments: Any = sum(copy.moments(mine, their) for copy, mine, their, _ in several)
    updates = [copy.begin(mine, their, rng, moments) for copy, mine, their, rng in several]
    for number in range(len(updates[0])):
        parts = [copy.gradient(one, number) for copy, one in zip(copies, updates, strict=True)]
        weight = sum(weight for _, weight, _ in parts)
        if weight:
            mean = sum(weight * gradient for gradient, weight, _ in parts) / np.float32(weight)
            for copy in copies:
                copy.apply(mean, done)


def searching(
    choices: Sequence[int], evaluations: int, seed: int, batch: int
) -> Generator[tuple[int, ...], float | None, list[float]]:
    """One search by one agent, which learns after each ``batch``: yields architectures to evaluate, takes
    objectives by ``send``.

    A failure counts as the worst objective so far. Returns the objectives, a failure's as NaN.
    """
    copies = [Ppo(choices, Settings(), total=evaluations, seed=seed)]
    rngs = [np.random.default_rng([seed, 8])]
    objectives: list[float] = []
    while len(objectives) < evaluations:
        done = len(objectives)
        drawn = copies[0].sample(min(batch, evaluations - done), rngs[0])
        for actions in drawn.actions.tolist():
            objective = yield tuple(actions)
            objectives.append(np.nan if objective is None else objective)
        rewards = np.array(objectives[done:])
        if not np.isnan(objectives).all():
            update(copies, rngs, [drawn], [np.nan_to_num(rewards, nan=float(np.nanmin(objectives)))], done)
    return objectives


def compared(seeds: int, most: int, network: str) -> dict[str, Any]:
    """Evaluations until the mean objective is ENOUGH, of one agent and of two, in both worlds."""
    figures: dict[str, Any] = {"network": network, "seeds": seeds, "episodes per agent and step": 10}
    for name, make in WORLDS.items():
        for agents in (1, 2):
            runs = [
                learned(make(seed), Settings(network=network), seed=seed, most=most, agents=agents)
                for seed in range(seeds)
            ]
            reached = [run.evaluations for run in runs if run.evaluations is not None]
            assert all(len(set(run.digests)) == 1 for run in runs)
            key = f"{name}, {agents} agent{'s' if agents > 1 else ''}"
            figures[f"{key}: reached {ENOUGH}"] = f"{len(reached)} of {seeds}"
            if reached:
                middle = float(np.median(reached))
                figures[f"{key}: evaluations, median"] = middle
                figures[f"{key}: decisions, median"] = middle * len(make(0).choices)
                figures[f"{key}: updates, median"] = float(np.median([run.updates for run in runs]))
    return figures


_IMPORT = "import time; t = time.process_time(); import nas_hpc.search.ppo; print(time.process_time() - t)"


def costs(network: str, *, episodes: int = 10, length: int = 30, operations: int = 13) -> dict[str, Any]:
    """What an agent's start and step cost in time of one processor, by one thread."""
    imports = [float(subprocess.check_output([sys.executable, "-c", _IMPORT])) for _ in range(5)]
    with threadpool_limits(1):
        times = [time.process_time()]
        ppo = Ppo((operations,) * length, Settings(network=network), total=10_000, seed=0)
        rng = np.random.default_rng(0)
        rewards = rng.normal(size=episodes)
        step = ppo.begin(ppo.sample(episodes, rng), rewards, rng)
        ppo.apply(ppo.gradient(step, 0)[0], 0)
        first_s = time.process_time() - times[0]
        taken: dict[str, list[float]] = {"sample": [], "gradient": [], "apply": []}
        for _ in range(50):
            times = [time.process_time()]
            ppo.sample(episodes, rng)
            times.append(time.process_time())
            gradient = ppo.gradient(step, 0)[0]
            times.append(time.process_time())
            ppo.apply(gradient, 0)
            times.append(time.process_time())
            for name, begun, ended in zip(taken, times, times[1:], strict=False):
                taken[name].append(ended - begun)
    return {
        "network": network,
        "episodes, decisions, operations": f"{episodes}, {length}, {operations}",
        "parameters": ppo.size,
        "import_cpu_s": median(imports),
        "first_step_cpu_s": first_s,
        **{f"{name}_cpu_ms": 1000 * median(several) for name, several in taken.items()},
        "memory_mb": psutil.Process().memory_info().rss / 1e6,
    }
