"""JSON text at the speed of the job database: orjson for what it writes and reads as ``json`` does, ``json``
for the rest (numbers that JSON does not have, integers of more than 64 bits, keys that are no text)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_encode = json.JSONEncoder(separators=(",", ":")).encode
_encode_finite = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def write_json(value: object) -> str:
    """``value`` as text without white space. Raises TypeError, ValueError or RecursionError if it is none."""
    return _write(value, _encode)


def write_finite(value: object) -> str:
    """The same. Raises ValueError, too, for NaN and the infinities, which no other JSON has than Python's."""
    return _write(value, _encode_finite)


def _write(value: object, otherwise: Callable[[object], str]) -> str:
    try:
        text = orjson.dumps(value, option=_STRICT).decode()
    except TypeError:
        return otherwise(value)
    return otherwise(value) if "null" in text else text  # NaN becomes null there, as None does


def read_json(text: str) -> Any:
    """The value of a text that ``write_json`` or ``json`` made."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
