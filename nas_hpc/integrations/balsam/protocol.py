"""What is said between a search and the bridge, as this side has it.

Lines of JSON. To the bridge ``{"id": n, "do": NAME, ...}``; from it ``{"id": n, "ok": {...}}`` or ``{"id": n,
"error": {"kind": ..., "message": ...}}``, and, pushed, ``{"event": "jobs", "jobs": [...]}`` with the children
of a watched search whose state changed, and ``{"event": "search", "state": ..., "attempt": n}`` when that of
the search's own job did.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from nas_hpc.errors import NasHpcError

TRIAL_APPLICATION = "nas_hpc_trial"
"""The application that evaluates run functions and programs (``trial``)."""
SUPERSEDED = "superseded"
"""Stands in the message of a request that was refused because a later attempt of the search runs."""
KINDS = ("down", "permission", "missing", "refused", "bug")


class BridgeError(NasHpcError):
    """The bridge's answer to a request that was not done: ``kind`` is one of KINDS."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request ``id``: ``ok`` or ``error`` is there."""

    id: int
    ok: dict[str, Any] | None = None
    error: BridgeError | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Pushed by the bridge: ``kind`` is "jobs" or "search", ``body`` the whole of the line."""

    kind: str
    body: dict[str, Any]


class Link(Protocol):
    """The connection with a bridge, which starts it anew when it dies."""

    def ask(self, do: str, **fields: Any) -> int:
        """Send a request; returns its id, which the Answer will have."""

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; what else comes is kept for ``receive``. Raises
        BridgeError."""

    def receive(self, timeout_s: float | None) -> list[Answer | Event]:
        """Wait for answers and events, and return all that are there; none when ``timeout_s`` have passed
        (None: never; 0: only look). Raises NasHpcError when the bridge cannot be started any more."""

    def close(self) -> None:
        """End the bridge."""


def job_id(search: str, seq: int) -> str:
    """The id of the Balsam job that is evaluation ``seq`` of the search's job ``search``."""
    return str(uuid.uuid5(uuid.UUID(search), str(seq)))
