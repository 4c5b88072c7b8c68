"""A whole search in the foreground: run, interrupted, gone on with, and refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.cli.context import open_database
from nas_hpc.cli.submission import find_job
from nas_hpc.site import DEFAULT_SITE, Site
from nas_hpc.states import State
from tests.cli.conftest import Run
from tests.support import wait_until

PROGRAM = (sys.executable, "-m", "nas_hpc.cli")
MINE = """\
import time
from nas_hpc.problem import HpProblem
Problem = HpProblem()
Problem.add_dim("x", (0.0, 1.0))
Problem.add_dim("kind", ["a", "b"])
def run(config):
    time.sleep({pause_s})
    return {{"objective": config["x"], "metadata": {{"test_accuracy": 0.5}}}}
"""
BAD = """\
import numpy
from nas_hpc.problem import HpProblem
VALUES = {"nothing": None, "nan": float("nan"), "text": "much", "array": numpy.ones(2)}
Problem = HpProblem()
Problem.add_dim("kind", [*VALUES, "raises"])
for kind in [*VALUES, "raises"]:
    Problem.add_starting_point(kind=kind)
def bad(config):
    if config["kind"] == "raises":
        raise ValueError("too hot")
    return VALUES[config["kind"]]
"""
REASONS = {"nothing": "None", "nan": "nan", "text": "much", "array": "array", "raises": "ValueError: too hot"}
HPS = ("run", "hps", "new", "--app", "RAN", "--workers", "2", "-p", "mine.Problem")


def modules(pause_s: float = 0.0) -> None:
    Path("mine.py").write_text(MINE.format(pause_s=pause_s))


def rows(site: Path) -> int:
    [path] = (site / "data" / "new").glob("new_*/results.csv")
    with path.open() as file:
        return len(list(csv.DictReader(file)))


@pytest.mark.slow
def test_a_search_in_the_foreground_makes_its_site_and_says_what_came_of_it(nas_hpc: Run) -> None:
    modules()
    done = subprocess.run(
        [*PROGRAM, *HPS, "-r", "mine.run", "--max-evals", "6"], capture_output=True, text=True
    )
    assert done.returncode == 0, done
    assert f"made the site {os.getcwd()}/{DEFAULT_SITE}" in done.stderr
    assert done.stdout.startswith("search new: 6 evaluations by RAN; loading")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "0.5" in lines["test"]
    assert "kind=" in lines["configuration"]
    assert lines["evaluations"].split() == ["evaluations", "6"]
    assert lines["took"].endswith(" s")
    assert Path(lines["best"].split()[-1]).is_dir()
    assert Path(lines["report"].split()[1]).is_file()
    assert Path(lines["results"].split()[1]).is_file()
    assert rows(Path(DEFAULT_SITE)) == 6

    again = nas_hpc(*HPS, "-r", "mine.run", "--max-evals", "6", "--json")
    assert again.code == 0
    assert "is finished already" in again.err
    assert json.loads(again.out)["evaluations"] == 6

    other = nas_hpc(*HPS, "-r", "mine.run", "--max-evals", "6", "--seed", "3")
    assert other.code == 2
    assert "was begun without --seed 3" in other.err
    function = nas_hpc(*HPS, "-r", "mine.py:run", "--max-evals", "6")
    assert function.code == 2
    assert f"was begun with --run mine.run, not --run {os.getcwd()}/mine.py:run" in function.err
    fewer = nas_hpc(*HPS, "-r", "mine.run", "--max-evals", "5")
    assert fewer.code == 2
    assert "was begun with --max-evals 6" in fewer.err

    more = subprocess.run(
        [*PROGRAM, *HPS, "-r", "mine.run", "--max-evals", "8", "--json", "--no-report"],
        capture_output=True,
        text=True,
    )
    assert more.returncode == 0, more
    body = json.loads(more.stdout)
    assert (body["evaluations"], body["report"], body["state"]) == (8, "", "JOB_FINISHED")
    assert rows(Path(DEFAULT_SITE)) == 8


@pytest.mark.slow
def test_an_interrupted_search_goes_on_by_the_same_command(site: Site, nas_hpc: Run) -> None:
    modules(pause_s=0.2)
    command = [*PROGRAM, *HPS, "-r", "mine.run", "--max-evals", "12", "--json", "--no-report"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    attempts = site.data / "new" / "attempts.jsonl"
    wait_until(
        lambda: attempts.exists() and len(attempts.read_text().splitlines()) >= 3, 60, "some evaluations"
    )
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, (out, err)
    assert "the same command goes on" in err
    before = json.loads(out)["evaluations"]
    assert 0 < before < 12
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second
    assert any("/12 done" in line and "running" in line for line in second.stderr.splitlines())
    assert f"goes on: {before} evaluations are done" in second.stderr
    assert json.loads(second.stdout)["evaluations"] == 12
    assert rows(site.path) == 12


@pytest.mark.slow
def test_a_run_function_without_results_fails_the_search_and_every_reason_is_told(
    site: Site, nas_hpc: Run
) -> None:
    Path("mine.py").write_text(BAD)
    argv = [*PROGRAM, *HPS, "-r", "mine.bad", "--max-evals", str(len(REASONS))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert "all 5 evaluations failed" in line
    [path] = (site.data / "new").glob("new_*/results.csv")
    with path.open() as file:
        told = {row["kind"]: row["reason"] for row in csv.DictReader(file)}
    for kind, said in REASONS.items():
        assert said in told[kind]
    with open_database(site) as store:
        assert find_job(store, "new/new").state is State.FAILED
    again = nas_hpc(*argv[3:])
    assert again.code == 2
    assert "nas-hpc rm --workflow new --yes" in again.err
