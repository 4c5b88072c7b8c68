"""A search by agents as programs: what one says of its call, and several under an MPI program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nas_hpc.apps.ppo import ppo
from nas_hpc.apps.program import main
from tests.apps import sequences
from tests.apps.support import as_a_program, environment, rows
from tests.evaluator.peer import Peer
from tests.peers.mpi import MpiPeer
from tests.support import TEST_ID, assert_no_processes, processes_of, wait_until

MODULE = "tests.apps.sequences"
COMMON = ("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.run", "--seed", "3")
QUICK = ("--network", "ppo_lstm_32", "--noptepochs", "2")


# -- one agent, in this process --------------------------------------------------------------------------
@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """A call of a search of one agent with four evaluators; its exit code."""
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=4) as peer, as_a_program():
        for name, value in environment(peer, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield lambda *arguments: main(ppo, arguments)
        assert len(peer.rows) in (0, 10)


def test_the_lines_of_the_reference_work_word_for_word(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--ent-coef 0.01 --noptepochs 10 --network ppo_lnlstm_128 --gamma 1.0 --lam 0.95 --max-evals 10"
    assert call("--evaluator", "balsam", *COMMON, *line.split()) == 0
    out = capsys.readouterr().out
    assert "1 agent, 4 evaluators: 4 each, 0 unused\n" in out
    assert "step 0: 4 episodes, mean " in out
    assert len(rows(tmp_path)) == 10


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--network", "ppo_gru_128"), ("'ppo_gru_128'", "ppo_lstm_32", "ppo_lnlstm_128")),
        (("--max-evals", "1"), ("--max-evals 1", "batches")),
        (("--max-evals", "3"), ("--max-evals 3 is less than one batch", "give 4 or more")),
        (("--nminibatches", "3"), ("--nminibatches 3 does not divide", "of 4 evaluations", "a divisor of 4")),
        (("--enough", "0.5"), ("--enough 0.5", "--use-all-workers")),
        (("--use-all-workers", "--enough", "1.5"), ("--enough 1.5", "1 at most")),
        (("--gamma", "1.5"), ("gamma 1.5", "0 to 1")),
        (("--lam", "much"), ("'much' is no number",)),
        (("--noptepochs", "0"), ("'0'", "from 1")),
    ],
)
def test_flags_that_cannot_be_are_refused_in_a_line_before_anything_is_submitted(
    call: Callable[..., int],
    tmp_path: Path,
    flags: tuple[str, ...],
    said: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*COMMON, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    for word in said:
        assert word in err
    assert not (tmp_path / "results.csv").exists()


def test_in_serial_mode_and_for_hyperparameters_it_is_refused(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    polynome = "nas_hpc.problems.hps.polynome2"
    assert call("--problem", f"{polynome}.Problem", "--run", f"{polynome}.run") == 2
    assert "PPO searches architectures: give AMBS, EVO or RAN" in capsys.readouterr().err
    monkeypatch.setenv("BALSAM_JOB_MODE", "serial")
    assert call(*COMMON) == 2
    assert "serial mode: use nas-hpc launcher --job-mode mpi" in capsys.readouterr().err


# -- several ranks ---------------------------------------------------------------------------------------
@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=6) as peer:
        yield peer


class Agents:
    """A start of agents under MPICH; ``found`` its output at the end."""

    def __init__(self, mpich: MpiPeer, peer: Peer, directory: Path, test_id: str) -> None:
        self.mpich, self.peer, self.directory, self.test_id = mpich, peer, directory, test_id
        self.attempt = 0

    def start(self, *flags: str, count: int = 2) -> subprocess.Popen[str]:
        self.attempt += 1
        return subprocess.Popen(
            [str(self.mpich.mpiexec), "-n", str(count), sys.executable, "-m", "nas_hpc.apps.ppo", *flags],
            env={**environment(self.peer, self.directory, self.attempt), TEST_ID: self.test_id},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *flags: str, count: int = 2) -> tuple[int, str]:
        process = self.start(*flags, count=count)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def ranks(self) -> dict[int, psutil.Process]:
        """The agents that run, by rank."""
        found = {}
        for process in processes_of(self.test_id):
            try:
                if "nas_hpc.apps.ppo" in process.cmdline() and "-n" not in process.cmdline():
                    found[int(process.environ()["PMI_RANK"])] = process
            except (psutil.Error, KeyError):
                continue
        return found


@pytest.fixture
def agents(mpich: MpiPeer, peer: Peer, tmp_path: Path, test_id: str) -> Iterator[Agents]:
    yield Agents(mpich, peer, tmp_path, test_id)
    assert_no_processes(test_id)


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_two_agents_that_lose_one_by_a_kill_end_both_and_go_on_where_they_were(
    agents: Agents, peer: Peer, tmp_path: Path
) -> None:
    flags = (*COMMON, *QUICK, "--max-evals", "60")
    hold_after(peer, 20)
    process = agents.start(*flags)
    wait_until(lambda: len(peer.ledger) >= 20, 60, "some steps")
    wait_until(lambda: len(agents.ranks()) == 2, 60, "both agents")
    agents.ranks()[1].kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    wait_until(lambda: not agents.ranks(), 30, "the end of the other one")
    peer.hold.set()
    code, output = agents.run(*flags)
    assert code == 0, output
    assert "2 agents, 6 evaluators: 3 each, 0 unused" in output
    assert "going on from the checkpoint of step" in output
    assert dict(peer.ledger) == dict.fromkeys(range(1, 61), 1), "each ran once"
    assert len(rows(tmp_path)) == 60
    batches = Counter((row.ask.data["step"], row.ask.data["agent"]) for row in peer.rows.values())
    assert batches == Counter({(step, agent): 3 for step in range(10) for agent in (0, 1)})
    first = [row.ask.config for row in peer.rows.values() if row.ask.data["step"] == 0]
    assert first[:3] != first[3:], "each draws its own"


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_while_evaluations_run_no_agent_uses_a_core_and_a_signal_ends_all_in_order(
    agents: Agents, peer: Peer
) -> None:
    peer.hold.clear()
    process = agents.start(*COMMON, *QUICK, "--max-evals", "60")
    wait_until(lambda: len(peer.ledger) == 6, 60, "the first batch")
    wait_until(lambda: len(agents.ranks()) == 2, 60, "both agents")
    for one in agents.ranks().values():
        assert one.cpu_percent(interval=1.0) < 50
    agents.ranks()[0].send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "ended by SIGTERM; the search goes on from here when it is started again" in output
    assert "Traceback" not in output


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_what_the_first_agent_refuses_ends_all_with_its_line_and_code(agents: Agents, peer: Peer) -> None:
    code, output = agents.run(*COMMON, "--network", "ppo_128")
    assert code == 2
    assert output.count("error: network 'ppo_128'") == 1
    assert not peer.submits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            "raise ImportError('libmpi.so.12 is missing')",
            "speak with each other by mpi4py, and .* cannot load",
        ),
        (
            "class MPI:\n    class COMM_WORLD:\n        size = 1",
            "2 agents were started, and mpi4py of .* sees 1",
        ),
    ],
)
def test_without_an_mpi_for_all_of_them_the_first_one_says_so(
    peer: Peer, tmp_path: Path, module: str, said: str
) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text(module)
    environ = environment(peer, tmp_path)
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environ["PYTHONPATH"]])
    argv = [sys.executable, "-m", "nas_hpc.apps.ppo", *COMMON, *QUICK]
    for rank in ("1", "0"):
        environ |= {"ALPS_APP_PE": rank, "NAS_HPC_RANKS": "2"}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        if rank == "1":
            assert (done.returncode, done.stderr) == (0, ""), "it leaves the word to the first one"
        else:
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert re.search(said, done.stderr)
    assert not peer.submits


def hold_after(peer: Peer, count: int) -> None:
    """Let no evaluation finish once so many have begun."""
    run = peer.run

    def counting(config: dict[str, object]) -> float:
        if len(peer.ledger) >= count:
            peer.hold.clear()
            peer.run = run
        return run(config)

    peer.run = counting  # type: ignore[assignment]
