"""The benchmark of the engines runs its search on each of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import engines
from benchmarks.common import Load
from tests.peers.balsam import Balsam

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_balsam,
    pytest.mark.timeout(600),  # half a minute, but serial launchers of one machine wait for each other
    pytest.mark.gentle("it measures"),
]


def test_the_same_search_is_measured_on_all_engines(
    balsam: Balsam, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAS_HPC_BALSAM_PYTHON", str(balsam.python))
    # Its own database takes ten seconds to be made.
    monkeypatch.setitem(engines.ENGINES, "balsam", lambda load: engines.of_balsam(load, balsam))
    found = engines.measure(Load(9, workers_per_node=4))
    engines.show(found, True)
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["engines"]
    assert list(said["engines"]) == ["embedded", "postgres", "balsam"]
    for name, figures in said["engines"].items():
        assert figures["evaluations_per_s"] > 0, name
        assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"], name
        assert 0 < figures["utilization"] <= 1, name
    assert said["engines"]["balsam"]["evaluators"] == 3, "the search has one of four places"
    engines.show(found, False)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["embedded", "postgres", "balsam"]
    assert [line.split()[0] for line in table[1:]] == list(said["engines"]["embedded"])
