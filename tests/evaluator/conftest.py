"""A peer that doubles ``x``, and evaluators connected with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.client import Client
from tests.evaluator.peer import Peer

Connect = Callable[..., LauncherEvaluator]


def double(config: Mapping[str, Any]) -> float:
    """The run function: 2·x, or a failure where ``fail`` is given."""
    if config.get("fail"):
        raise ValueError(f"no value for {config['x']}")
    return 2.0 * float(config["x"])


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    """A launcher with two workers."""
    with Peer(tmp_path / "endpoint.json", double, workers=2) as peer:
        yield peer


@pytest.fixture
def connect(peer: Peer) -> Iterator[Connect]:
    """Makes evaluators: ``connect(attempt=2, cache_key="to_dict")``."""
    made = []

    def make(attempt: int = 1, reconnect_s: float = 60.0, **settings: Any) -> LauncherEvaluator:
        common = replace(Settings(run="module.double", seed=7), **settings)
        client = Client(peer.path, job=peer.job, attempt=attempt, shape=common.shape, reconnect_s=reconnect_s)
        evaluator = LauncherEvaluator(client, common)
        made.append(evaluator)
        return evaluator

    yield make
    for evaluator in made:
        evaluator.close()
