"""Numbers and durations as people read them."""

from __future__ import annotations

import json
import math


def number(value: float) -> str:
    """Up to six significant digits: ``0.977778``, ``1200``, ``1.5e-05``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.6g}"


def shown(value: object) -> str:
    """A value of a configuration or of metadata."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value)
    return json.dumps(value, default=str)


def duration(seconds: float) -> str:
    """``0.42 s``, ``57.6 s``, ``12 min 5 s``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {name}"
    return f"{whole} s"
