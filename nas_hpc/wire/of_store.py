"""What a command says to the process that owns the job database, and what it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoreCall:
    """From a command: do this call of ``nas_hpc.store.calls``. Answered by StoreAnswers after the commit."""

    protocol: int
    request: int
    """Its number on this connection."""
    id: str
    """Names the call for ever: one that changes something and comes again is carried out once."""
    call: str
    arguments: Sequence[Any]
    """Plain values, as ``nas_hpc.store.calls`` makes them of records."""


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """A part of what the call ``request`` returned; the ``last`` one tells an error, too."""

    request: int
    rows: Sequence[Any]
    last: bool = True
    repeated: bool = False
    """It had been carried out before, and what it returned then is not known any more."""
    error: str = ""
    """A class of ``nas_hpc.errors``; empty: none."""
    message: str = ""
    transient: bool = False
