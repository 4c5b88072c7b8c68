"""The live utilization agrees with its definition."""

from __future__ import annotations

import pytest

from nas_hpc.launcher.view import Meter


def test_utilization_counts_from_the_first_dispatch_to_the_last_end() -> None:
    meter = Meter()
    meter.update(0, 0, 4)
    assert meter.utilization is None
    meter.update(10, 4, 4)  # ten seconds without an evaluation before the first do not count
    meter.update(20, 1, 4)
    meter.update(30, 0, 4)
    assert meter.utilization == pytest.approx(50 / 80)
    meter.update(60, 0, 4)  # nor does what follows the last
    assert meter.utilization == pytest.approx(50 / 80)
    meter.update(70, 4, 4)  # a gap in between does
    meter.update(80, 0, 4)
    assert meter.utilization == pytest.approx(90 / (80 + 160 + 40))


def test_utilization_grows_while_nothing_changes_and_is_never_above_one() -> None:
    meter = Meter()
    meter.update(0, 2, 4)
    meter.advance(10)
    assert meter.utilization == pytest.approx(0.5)
    meter.update(10, 6, 4)  # left over from before the search was interrupted
    meter.advance(1000)
    assert meter.utilization is not None
    assert meter.utilization <= 1
