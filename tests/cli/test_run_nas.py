"""A whole search of architectures in the foreground, with a run function that trains nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.cli import foreground
from nas_hpc.site import DEFAULT_SITE
from tests.cli.conftest import Called, Run
from tests.peers.mpi import MpiPeer

PROGRAM = (sys.executable, "-m", "nas_hpc.cli", "run", "nas", "new")
PROBLEM = "tests.apps.sequences"
HPS = "nas_hpc.problems.hps.polynome2"


def refused(answer: Called, *said: str) -> None:
    assert answer.code == 2
    assert answer.err.count("\n") == 1, answer.err
    for word in said:
        assert word in answer.err


@pytest.mark.slow
def test_a_search_of_architectures_in_the_foreground_by_evolution(nas_hpc: Run) -> None:
    Path("mine.py").write_text(f"from {PROBLEM} import Problem, where\n")
    flags = ("-p", "mine.py:Problem", "-r", "mine.where", "--workers", "2", "--no-report")
    done = subprocess.run([*PROGRAM, *flags, "--max-evals", "5"], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert done.stdout.startswith("search new: 5 evaluations by EVO; loading")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    assert len(lines["architecture"].split(", ")) == 8
    assert lines["evaluations"] == "5"
    [results] = Path(DEFAULT_SITE).glob("data/new/new_*/results.csv")
    assert results.read_text().startswith("0,1,2,3,4,5,6,7,objective,")

    again = subprocess.run([*PROGRAM, *flags, "--max-evals", "8", "--json"], capture_output=True, text=True)
    assert again.returncode == 0, again
    body = json.loads(again.stdout)
    assert (body["evaluations"], body["state"]) == (8, "JOB_FINISHED")
    assert len(body["config"]["arch_seq"]) == 8
    assert body["metadata"] == {"problem": f"{os.getcwd()}/mine.py:Problem"}, "what the evaluation found"
    other = nas_hpc("run", "nas", "new", *flags[:-1], "--max-evals", "9", "--app", "RAN")
    assert other.code == 2
    assert "was begun with --app EVO, not --app RAN" in other.err


@pytest.mark.slow
def test_what_is_no_problem_of_that_kind_is_refused_and_nothing_is_made(nas_hpc: Run) -> None:
    more = ("--max-evals", "3")
    nas, hps = ("run", "nas", "new", *more), ("run", "hps", "new", "-r", f"{HPS}.run", *more)
    refused(nas_hpc(*nas, "-p", f"{HPS}.Problem"), "one of hyperparameters", "hps instead of nas")
    refused(nas_hpc(*hps, "-p", f"{PROBLEM}.Problem"), "one of architectures", "nas instead of hps")
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.NoLoss"), f"{PROBLEM}.NoLoss", "no loss")
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.Alone"), "no variable node")
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.Problem", "-r", f"{PROBLEM}.rum"), "did you mean run")
    small = "--population-size 5 --sample-size six"
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.Problem", "--args", small), "'six'", "--sample-size")
    several = f"evaluations of {PROBLEM}.Parallel are to have 1 x 2 ranks"
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.Parallel"), several, "--job-mode mpi")
    way = ("--args", "--data-parallel nccl")
    refused(nas_hpc(*nas, "-p", f"{PROBLEM}.Problem", *way), "'nccl'", "auto, horovod, mpi4py")
    assert not Path(DEFAULT_SITE).exists()


def test_an_application_that_is_no_search_is_refused(nas_hpc: Run) -> None:
    answer = nas_hpc("run", "nas", "new", "-p", f"{PROBLEM}.Problem", "--max-evals", "3", "--app", "SIM")
    refused(answer, "--app 'SIM'", "AMBS, EVO, PPO, RAN")


BY_AGENTS = ("run", "nas", "new", "-p", f"{PROBLEM}.Problem", "-r", f"{PROBLEM}.run", "--app", "PPO")


def test_agents_that_cannot_be_are_refused_in_a_line_before_anything_is_made(
    nas_hpc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ("--agents", "3", "--nodes", "4", "--max-evals", "20")
    monkeypatch.setenv("NAS_HPC_MPI", "none")
    refused(nas_hpc(*BY_AGENTS, *many), "--agents 3", "an MPI program", "the setting mpi is none")
    monkeypatch.setattr(foreground, "_check_mpi", lambda agents, settings: None)
    refused(nas_hpc(*BY_AGENTS, *many), "--agents 3 on 4 nodes", "--nodes 6")
    answer = nas_hpc(*BY_AGENTS[:-1], "EVO", "--agents", "2", "--max-evals", "20")
    refused(answer, "--agents 2 is about --app PPO")
    assert not Path(DEFAULT_SITE).exists()


@pytest.mark.slow
def test_flags_of_agents_are_checked_in_the_foreground_before_anything_is_made(nas_hpc: Run) -> None:
    refused(nas_hpc(*BY_AGENTS, "--max-evals", "1"), "--max-evals 1", "batches")
    assert not Path(DEFAULT_SITE).exists()


LIGHT = """
def run(config):
    return float(sum(config["arch_seq"]))
"""


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_two_agents_search_in_the_foreground(nas_hpc: Run, mpich: MpiPeer) -> None:
    Path("light.py").write_text(LIGHT)
    flags = ("-p", f"{PROBLEM}.Problem", "-r", "light.run", "--app", "PPO", "--no-report", "--json")
    more = ("--agents", "2", "--nodes", "4", "--max-evals", "6", "--args", "--network ppo_lstm_32")
    environ = {**os.environ, "NAS_HPC_MPI": str(mpich.mpiexec)}
    done = subprocess.run([*PROGRAM, *flags, *more], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done
    body = json.loads(done.stdout)
    assert (body["evaluations"], body["failed"], body["state"]) == (6, 0, "JOB_FINISHED")
    assert len(body["config"]["arch_seq"]) == 8
    [out] = Path(DEFAULT_SITE).glob("data/new/new_*/new.out")
    assert "2 agents, 2 evaluators: 1 each, 0 unused" in out.read_text()
