"""Checkpoints on disk: what is read again, and what is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nas_hpc.nas.checkpoints import Arrays, Checkpoints, State
from nas_hpc.nas.progress import Progress


def _state(steps: int) -> State:
    arrays: Arrays = [np.full((2, 3), steps, np.float32), np.array(steps, np.int64)]
    return State(Progress(epoch=1, step=steps, history={"loss": [0.5]}), steps, arrays, [arrays[0] + 1])


def _check(state: State | None, steps: int) -> None:
    assert state is not None
    expected = _state(steps)
    assert (state.progress, state.steps) == (expected.progress, steps)
    for some, others in ((state.arrays, expected.arrays), (state.best, expected.best)):
        assert [(a.dtype, a.shape, a.tolist()) for a in some] == [
            (b.dtype, b.shape, b.tolist()) for b in others
        ]


LIKE = _state(0).arrays


def test_what_was_saved_is_loaded_the_newest_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "key")
    assert checkpoints.load(LIKE) is None
    for steps in (9, 10, 100):
        checkpoints.save(_state(steps))
    _check(Checkpoints(tmp_path / "c", "key").load(LIKE), 100)
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "no archive"])
def test_a_torn_one_is_passed_over_and_the_one_before_it_counts(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(_state(1))
    checkpoints.save(_state(2))
    newest = max(tmp_path.iterdir())
    content = newest.read_bytes()
    place = content.index(np.full((2, 3), 2, np.float32).tobytes())
    newest.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "changed": content[:place] + b"\x01" + content[place + 1 :],
            "no archive": b"x" * len(content),
        }[damage]
    )
    _check(checkpoints.load(LIKE), 1)
    assert f"passed over the checkpoint {newest}" in capsys.readouterr().err


def test_that_of_another_training_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(tmp_path, "another").save(_state(7))
    assert Checkpoints(tmp_path, "key").load(LIKE) is None
    assert "it is of another training" in capsys.readouterr().err


def test_one_whose_arrays_have_another_shape_or_type_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(_state(7))
    assert checkpoints.load([np.zeros((3, 2), np.float32), LIKE[1]]) is None
    assert checkpoints.load([LIKE[0], np.array(0, np.int32)]) is None
    assert checkpoints.load(LIKE[:1]) is None
    assert capsys.readouterr().err.count("its arrays are of another network or optimizer") == 3


def test_where_nothing_can_be_written_the_training_goes_on_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c").write_text("a file stands there")
    checkpoints = Checkpoints(tmp_path / "c", "key")
    checkpoints.save(_state(1))
    checkpoints.save(_state(2))
    assert capsys.readouterr().err.count("cannot write a checkpoint") == 1
    assert checkpoints.load(LIKE) is None


def test_without_a_directory_there_are_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(None, "key")
    assert not checkpoints.possible
    checkpoints.save(_state(1))
    checkpoints.remove()
    assert checkpoints.load(LIKE) is None


def test_at_the_end_nothing_is_left_of_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "key")
    checkpoints.save(_state(1))
    (tmp_path / "c" / ".step-000000000002.npz.17-ab").write_bytes(b"left by one that was killed")
    checkpoints.remove()
    assert not (tmp_path / "c").exists()
