"""Answers of batch systems, played to their modules, and the records that both need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_hpc.batch.system import Answer, Request
from nas_hpc.records import BatchJob

Reply = tuple[int, str, str]
"""Exit code, standard output, standard error."""


class Replies:
    """An Ask: the first of the replies whose key begins the command line; what is asked is kept."""

    def __init__(self, replies: Mapping[str, Reply | Exception | list[Reply]]) -> None:
        self._replies = dict(replies)
        self.asked: list[str] = []

    def __call__(self, argv: Sequence[str]) -> Answer:
        line = " ".join(argv)
        self.asked.append(line)
        for key, reply in self._replies.items():
            if line.startswith(key):
                if isinstance(reply, Exception):
                    raise reply
                if isinstance(reply, list):
                    reply = reply.pop(0) if len(reply) > 1 else reply[0]
                return Answer(tuple(argv), *reply)
        raise AssertionError(f"nobody expected: {line}")


def batch_job(id_: str, system: str, **more: Any) -> BatchJob:
    """A recorded batch job with this id."""
    values: dict[str, Any] = {
        "key": f"T-{id_}", "system": system, "machine": "m", "script": "/s/k.sh", "output": "/s/k.output",
        "nodes": 1, "walltime_minutes": 60, "job_mode": "mpi", "id": id_,
    }  # fmt: skip
    return BatchJob(**(values | more))


def request(**more: Any) -> Request:
    """Four nodes for an hour."""
    values: dict[str, Any] = {
        "name": "TEST", "nodes": 4, "walltime_minutes": 60, "directory": Path("/site/qsubmit"),
        "output": Path("/site/qsubmit/TEST-1"),
    }  # fmt: skip
    return Request(**(values | more))
