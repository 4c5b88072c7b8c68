"""Fixtures: a fresh database of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.store import open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import SUPPLIERS, discard, skip_without


# On PostgreSQL the comparison with the model (test_machine) and what is special about it are quick.
@pytest.fixture(
    params=[
        kind if kind == "sqlite" else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(SUPPLIERS)
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh, empty job database."""
    skip_without(request.param)
    made = SUPPLIERS[request.param](tmp_path)
    yield made
    discard(made)


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    """It, open."""
    with open_store(url) as opened:
        yield opened
