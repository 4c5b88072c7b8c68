"""Messages as bytes: msgpack of a class's name and its fields in order."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import msgpack

from nas_hpc.errors import ProtocolError
from nas_hpc.wire import messages, of_jobs, of_store
from nas_hpc.wire.kinds import Message

PROTOCOL = 3
"""Raised when a message changes: both sides state it in their first message and refuse another number."""
_TYPES: dict[str, type[Any]] = {
    name: cls
    for name, cls in {**vars(messages), **vars(of_jobs), **vars(of_store)}.items()
    if isinstance(cls, type) and is_dataclass(cls)
}
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in _TYPES.values()}
_TUPLES = {
    cls: tuple(
        (i, str(f.type).startswith("tuple[tuple"))
        for i, f in enumerate(fields(cls))
        if str(f.type).startswith("tuple")
    )
    for cls in _TYPES.values()
}  # positions to be made tuples (of tuples) again: in the user's JSON a list stays a list
_RECORD = 1  # msgpack extension code of a dataclass of this module


def _pack_default(value: object) -> object:
    names = _FIELDS.get(type(value))
    if names is None:
        raise TypeError(f"{type(value).__name__} has no place in a message")
    body = [type(value).__name__, *(getattr(value, name) for name in names)]
    return msgpack.ExtType(_RECORD, msgpack.packb(body, default=_pack_default))


def _unpack_record(code: int, body: bytes) -> object:
    if code != _RECORD:
        raise ProtocolError(f"a message has extension {code}; this version knows {_RECORD}")
    name, *values = msgpack.unpackb(body, ext_hook=_unpack_record)
    cls = _TYPES.get(name)
    if cls is None or len(values) != len(_FIELDS[cls]):
        what = f"{name!r} with {len(values)} fields"
        raise ProtocolError(f"a message of kind {what} is unknown in protocol {PROTOCOL}")
    for position, nested in _TUPLES[cls]:
        values[position] = tuple(map(tuple, values[position]) if nested else values[position])
    return cls(*values)


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    return msgpack.packb(message, default=_pack_default)  # type: ignore[no-any-return]


def unpack(body: bytes) -> Message:
    """The message of ``body``. Raises ProtocolError for anything else."""
    try:
        message = msgpack.unpackb(body, ext_hook=_unpack_record)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a message of {len(body)} bytes cannot be read: {error}") from error
    if type(message) not in _FIELDS:
        raise ProtocolError(f"a message of {len(body)} bytes is no record of protocol {PROTOCOL}")
    return message  # type: ignore[no-any-return]
