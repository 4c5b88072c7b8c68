"""Which files of its parents' directories a job finds in its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas_hpc.launcher.links import OWN_FILES, link_files
from nas_hpc.records import Job, Stages, new_id


def job(name: str, patterns: str = "*") -> Job:
    return Job(new_id(), name, "W", stages=Stages(input_files=patterns))


def made(directory: Path, one: Job, *files: str) -> tuple[Job, Path]:
    """A parent and its directory with these files; each holds the parent's name."""
    path = directory / one.directory_name
    path.mkdir()
    for file in files:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(one.name)
    return one, path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.mkdir()
    return path


def links(directory: Path) -> dict[str, str]:
    """Links of a directory and what they lead to."""
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_symlink()}


def test_a_star_takes_all_but_hidden_files_and_what_every_job_has_of_its_own(
    tmp_path: Path, own: Path
) -> None:
    parent = made(tmp_path, job("a"), "out.dat", "a.out", ".hidden", *OWN_FILES)
    said = link_files(job("child"), own, [parent])
    assert links(own) == {"out.dat": "a", "a.out": "a"}
    assert str(said) == "2 files of 1 parent linked"


def test_patterns_may_lead_into_folders_and_a_folder_is_linked_as_a_whole(tmp_path: Path, own: Path) -> None:
    parent = made(tmp_path, job("a"), "deep/model.h5", "deep/other.txt", "whole/file", "whole.txt")
    link_files(job("child", "deep/*.h5 whole nosuch*"), own, [parent])
    assert sorted(path.name for path in own.iterdir()) == ["model.h5", "whole"]
    assert (own / "whole" / "file").read_text() == "a"
    assert os.readlink(own / "model.h5") == f"../{parent[1].name}/deep/model.h5"


def test_what_is_there_stays_and_names_that_meet_are_told_apart(tmp_path: Path, own: Path) -> None:
    (own / "x").write_text("mine")
    twin = job("b")
    parents = [made(tmp_path, one, "x", "y") for one in (job("a"), job("b"), twin)]
    said = link_files(job("child"), own, parents)
    assert (own / "x").read_text() == "mine"
    last = twin.id[:8]
    assert links(own) == {
        "x_a": "a", "x_b": "b", f"x_b_{last}": "b", "y": "a", "y_b": "b", f"y_b_{last}": "b",
    }  # fmt: skip
    assert (own / f"x_b_{last}").resolve() == parents[2][1] / "x"
    assert said.renamed[0] == "x of a is x_a"
    assert "6 files of 3 parents linked; x of a is x_a; x of b is x_b" in str(said)


def test_a_file_whose_every_name_is_taken_is_left_out_and_said(tmp_path: Path, own: Path) -> None:
    parent = made(tmp_path, job("a"), "x")
    for name in ("x", "x_a", f"x_a_{parent[0].id[:8]}"):
        (own / name).write_text("mine")
    assert "0 files of 1 parent linked; left out, for all their names were taken: x of a" in str(
        link_files(job("child"), own, [parent])
    )


def test_a_second_call_changes_nothing(tmp_path: Path, own: Path) -> None:
    parents = [made(tmp_path, job("a"), "x", "y"), made(tmp_path, job("b"), "x")]
    first = link_files(job("child"), own, parents)
    before = {path.name: os.readlink(path) for path in own.iterdir()}
    assert link_files(job("child"), own, parents) == first
    assert {path.name: os.readlink(path) for path in own.iterdir()} == before


def test_the_output_of_a_parent_of_the_same_name_gets_another_name(tmp_path: Path, own: Path) -> None:
    link_files(job("same"), own, [made(tmp_path, job("same"), "same.out")])
    assert links(own) == {"same.out_same": "same"}


def test_a_long_chain_of_jobs_makes_no_chain_of_links(tmp_path: Path) -> None:
    parent = made(tmp_path, job("first"), "start.dat")
    for number in range(60):  # a system follows forty
        child = made(tmp_path, job(f"n{number}"))
        link_files(child[0], child[1], [parent])
        parent = child
    assert (parent[1] / "start.dat").read_text() == "first"
    assert os.readlink(parent[1] / "start.dat").startswith("../first_")


def test_dead_links_and_missing_directories_are_passed_over(tmp_path: Path, own: Path) -> None:
    parent = made(tmp_path, job("a"), "x")
    (parent[1] / "dead").symlink_to("nowhere")
    gone = (job("gone"), tmp_path / "gone")
    assert str(link_files(job("child"), own, [gone, parent])) == "1 file of 2 parents linked"
    assert links(own) == {"x": "a"}


def test_links_are_right_below_a_linked_site(tmp_path: Path) -> None:
    real, short = tmp_path / "far" / "away", tmp_path / "short"
    real.mkdir(parents=True)
    short.symlink_to(real)
    parent = made(short, job("a"), "x")
    own = short / "own"
    own.mkdir()
    link_files(job("child"), own, [parent])
    assert links(own) == {"x": "a"}
    real.rename(tmp_path / "moved")  # the whole site goes elsewhere
    assert (tmp_path / "moved" / "own" / "x").read_text() == "a"


def test_a_job_that_overwrites_what_it_finds_by_renaming_leaves_its_parents_file(
    tmp_path: Path, own: Path
) -> None:
    parent = made(tmp_path, job("a"), "x")
    link_files(job("child"), own, [parent])
    (own / "new").write_text("child")
    os.replace(own / "new", own / "x")
    assert (parent[1] / "x").read_text() == "a"
    assert (own / "x").read_text() == "child"
