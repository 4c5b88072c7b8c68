"""The forest optimizer: its settings, lies and failures, and its quality."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.functions import mixed_problem, mixed_run
from nas_hpc.errors import WrongCall
from nas_hpc.problems.hps import polynome2
from nas_hpc.search import ForestOptimizer, RandomSampler
from nas_hpc.search.acquisition import expected_improvement, lower_confidence_bound
from nas_hpc.search.forest import normal_scores
from nas_hpc.search.history import FAILED, PENDING, SUCCEEDED, Points
from nas_hpc.search.space import SpaceCodec
from nas_hpc.search.surrogate import Forest, Predictions, split_features
from tests.search.spaces import mixed, objective
from tests.support import examples


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"surrogate": "GP"}, "surrogate model 'GP' comes later; have: RF, ET, DUMMY"),
        ({"surrogate": "GBRT"}, "'GBRT' comes later; have: RF, ET, DUMMY"),
        ({"surrogate": "rf"}, "unknown surrogate model 'rf'; have: RF, ET, DUMMY"),
        ({"acq_func": "PI"}, "acquisition function 'PI' comes later; have: LCB, EI"),
        ({"acq_func": "gp_hedge"}, "'gp_hedge' comes later; have: LCB, EI"),
        ({"acq_func": "UCB"}, "unknown acquisition function 'UCB'"),
        ({"liar_strategy": "cl_median"}, "unknown liar strategy 'cl_median'; have: cl_max, cl_mean, cl_min"),
        ({"acq_kappa": -1.0}, "acq_kappa -1.0"),
        ({"acq_kappa": float("nan")}, "acq_kappa nan"),
        ({"n_initial": 0}, "n_initial 0"),
        ({"n_jobs": 0}, "n_jobs 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_setting_that_is_not_there_is_refused_by_name(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongCall, match=says):
        ForestOptimizer(mixed(), **settings_)


@given(
    st.lists(st.one_of(st.none(), st.just("pending"), st.floats(-1e300, 1e300)), min_size=1, max_size=40),
)
def test_a_failure_scores_below_every_success_and_order_is_kept(results: list[Any]) -> None:
    status = [FAILED if r is None else PENDING if r == "pending" else SUCCEEDED for r in results]
    values = np.array([r if isinstance(r, float) else np.nan for r in results])
    scores = normal_scores(Points(np.zeros((len(results), 1)), np.array(status, dtype=np.int8), values))
    status_ = np.array(status)
    good, bad = scores[status_ == SUCCEEDED], scores[status_ == FAILED]
    assert np.isnan(scores[status_ == PENDING]).all()
    assert np.isfinite(good).all()
    assert np.isfinite(bad).all()
    if len(good) and len(bad):
        assert bad.max() < good.min()
    order = np.argsort(values[status_ == SUCCEEDED], kind="stable")
    assert (np.diff(good[order]) >= 0).all()


@pytest.mark.parametrize("kind", ["RF", "ET"])
@settings(max_examples=examples(15), deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_failures_never_raise_a_prediction_above_the_successes(kind: str, seed: int) -> None:
    """Predictions stay below the best success everywhere, and are lower at failures than at successes."""
    rng = np.random.default_rng(seed)
    codec = SpaceCodec(mixed())
    vectors = codec.sample(30, rng)
    status = np.where(rng.random(30) < 0.4, FAILED, SUCCEEDED).astype(np.int8)
    status[0] = SUCCEEDED
    points = Points(vectors, status, np.where(status == SUCCEEDED, rng.normal(size=30), np.nan))
    scores = normal_scores(points)
    features = codec.features(vectors)
    mean, _ = Predictions(Forest(kind, features, scores, seed), codec.features(codec.sample(200, rng))).at()
    assert mean.max() <= scores[status == SUCCEEDED].max() + 1e-9
    if (status == FAILED).any():
        known, _ = Predictions(Forest(kind, features, scores, seed), features).at()
        assert known[status == FAILED].mean() < known[status == SUCCEEDED].mean()


@pytest.mark.parametrize("kind", ["RF", "ET"])
def test_mean_and_deviation_follow_the_law_of_total_variance_over_the_trees(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((80, 3), dtype=np.float32), rng.normal(size=80)
    forest = Forest(kind, x, y, seed=1)
    query = rng.random((20, 3), dtype=np.float32)
    mean, std = Predictions(forest, query).at()
    means = np.array([tree.value[tree.apply(query), 0, 0] for tree in forest._trees])
    variances = np.array([tree.impurity[tree.apply(query)] for tree in forest._trees])
    np.testing.assert_allclose(mean, means.mean(axis=0))
    np.testing.assert_allclose(std**2, np.maximum(variances.mean(axis=0) + means.var(axis=0), 1e-12))


@given(st.sampled_from([0.5, 1.0]), st.integers(1, 1_500), st.integers(1, 5_000))
def test_a_split_looks_at_its_share_of_the_features_and_at_no_more_than_is_quick(
    share: float, samples: int, features: int
) -> None:
    looked_at = split_features(share, samples, features)
    assert 1 <= looked_at <= max(1, share * features)
    assert samples * looked_at <= 50_000
    if samples * share * features <= 50_000:
        assert looked_at == max(1, int(share * features))


def test_a_lie_is_one_more_sample_in_every_leaf_it_falls_into() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 3), dtype=np.float32), rng.normal(size=60)
    forest = Forest("RF", x, y, seed=1)
    query = rng.random((50, 3), dtype=np.float32)
    table = Predictions(forest, query)
    before, _ = table.at()
    changed = table.lie_at(7, -9.0)
    after, _ = table.at()
    assert 7 in changed
    assert after[7] < before[7]
    unchanged = np.setdiff1d(np.arange(50), changed)
    np.testing.assert_array_equal(after[unchanged], before[unchanged])
    np.testing.assert_allclose(Predictions(forest, query).at()[0], after)


def test_pending_points_are_lies_so_that_the_same_place_is_not_asked_twice() -> None:
    history = RandomSampler(mixed(), seed=1).ask(40)
    batches = []
    for _ in range(2):
        optimizer = ForestOptimizer(mixed(), seed=2)
        optimizer.tell(history, [objective(c) for c in history])
        batches.append(optimizer)
    first = batches[0].ask(5)
    batches[1].remember(first)
    second = batches[1].ask(5)
    assert not [c for c in second if c in first]


def test_acquisition_functions_prefer_high_means_and_high_deviations() -> None:
    mean, std = np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 2.0])
    np.testing.assert_allclose(lower_confidence_bound(mean, std, 1.96), [1.96, 2.96, 3.92])
    gains = expected_improvement(mean, std, best=0.5)
    assert gains[1] > gains[0]
    assert gains[2] > gains[0]
    np.testing.assert_allclose(gains[0], 0.19780, atol=1e-4)


@pytest.mark.parametrize("liar", ["cl_max", "cl_mean", "cl_min"])
@pytest.mark.parametrize("acq_func", ["LCB", "EI"])
def test_a_batch_of_100_has_100_distinct_points(liar: str, acq_func: str) -> None:
    history = RandomSampler(mixed_problem(), seed=1).ask(50)
    optimizer = ForestOptimizer(mixed_problem(), acq_func=acq_func, liar_strategy=liar, seed=3)
    optimizer.tell(history, [mixed_run(c) for c in history])
    batch = optimizer.ask(100)
    assert len({json.dumps(c) for c in batch}) == 100
    assert not [c for c in batch if c in history]


@pytest.mark.slow
def test_a_search_learns_to_avoid_the_half_that_fails() -> None:
    problem = mixed_problem()
    optimizer = ForestOptimizer(problem, seed=0)
    failed = []
    for _ in range(15):
        configs = optimizer.ask(4)
        bad = [config["solver"] != "adam" for config in configs]
        failed += bad
        optimizer.tell(configs, [None if b else mixed_run(c) for c, b in zip(configs, bad, strict=True)])
    assert sum(failed[-20:]) < sum(failed[:20])
    assert sum(failed[-20:]) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["RF", "ET"])
def test_polynome2_is_far_better_than_random(surrogate: str) -> None:
    seeds = range(3)
    best: dict[str, list[float]] = {surrogate: [], "DUMMY": []}
    for kind, found in best.items():
        for seed in seeds:
            optimizer = ForestOptimizer(polynome2.Problem, kind, seed=seed)
            asked = []
            for _ in range(100):
                config = optimizer.ask(1)[0]
                asked.append(json.dumps(config))
                optimizer.tell([config], [polynome2.run(config)])
            assert len(set(asked)) == 100
            found.append(optimizer.state["best_objective"])
    print(f"seeds {list(seeds)}: {best}")
    assert median(best[surrogate]) > -45.0
    assert median(best["DUMMY"]) < -80.0
