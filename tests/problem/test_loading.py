"""Loading of problems and run functions: each mistake is one line that names it and what would be right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.problem import HpProblem, load_callable, load_problem

MODULE = """
from nas_hpc.problem import HpProblem
Problem = HpProblem()
Problem.add_dim("x", (0, 9))
Empty = HpProblem()
class MyProblem(HpProblem): pass
number = 3
def make(): return Problem
def run(config): return config["x"]
def nothing(): return 1
def two(a, b): return a
class Runner:
    def __call__(self, config): return 1.0
runner = Runner()
def stray(config): return 1
stray.__module__ = "__main__"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    (tmp_path / "loadme.py").write_text(MODULE)
    (tmp_path / "raises.py").write_text("raise KeyError('boom')")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "needs.py").write_text("import a_module_that_nobody_has")
    (tmp_path / "wrong.py").write_text("import nas_hpc.problem as p\np.HpProblem().add_dim('x', (2, 1))")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_all_forms_of_a_path_find_the_object(folder: Path) -> None:
    file = folder / "loadme.py"
    for path in ("loadme.Problem", "loadme:Problem", f"{file}:Problem", str(file)):
        assert isinstance(load_problem(path), HpProblem)
    for path in ("loadme.run", f"{file}:run", str(file), "loadme.runner"):
        assert callable(load_callable(path))
    assert load_problem("nas_hpc.problems.hps.polynome2.Problem").hyperparameter_names[0] == "e0"


def test_a_file_named_like_a_standard_module_does_not_hide_it(folder: Path) -> None:
    (folder / "json.py").write_text("def run(config): return 1.0")
    import json

    assert load_callable(str(folder / "json.py"))({}) == 1.0
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module.Problem", "no module 'no_such_module' in '.*', …"),
        ("no_such.deep.module.Problem", "no module 'no_such'"),
        ("loadme.inner.Problem", "'loadme' is a module, not a package"),
        ("nas_hpc.problems.hps.polynom.Problem", "has no module 'polynom': did you mean polynome2"),
        ("loadme.Problme", "module 'loadme' has no 'Problme': did you mean Problem"),
        ("nas_hpc.problems.hps", "is a module: add the problem's name"),
        ("nas_hpc.problems.hps.polynome2", "is a module: add the problem's name"),
        ("loadme.number", "is a int: give the name of an nas_hpc.problem.HpProblem"),
        ("loadme.MyProblem", r"is a class: give an instance, as in Problem = MyProblem\(\)"),
        ("loadme.Runner", r"is a class: give an instance, as in Problem = HpProblem\(\)"),
        ("loadme.make", r"is a function: let its module call it, as in Problem = make\(\)"),
        ("loadme.Empty", "has no hyperparameters"),
        ("raises.Problem", "'raises' raised KeyError: 'boom' at import"),
        ("exits.Problem", "'exits' raised SystemExit: 3 at import"),
        ("broken.Problem", r"not valid Python \(.*broken.py:1: "),
        ("needs.Problem", "imports 'a_module_that_nobody_has', which is not installed"),
        ("wrong.Problem", r"'wrong.Problem': hyperparameter 'x': the range \(2, 1\) is inverted"),
        ("Problem", "'Problem' is not a dotted name"),
        ("", "'' is not a dotted name"),
        ("a b.Problem", "not a dotted name"),
        (".Problem", "not a dotted name"),
        ("nowhere/file.py:Problem", "there is no file '.*nowhere/file.py'"),
        ("__main__.Problem", "lives in __main__"),
    ],
)
def test_a_problem_that_cannot_be_loaded_is_one_clear_line(folder: Path, path: str, says: str) -> None:
    with pytest.raises(WrongCall, match=says) as caught:
        load_problem(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("loadme.number", "is a int, not a function"),
        ("loadme.Runner", "is a class: give a function"),
        ("loadme.nothing", "does not take one argument"),
        ("loadme.two", "does not take one argument .*'b'"),
        ("loadme.rum", "did you mean run"),
        ("loadme.stray", "lives in __main__"),
        ("__main__.run", "lives in __main__"),
        ("nas_hpc.problems.hps.polynome2", "is a module: add the function's name"),
        ("missing_thing.run", "no module 'missing_thing'"),
    ],
)
def test_a_run_function_that_cannot_be_called_is_one_clear_line(folder: Path, path: str, says: str) -> None:
    with pytest.raises(WrongCall, match=says) as caught:
        load_callable(path)
    assert "\n" not in str(caught.value)
