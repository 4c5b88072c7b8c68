"""``nas-hpc space``: what it shows and draws, and one line for what is wrong."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.nas import SearchSpace
from tests.cli.conftest import Run

PROBLEM = """
from nas_hpc.nas import ConstantNode, NaProblem, SearchSpace, VariableNode
from nas_hpc.nas.operations import *

def load_data():
    raise SystemExit("the data is not looked at")

def create(input_shape, output_shape):
    space = SearchSpace(input_shape, output_shape)
    first = VariableNode("first", {first})
    second = VariableNode("second", {second})
    space.connect(space.inputs[0], first)
    space.connect(first, second)
    space.connect(second, ConstantNode(Dense(output_shape[0]), "out"))
    return space

Problem = NaProblem()
Problem.load_data(load_data)
Problem.search_space(create, input_shape=(4,), output_shape=(2,))
Problem.loss("mse")
Problem.objective("-val_loss__min")
"""
OPS = "[Identity(), Dense(3, 'relu'), Dense(5, 'relu')]"


@pytest.fixture(autouse=True)
def mine(nas_hpc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A problem in the directory in which the command is called; path and modules are then as before."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path / "work")
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(where: Path, first: str = OPS, second: str = OPS, name: str = "mine.py") -> None:
    (where / name).write_text(PROBLEM.replace("{first}", first).replace("{second}", second))


def test_show_lists_places_nodes_and_choices(nas_hpc: Run) -> None:
    called = nas_hpc("space", "show", "mine.py")
    assert called.code == 0
    lines = [" ".join(line.split()) for line in called.out.splitlines()]
    assert called.out.startswith("2 choices, 9 architectures; (4,) to (2,)\n")
    assert "0 first 0: Identity; 1–2: Dense(3|5, relu) input_0" in lines
    assert "- out Dense(2) second" in lines


def test_show_json_is_the_whole_space(nas_hpc: Run) -> None:
    body = json.loads(nas_hpc("space", "show", "mine.py:Problem", "--json").out)
    assert (body["size"], body["choices"], body["outputs"]) == (9, [3, 3], ["out"])
    assert SearchSpace.from_json(body).to_json() == {
        key: body[key] for key in ("version", "input_shapes", "output_shapes", "nodes")
    }


@pytest.mark.parametrize("sequence", ["1,2", "[1, 2]", " 1 2 "])
def test_show_says_shapes_parameters_and_flops_of_an_architecture(nas_hpc: Run, sequence: str) -> None:
    called = nas_hpc("space", "show", "mine.py", "--arch-seq", sequence)
    assert called.code == 0
    assert called.out.startswith("47 parameters, 84 FLOPs an example; sequence [1, 2]\n")
    rows = [line.split() for line in called.out.splitlines()]
    assert ["second", "Dense(5,", "relu)", "first", "(5,)", "20", "35"] in rows
    body = json.loads(nas_hpc("space", "show", "mine.py", "--arch-seq", sequence, "--json").out)
    assert (body["arch_seq"], body["parameters"], body["flops"]) == ([1, 2], 47, 84)


def test_draw_writes_the_space_as_svg_and_an_architecture_as_png_and_says_where(
    nas_hpc: Run, tmp_path: Path
) -> None:
    called = nas_hpc("space", "draw", "mine.py")
    assert (called.code, called.out) == (0, f"{tmp_path}/work/space.svg\n")
    said = {"".join(one.itertext()) for one in ElementTree.parse(tmp_path / "work/space.svg").iter()}
    assert {"[0] first", "[1] second", "2 choices, 9 architectures"} <= said
    called = nas_hpc("space", "draw", "mine.py", "--arch-seq", "0,1", "-o", "one.PNG")
    assert called.code == 0
    assert (tmp_path / "work" / "one.PNG").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "work").glob("[!_]*")) == [
        "mine.py", "one.PNG", "space.svg",
    ]  # fmt: skip


def evaluation(where: Path, number: int, objective: float, config: dict[str, object]) -> None:
    """An evaluation that ended, as a launcher leaves it."""
    job = f"{number:08x}" + "0" * 24
    directory = where / f"task{number}_{job[:8]}"
    directory.mkdir(parents=True)
    creator = "c" * 32
    (directory / "job.json").write_text(
        json.dumps({"id": job, "name": f"task{number}", "creator": creator, "seq": number, "config": config})
    )
    (directory / "result.json").write_text(
        json.dumps({"job": job, "attempt": 1, "outcome": "ok", "objective": objective, "start": 1, "end": 2})
    )


def test_draw_best_draws_the_best_architecture_of_several_workflows(nas_hpc: Run, tmp_path: Path) -> None:
    for number, (objective, sequence) in enumerate([(0.5, [0, 0]), (0.9, [1, 2]), (0.7, [2, 2])]):
        evaluation(tmp_path / "work" / f"search{number % 2}", number, objective, {"arch_seq": sequence})
    called = nas_hpc("space", "draw", "mine.py", "--best", "./search0", "--best", "./search1", "-o", "b.svg")
    assert (called.code, called.err) == (0, "")
    said = {"".join(one.itertext()) for one in ElementTree.parse(tmp_path / "work/b.svg").iter()}
    assert "sequence 1, 2" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "mine.py", "--arch-seq", "1"], "the sequence [1] has 1 numbers, and the space 2"),
        (["show", "mine.py", "--arch-seq", "1,3"], "3 is no choice of second, which has 3 operations"),
        (["show", "mine.py", "--arch-seq", "1,-1"], "-1 is no choice of second"),
        (["show", "mine.py", "--arch-seq", "1,x"], "--arch-seq '1,x': give whole numbers with commas"),
        (["show", "mine.py", "--arch-seq", ""], "the sequence [] has 0 numbers, and the space 2"),
        (["show", "gone.py"], "gone.py': give a .py file or a dotted name"),
        (["show", "nas_hpc.problems.hps.polynome2.Problem"], "give the name of an nas_hpc.nas.NaProblem"),
        (["draw", "mine.py", "-o", "a.pdf"], "-o a.pdf: give a name that ends in .svg or .png"),
        (["draw", "mine.py", "-o", "gone/a.svg"], "work/gone does not exist; make it first"),
        (["draw", "mine.py", "--arch-seq", "0,0", "--best", "."], "give one of them"),
        (["draw", "mine.py", "--best", "gone"], "'gone' is no workflow of the site and no directory"),
        (["draw", "mine.py", "--best", "./other"], "task3 in"),
        (["draw", "mine.py", "--best", "./none"], "./none: there is no evaluation with an objective yet"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(nas_hpc: Run, tmp_path: Path, argv: list[str], said: str) -> None:
    evaluation(tmp_path / "work" / "other", 3, 0.5, {"lr": 0.1})
    (tmp_path / "work" / "none").mkdir()
    (tmp_path / "work" / "none" / "attempts.jsonl").touch()
    called = nas_hpc("space", *argv)
    assert (called.code, called.out) == (2, "")
    assert said in called.err
    assert called.err.count("\n") == 1


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            "[Identity()]",
            OPS,
            "the variable node first has one operation, Identity: add others, or make it a",
        ),
        (
            "[Identity(), Conv2D(3, 3)]",
            OPS,
            "Conv2D(3, 3) takes inputs of rank 3 (without the batch), and this one",
        ),
        ("[Identity(), Dense(0)]", OPS, "Dense: units=0: give a whole number above 0"),
        ("[Identity(), Zero()]", OPS, "nothing is connected to its output out"),
        ("[Identity(), Reshape((2, 2))]", OPS, "has the output shape (2, 2), and the space is for (2,)"),
        ("[Identity(), Dense]", OPS, "the class Dense is no operation: give one such as Dense(16, 'relu')"),
    ],
)
def test_a_wrong_space_is_one_line(nas_hpc: Run, tmp_path: Path, first: str, second: str, said: str) -> None:
    write(tmp_path / "work", first, second, "wrong.py")
    for command in ("show", "draw"):
        called = nas_hpc("space", command, "wrong.py")
        assert (called.code, called.out) == (2, "")
        assert said in called.err
        assert called.err.count("\n") == 1


def test_the_space_of_the_documents_is_one(nas_hpc: Run, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "nas.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    problem = PROBLEM.partition("def create(")[0] + code + "\n" + PROBLEM.partition("    return space\n")[2]
    body = problem.replace("search_space(create,", "search_space(create_search_space,")
    (tmp_path / "work" / "documented.py").write_text(body)
    called = nas_hpc("space", "show", "documented.py", "--arch-seq", "3,0,1,0,0,1,0,0,0")
    assert (called.code, called.err) == (0, "")
