"""Node lists as batch systems write them, and what is said of lists that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.resources.hostlist import (
    alps_id,
    alps_name,
    compress,
    parse_hostlist,
    parse_node_ids,
    read_node_file,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[1,3-5]", ["node1", "node3", "node4", "node5"]),
        ("c", ["c"]),
        ("a[01-03]b[2,4],c", ["a01b2", "a01b4", "a02b2", "a02b4", "a03b2", "a03b4", "c"]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("rack[0-1]-[7,9].x.org", ["rack0-7.x.org", "rack0-9.x.org", "rack1-7.x.org", "rack1-9.x.org"]),
        (" a , b[1] ", ["a", "b1"]),
        ("a,a,b,a", ["a", "b"]),
    ],
)
def test_a_list_of_slurms_is_read(text: str, names: list[str]) -> None:
    assert parse_hostlist(text) == names


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,,b", "a,", "node[1", "node1]", "n[[1]]", "n[]", "n[1-]", "n[5-3]", "n[a-c]", "n[1:3]", "-x",
     "a b", "a;rm", "n[1-999999]", "n[0-999][0-999]", "n[1-3]," * 40000 + "n", "n[99999999999999999999]"],
)  # fmt: skip
def test_what_is_no_list_is_refused_in_one_line_with_an_example(text: str) -> None:
    with pytest.raises(WrongCall, match=r"node\[1,3-5\]") as caught:
        parse_hostlist(text, "SLURM_JOB_NODELIST")
    said = str(caught.value)
    assert said.startswith("SLURM_JOB_NODELIST ")
    assert len(said) < 250
    assert "\n" not in said


def test_cobalts_partition_is_node_ids_and_their_names_those_of_a_cray() -> None:
    assert parse_node_ids("1-5,7,10") == [1, 2, 3, 4, 5, 7, 10]
    assert [alps_name(number) for number in (7, 4391, 100000)] == ["nid00007", "nid04391", "nid100000"]
    assert [alps_id(name) for name in ("nid00007", "nid04391", "node7")] == [7, 4391, None]
    for wrong in ("", "1-5,,7", "7-5", "nid1", "1-"):
        with pytest.raises(WrongCall, match="1-5,7,10"):
            parse_node_ids(wrong, "COBALT_PARTNAME")


names = st.lists(
    st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(-[0-9]{1,2}(\.x)?)?", fullmatch=True), min_size=1, unique=True
)


@given(names)
def test_what_is_compressed_is_read_back_in_the_same_order(some: list[str]) -> None:
    assert parse_hostlist(compress(some)) == some


def test_a_compressed_list_is_short() -> None:
    assert compress(f"nid{n:05d}" for n in [*range(1, 129), 200]) == "nid[00001-00128,00200]"
    assert compress(["a1", "a2", "b", "a3"]) == "a[1-2],b,a3"
    assert compress(["vm"]) == "vm"


# -- node files -------------------------------------------------------------------------------------------
def test_a_node_file_names_each_node_once_however_many_slots_it_has(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text("\n x2 \nx1\nx2\n\n\t\nx1\nx3.example.org\r\n")
    assert read_node_file(path) == ["x2", "x1", "x3.example.org"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n\t\n", "is empty"),
        (b"good\n\nslots = 4\n", "line 3: 'slots = 4' is no host name"),
        (b"node[1-4]\n", "line 1: 'node[1-4]' is no host name"),
        (b"--hostfile\n", "line 1: '--hostfile' is no host name"),
        (b"\x7fELF\x00\x01\xff", "line 1: "),
        (b"x" * 300, "is no host name"),
    ],
)
def test_a_node_file_that_makes_no_sense_is_refused_with_its_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "nodes"
    path.write_bytes(content)
    with pytest.raises(WrongCall) as caught:
        read_node_file(path, "PBS_NODEFILE")
    assert f"PBS_NODEFILE {path}" in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["nowhere", ".", "a\0b"])
def test_a_node_file_that_cannot_be_read_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(WrongCall, match="cannot be read"):
        read_node_file(f"{tmp_path}/{path}")
