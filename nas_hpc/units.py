"""Durations and amounts of memory as people write them, and back."""

from __future__ import annotations

import math
import re

from nas_hpc.errors import WrongCall

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)", re.ASCII)
_PARTS = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:d|h|min|m|s)\s*)+", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+(?:\.\d+)?))?", re.ASCII)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

_NO_END = ("unlimited", "infinite", "infinity")
DURATION_EXAMPLES = "90, 90s, 1h30m, 1:30:00, 59:30 (minutes:seconds), 1-00:00:00 (a day)"
MEMORY_EXAMPLES = "16G, 512MiB, 1.5T, 1048576"


def parse_duration(text: str) -> float:
    """Seconds of a duration: a plain number of seconds, numbers with d, h, m or min, and s, or a clock as
    batch systems write it: [D-]HH:MM:SS, MM:SS, D-HH, D-HH:MM.

    Raises WrongCall for anything else, negative durations among it.
    """
    given = text.strip().lower()
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", given):
        return float(given)
    if _PARTS.fullmatch(given):
        parts = _PART.findall(given)
        units = [_SECONDS[unit] for _, unit in parts]
        if units == sorted(set(units), reverse=True):
            return math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)
    match = _CLOCK.fullmatch(given)
    if match and ("-" in given or ":" in given):
        return _clock_s(match, text)
    raise WrongCall(f"{text!r} is no duration; examples: {DURATION_EXAMPLES}")


def _clock_s(match: re.Match[str], text: str) -> float:
    days, first, second, third = match.groups()
    if days is None and third is None:  # MM:SS
        minutes, seconds, hours = float(first), float(second or 0), 0.0
        bounded = [seconds]
    else:
        hours, minutes, seconds = float(first), float(second or 0), float(third or 0)
        bounded = [minutes, seconds]
    if any(value >= 60 for value in bounded) or (days is not None and hours >= 24):
        raise WrongCall(f"{text!r} is no duration: its parts overflow; examples: {DURATION_EXAMPLES}")
    return float(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def parse_time_left(text: str) -> float:
    """Seconds that a batch system says remain, infinity for UNLIMITED: a clock of two parts is MM:SS, of
    four DD:HH:MM:SS.

    Raises WrongCall for anything else (INVALID, NOT_SET, N/A): nobody knows then, which is not "for ever".
    """
    given = text.strip()
    if given.lower() in _NO_END:
        return math.inf
    days, _, clock = given.partition(":")
    if clock.count(":") == 2:
        given = f"{days}-{clock}"
    return parse_duration(given)


def format_duration(seconds: float) -> str:
    """A duration for the eye: "12.5s", "59m30s", "1h30m", "2d4h". ``parse_duration`` reads it. Whole seconds
    are kept exactly; a fraction is shown below ten seconds as hundredths, below a minute as tenths.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise WrongCall(f"{seconds!r} s is no duration; give a number of seconds that is not negative")
    if round(seconds, 1) < 60:
        return f"{round(seconds, 2 if seconds < 10 else 1):g}s"
    left = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_memory(text: str) -> int:
    """Bytes of an amount of memory. K, M, G, T and P are powers of 1024 with and without "iB" or "B", as in
    the batch systems; no letter means bytes.

    Raises WrongCall for anything else, nothing and negative amounts among it.
    """
    match = _MEMORY.fullmatch(text.strip().lower())
    if match is None or (match[2] == "" and "i" in text.lower()):
        raise WrongCall(f"{text!r} is no amount of memory; examples: {MEMORY_EXAMPLES}")
    unit: int = 1024 ** _POWERS[match[2]]
    return round(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_memory(amount_bytes: int) -> str:
    """An amount of memory for the eye, to three digits or so: "512MiB", "1.5GiB", "17B"."""
    if amount_bytes < 0:
        raise WrongCall(f"{amount_bytes} bytes is no amount of memory; give one that is not negative")
    value = float(amount_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1023.95:
            return f"{value:.1f}".removesuffix(".0") + unit
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + "PiB"
