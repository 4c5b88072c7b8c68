"""A site for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.bench import REPOSITORY, Bench
from tests.launcher.ensembles import Field


@pytest.fixture
def bench(tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A fresh site; the jobs find this package whether or not it is installed."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("NAS_HPC_GRACE_S", "1")
    made = Bench(tmp_path, test_id)
    made.nas("init", str(made.site))
    return made


@pytest.fixture
def field(bench: Bench) -> Iterator[Field]:
    """A search on four virtual nodes that two agents serve."""
    made = Field(bench)
    yield made
    made.abandon()
