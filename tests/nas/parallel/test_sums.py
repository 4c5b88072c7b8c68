"""What metrics of the ranks have counted is added up: whether that is what one process counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.nas.losses import METRICS

pytestmark = [pytest.mark.extra("tensorflow"), pytest.mark.slow]


def _metric(given: Any, shape: tuple[int, ...]) -> Any:
    from nas_hpc.nas.metrics import Target, _metric

    return _metric(given, str(getattr(given, "__name__", given)), Target("out", shape, shape))


def test_of_every_metric_that_a_problem_may_name_the_sum_of_two_halves_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(4)
    targets = np.eye(4, dtype="float32")[rng.integers(0, 4, 40)]
    given = rng.dirichlet(np.ones(4), 40).astype("float32")
    for name in sorted(METRICS):
        wanted = np.argmax(targets, 1) if "sparse" in name.lower() else targets
        whole, first, second = (_metric(name, (4,)) for _ in range(3))
        whole.update_state(wanted, given)
        first.update_state(wanted[::2], given[::2])
        second.update_state(wanted[1::2], given[1::2])
        for mine, other in zip(first.variables, second.variables, strict=True):
            mine.assign(np.array(mine) + np.array(other))
        np.testing.assert_allclose(first.result(), whole.result(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_metric_of_ones_own_is_refused_unless_it_says_that_its_counts_add_up() -> None:
    import keras

    from nas_hpc.nas.metrics import NamedMetric, check_sums

    class Largest(keras.metrics.Metric):  # type: ignore[misc]
        """Not a sum."""

    class Known(Largest):
        additive = True

    def own(wanted: Any, predicted: Any) -> Any:
        return keras.ops.mean(wanted - predicted, axis=-1)

    check_sums([NamedMetric("r2", 0, _metric("r2", (1,))), NamedMetric("own", 0, _metric(own, (1,)))])
    check_sums([NamedMetric("known", 0, Known())])
    with pytest.raises(WrongCall, match="largest is a Largest, .* additive = True"):
        check_sums([NamedMetric("largest", 0, Largest())])
