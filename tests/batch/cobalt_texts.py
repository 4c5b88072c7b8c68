"""Answers of Cobalt's commands that are played to the adapter, as they print them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_hpc.batch.system import Answer
from nas_hpc.records import BatchJob

NOISE = 'No handlers could be found for logger "Proxy"\n'


class Played:
    """Answers in turn, and what was asked."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> Answer:
        self.asked.append(list(argv))
        code, stdout, stderr = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Answer(tuple(argv), code, stdout, stderr)


def batch_job(number: str, output: Path = Path("/none/k.output")) -> BatchJob:
    return BatchJob(
        key="k", system="cobalt", machine="theta", script="", output=str(output), nodes=1,
        walltime_minutes=1, job_mode="mpi", id=number,
    )  # fmt: skip


def table(rows: Sequence[tuple[str, str]]) -> str:
    """As Cobalt prints it: ids right-padded."""
    width = max(len(number) for number, _ in rows)
    cells = [("JobID", "State"), *((number.rjust(width), state) for number, state in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(2)]
    lines = ["".join(f"{cell:<{w}}  " for cell, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "=" * (sum(widths) + 4), *lines[1:]]) + "\n"
