"""Messages survive the wire; what is none is a ProtocolError; the endpoint file is private and atomic."""

from __future__ import annotations

import dataclasses
import json
import stat
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc import wire
from nas_hpc.errors import LauncherGone, ProtocolError
from nas_hpc.wire import PROTOCOL, Endpoint, Message, pack, read_endpoint, unpack, write_endpoint

INTEGERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
FLOATS = st.floats(allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
MESSAGES: tuple[type[Any], ...] = typing.get_args(Message)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: INTEGERS,
        float: FLOATS,
        str: st.text(),
        bool: st.booleans(),
    }
    if kind in plain:
        return plain[kind]
    if dataclasses.is_dataclass(kind):
        return record(typing.cast("type[Any]", kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(of_type, arguments))
    if origin is tuple:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    if type(None) in arguments:
        return st.none() | of_type(arguments[0])
    if arguments in ((str, str), (str, float)):
        return st.dictionaries(st.text(), of_type(arguments[1]), max_size=3)
    return OBJECTS


def record(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Messages of a class, all fields drawn."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: of_type(hints[field.name]) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_message_survives_the_wire(cls: type[Any], data: st.DataObject) -> None:
    message = data.draw(record(cls))
    assert unpack(pack(message)) == message


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(body)


@given(JSON)
def test_msgpack_that_is_no_record_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError):
        unpack(msgpack.packb(value))


@given(st.sampled_from(["Hello", "Submit", "Done", "Results", "Path", ""]), st.lists(JSON, max_size=8))
def test_a_record_with_other_fields_never_raises_anything_else(name: str, values: list[Any]) -> None:
    body = msgpack.packb(msgpack.ExtType(1, msgpack.packb([name, *values])))
    with suppress(ProtocolError):
        unpack(body)


@given(st.data())
def test_a_cut_or_changed_message_never_raises_anything_but_a_protocol_error(data: st.DataObject) -> None:
    body = bytearray(pack(data.draw(record(data.draw(st.sampled_from(MESSAGES))))))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(body), bytes(body[:position])):
        with suppress(ProtocolError):
            unpack(broken)


def test_an_unknown_extension_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="extension 7"):
        unpack(msgpack.packb(msgpack.ExtType(7, b"")))


def test_what_is_no_message_is_not_packed() -> None:
    with pytest.raises(TypeError, match="object has no place"):
        pack(wire.Status(1, {"view": object()}))


def endpoint(**fields: Any) -> Endpoint:
    return Endpoint(("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), "a", "b", "c", "epoch", "host", 1, **fields)


def test_an_endpoint_is_read_as_it_was_written_and_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.json"
    write_endpoint(path, endpoint())
    assert read_endpoint(path) == endpoint()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_endpoint_means_that_no_launcher_runs(tmp_path: Path) -> None:
    with pytest.raises(LauncherGone, match="does not exist"):
        read_endpoint(tmp_path / "endpoint.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"addresses": 1}', '{"addresses": [], "x": 1}', "\xff"]
)
def test_a_torn_endpoint_is_a_protocol_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "endpoint.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ProtocolError, match="is no endpoint file"):
        read_endpoint(path)


def test_an_endpoint_of_another_protocol_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.json"
    write_endpoint(path, endpoint(protocol=PROTOCOL + 1))
    assert json.loads(path.read_text())["protocol"] == PROTOCOL + 1
    with pytest.raises(ProtocolError, match=f"protocol {PROTOCOL + 1}; this program speaks {PROTOCOL}"):
        read_endpoint(path)
