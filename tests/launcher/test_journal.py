"""Lines of ended attempts: each once, whoever writes it."""

from __future__ import annotations

import time
from pathlib import Path

from nas_hpc.launcher.journal import Journal, read_lines
from nas_hpc.records import Attempt, Job, Result
from nas_hpc.states import Outcome


def ended(name: str, ago_s: float) -> tuple[Job, Attempt]:
    """An attempt that came to its end so long ago."""
    end = time.time() - ago_s
    result = Result(Outcome.OK, objective=1.0, start=end - 1, end=end)
    return Job(name * 4, name, "W"), Attempt(name * 4, 1, "lease", ("node1",), result=result)


def test_a_launcher_that_was_stopped_after_a_commit_does_not_repeat_what_its_successor_wrote(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    stopped, successor = Journal(tmp_path, notes.append), Journal(tmp_path, notes.append)
    first, second, third = ended("a", 0.0), ended("b", 20.0), ended("c", 20.0)
    stopped.attempts([first])
    successor.missing("W", [second])
    assert successor.close()
    stopped.attempts([second, third])
    stopped.attempts([third])
    assert stopped.close()
    lines = read_lines(tmp_path / "W" / "attempts.jsonl")
    assert sorted(line["name"] for line in lines) == ["a", "b", "c"]
    assert not notes
