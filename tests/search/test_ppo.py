"""PPO: what is drawn, what is learned from it, and that copies stay the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from nas_hpc.errors import WrongCall
from nas_hpc.search.ppo import NETWORKS, Episodes, Ppo, Settings, Update
from nas_hpc.search.ppo.objective import advantages, clipped, clipped_values, loss_gradient
from nas_hpc.search.ppo.policy import Policy
from tests.support import examples

SMALL = Settings(network="ppo_lnlstm_32", noptepochs=2)
CHOICES = (3, 1, 5, 2)


def made(*, seed: int = 0, total: int = 1000, chosen: Settings = SMALL, noise: float = 0.0) -> Ppo:
    """An agent; with ``noise`` its parameters are far from the first ones."""
    ppo = Ppo(CHOICES, chosen, total=total, seed=seed)
    if noise:
        state = ppo.state()
        state["parameters"] += np.random.default_rng(seed).normal(0, noise, ppo.size).astype(np.float32)
        ppo.restore(state)
    return ppo


def some(ppo: Ppo, n: int = 6, seed: int = 1) -> tuple[Episodes, list[float]]:
    rng = np.random.default_rng(seed)
    return ppo.sample(n, rng), [float(one) for one in rng.normal(size=n)]


# -- settings ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"network": "lstm"}, "network 'lstm': give one of " + ", ".join(NETWORKS)),
        ({"cliprange": 0.0}, "cliprange 0.0: give a number above 0"),
        ({"cliprange": "0.2"}, "cliprange '0.2': give a number above 0"),
        ({"ent_coef": -1.0}, "ent_coef -1.0: give a number from 0 up"),
        ({"ent_coef": float("nan")}, "ent_coef nan: give a number from 0 up"),
        ({"gamma": 1.5}, "gamma 1.5: give a number from 0 to 1"),
        ({"lam": -0.1}, "lam -0.1: give a number from 0 to 1"),
        ({"nminibatches": 0}, "nminibatches 0: give a whole number, 1 or more"),
        ({"noptepochs": 2.5}, "noptepochs 2.5: give a whole number, 1 or more"),
        ({"learning_rate": float("inf")}, "learning_rate inf: give a number above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongCall) as error:
        Settings(**given_)
    assert str(error.value) == says


@pytest.mark.parametrize("network", NETWORKS)
def test_each_of_the_six_networks_has_its_units_and_normalization(network: str) -> None:
    ppo = Ppo(CHOICES, Settings(network=network), total=10, seed=0)
    assert ppo.policy.units in (32, 64, 128)
    assert network == f"ppo_{'lnlstm' if ppo.policy.layer_norm else 'lstm'}_{ppo.policy.units}"
    assert len(ppo.sample(2, np.random.default_rng(0))) == 2


@pytest.mark.parametrize(
    ("choices", "total", "seed", "says"),
    [((), 1, 0, "choices"), ((3, 0), 1, 0, "choices"), ((3,), 0, 0, "total 0"), ((3,), 1, -1, "seed -1")],
)
def test_an_agent_that_cannot_be_is_refused(
    choices: tuple[int, ...], total: int, seed: int, says: str
) -> None:
    with pytest.raises(WrongCall, match=says):
        Ppo(choices, SMALL, total=total, seed=seed)


# -- drawing -----------------------------------------------------------------------------------------------
@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(
    choices=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    layer_norm=st.booleans(),
    noise=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_only_operations_that_a_decision_has_are_drawn_and_their_probabilities_sum_to_1(
    choices: list[int], layer_norm: bool, noise: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    policy = Policy(choices, 4, layer_norm)
    flat = policy.initial(rng)
    flat += noise * rng.standard_normal(policy.size).astype(np.float32)
    drawn = policy.sample(flat, 50, rng)
    assert drawn.actions.shape == drawn.log_probs.shape == drawn.values.shape == (50, len(choices))
    assert (drawn.actions >= 0).all()
    assert (drawn.actions < np.array(choices)).all()
    probs = policy.forward(flat, drawn.actions).probs
    assert probs.shape[-1] == max(choices)
    assert np.allclose(probs.sum(axis=-1), 1.0, atol=1e-5)
    assert (probs[~np.broadcast_to(policy.legal[:, None], probs.shape)] == 0.0).all()
    at_actions = np.take_along_axis(probs, drawn.actions.T[..., None], axis=-1)[..., 0].T
    assert np.allclose(at_actions, np.exp(drawn.log_probs), atol=1e-4), "what was noted is what was drawn"


def test_operations_are_drawn_as_often_as_their_probabilities_say() -> None:
    ppo = made(noise=0.3)
    drawn = ppo.sample(4_000, np.random.default_rng(5))
    probs = ppo.policy.forward(ppo.state()["parameters"], drawn.actions[:1]).probs[0, 0]
    counts = np.bincount(drawn.actions[:, 0], minlength=len(probs))[: CHOICES[0]]
    expected = 4_000 * probs[: CHOICES[0]]
    assert probs[: CHOICES[0]].max() > 1.2 * probs[: CHOICES[0]].min()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_a_seed_draws_the_same_episodes_again_and_another_seed_others() -> None:
    one, again, other = (made().sample(50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one.actions == again.actions).all()
    assert (one.log_probs == again.log_probs).all()
    assert (one.actions != other.actions).any()


def test_parts_of_episodes_joined_are_the_episodes() -> None:
    drawn = made().sample(7, np.random.default_rng(3))
    joined = Episodes.join([drawn.take(slice(0, 2)), drawn.take([]), drawn.take([2, 3, 4, 5, 6])])
    for name in ("actions", "log_probs", "values"):
        assert (getattr(joined, name) == getattr(drawn, name)).all()
        assert getattr(joined, name).dtype == getattr(drawn, name).dtype


# -- formulas ----------------------------------------------------------------------------------------------
@settings(max_examples=examples(30), deadline=None, derandomize=True)
@given(length=st.integers(1, 6), gamma=st.floats(0, 1), lam=st.floats(0, 1), seed=st.integers(0, 999))
def test_advantages_are_the_discounted_sums_of_temporal_differences(
    length: int, gamma: float, lam: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values, rewards = rng.normal(size=(3, length)), rng.normal(size=3)
    found = advantages(values, rewards, gamma=gamma, lam=lam)
    for n in range(3):
        for t in range(length):
            total = 0.0
            for later in range(t, length):
                last = later == length - 1
                reached = rewards[n] if last else gamma * values[n, later + 1]
                total += (gamma * lam) ** (later - t) * (reached - values[n, later])
            assert found[n, t] == pytest.approx(total, abs=1e-9)


def test_the_clipped_objective_is_that_of_the_paper() -> None:
    """Good actions gain nothing above 1 + range, bad ones nothing below 1 - range; the rest counts."""
    ratio = np.array([1.0, 1.1, 1.5, 0.5, 1.5, 0.5])
    advantage = np.array([2.0, 2.0, 2.0, 2.0, -2.0, -2.0])
    loss, slope = clipped(ratio, advantage, 0.2)
    assert loss == pytest.approx([-2.0, -2.2, -2.4, -1.0, 3.0, 1.6])
    assert slope == pytest.approx([-2.0, -2.0, 0.0, -2.0, 2.0, 0.0])


def test_the_critics_loss_is_the_larger_of_that_with_and_without_the_clip() -> None:
    values, old = np.array([0.1, 0.5, 0.5, -0.5]), np.zeros(4)
    loss, slope = clipped_values(values, old, np.array([1.0, 1.0, 0.1, 1.0]), 0.2)
    assert loss == pytest.approx([0.405, 0.32, 0.08, 1.125])
    assert slope == pytest.approx([-0.9, 0.0, 0.4, -1.5])


@settings(max_examples=examples(12), deadline=None, derandomize=True)
@given(
    choices=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    layer_norm=st.booleans(),
    far=st.sampled_from([0.0, 0.02, 0.3]),
    n=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 999),
)
def test_gradients_are_the_slopes_of_the_loss_in_every_part_of_the_parameters(
    choices: list[int], layer_norm: bool, far: float, n: int, seed: int
) -> None:
    """Against central differences, in double precision; ``far`` from the policy that drew: clips act."""
    rng = np.random.default_rng(seed)
    policy = Policy(choices, 3, layer_norm)
    old = policy.initial(rng).astype(np.float64) + rng.normal(0, 0.3, policy.size)
    drawn = policy.sample(old, n, rng)
    flat = old + rng.normal(0, far, policy.size)
    chosen = Settings(ent_coef=0.3, vf_coef=0.7)
    shape = (n, len(choices))
    update = Update(
        drawn, rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32), ()
    )
    which = np.arange(n)

    def loss(at: np.ndarray[Any, Any]) -> float:
        parts = loss_gradient(policy, chosen, at, update, which)[1]
        return parts.policy - 0.3 * parts.entropy + 0.7 * parts.value

    gradient = loss_gradient(policy, chosen, flat, update, which)[0]
    for name, part in policy.views(np.arange(policy.size)).items():
        direction = np.zeros(policy.size)
        direction[part.ravel()] = rng.normal(size=part.size)
        step = 1e-6 * direction
        slope = (loss(flat + step) - loss(flat - step)) / 2e-6
        assert gradient @ direction == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_a_large_minibatch_has_the_mean_gradient_of_its_parts() -> None:
    """It is computed in several pieces."""
    ppo = made(noise=0.1)
    drawn, rewards = some(ppo, 300)
    update = ppo.begin(drawn, rewards, np.random.default_rng(0))
    flat = ppo.state()["parameters"].astype(np.float64)
    whole, losses = loss_gradient(ppo.policy, SMALL, flat, update, np.arange(300))
    thirds = [
        loss_gradient(ppo.policy, SMALL, flat, update, np.arange(start, start + 100))
        for start in (0, 100, 200)
    ]
    assert whole == pytest.approx(np.mean([one for one, _ in thirds], axis=0), abs=1e-9)
    assert losses.entropy == pytest.approx(np.mean([one.entropy for _, one in thirds]))


# -- rewards -----------------------------------------------------------------------------------------------
def test_the_scale_of_objectives_changes_nothing() -> None:
    updates = []
    for factor, shift in ((1.0, 0.0), (2000.0, -7e4), (1e-3, 1.0)):
        ppo = made()
        drawn, rewards = some(ppo)
        scaled = [factor * one + shift for one in rewards]
        ppo.observe(scaled)
        updates.append(ppo.begin(drawn, scaled, np.random.default_rng(0)))
    for other in updates[1:]:
        assert other.advantages == pytest.approx(updates[0].advantages, abs=1e-4)
        assert other.returns == pytest.approx(updates[0].returns, abs=1e-4)


def test_one_objective_that_is_far_off_leaves_the_differences_of_the_others() -> None:
    ppo, other = made(), made()
    usual = np.linspace(0.5, 0.9, 40)
    ppo.observe(usual)
    other.observe([*usual, -1e12])
    assert np.ptp(other.normalized(usual)) == pytest.approx(np.ptp(ppo.normalized(usual)), rel=0.1)
    assert other.normalized([-1e12, 1e12]) == pytest.approx([-5.0, 5.0])


@pytest.mark.parametrize("rewards", [[0.5] * 10, [0.0] * 9 + [1.0], [3.0]])
def test_objectives_that_are_mostly_equal_have_a_scale(rewards: list[float]) -> None:
    ppo = made()
    ppo.observe(rewards)
    normalized = ppo.normalized(rewards)
    assert np.isfinite(normalized).all()
    assert (normalized[np.array(rewards) == max(rewards)] == normalized.max()).all()
    assert (normalized.max() > normalized.min()) == (max(rewards) > min(rewards))


def test_what_is_no_number_is_refused_as_a_reward() -> None:
    ppo = made()
    drawn, rewards = some(ppo, 2)
    with pytest.raises(WrongCall, match="not finite"):
        ppo.observe([1.0, float("nan")])
    with pytest.raises(WrongCall, match="not finite"):
        ppo.begin(drawn, [float("-inf"), 1.0], np.random.default_rng(0))
    with pytest.raises(WrongCall, match="1 rewards for 2 episodes"):
        ppo.begin(drawn, rewards[:1], np.random.default_rng(0))


# -- updates -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [0, 1, 3, 8])
def test_an_update_has_as_many_gradients_whatever_the_number_of_episodes(n: int) -> None:
    ppo = made(chosen=replace(SMALL, nminibatches=4, noptepochs=3))
    drawn, rewards = some(ppo, n)
    ppo.observe(rewards)
    update = ppo.begin(drawn, rewards, np.random.default_rng(0))
    assert len(update) == 12
    for epoch in range(3):
        which = np.concatenate(update.minibatches[4 * epoch : 4 * epoch + 4])
        assert sorted(which) == list(range(n)), "each episode once in an epoch"
    for number, minibatch in enumerate(update.minibatches):
        gradient, weight, losses = ppo.gradient(update, number)
        assert gradient.dtype == np.float32
        assert weight == len(minibatch)
        assert gradient.any() == (weight > 0) == (losses.entropy > 0)


def test_advantages_are_normalized_over_all_agents() -> None:
    ppo = made()
    (one, rewards_1), (two, rewards_2) = some(ppo, 5, 1), some(ppo, 2, 2)
    ppo.observe([*rewards_1, *rewards_2])
    moments = ppo.moments(one, rewards_1) + ppo.moments(two, rewards_2)
    both = np.concatenate(
        [
            ppo.begin(drawn, rewards, np.random.default_rng(0), moments).advantages
            for drawn, rewards in ((one, rewards_1), (two, rewards_2))
        ]
    )
    assert both.mean() == pytest.approx(0.0, abs=1e-5)
    assert both.std() == pytest.approx(1.0, abs=1e-5)


def shared(agents: list[Ppo], batches: list[tuple[Episodes, list[float]]], done: int) -> None:
    """An update of all ``agents`` together, each with its own episodes."""
    for agent in agents:
        agent.observe([reward for _, rewards in batches for reward in rewards])
    pairs = list(zip(agents, batches, strict=True))
    moments = sum(agent.moments(*batch) for agent, batch in pairs)
    updates = [
        agent.begin(*batch, np.random.default_rng(place), moments)
        for place, (agent, batch) in enumerate(pairs)
    ]
    for number in range(len(updates[0])):
        parts = [agent.gradient(update, number) for agent, update in zip(agents, updates, strict=True)]
        total = sum(weight for _, weight, _ in parts)
        mean = sum(weight * gradient for gradient, weight, _ in parts) / total
        for agent in agents:
            agent.apply(mean, done)


def test_agents_with_episodes_of_their_own_stay_the_same_bit_by_bit() -> None:
    agents = [made(seed=4), made(seed=4), made(seed=4)]
    rngs = [np.random.default_rng(seed) for seed in (1, 2, 3)]
    seen = {agents[0].digest()}
    for step in range(4):
        batches = []
        for agent, rng, n in zip(agents, rngs, (4, 0 if step == 2 else 3, 5), strict=True):
            drawn = agent.sample(n, rng)
            batches.append((drawn, [float(one) for one in drawn.actions.sum(axis=1)]))
        shared(agents, batches, done=10 * step)
        assert len({agent.digest() for agent in agents}) == 1
        seen.add(agents[0].digest())
    assert len(seen) == 5, "and they learn"


def test_a_batch_that_is_split_among_agents_makes_the_update_of_one_agent() -> None:
    alone, together = made(), [made(), made()]
    drawn, rewards = some(alone, 8)
    shared([alone], [(drawn, rewards)], done=0)
    halves = [(drawn.take(slice(0, 5)), rewards[:5]), (drawn.take(slice(5, 8)), rewards[5:])]
    shared(together, halves, done=0)
    assert together[0].state()["parameters"] == pytest.approx(alone.state()["parameters"], abs=2e-5)


# -- steps of the optimizer ----------------------------------------------------------------------------------
def test_the_first_step_is_as_long_as_the_learning_rate_which_falls_to_0_at_the_last_evaluation() -> None:
    for done, expected in ((0, 3e-4), (250, 2.25e-4), (1000, 0.0), (1200, 0.0)):
        ppo = made()
        before = ppo.state()["parameters"]
        gradient = np.zeros(ppo.size, np.float32)
        gradient[7] = -0.4
        ppo.apply(gradient, done)
        moved = ppo.state()["parameters"] - before
        assert moved[7] == pytest.approx(expected, rel=0.01, abs=1e-7)
        assert np.count_nonzero(moved) == (expected > 0)


def test_a_long_gradient_is_shortened_a_short_one_is_not() -> None:
    direction = np.random.default_rng(0).normal(size=made().size).astype(np.float32)
    direction /= np.linalg.norm(direction)
    first = {}
    for length in (0.1, 0.5, 100.0):
        ppo = made()
        ppo.apply(length * direction, 0)
        first[length] = ppo.state()["first"]
    assert first[100.0] == pytest.approx(first[0.5], abs=1e-7)
    assert np.linalg.norm(first[0.1]) == pytest.approx(0.1 * 0.1, rel=1e-4)


def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    ppo = made()
    before = ppo.digest()
    with pytest.raises(WrongCall, match="not finite"):
        ppo.apply(np.full(ppo.size, np.nan, np.float32), 0)
    assert ppo.digest() == before


# -- state -------------------------------------------------------------------------------------------------
def test_an_agent_goes_on_where_its_state_was() -> None:
    ppo = made(seed=2)
    shared([ppo], [some(ppo)], done=0)
    kept = ppo.state()
    other = made(seed=9)
    other.restore(kept)
    assert other.digest() == ppo.digest()
    before = {name: part.copy() for name, part in kept.items()}
    for agent in (ppo, other):
        shared([agent], [some(agent, seed=7)], done=6)
    assert other.digest() == ppo.digest()
    assert all((kept[name] == part).all() for name, part in before.items()), "a state is a copy"


def test_a_state_of_another_network_or_space_is_refused_and_changes_nothing() -> None:
    ppo = made()
    before = ppo.digest()
    others = (Ppo((3, 3), SMALL, total=1, seed=0), made(chosen=Settings(network="ppo_lstm_32")))
    for state in (one.state() for one in others):
        with pytest.raises(WrongCall, match="another network or space"):
            ppo.restore(state)
    with pytest.raises(WrongCall, match="has no rewards, steps"):
        ppo.restore({name: part for name, part in made().state().items() if name not in ("steps", "rewards")})
    assert ppo.digest() == before


def test_every_part_of_the_state_is_in_the_digest() -> None:
    ppo = made()
    digests = {ppo.digest()}
    for name in ("parameters", "first", "second"):
        state = made().state()
        state[name][-1] = np.nextafter(state[name][-1], np.float32(1.0))
        ppo.restore(state)
        digests.add(ppo.digest())
    ppo.restore(made().state() | {"steps": np.array(1)})
    digests.add(ppo.digest())
    ppo.restore(made().state() | {"rewards": np.array([0.0])})
    digests.add(ppo.digest())
    assert len(digests) == 6


def test_an_agent_computes_on_one_thread_and_leaves_the_number_of_threads_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = ThreadpoolController().select(user_api="blas")
    ppo = made()
    forward, sample = ppo.policy.forward, ppo.policy.sample
    seen: list[int] = []

    def noted(real: Any) -> Any:
        def call(*given_: Any) -> Any:
            seen.extend(one["num_threads"] for one in libraries.info())
            return real(*given_)

        return call

    monkeypatch.setattr(ppo.policy, "sample", noted(sample))
    monkeypatch.setattr(ppo.policy, "forward", noted(forward))
    with libraries.limit(limits=3):
        drawn, rewards = some(ppo)
        ppo.gradient(ppo.begin(drawn, rewards, np.random.default_rng(0)), 0)
        assert {one["num_threads"] for one in libraries.info()} == {3}
    assert set(seen) == {1}
    assert len(seen) >= 2
