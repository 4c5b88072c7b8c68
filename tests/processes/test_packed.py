"""Packed files: what is written is read, whatever else stands in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from nas_hpc.processes import packed
from nas_hpc.processes.packed import Packer, line_of
from tests.support import wait_until


def entry(number: int, attempt: int = 1, **more: object) -> bytes:
    job = f"{number:032x}"
    result = {"job": job, "attempt": attempt, "outcome": "ok", "objective": float(number), **more}
    return line_of({"id": job, "name": f"task{number}"}, result, "")


def write(path: Path, lines: list[bytes]) -> list[str]:
    """Write lines by a packer; what it told of each."""
    told: list[str] = []
    packer = Packer(lambda batch: [done(trouble) for done, trouble in batch] and None)
    for line in lines:
        packer.put(str(path), line, told.append)
    packer.close()
    return told


def numbers(workflow: Path) -> list[int]:
    return [int(line["id"], 16) for line in packed.read(workflow)]


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "packed" / "a.jsonl"
    assert write(path, [entry(1), entry(2)]) == ["", ""]
    foreign = line_of({"id": "b" * 32}, {"job": "c" * 32, "attempt": 1}, "")
    with path.open("ab") as file:
        file.write(b"\n[1]\nnonsense\n" + foreign + entry(3)[:40])
    assert numbers(tmp_path) == [1, 2]
    assert write(path, [entry(4)]) == [""]
    assert numbers(tmp_path) == [1, 2, 4], "a torn line does not take the next one with it"
    assert numbers(tmp_path / "no such workflow") == []


def test_only_what_is_wanted_is_parsed(tmp_path: Path) -> None:
    write(tmp_path / "packed" / "a.jsonl", [entry(1), entry(1, 2), entry(2)])
    found = packed.read(tmp_path, lambda job, attempt: (int(job, 16), attempt) == (1, 2))
    assert [(line["id"], line["attempt"]) for line in found] == [(f"{1:032x}", 2)]


def test_all_that_wait_go_to_disk_with_one_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    real = os.fsync

    def slow(fd: int) -> None:
        flushes.append(fd)
        time.sleep(0.02)  # a disk
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    assert write(tmp_path / "packed" / "a.jsonl", [entry(n) for n in range(200)]) == [""] * 200
    assert len(flushes) < 10
    assert numbers(tmp_path) == list(range(200))


def test_a_workflow_that_was_removed_in_between_gets_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "W" / "packed" / "a.jsonl"
    told: list[str] = []
    packer = Packer(lambda batch: [done(trouble) for done, trouble in batch] and None)
    packer.put(str(path), entry(1), told.append)
    wait_until(lambda: told, what="the first line")
    path.unlink()
    path.parent.rmdir()
    packer.put(str(path), entry(2), told.append)
    packer.close()
    assert (told, numbers(tmp_path / "W")) == (["", ""], [2])


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_what_a_full_disk_does_not_take_is_told_once_and_written_later(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True, timeout=60)
    try:
        path = disk / "packed" / "a.jsonl"
        told: list[str] = []
        packer = Packer(lambda batch: [done(trouble) for done, trouble in batch] and None)

        def put(number: int) -> None:
            packer.put(str(path), entry(number), told.append)
            wait_until(lambda: len(told) == number, what="the line")

        put(1)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        for number in range(2, 60):
            put(number)
        troubles = [line for line in told if line]
        assert len(troubles) == 1
        assert "No space left" in troubles[0]
        (disk / "filler").unlink()
        put(60)
        packer.close()
        assert sorted(numbers(disk)) == list(range(1, 61))
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=60)
