"""Searches as jobs of a real Balsam, from registration to results, under its own launcher."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from tests.balsam.user import POLYNOME, SEQUENCES, User, results
from tests.launcher.bench import REPOSITORY, Bench
from tests.peers.balsam import Balsam
from tests.peers.cobalt import Cobalt
from tests.support import TEST_ID, words_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_balsam,
    pytest.mark.timeout(900),
    pytest.mark.gentle("Balsam's own launcher runs it, and results are late for everybody"),
]
TIMES = ("elapsed_sec", "start", "end")


@pytest.fixture
def user(balsam: Balsam, tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user of Balsam, whose job database is empty."""
    monkeypatch.setenv("NAS_HPC_BALSAM_PYTHON", str(balsam.python))  # not whichever this home's cache names
    return User(balsam, tmp_path, test_id)


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """What two runs of one search have in common."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def bridges(user: User) -> list[psutil.Process]:
    """The programs that speak with Balsam's database for searches."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get(TEST_ID) == user.test_id
            if ours and any(word.endswith("bridge.py") for word in words_of(process)):
                found.append(process)
    return found


def test_a_batch_job_of_balsam_gives_the_results_of_the_embedded_engine(
    user: User, tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that users know. Of its two nodes the search has one, so one evaluation runs at a time."""
    args = f"--evaluator balsam {POLYNOME} --max-evals 20 --seed 11"
    user.register()
    user.job("search", "AMBS", args)
    with Cobalt(
        tmp_path / "cobalt", commodity=True, host=socket.gethostname(), home=str(user.balsam.home)
    ) as cobalt:
        user.balsam.settings(
            WORKER_DETECTION_TYPE="COOLEY",
            SCHEDULER_SUBMIT_EXE=str(cobalt.bin / "qsub"),
            SCHEDULER_STATUS_EXE=str(cobalt.bin / "qstat"),
        )
        for number in ("1", "2", "3"):  # where much else runs one batch job is too short
            user.balsam.balsam(
                "submit-launch", "-n", "2", "-t", "5", "-q", "debug-cache-quad", "-A", "proj",
                "--job-mode", "mpi", "--wf-filter", "TEST",
            )  # fmt: skip
            user.until(lambda number=number: cobalt.ended().get(number) == 0)
            if user.row("search")["state"] == "JOB_FINISHED":
                break
    assert user.row("search")["state"] == "JOB_FINISHED", user.told("search")

    bench = Bench(tmp_path / "own", test_id)
    bench.directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # of the run function
    bench.nas("init", str(bench.site))
    bench.nas(
        "run", "hps", "search", *POLYNOME.replace("--problem", "-p").replace("--run", "-r").split(),
        "--max-evals", "20", "--seed", "11", "--workers", "1", "--no-report",
    )  # fmt: skip
    [own] = bench.site.glob("data/search/search_*")
    assert without_times(user.results("search")) == without_times(results(own))
    assert len(results(own)) == 20


def test_in_mpi_mode_a_search_survives_its_launcher_and_a_failing_evaluation(user: User) -> None:
    user.prepare(limit=8, failing="5")
    user.balsam.balsam("app", "--name", "AMBS", "--exec", f"{sys.executable} -m nas_hpc.apps.ambs")
    user.job("search", "AMBS", f"--evaluator balsam {POLYNOME} --max-evals 20 --seed 3")
    launcher = user.launch("mpi", nodes=4)
    user.until(lambda: len(user.results("search")) == 8)
    user.until(lambda: all(user.ledger()[f"start {number}"] for number in (9, 10, 11)))
    user.stop(launcher)
    assert user.row("search")["state"] in ("RUN_TIMEOUT", "RESTART_READY"), user.told("search")

    user.allow(1000)
    user.launch("mpi", nodes=4)
    user.finished()
    rows = {int(row["seq"]): row for row in user.results("search")}
    assert sorted(rows) == list(range(1, 21))
    assert {number: row["outcome"] for number, row in rows.items() if row["outcome"] != "ok"} == {5: "error"}
    assert rows[5]["reason"] == "ValueError: no value at 5"
    user.until(lambda: user.states() == {"JOB_FINISHED": 19, "FAILED": 1})
    said = user.ledger()
    assert {line: n for line, n in said.items() if not line.startswith("start") and n != 1} == {}
    assert {n: said[f"start {n}"] for n in range(1, 21)} == {n: 1 + (n in (9, 10, 11)) for n in range(1, 21)}


def test_in_serial_mode_evaluations_share_the_node_with_their_search(user: User) -> None:
    user.prepare(limit=3, failing="2")
    user.register()
    user.add(
        "search", "AMBS", f"--evaluator balsam {POLYNOME} --max-evals 20 --seed 3",
        node_packing_count=4, environ_vars="DEEPHYPER_WORKERS_PER_NODE=4",
    )  # fmt: skip
    launcher = user.launch("serial", nodes=1)
    user.until(lambda: all(user.ledger()[f"start {number}"] for number in (4, 5, 6)))
    user.stop(launcher)
    assert user.row("search")["state"] in ("RUN_TIMEOUT", "RESTART_READY"), user.told("search")

    user.allow(1000)
    user.launch("serial", nodes=1)
    user.finished()
    rows = {int(row["seq"]): row for row in user.results("search")}
    assert sorted(rows) == list(range(1, 21))
    assert {number: row["outcome"] for number, row in rows.items() if row["outcome"] != "ok"} == {2: "error"}
    said = user.ledger()
    assert {line: n for line, n in said.items() if not line.startswith("start") and n != 1} == {}
    assert {n for n in range(1, 21) if said[f"start {n}"] != 1} == {4, 5, 6}


def test_an_architecture_search_goes_on_with_another_bridge(user: User) -> None:
    user.prepare(limit=6)
    user.register()
    user.add("search", "EVO", f"--evaluator balsam {SEQUENCES} --max-evals 20 --seed 5")
    user.launch("mpi", nodes=6)
    user.until(lambda: len(user.results("search")) >= 5)
    user.until(lambda: len(bridges(user)) == 1)
    for bridge in bridges(user):
        bridge.send_signal(signal.SIGKILL)
    user.allow(1000)
    user.finished()
    rows = user.results("search")
    assert sorted(int(row["seq"]) for row in rows) == list(range(1, 21))
    assert {row["outcome"] for row in rows} == {"ok"}


def test_two_agents_search_on_nodes_of_their_own(user: User) -> None:
    args = (
        f"--evaluator balsam {SEQUENCES} "
        "--ent-coef 0.01 --noptepochs 2 --network ppo_lstm_32 --gamma 1.0 --lam 0.95 --max-evals 12"
    )
    user.prepare()
    user.register()
    user.job("search", "PPO", args, "--num-nodes", "2")
    user.launch("mpi", nodes=4)
    user.finished()
    assert "2 agents, 2 evaluators: 1 each, 0 unused" in user.output("search")
    assert [row["outcome"] for row in user.results("search")] == ["ok"] * 12
