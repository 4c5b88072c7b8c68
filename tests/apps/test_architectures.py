"""Searches of architectures: what evaluations get, what is written, said and refused; no TensorFlow."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.apps.ambs import ambs
from nas_hpc.apps.architectures import ArchitectureOptimizer, load_searched, show_size, to_config, to_point
from nas_hpc.apps.program import main
from nas_hpc.apps.random_search import random_search
from nas_hpc.apps.regevo import regevo
from nas_hpc.config import strange_variables
from nas_hpc.errors import WrongCall
from nas_hpc.nas import SearchSpace
from nas_hpc.search import RandomSampler
from tests.apps import sequences
from tests.apps.support import ROOT, as_a_program, environment, rows, start
from tests.evaluator.peer import Peer
from tests.support import examples

MODULE = "tests.apps.sequences"
COMMON = ("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.run", "--seed", "3")
APPS = {"ambs": ambs, "regevo": regevo, "random_search": random_search}
Call = Callable[..., int]


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=2) as peer:
        for name, value in environment(peer, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield peer


@pytest.fixture
def call() -> Iterator[Call]:
    """A call of a search in this process; its exit code."""
    with as_a_program():
        yield lambda app, *arguments: main(APPS[app], arguments)


def test_a_configuration_is_the_sequence_of_its_decisions_and_back() -> None:
    searched = load_searched(f"{MODULE}.Problem")
    assert searched.space is not None
    assert searched.names == [str(place) for place in range(len(sequences.BEST))]
    for point in RandomSampler(searched.decisions, seed=1).ask(20):
        config = to_config(point)
        assert config == {"arch_seq": [point[name] for name in searched.names]}
        searched.space.architecture(config["arch_seq"])
        assert to_point(config, searched.space) == point
        assert searched.cells(config) == point


def test_baselines_are_where_a_search_begins() -> None:
    searched = load_searched(f"{MODULE}.Begun")
    optimizer = searched.outward(RandomSampler(searched.decisions, seed=1))
    assert optimizer.ask(3)[0] == {"arch_seq": [0] * len(sequences.BEST)}


def test_the_optimizer_of_architectures_speaks_of_them_only() -> None:
    searched = load_searched(f"{MODULE}.Small")
    optimizer = searched.outward(RandomSampler(searched.decisions, seed=1))
    first = optimizer.ask(4)
    optimizer.tell(first, [0.1, None, 0.9, 0.3])
    assert optimizer.state["best_config"] == first[2]
    again = searched.outward(RandomSampler(searched.decisions, seed=1))
    again.remember(first)
    assert again.ask(20) == optimizer.ask(20)
    assert optimizer.exhausted


SMALL = load_searched(f"{MODULE}.Small")
_anything = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.booleans(),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=examples(60), deadline=None)
@given(st.one_of(_anything, st.lists(_anything, min_size=2, max_size=4)))
def test_a_configuration_that_is_no_architecture_is_refused_in_one_line(sequence: Any) -> None:
    optimizer = SMALL.outward(RandomSampler(SMALL.decisions, seed=1))
    counts = [4, 3, 2]
    good = isinstance(sequence, list) and len(sequence) == 3 and all(
        type(one) is int and 0 <= one < count for one, count in zip(sequence, counts, strict=True)
    )  # fmt: skip
    if good:
        optimizer.remember([{"arch_seq": sequence}])
        return
    for config in ({"arch_seq": sequence}, {"sequence": sequence}):
        with pytest.raises(WrongCall, match="sequence|architecture") as refused:
            optimizer.remember([config])
        assert "\n" not in str(refused.value)


def test_sizes_are_short_however_large() -> None:
    assert [show_size(one) for one in (6, 999_999, 1_000_000, 25**30, 9**999)] == [
        "6", "999999", "1.0e+6", "8.7e+41", "1.9e+953"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("app", APPS)
def test_a_whole_search_of_architectures_as_a_program_and_without_tensorflow(
    tmp_path: Path, app: str
) -> None:
    """Whoever imports TensorFlow or Keras in the search's process leaves a file."""
    poison = tmp_path / "poison"
    for name in ("tensorflow", "keras"):
        (poison / name).mkdir(parents=True)
        text = f"open({str(tmp_path / 'imported')!r}, 'a').write('{name}')\nraise ImportError('poison')\n"
        (poison / name / "__init__.py").write_text(text)
    directory = tmp_path / "TEST" / "test_12345678"
    problem = ("--problem", f"{MODULE}.Loaded", "--run", "nas_hpc.nas.alpha.run", "--seed", "3")
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=2) as peer:
        path = {"PYTHONPATH": f"{poison}{os.pathsep}{ROOT}"}
        process = start(peer, directory, *problem, "--max-evals", "40", app=app, more=path)
        out, err = process.communicate(timeout=150)
        asks = [row.ask for row in peer.rows.values()]
        assert peer.reports[-1].best_config.keys() == {"arch_seq"}
    assert (process.returncode, err) == (0, "")
    assert not (tmp_path / "imported").exists()
    assert "8 decisions, 3072 architectures" in out
    assert re.search(r'40 of 40 done, 0 failed, best [01]\.\d+ \{"arch_seq":\[\d(,\d){7}\]\}\n', out)
    assert {tuple(ask.environ.items()) for ask in asks} == {(("NAS_HPC_PROBLEM", f"{MODULE}.Loaded"),)}
    found = rows(directory)
    assert list(found[0])[:9] == [*map(str, range(8)), "objective"]
    by_seq = {ask.seq: ask.config for ask in asks}
    for row in found:
        assert by_seq[int(row["seq"])] == {"arch_seq": [int(row[str(place)]) for place in range(8)]}
        assert float(row["objective"]) == sequences.run(by_seq[int(row["seq"])])


