"""Values of flags: what is taken is usable, what is not is told in one line."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.cli.types import parse_args, parse_environ, parse_list
from nas_hpc.errors import WrongCall
from nas_hpc.names import wrong_name

VARIABLES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.startswith(("NAS_HPC", "BALSAM"))
)


@given(st.text(max_size=120))
def test_a_name_that_is_taken_is_one_part_of_a_path(name: str) -> None:
    if wrong_name(name) == "":
        assert os.path.basename(f"/site/{name}") == name
        assert name not in (".", "..")
        assert len(f"{name}_12345678".encode()) <= 255


@pytest.mark.parametrize("name", ["test", "TEST_2", "a.b-c+d=e", "größe", "0"])
def test_usual_names_are_taken(name: str) -> None:
    assert wrong_name(name) == ""


@given(
    st.dictionaries(
        VARIABLES, st.text("abc/:. 1", max_size=12).filter(lambda v: not v.endswith(":")), max_size=4
    )
)
def test_environment_settings_come_back_as_given_one_flag_each(values: dict[str, str]) -> None:
    assert parse_environ([f"{name}={value}" for name, value in values.items()]) == values


def test_environment_settings_in_one_string_may_hold_search_paths() -> None:
    text = "DEEPHYPER_WORKERS_PER_NODE=4:LD_LIBRARY_PATH=/a/lib:/b/lib:OMP_NUM_THREADS=1"
    assert parse_environ([text]) == {
        "DEEPHYPER_WORKERS_PER_NODE": "4",
        "LD_LIBRARY_PATH": "/a/lib:/b/lib",
        "OMP_NUM_THREADS": "1",
    }


@given(st.text())
def test_any_text_of_arguments_is_split_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        parse_args(text)
    except WrongCall as error:
        message = error.message
    assert "\n" not in message or "\n" in text


def test_a_list_has_no_empty_parts_and_no_duplicates() -> None:
    assert parse_list(" a,b,,a ,") == ("a", "b")
