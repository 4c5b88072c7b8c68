"""PPO: the scale of rewards, updates, and the steps of the optimizer.

Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal policy optimization algorithms", 2017 (equation 7, and
9 with an entropy bonus); Schulman, Moritz, Levine, Jordan, Abbeel, "High-dimensional continuous control using
generalized advantage estimation", ICLR 2016. Clipped values, normalized advantages, Adam's epsilon, the decay
and the gradient's length are those of OpenAI's baselines (ppo2), which DeepHyper 0.1 had. Other than there
gradients go back through the whole episode, and rewards are normalized:

**Scale of rewards.** Objectives may be accuracies or errors of thousands, and the critic's part of the
gradient shares its length with the actor's. So a reward is taken less the median of those seen last, by their
spread (the quartiles' distance, that of a standard normal being 1), and no further from 0 than ``FARTHEST``.
Outliers, as failures of regressions are, do not take the others' differences away, as they would from a mean
and a deviation. Multiplying all objectives by a positive number, or adding one, changes nothing. (That scale
matters: van Hasselt and others, "Learning values across many orders of magnitude", 2016; Andrychowicz and
others, "What matters for on-policy deep actor-critic methods?", ICLR 2021.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from nas_hpc.errors import WrongCall
from nas_hpc.search.ppo.episodes import Episodes, Floats, Whole
from nas_hpc.search.ppo.objective import Losses, Update, advantages, loss_gradient
from nas_hpc.search.ppo.policy import Policy
from nas_hpc.search.ppo.settings import Settings

FARTHEST = 5.0
"""Normalized rewards are cut at it, up and down."""
KEPT = 10_000
"""So many rewards, the latest ones, say what is usual."""
_BETA_1, _BETA_2 = 0.9, 0.999
_QUARTILES = 1.3489795003921634
"""Their distance in a standard normal distribution."""


class Ppo:
    """One agent's copy of policy and optimizer.

    A step of a search:

        mine = ppo.sample(n, rng)                               # n episodes; then they are evaluated
        ppo.observe(rewards)                                    # of all agents, in the same order for all
        moments = ppo.moments(mine, rewards_of_mine)            # add those of all agents up
        update = ppo.begin(mine, rewards_of_mine, rng, moments)
        for number in range(len(update)):                       # as many for every agent
            gradient, weight, losses = ppo.gradient(update, number)
            ppo.apply(mean, done)                               # the mean by weight over all agents

    Copies with the same arguments that ``observe`` and ``apply`` the same stay the same, bit by bit, ``rng``
    and episodes being each agent's own; so a batch that is split among agents makes the same update as in one
    agent, up to rounding. Computes on one thread, whatever the number of BLAS's threads.
    """

    def __init__(self, choices: Sequence[int], settings: Settings, *, total: int, seed: int) -> None:
        """``choices``: the number of operations of each decision; ``total``: evaluations of all agents in the
        whole search, at which the learning rate is 0; ``seed``: of the first parameters, the same for all.

        Raises:
            WrongCall: a value out of range.
        """
        if not len(choices) or min(choices) < 1:
            raise WrongCall(f"choices {list(choices)}: give one or more, each 1 or more (operations)")
        if total < 1 or seed < 0:
            name, value, least = ("total", total, 1) if total < 1 else ("seed", seed, 0)
            raise WrongCall(f"{name} {value}: give {least} or more")
        self.settings = settings
        self.policy = Policy(choices, settings.units, settings.layer_norm)
        self._total = total
        # Products this small gain nothing by threads; threads that wait for each other on cores which
        # evaluations use were measured to take five times as much of them.
        self._libraries = ThreadpoolController()
        self._parameters = self.policy.initial(np.random.default_rng([seed, 0x99]))
        self._first = np.zeros_like(self._parameters)
        self._second = np.zeros_like(self._parameters)
        self._steps = 0
        self._rewards: NDArray[np.float64] = np.zeros(0)
        self._centre, self._spread = 0.0, 1.0

    @property
    def size(self) -> int:
        """The length of parameters and gradients."""
        return self.policy.size

    # -- episodes and rewards ------------------------------------------------------------------------
    def sample(self, n: int, rng: np.random.Generator) -> Episodes:
        """``n`` episodes, drawn by ``rng`` alone."""
        with self._libraries.limit(limits=1, user_api="blas"):
            return self.policy.sample(self._parameters, n, rng)

    def observe(self, rewards: Sequence[float] | Floats) -> None:
        """Rewards that all agents got, for their scale (see the module's text).

        Raises:
            WrongCall: one is not finite.
        """
        new = _finite(rewards)
        self._rewards = np.concatenate([self._rewards, new])[-KEPT:]
        self._measure()

    def _measure(self) -> None:
        self._centre, self._spread = 0.0, 1.0
        if len(self._rewards):
            low, middle, high = np.quantile(self._rewards, [0.25, 0.5, 0.75])
            self._centre = float(middle)
            self._spread = float(high - low) / _QUARTILES or float(self._rewards.std()) or 1.0

    def normalized(self, rewards: Sequence[float] | Floats) -> NDArray[np.float64]:
        """``rewards`` as the critic learns them (see the module's text)."""
        scaled = (_finite(rewards) - self._centre) / self._spread
        return np.clip(scaled, -FARTHEST, FARTHEST)

    def moments(self, episodes: Episodes, rewards: Sequence[float] | Floats) -> NDArray[np.float64]:
        """Of the advantages: number, sum, and sum of squares; those of several agents are added up."""
        advantages = self._advantages(episodes, rewards)
        return np.array([advantages.size, advantages.sum(), np.square(advantages).sum()])

    def _advantages(self, episodes: Episodes, rewards: Sequence[float] | Floats) -> NDArray[np.float64]:
        if len(rewards) != len(episodes):
            raise WrongCall(f"{len(rewards)} rewards for {len(episodes)} episodes: give one for each")
        return advantages(
            episodes.values, self.normalized(rewards), gamma=self.settings.gamma, lam=self.settings.lam
        )

    def begin(
        self,
        episodes: Episodes,
        rewards: Sequence[float] | Floats,
        rng: np.random.Generator,
        moments: NDArray[np.float64] | None = None,
    ) -> Update:
        """What is to be learned from this agent's ``episodes``, which may be none.

        ``rewards``: theirs; they were observed before. ``rng`` makes the minibatches. ``moments``: those of
        all agents, added up; None: this one's alone.

        Raises:
            WrongCall: a reward is not finite, or there are more or fewer rewards than episodes.
        """
        raw = self._advantages(episodes, rewards)
        number, total, squares = self.moments(episodes, rewards) if moments is None else moments
        mean = total / max(number, 1.0)
        deviation = np.sqrt(max(squares / max(number, 1.0) - mean * mean, 0.0))
        minibatches: list[Whole] = []
        for _ in range(self.settings.noptepochs):
            order = rng.permutation(len(episodes))
            minibatches += np.array_split(order, self.settings.nminibatches)
        return Update(
            episodes,
            ((raw - mean) / (deviation + 1e-8)).astype(np.float32),
            (raw + episodes.values).astype(np.float32),
            tuple(minibatches),
        )

    # -- learning ------------------------------------------------------------------------------------
    def gradient(self, update: Update, number: int) -> tuple[NDArray[np.float32], int, Losses]:
        """Of a minibatch at the present parameters: the gradient of its mean loss, the number of its episodes
        (its weight), and its losses. Without an episode all are 0."""
        with self._libraries.limit(limits=1, user_api="blas"):
            gradient, losses = loss_gradient(
                self.policy, self.settings, self._parameters, update, update.minibatches[number]
            )
        return gradient, len(update.minibatches[number]), losses

    def apply(self, gradient_mean: Floats, done: int) -> None:
        """A step of Adam (Kingma, Ba, ICLR 2015) along the agents' mean gradient, which is shortened to
        ``max_grad_norm``.

        ``done``: evaluations done before this update, on which the learning rate depends. If no agent had an
        episode in its minibatch there is nothing to apply.

        Raises:
            WrongCall: the gradient is not finite.
        """
        gradient = np.asarray(gradient_mean, dtype=np.float32)
        # Not by BLAS, whose sums differ from processor to processor: copies on different nodes stay the same.
        norm = float(np.sqrt(np.square(gradient, dtype=np.float64).sum()))
        if not np.isfinite(norm):
            raise WrongCall("a gradient is not finite: the agents' sum has an infinity or NaN in it")
        if norm > self.settings.max_grad_norm:
            gradient = gradient * np.float32(self.settings.max_grad_norm / norm)
        self._steps += 1
        rate = self.settings.learning_rate * max(1.0 - done / self._total, 0.0)
        rate *= float(np.sqrt(1.0 - _BETA_2**self._steps)) / (1.0 - _BETA_1**self._steps)
        self._first += np.float32(1.0 - _BETA_1) * (gradient - self._first)
        self._second += np.float32(1.0 - _BETA_2) * (np.square(gradient) - self._second)
        change = self._first / (np.sqrt(self._second) + np.float32(self.settings.adam_eps))
        self._parameters -= np.float32(rate) * change

    # -- state ---------------------------------------------------------------------------------------
    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that changes."""
        return {
            "parameters": self._parameters.copy(),
            "first": self._first.copy(),
            "second": self._second.copy(),
            "steps": np.array(self._steps, np.int64),
            "rewards": self._rewards.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where ``state`` was. Raises WrongCall: it is of another network or space, or none."""
        missing = sorted({"parameters", "first", "second", "steps", "rewards"} - state.keys())
        if missing:
            raise WrongCall(f"this state of PPO has no {', '.join(missing)}")
        for name in ("parameters", "first", "second"):
            if state[name].shape != (self.size,):
                raise WrongCall(
                    f"this state of PPO has {state[name].size} {name}, {self.settings.network} on these "
                    f"{len(self.policy.choices)} decisions has {self.size}: it is of another network or space"
                )
        self._parameters = np.array(state["parameters"], np.float32)
        self._first = np.array(state["first"], np.float32)
        self._second = np.array(state["second"], np.float32)
        self._steps = int(state["steps"])
        self._rewards = np.array(state["rewards"], np.float64)
        self._measure()

    def digest(self) -> str:
        """A hash (sha256, hexadecimal) of the state: the same if and only if all of it is."""
        made = hashlib.sha256()
        for name, part in sorted(self.state().items()):
            made.update(f"{name} {part.dtype.str} {part.shape} ".encode())
            made.update(part.tobytes())
        return made.hexdigest()


def _finite(rewards: Sequence[float] | Floats) -> NDArray[np.float64]:
    made = np.asarray(rewards, np.float64)
    if not np.isfinite(made).all():
        raise WrongCall("a reward is not finite: impute failures before they are learned from")
    return made
