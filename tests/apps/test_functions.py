"""Run functions are found without running their modules where their source settles it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nas_hpc.apps.functions import find_function, locate_run_function, resolve_file
from nas_hpc.errors import WrongCall

HEAVY = 'raise RuntimeError("this module was imported")\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "def run(config): return 0.0",
        "def run(config, epochs=3): return 0.0",
        "def run(*args): return 0.0",
        "import os\nx = 1\ndef run(config, *, verbose=False): return 0.0",
    ],
)
def test_a_plain_function_is_found_and_its_module_is_not_imported(place: Path, source: str) -> None:
    (place / "heavy_one.py").write_text(HEAVY + source)
    assert locate_run_function("heavy_one.run") == "heavy_one.run"
    assert "heavy_one" not in sys.modules


@pytest.mark.parametrize(
    "source",
    [
        "run = 3",
        "def run(): return 0.0",
        "def run(a, b): return 0.0",
        "def run(config, *, needed): return 0.0",
        "def other(config): return 0.0",
        "def run(config): return 0.0\nrun = 3",
        "def run(config): return 0.0\ndef run(): return 0.0",
        "def run(config): return 0.0\nfor run in [1]: pass",
        "class run: pass",
        "if True:\n    def run(): return 0.0",
        "import math\ndef run(config): return 0.0\ndel run",
    ],
)
def test_what_the_source_does_not_settle_is_imported_and_judged(place: Path, source: str) -> None:
    name = f"light_{abs(hash(source))}"
    (place / f"{name}.py").write_text(source)
    with pytest.raises(WrongCall) as refused:
        locate_run_function(f"{name}.run")
    assert f"{name}.run" in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "source",
    [
        "run = lambda config: 0.0",
        "from math import floor as run",
        "import functools\n@functools.cache\ndef run(c): ...",
    ],
)
def test_functions_made_otherwise_are_found_too(place: Path, source: str) -> None:
    name = f"other_{abs(hash(source))}"
    (place / f"{name}.py").write_text(source)
    assert locate_run_function(f"{name}.run") == f"{name}.run"


@pytest.mark.parametrize(
    ("source", "specified"),
    [
        (
            "from nas_hpc import *\nfrom nas_hpc import job_specification\n"
            "@job_specification\ndef run(p): ...",
            True,
        ),
        ("import nas_hpc\n@nas_hpc.balsamjob_spec\ndef run(p): ...", True),
        ("from nas_hpc import job_specification as js\ndef run(p): ...\nrun = js(run)", True),
        ("from tests.apps.quadratic import program as run", True),
        ("import tests.apps.quadratic as q\nrun = q.program", True),
        ("import functools, tests.apps.quadratic as q\nrun = functools.partial(q.program)", True),
        ("import functools\n@functools.cache\ndef run(p): ...", False),
        ("from nas_hpc import job_specification\ndef run(p): ...", False),
    ],
)
def test_a_job_specification_is_recognised_however_it_is_imported(
    place: Path, source: str, specified: bool
) -> None:
    name = f"spec_{abs(hash(source))}"
    (place / f"{name}.py").write_text(source)
    dotted, found = find_function(f"{place}/{name}.py:run")
    assert dotted == f"{name}.run"
    assert (found is not None) == specified


def test_a_file_becomes_the_module_that_evaluations_import(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (place / "inner").mkdir()
    for file in ("mine_a.py", "inner/mine_b.py"):
        (place / file).write_text(HEAVY + "def run(config): return 0.0\ndef go(config): return 0.0")
    monkeypatch.chdir(tmp_path_factory.mktemp("job"))  # the search's directory is not the submitter's
    assert locate_run_function("mine_a.py") == "mine_a.run"
    assert locate_run_function(f"{place}/mine_a.py:go") == "mine_a.go"
    assert locate_run_function("inner/mine_b.py:go") == "inner.mine_b.go"
    assert locate_run_function("inner.mine_b:go") == "inner.mine_b.go"
    assert resolve_file("inner/mine_b.py:Problem") == f"{place}/inner/mine_b.py:Problem"


def test_a_module_whose_name_has_py_in_it_is_no_file(place: Path) -> None:
    (place / "pack").mkdir()
    (place / "pack" / "pytorch_model.py").write_text(HEAVY + "def run(config): return 0.0")
    assert locate_run_function("pack.pytorch_model.run") == "pack.pytorch_model.run"
    assert resolve_file("pack.pytorch_model.run") == "pack.pytorch_model.run"


def test_a_file_where_evaluations_cannot_find_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "far_away.py").write_text("def run(config): return 0.0")
    with pytest.raises(WrongCall, match="PYTHONPATH"):
        locate_run_function(f"{tmp_path}/far_away.py:run")


@pytest.mark.parametrize(
    "path", ["nothing.here.run", "__main__.run", "run", "no_file.py:run", "tests.apps", ""]
)
def test_what_is_not_there_is_named_in_one_line(path: str) -> None:
    with pytest.raises(WrongCall) as refused:
        locate_run_function(path)
    assert "\n" not in refused.value.message
    assert path.partition(":")[0] in refused.value.message
