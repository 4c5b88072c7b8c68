"""The report on a search of architectures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.analytics import write_report
from nas_hpc.nas import ConstantNode, SearchSpace, VariableNode
from nas_hpc.nas.operations import AddByProjecting, Connect, Dense, Identity, Operation, Zero
from tests.analytics.test_program import page_text
from tests.analytics.workflows import attempt_line, launcher_line, write_directory, write_lines, write_search


def space() -> SearchSpace:
    """Two layers and an optional connection past the second."""
    made = SearchSpace((64,), (10,))
    ops: list[Operation] = [Identity(), Dense(16, "relu"), Dense(32, "tanh")]
    first, second = VariableNode("first", ops), VariableNode("second", ops)
    made.connect(made.inputs[0], first)
    made.connect(first, second)
    skip = VariableNode("skip", [Zero(), Connect(first)])
    merge = ConstantNode(AddByProjecting("relu"), "merge")
    made.connect(second, merge)
    made.connect(skip, merge)
    made.connect(merge, ConstantNode(Dense(10, "softmax"), "classes"))
    return made


def architectures(workflow: Path, **more: Any) -> Path:
    """A workflow of three evaluated architectures; the directory of the best."""
    lines = []
    for seq, (sequence, objective) in enumerate([([0, 1, 0], 0.91), ([2, 1, 1], 0.96), ([1, 1, 0], 0.93)], 1):
        line = attempt_line(seq, seq, seq + 1, objective=objective)
        body = space().architecture(sequence).to_json()
        sizes = {name: body[name] for name in ("parameters", "flops")}
        directory = write_directory(
            workflow,
            line,
            {"arch_seq": sequence},
            epochs=3,
            **sizes,
            test_loss=0.5,
            test_accuracy=objective - 0.02,
        )
        body |= {"problem": "digits.Problem", "seed": 1, "objective": "val_accuracy__max", **more}
        (directory / "architecture.json").write_text(json.dumps(body))
        history = {
            "loss": [2.0, 1.5, 1.0],
            "val_loss": [2.1, 1.6, 1.2],
            "val_accuracy": [0.5, 0.9, objective],
        }
        (directory / "history.json").write_text(json.dumps(history))
        lines.append(line)
    write_lines(workflow / "attempts.jsonl", lines)
    write_lines(workflow / "launchers.jsonl", [launcher_line(0, "start", 1), launcher_line(9, "end", 0)])
    write_search(workflow)
    return workflow / "task2_00000002"


def page_of(workflow: Path) -> str:
    return write_report(workflow, workflow.parent / "report.html").read_text()


def drawing(page: str) -> str:
    found = re.search(r'<div class="drawing">(<svg.*?</svg>)', page, re.DOTALL)
    return found.group(1) if found else ""


def test_the_best_architecture_is_drawn_with_its_test_beside_its_validation_on_a_page_that_loads_nothing(
    tmp_path: Path,
) -> None:
    best = architectures(tmp_path / "W")
    page = page_of(tmp_path / "W")
    text = page_text(page)
    assert "0.96 best val_accuracy__max, task2 0.94 its test accuracy" in text
    parameters = json.loads((best / "architecture.json").read_text())["parameters"]
    assert f"choices 2, 1, 1 parameters {parameters:,} flops" in text
    inside = page_text(drawing(page))
    for part in ("Dense(32, tanh)", "Dense(16, relu)", "Dense(10, softmax)", "AddByProjecting", "(64,)"):
        assert part in inside
    assert "The best architecture's training by epochs" in page
    assert "hyperparameter" not in text
    for row in ("[2, 1, 1] 0.94 0.5", "[1, 1, 0] 0.91 0.5", "[0, 1, 0] 0.89 0.5"):
        assert row in text
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|\bsrc=|url\((?!#)", page)
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert {one or other for one, other in references} <= set(re.findall(r' id="([^"]*)"', page))
    assert len(page) < 300_000


@pytest.mark.parametrize("left", ["architecture", "space"])
def test_a_report_imports_no_module_that_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Operations of users' own are drawn from what architecture.json says of them."""
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()")
    monkeypatch.syspath_prepend(str(tmp_path))
    best = architectures(tmp_path / "W")
    if left == "architecture":
        file = best / "architecture.json"
        body = json.loads(file.read_text())
        next(node for node in body["nodes"] if node["name"] == "second")["op"]["op"] = "evil.Attention"
    else:
        (best / "architecture.json").unlink()
        file = tmp_path / "W" / "test_5e5e5e5e" / "space.json"
        body = space().to_json()
        next(node for node in body["nodes"] if node["name"] == "second")["ops"][0]["op"] = "evil.Attention"
    file.write_text(json.dumps(body))
    assert bool(drawing(page_of(tmp_path / "W"))) is (left == "architecture")
    assert not (tmp_path / "evil.ran").exists()


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"nodes": [{"name": 7}], "outputs": []}'],
)
def test_without_a_drawing_the_report_says_why(tmp_path: Path, content: str | None) -> None:
    best = architectures(tmp_path / "W")
    (best / "architecture.json").unlink()
    if content is not None:
        (best / "architecture.json").write_text(content)
        (best / "history.json").write_text(content)
    text = page_text(page_of(tmp_path / "W"))
    assert "architecture.json" in text
    assert "No drawing: its" in text
    assert "0.96 best objective, task2 0.94 its test accuracy" in text


def test_an_evaluation_without_a_directory_is_drawn_from_the_searchs_space(tmp_path: Path) -> None:
    best = architectures(tmp_path / "W")
    (best / "architecture.json").unlink()
    (search,) = (tmp_path / "W").glob("test_*")
    (search / "space.json").write_text(json.dumps(space().to_json()))
    assert "Dense(32, tanh)" in drawing(page_of(tmp_path / "W"))


@pytest.mark.parametrize(
    "content", ['{"version": 99}', '{"version": 1, "nodes": [{"op": {"op": "evil.Layer"}}]}']
)
def test_a_damaged_space_is_no_drawing(tmp_path: Path, content: str) -> None:
    best = architectures(tmp_path / "W")
    (best / "architecture.json").unlink()
    (search,) = (tmp_path / "W").glob("test_*")
    (search / "space.json").write_text(content)
    assert "No drawing: its evaluation has left no architecture.json" in page_text(page_of(tmp_path / "W"))


def test_what_a_file_says_of_an_architecture_is_shown_and_not_interpreted(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    best = architectures(tmp_path / "W", objective=bad)
    body = json.loads((best / "architecture.json").read_text())
    text = json.dumps(body).replace('"second"', json.dumps(bad))
    (best / "architecture.json").write_text(text)
    page = page_of(tmp_path / "W")
    assert "<script" not in page
    assert page_text(page).count(bad) >= 2
