"""Parts found by the entry points of setup.cfg, so that nobody imports them. Standard library only."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent / "setup.cfg"
"""There beside the package only where it runs from its sources, which need not be installed."""


def load(group: str, name: str) -> Any | None:
    """The object of the entry point ``name`` of ``group`` (as in ``nas_hpc.histories``); None without one.

    Raises what its import raises.
    """
    found = {point.name: point for point in entry_points(group=group)}
    point = found.get(name) or _of_checkout(group).get(name)
    return None if point is None else point.load()


@cache
def _of_checkout(group: str) -> Mapping[str, EntryPoint]:
    parser = configparser.ConfigParser(interpolation=None)
    if not parser.read(CHECKOUT, encoding="utf-8"):
        return {}
    lines = parser.get("options.entry_points", group, fallback="").split("\n")
    pairs = [line.partition("=") for line in lines if "=" in line]
    return {name.strip(): EntryPoint(name.strip(), value.strip(), group) for name, _, value in pairs}
