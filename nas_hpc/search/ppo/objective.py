"""What PPO learns from: generalized advantages, and the clipped objective with its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_hpc.search.ppo.episodes import Episodes, Floats, Whole
from nas_hpc.search.ppo.policy import Policy
from nas_hpc.search.ppo.settings import Settings

_CHUNK = 128
"""Episodes of a gradient that are computed at once: bounds the memory, whatever the batch."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Of a minibatch, for people and logs: means over its decisions."""

    policy: float
    value: float
    entropy: float
    approx_kl: float
    clipped: float
    """Share of the decisions whose ratio was beyond the clip range."""


@dataclass(frozen=True, slots=True)
class Update:
    """Episodes with what is to be learned from them, in minibatches; all arrays (n, T)."""

    episodes: Episodes
    advantages: NDArray[np.float32]
    """Normalized."""
    returns: NDArray[np.float32]
    minibatches: tuple[Whole, ...]
    """Which episodes are in each: ``Settings.gradients`` of them, some empty if there are few episodes."""

    def __len__(self) -> int:
        return len(self.minibatches)


def loss_gradient(
    policy: Policy, settings: Settings, flat: Floats, update: Update, which: Whole
) -> tuple[Floats, Losses]:
    """The gradient (P,) of the mean loss of the episodes ``which``, and the loss's parts, at the parameters
    ``flat``.

    The loss is ``policy - ent_coef * entropy + vf_coef * value``. Without an episode all are 0.
    """
    gradient, sums = np.zeros_like(flat), np.zeros(5)
    for start in range(0, len(which), _CHUNK):
        part = which[start : start + _CHUNK]
        share = len(part) / len(which)
        one, losses = _gradient(policy, settings, flat, update, part)
        gradient += share * one
        sums += share * losses
    return gradient, Losses(*(float(one) for one in sums))


def _gradient(
    policy: Policy, settings: Settings, flat: Floats, update: Update, which: Whole
) -> tuple[Floats, NDArray[np.float64]]:
    episodes = update.episodes.take(which)
    made = policy.forward(flat, episodes.actions)
    count = float(made.values.size)
    actions, old = episodes.actions.T[..., None], episodes.log_probs.T  # (T, n) as all below
    log_probs = np.take_along_axis(made.log_all, actions, axis=-1)[..., 0]
    ratio = np.exp(log_probs - old)
    loss, slope = clipped(ratio, update.advantages[which].T, settings.cliprange)
    entropy = -(made.probs * made.log_all).sum(axis=-1)
    by_log_prob = (slope * ratio)[..., None]
    d_logits = -by_log_prob * made.probs
    np.put_along_axis(d_logits, actions, np.take_along_axis(d_logits, actions, -1) + by_log_prob, -1)
    d_logits += settings.ent_coef * made.probs * (made.log_all + entropy[..., None])
    value_loss, d_values = clipped_values(
        made.values, episodes.values.T, update.returns[which].T, settings.cliprange
    )
    gradient = policy.backward(flat, made, d_logits / count, d_values * (settings.vf_coef / count))
    losses = [
        loss.mean(),
        value_loss.mean(),
        entropy.mean(),
        0.5 * np.square(log_probs - old).mean(),
        (np.abs(ratio - 1.0) > settings.cliprange).mean(),
    ]
    return gradient, np.array(losses, np.float64)


def advantages(values: Floats, rewards: Floats, *, gamma: float, lam: float) -> NDArray[np.float64]:
    """Generalized advantage estimates (n, T) of the critic's ``values`` (n, T) and of ``rewards`` (n,), which
    come after the last decision: sums of later temporal differences, discounted by ``gamma * lam``."""
    expected = np.asarray(values, np.float64)
    made = np.zeros_like(expected)
    later = np.zeros(len(expected))
    after: Floats | None = None
    for t in reversed(range(expected.shape[1])):
        reached = np.asarray(rewards, np.float64) if after is None else gamma * after
        later = reached - expected[:, t] + gamma * lam * later
        made[:, t] = later
        after = expected[:, t]
    return made


def clipped(ratio: Floats, advantage: Floats, cliprange: float) -> tuple[Floats, Floats]:
    """The actor's losses, max(-A r, -A clip(r)) (to be minimised), and their slopes by the ratio r."""
    plain = -advantage * ratio
    cut = -advantage * np.clip(ratio, 1.0 - cliprange, 1.0 + cliprange)
    return np.maximum(plain, cut), np.where(plain >= cut, -advantage, 0.0).astype(ratio.dtype)


def clipped_values(values: Floats, old: Floats, returns: Floats, cliprange: float) -> tuple[Floats, Floats]:
    """The critic's losses, half the larger of the squared errors with and without the clip around the ``old``
    values, and their slopes by ``values``."""
    error = values - returns
    cut = old + np.clip(values - old, -cliprange, cliprange) - returns
    larger = np.square(error) >= np.square(cut)
    loss = 0.5 * np.maximum(np.square(error), np.square(cut))
    return loss, np.where(larger, error, 0.0).astype(values.dtype)
