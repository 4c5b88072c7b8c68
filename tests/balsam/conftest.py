"""Fixtures of searches under a real Balsam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.balsam.scene import Scene
from tests.peers.balsam import Balsam


@pytest.fixture
def scene(balsam: Balsam, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(balsam, tmp_path)
    yield scene
    scene.end()
