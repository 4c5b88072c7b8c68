"""PPO for searches of trials: one policy that is asked and told like any optimizer.

In searches by agents (``nas_hpc.apps.ppo``) each agent waits for its batch; here trials come back one by one,
and an update is made of every batch that is back. An episode keeps the probabilities with which it was drawn,
by which PPO takes a late one for what it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ConfigSpace import (
    CategoricalHyperparameter,
    Constant,
    OrdinalHyperparameter,
    UniformIntegerHyperparameter,
)

from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import canonical
from nas_hpc.search.ppo import Episodes, Ppo, Settings

if TYPE_CHECKING:
    from nas_hpc.problem import HpProblem

LARGEST_BATCH = 16
MOST_VALUES = 1000
"""Integers of a wider range are no choices that a policy could learn one by one."""
_ASKING, _LEARNING = 1, 2
"""Streams of random numbers."""


class PolicyOptimizer:
    """The methods are those of ``nas_hpc.search.base.Optimizer``; the order of the ``tell`` calls matters,
    and their place among the ``ask`` calls, as a batch that is told changes what is asked for next.

    A failure is worth as little as the worst success so far; before the first success it teaches nothing.
    """

    def __init__(self, problem: HpProblem, *, total: int, seed: int) -> None:
        """``total``: trials of the whole search. Raises WrongCall for a space that is not all choices."""
        self._names, self._values = _choices(problem)
        self._starting = problem.starting_point_asdict
        self._ppo = Ppo([len(values) for values in self._values], Settings(), total=total, seed=seed)
        self._seed = seed
        self._batch = max(2, min(LARGEST_BATCH, total // 5))
        self._asked = self._told = self._failed = 0
        self._open: dict[str, deque[Episodes]] = {}
        self._back: list[tuple[Episodes, float]] = []
        self._worst: float | None = None
        self._best: tuple[float, dict[str, Any]] | None = None

    def ask(self, n: int) -> list[dict[str, Any]]:
        configs = []
        for _ in range(n):
            if self._asked < len(self._starting):
                config = dict(self._starting[self._asked])
                episode = self._thought(self._actions(config))
            else:
                episode = self._drawn()
                config = self._config(episode)
            self._keep(config, episode)
            configs.append(config)
        return configs

    def remember(self, configs: Sequence[Mapping[str, Any]]) -> None:
        for config in configs:
            drawn = self._drawn()
            same = canonical(self._config(drawn)) == canonical(dict(config))
            self._keep(config, drawn if same else self._thought(self._actions(config)))

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        for config, objective in zip(configs, objectives, strict=True):
            waiting = self._open.get(canonical(dict(config)))
            episode = waiting.popleft() if waiting else self._thought(self._actions(config))
            self._take(config, episode, objective)

    @property
    def exhausted(self) -> bool:
        return False  # a policy that has settled asks for what it likes again

    @property
    def state(self) -> dict[str, Any]:
        best = self._best
        return {
            "asked": self._asked,
            "told": self._told,
            "failed": self._failed,
            "pending": self._asked - self._told,
            "best_objective": None if best is None else best[0],
            "best_config": None if best is None else best[1],
        }

    # -- episodes ----------------------------------------------------------------------------------
    def _drawn(self) -> Episodes:
        return self._ppo.sample(1, np.random.default_rng([self._seed, _ASKING, self._asked]))

    def _thought(self, actions: list[int]) -> Episodes:
        """What the policy thinks now of actions that it did not draw."""
        row = np.array([actions], np.int32)
        made = self._ppo.policy.forward(self._ppo.state()["parameters"], row)
        log_probs = np.take_along_axis(made.log_all[:, 0], row.T, axis=-1)[:, 0]
        return Episodes(row, log_probs[None].astype(np.float32), made.values.T.astype(np.float32))

    def _keep(self, config: Mapping[str, Any], episode: Episodes) -> None:
        self._open.setdefault(canonical(dict(config)), deque()).append(episode)
        self._asked += 1

    def _config(self, episode: Episodes) -> dict[str, Any]:
        pairs = zip(self._values, episode.actions[0], strict=True)
        return dict(zip(self._names, (values[int(action)] for values, action in pairs), strict=True))

    def _actions(self, config: Mapping[str, Any]) -> list[int]:
        try:
            pairs = zip(self._names, self._values, strict=True)
            return [values.index(config[name]) for name, values in pairs]
        except (KeyError, ValueError):
            raise WrongCall(f"the configuration {dict(config)} is none of this space") from None

    # -- learning ----------------------------------------------------------------------------------
    def _take(self, config: Mapping[str, Any], episode: Episodes, objective: float | None) -> None:
        self._told += 1
        if objective is None:
            self._failed += 1
            if self._worst is None:
                return
            objective = self._worst
        self._worst = objective if self._worst is None else min(self._worst, objective)
        if self._best is None or objective > self._best[0]:
            self._best = (objective, dict(config))
        self._back.append((episode, objective))
        if len(self._back) >= self._batch:
            self._learn()

    def _learn(self) -> None:
        episodes = Episodes.join([episode for episode, _ in self._back])
        rewards = [reward for _, reward in self._back]
        self._back.clear()
        self._ppo.observe(rewards)
        rng = np.random.default_rng([self._seed, _LEARNING, self._told])
        update = self._ppo.begin(episodes, rewards, rng)
        for number in range(len(update)):
            gradient, weight, _ = self._ppo.gradient(update, number)
            if weight:
                self._ppo.apply(gradient, self._told)


def _choices(problem: HpProblem) -> tuple[list[str], list[list[Any]]]:
    if problem.space.conditions or problem.space.forbidden_clauses:
        raise WrongCall(
            "PPO searches spaces in which every choice is always there, and this one has conditions or "
            "forbidden clauses: give another --algorithm, such as ambs"
        )
    names = problem.hyperparameter_names
    return names, [_values(name, problem.space[name]) for name in names]


def _values(name: str, item: Any) -> list[Any]:
    if isinstance(item, CategoricalHyperparameter):
        values = list(item.choices)
    elif isinstance(item, OrdinalHyperparameter):
        values = list(item.sequence)
    elif isinstance(item, Constant):
        values = [item.value]
    elif isinstance(item, UniformIntegerHyperparameter) and item.upper - item.lower < MOST_VALUES:
        values = list(range(int(item.lower), int(item.upper) + 1))
    else:
        raise WrongCall(
            f"PPO chooses among values, and {name!r} is a {type(item).__name__}: give a list of values, or "
            "another --algorithm, such as ambs"
        )
    from nas_hpc.plain import plain

    return [plain(value) for value in values]
