"""Values as JSON has them: what of a user's objects can be stored, sent, and read by others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nas_hpc.errors import WrongCall


def plain(value: Any, where: str = "the configuration") -> Any:
    """``value`` as JSON's own types: arrays and tuples become lists, NumPy's scalars Python's.

    Raises WrongCall for anything that is not JSON, with its place.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if type(value) is not str and isinstance(value, str) else value
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise WrongCall(f"{where}: the key {key!r} is a {type(key).__name__}: names are strings")
        return {str(key): plain(item, f"{where}, {key!r}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    tolist = getattr(value, "tolist", None)
    if callable(tolist):  # NumPy's arrays and scalars, without importing NumPy
        return plain(tolist(), where)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    kind = type(value).__name__
    raise WrongCall(
        f"{where}: {value!r:.200} is a {kind}: give numbers, strings, bools, None, lists, dictionaries"
    )


def finite(item: object) -> float | None:
    """A number of a file that anybody may have written; None for anything else, and what is not finite."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return None
    try:
        number = float(item)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain_object(value: Any, where: str) -> dict[str, Any]:
    """``value`` as a JSON object that every other program can read, too.

    Raises WrongCall if it is no dictionary of JSON's types, or has numbers that JSON has not (NaN,
    infinities) or that not everybody can hold (integers of more than 64 bits), or text that is none (lone
    surrogates).
    """
    if not isinstance(value, Mapping):
        raise WrongCall(f"{where}: {value!r:.80} is a {type(value).__name__}: give a dictionary")
    try:
        result = plain(value, where)
    except RecursionError:
        raise WrongCall(f"{where}: it is nested too deeply, or contains itself") from None
    for part in _parts(result):
        if isinstance(part, float) and not math.isfinite(part):
            raise WrongCall(f"{where}: {part} is no number that JSON has: give None")
        check_integer(part, where)
        if isinstance(part, str):
            check_text(part, where)
    return result  # type: ignore[no-any-return]


def check_integers(value: Any, where: str = "the configuration") -> None:
    """Raise WrongCall if an integer in ``value`` (of JSON's types) has more than 64 bits."""
    for part in _parts(value):
        check_integer(part, where)


def check_integer(value: Any, where: str) -> None:
    """Raise WrongCall if ``value`` is an integer of more than 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise WrongCall(f"{where} has the integer {value}: integers have at most 64 bits")


def check_text(text: str, where: str) -> None:
    """Raise WrongCall if ``text`` is none: bytes of another encoding that were read as text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise WrongCall(f"{where}: {text!a:.200} is no valid text: give UTF-8") from None


def _parts(value: Any) -> list[Any]:
    """All scalars and keys in ``value``."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.keys()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        else:
            found.append(part)
    return found
