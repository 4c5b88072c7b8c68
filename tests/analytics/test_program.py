"""The program deephyper-analytics and the page that it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nas_hpc.analytics import write_report
from nas_hpc.analytics.cli import main
from nas_hpc.analytics.text import duration, number
from nas_hpc.analytics.utilization import DEFINITION
from tests.analytics.workflows import SEARCH, attempt_line, make_workflow, write_directory, write_lines

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balance(HTMLParser):
    """Collects elements that are closed in the wrong order, and the text outside of style sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """``<path/>`` opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def page_text(page: str) -> str:
    """The page's text; fails if its elements do not nest."""
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert (parser.wrong, parser.open) == ([], [])
    return " ".join(" ".join(parser.text).split())


def test_utilization_says_the_figures_and_their_definition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workflow(tmp_path / "TEST")
    assert main(["utilization", str(tmp_path / "TEST")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("TEST: 40 evaluations: ")
    assert re.search(r"best objective 0\.9\d+: task\d+, after ", said)
    assert re.search(r"utilization \d+\.\d %: \d+\.\d busy of \d+\.\d available evaluator-seconds", said)
    assert DEFINITION in said


def test_json_has_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workflow(tmp_path / "TEST")
    assert main(["utilization", str(tmp_path / "TEST"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n_evaluations"] == 40
    assert figures["utilization"] == pytest.approx(figures["busy_s"] / figures["available_s"])
    assert figures["best"]["config"]["activation"] == "relu"
    assert figures["definition"] == DEFINITION


def test_throughput_counts_what_ended_in_each_tenth_of_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [attempt_line(seq, 0, 10 * seq) for seq in range(1, 10)]
    lines += [
        attempt_line(20, 0, 100),
        attempt_line(21, 3, 3, cached=True),
        attempt_line(22, 0, 95, outcome="killed"),
    ]
    write_lines(tmp_path / "TEST" / "attempts.jsonl", lines)
    assert main(["throughput", str(tmp_path / "TEST"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["n"], figures["elapsed_s"], figures["per_hour"]) == (10, 100.0, 360.0)
    assert sum(part["n"] for part in figures["parts"]) == 10
    assert [part["to_s"] for part in figures["parts"]] == pytest.approx([10.0 * n for n in range(1, 11)])
    assert main(["throughput", str(tmp_path / "TEST")]) == 0
    assert capsys.readouterr().out.startswith("TEST: 10 evaluations in 1 min 40 s, 360.0 per hour\n  until ")


def test_the_report_is_one_page_that_loads_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workflow(tmp_path / "TEST")
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "TEST"), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|\bsrc=|url\((?!#)", page)
    references = re.findall(r'href="([^"]*)"', page)
    assert all(reference.startswith(("#", "data:")) for reference in references)
    identifiers = re.findall(r' id="([^"]*)"', page)
    assert references
    assert {reference[1:] for reference in references if reference[0] == "#"} <= set(identifiers)
    text = page_text(page)
    for part in (
        "Best evaluation: task",
        "test_accuracy",
        "Best so far",
        "evaluator slots",
        "Failures by reason",
    ):
        assert part in text
    assert DEFINITION in text
    assert page.count("<svg ") == 2
    assert len(page) < 200_000


def test_of_several_searches_each_evaluation_names_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "6f" * 16
    lines = [attempt_line(1, 0, 1), attempt_line(2, 0, 2, creator=other)]
    write_lines(tmp_path / "W" / "attempts.jsonl", lines)
    (tmp_path / "W" / f"second_{other[:8]}").mkdir()
    page = page_text(write_report(tmp_path / "W", tmp_path / "r.html").read_text())
    assert "Best evaluation: task2 of second" in page
    assert f"task1 {SEARCH[:8]} 1" in page  # its directory is gone
    assert main(["utilization", str(tmp_path / "W")]) == 0
    assert "task2 of second" in capsys.readouterr().out
    alone = write_report(make_workflow(tmp_path / "T", n=2), tmp_path / "s.html").read_text()
    assert "<th>search</th>" not in alone


def test_what_users_write_is_shown_and_not_interpreted(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    workflow = tmp_path / "W"
    line = attempt_line(1, 0, 2)
    write_directory(workflow, line, {"layer": bad, "many": [1, {"a": None}]}, note=bad)
    write_lines(workflow / "attempts.jsonl", [line, attempt_line(2, 0, 1, outcome="error", reason=bad)])
    page = write_report(workflow, tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert page_text(page).count(bad) >= 3


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [attempt_line(1, 0, 0, cached=True)],
        [attempt_line(1, 0, 0)],
        [attempt_line(1, 0, 3, outcome="error", objective=None, reason="")],
        [attempt_line(1, 0, 1, outcome="lost", objective=None)],
    ],
)
def test_a_report_is_written_of_searches_with_hardly_anything_in_them(
    tmp_path: Path, lines: list[dict[str, object]]
) -> None:
    write_lines(tmp_path / "W" / "attempts.jsonl", lines)
    assert page_text(write_report(tmp_path / "W", tmp_path / "r.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["utilization", "{}/gone"], "{}/gone does not exist"),
        (["report", "{}"], "{} is neither a workflow's directory"),
        (["report", "{}/TEST", "-o", "{}/no/r.html"], "cannot be written to {}/no/r.html: No such file"),
        (["report", "{}/TEST", "-o", "{}"], "{} is a directory"),
        (["utilization", "{}/TEST", "--fast"], "No such option"),
        (["utilization"], "Missing argument 'PATH'"),
        (["plot", "{}"], "No such command 'plot'"),
    ],
)
def test_a_wrong_call_gives_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_workflow(tmp_path / "TEST", n=2)
    assert main([part.replace("{}", str(tmp_path)) for part in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message.replace("{}", str(tmp_path)) in captured.err


def test_help_has_an_example_and_importing_the_program_loads_no_pandas(tmp_path: Path) -> None:
    code = "import sys, nas_hpc.analytics.cli as c; print('pandas' in sys.modules); sys.exit(c.main(['-h']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False\n")
    assert "Example: deephyper-analytics utilization testdb/data/TEST" in done.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, checkout: Path) -> None:
    make_workflow(tmp_path / "TEST", n=2)
    command = f'"{sys.executable}" -m nas_hpc.analytics.cli utilization "{tmp_path}/TEST" --json | true'
    done = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4249, "0.42 s"), (57.61, "57.6 s"), (725, "12 min 5 s"), (12000, "3 h 20 min"), (187200, "2 d 4 h")],
)
def test_durations_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.977777777, "0.977778"), (1200.0, "1200"), (1.5e-5, "1.5e-05"), (float("nan"), "nan")],
)
def test_numbers_have_six_digits_at_most(value: float, text: str) -> None:
    assert number(value) == text
