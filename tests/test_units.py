"""Durations and memory as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.units import format_duration, format_memory, parse_duration, parse_memory, parse_time_left


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("0", 0), ("1.5", 1.5), ("1h30m", 5400), ("1h 30min", 5400), ("1.5h", 5400),
        ("2d", 172800), ("1:30:00", 5400), ("1-00:00:00", 86400), ("59:30", 3570), ("90:00", 5400),
        ("1-12", 129600),
        ("1-12:30", 131400), ("100:00:00", 360000), (" 10M ", 600), ("00:00:30", 30), ("1:30:00.5", 5400.5),
    ],
)  # fmt: skip
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-5", "-1h", "1h-5m", "soon", "1y", "30m1h", "1h1h", "1:2:3:4", "1:75:00", "1:00:75", "59:60",
     "1-24:00", ":", "1:", "5 5", "nan", "inf", "1e3", "٣s"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(WrongCall, match="is no duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
    assert "1h30m" in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "0.5s"), (12.46, "12.5s"), (59.97, "1m"), (60, "1m"), (3570, "59m30s"), (5400, "1h30m"),
     (86400, "1d"), (90061, "1d1h1m1s"), (187200, "2d4h")],
)  # fmt: skip
def test_a_duration_is_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**9))
def test_whole_seconds_survive_writing_and_reading(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_no_duration_is_written_for_what_is_none(seconds: float) -> None:
    with pytest.raises(WrongCall, match="is no duration"):
        format_duration(seconds)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("16G", 16 * 2**30), ("512MiB", 2**29), ("1.5T", 3 * 2**39), ("1048576", 2**20), ("4kb", 4096),
     ("10 GB", 10 * 2**30), ("7B", 7), ("0", 0), ("1P", 2**50)],
)  # fmt: skip
def test_memory_is_read(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "-1G", "G", "16X", "1,5G", "1 2G", "16ib", "lots", "1e9", "nan"])
def test_what_is_no_memory_is_refused_with_examples(text: str) -> None:
    with pytest.raises(WrongCall, match="is no amount of memory") as caught:
        parse_memory(text)
    assert repr(text) in str(caught.value)
    assert "16G" in str(caught.value)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0B"), (17, "17B"), (1023, "1023B"), (1024, "1KiB"), (2**29, "512MiB"), (3 * 2**29, "1.5GiB"),
     (2**30 - 1, "1GiB"), (2**50, "1PiB"), (2**61, "2048PiB")],
)  # fmt: skip
def test_memory_is_written_short(amount: int, text: str) -> None:
    assert format_memory(amount) == text


@given(st.integers(min_value=0, max_value=2**60))
def test_written_memory_is_read_to_within_a_twentieth(amount: int) -> None:
    assert abs(parse_memory(format_memory(amount)) - amount) <= amount / 20


def test_a_negative_amount_is_not_written() -> None:
    with pytest.raises(WrongCall, match="-1 bytes"):
        format_memory(-1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59:30", 3570), ("0:45", 45), ("1:00:00", 3600), ("1-00:00:00", 86400), ("02:03:04:05", 183845),
     ("UNLIMITED", float("inf")), (" infinite\n", float("inf"))],
)  # fmt: skip
def test_the_time_that_a_batch_system_says_is_left_is_read(text: str, seconds: float) -> None:
    assert parse_time_left(text) == seconds


@pytest.mark.parametrize("text", ["INVALID", "NOT_SET", "N/A", "", "-", "1:2:3:4:5"])
def test_a_time_left_that_nobody_knows_is_not_for_ever(text: str) -> None:
    with pytest.raises(WrongCall, match="is no duration"):
        parse_time_left(text)