@pytest.mark.parametrize("app", APPS)
def test_the_problem_that_evaluations_find_can_be_said_otherwise(peer: Peer, call: Call, app: str) -> None:
    assert call(app, *COMMON, "--max-evals", "2", "--eval-env", "NAS_HPC_PROBLEM=other.Problem") == 0
    assert {row.ask.environ["NAS_HPC_PROBLEM"] for row in peer.rows.values()} == {"other.Problem"}


def test_a_problem_in_a_file_is_found_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer, call: Call
) -> None:
    (tmp_path / "mine_in_a_file.py").write_text(f"from {MODULE} import Problem\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = {"NAS_HPC_PROBLEM": f"{tmp_path}/mine_in_a_file.py:Problem"}
    flags = ("--problem", "mine_in_a_file.py:Problem", "--run", f"{MODULE}.run", "--max-evals", "1")
    assert call("regevo", *flags) == 0
    assert peer.rows[1].ask.environ == found
    other = ("--problem", f"{MODULE}.Problem", "--eval-env", "NAS_HPC_PROBLEM=mine_in_a_file.py:Problem")
    assert call("regevo", *other, *flags[2:-1], "2") == 0
    assert peer.rows[2].ask.environ == found


def test_the_space_is_left_in_the_directory_of_the_search(tmp_path: Path, peer: Peer, call: Call) -> None:
    assert call("random_search", *COMMON, "--max-evals", "1") == 0
    left = SearchSpace.from_json(json.loads((tmp_path / "space.json").read_text()))
    assert left.choices == [4, 4, 2, 4, 2, 2, 3, 2]


def test_allowed_duplicates_are_not_told_of(
    peer: Peer, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--problem", f"{MODULE}.Small", "--run", f"{MODULE}.run", "--seed", "1")
    evolved = ("--population-size", "3", "--sample-size", "3", "--allow-duplicates", "--max-evals", "20")
    assert call("regevo", *flags, *evolved) == 0
    assert len({str(config) for config in peer.configs}) < 20
    assert "no more new configurations" not in capsys.readouterr().out


BAD = [
    ("regevo", (*COMMON, "--population-size", "1"), ("'1'", "from 2 on")),
    ("regevo", (*COMMON, "--sample-size", "0"), ("'0'",)),
    ("regevo", (*COMMON, "--sample-size", "101"), ("--sample-size 101", "100", "--population-size")),
    ("regevo", (*COMMON, "--initial", "none"), ("'none'",)),
    ("regevo", (*COMMON, "--initial", "0"), ("'0'",)),
    ("ambs", (*COMMON, "--surrogate-model", "GP"), ("'GP' is not there yet",)),
    ("regevo", ("--problem", f"{MODULE}.NoLoss", "--run", f"{MODULE}.run"), (".NoLoss'", "no loss")),
    ("ambs", ("--problem", f"{MODULE}.Alone", "--run", f"{MODULE}.run"), (".Alone'", "no variable node")),
    ("random_search", ("--problem", f"{MODULE}.Unequal", "--run", f"{MODULE}.run"), ("5 examples", "4")),
    ("regevo", ("--problem", "nas_hpc.nas.NaProblem", "--run", f"{MODULE}.run"), ("is a class", "instance")),
    ("regevo", ("--problem", MODULE, "--run", f"{MODULE}.run"), ("is a module",)),
    ("regevo", ("--problem", f"{MODULE}.Probelm", "--run", f"{MODULE}.run"), ("did you mean Problem",)),
]


@pytest.mark.parametrize(("app", "arguments", "says"), BAD)
def test_what_cannot_be_searched_is_one_line_before_the_first_job(
    peer: Peer,
    call: Call,
    capsys: pytest.CaptureFixture[str],
    app: str,
    arguments: tuple[str, ...],
    says: tuple[str, ...],
) -> None:
    assert call(app, *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in says:
        assert part in err
    assert peer.rows == {}


@pytest.mark.parametrize("name", ["tensorflow", "keras"])
def test_a_library_that_trainings_need_and_that_is_not_installed_is_named_before_the_first_job(
    peer: Peer, call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for known in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, known, ModuleType(known))
        sys.modules[known].__spec__ = ModuleSpec(known, None)
    monkeypatch.setitem(sys.modules, name, None)  # as if there were none
    assert call("regevo", "--problem", f"{MODULE}.Problem", "--run", "nas_hpc.nas.alpha.run") == 2
    assert f"nas_hpc.nas.alpha.run needs {name}, which is not installed" in capsys.readouterr().err
    assert peer.rows == {}


def test_the_variable_of_evaluations_is_no_misspelled_setting() -> None:
    assert strange_variables({"NAS_HPC_PROBLEM": "x.Problem"}) == []


def test_records_of_another_space_are_refused_by_name() -> None:
    small = load_searched(f"{MODULE}.Small")
    assert small.space is not None
    optimizer = ArchitectureOptimizer(RandomSampler(small.decisions), small.space)
    with pytest.raises(WrongCall, match=r"has 8 numbers, and the space 3 variable nodes"):
        optimizer.remember([{"arch_seq": sequences.BEST}])
