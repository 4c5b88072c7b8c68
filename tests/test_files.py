"""Replacing a file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nas_hpc.files import replace_file


def test_a_file_is_replaced_with_its_mode_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    replace_file(path, b"\0newer", mode=0o644)
    assert path.read_bytes() == b"\0newer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_replaced_stays_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        replace_file(tmp_path / "directory", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]
