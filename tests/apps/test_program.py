"""Searches as programs: flags, one-line errors, exit codes, signals, SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nas_hpc.apps import STANDARD_APPS
from nas_hpc.apps.ambs import ambs
from nas_hpc.apps.program import main
from nas_hpc.wire import Shape
from tests.apps import quadratic
from tests.apps.support import ROOT, as_a_program, environment, rows, start
from tests.evaluator.peer import Peer
from tests.support import wait_until

MODULE = "tests.apps.quadratic"
COMMON = ("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.run")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "TEST" / "test_12345678"


@pytest.mark.slow
@pytest.mark.parametrize("app", ["random_search", "ambs"])
def test_a_whole_search_as_a_program(tmp_path: Path, directory: Path, app: str) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run, workers=2) as peer:
        process = start(peer, directory, *COMMON, "--max-evals", "15", "--evaluator", "balsam", app=app)
        out, err = process.communicate(timeout=60)
        assert peer.hellos[0].shape.node_packing_count == 2
        assert peer.reports[-1].done == 15
    assert (process.returncode, err) == (0, "")
    assert "15 of 15 done, 0 failed, best " in out
    assert len(rows(directory)) == 15
    assert (directory.parent / "results.csv").resolve() == (directory / "results.csv").resolve()
    assert os.listdir(directory) == ["results.csv"]


@pytest.mark.slow
def test_the_flags_of_evaluations_reach_the_launcher(tmp_path: Path, directory: Path) -> None:
    flags = (
        "--eval-timeout",
        "90s",
        "--eval-retries",
        "2",
        "--eval-env",
        "A=b=c",
        "--eval-env",
        "D=",
        "--seed",
        "9",
    )
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        process = start(peer, directory, *COMMON, "--max-evals", "1", *flags)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        ask = peer.rows[1].ask
    assert (ask.timeout_s, ask.retries, dict(ask.environ)) == (90.0, 2, {"A": "b=c", "D": ""})
    assert ask.run == f"{MODULE}.run"


@pytest.mark.slow
def test_flags_say_what_each_evaluation_occupies(tmp_path: Path, directory: Path) -> None:
    flags = (
        "--nodes-per-eval",
        "2",
        "--ranks-per-node",
        "3",
        "--threads-per-rank",
        "4",
        "--gpus-per-rank",
        "1",
    )
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        process = start(peer, directory, *COMMON, "--max-evals", "1", *flags)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        shape = peer.rows[1].ask.shape
        assert peer.hellos[0].shape == shape
    assert shape == Shape(2, 3, 4, 1, 1)


@pytest.mark.slow
def test_a_job_specification_stands_where_a_run_function_stands(tmp_path: Path, directory: Path) -> None:
    by_program = ("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.program")
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        process = start(peer, directory, *by_program, "--max-evals", "10", "--seed", "3")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        asks = [row.ask for _, row in sorted(peer.rows.items())]
    assert f"job specification {MODULE}.program" in out
    assert {ask.run for ask in asks} == {f"{MODULE}.program"}
    odd = [ask for ask in asks if ask.config["n"] % 2]
    assert [ask.argv for ask in odd] == [("quadratic", str(ask.config["x"])) for ask in odd]
    assert {ask.failure for ask in asks if ask not in odd} == {"ValueError: n is even"}
    found = {int(row["seq"]): row for row in rows(directory)}
    assert all((found[ask.seq]["outcome"] == "ok") == (ask in odd) for ask in asks)
    assert len(found) == 10
    assert odd


@pytest.mark.slow
def test_without_a_seed_a_restart_of_the_job_has_the_same_one(tmp_path: Path, directory: Path) -> None:
    configs = []
    for _ in range(2):
        with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
            start(peer, directory, *COMMON, "--max-evals", "4").communicate(timeout=60)
            configs.append(peer.configs)
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_if_all_fail_the_exit_code_is_1_and_the_line_says_why(tmp_path: Path, directory: Path) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.fail) as peer:
        process = start(peer, directory, *COMMON, "--max-evals", "3")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "error: all 3 evaluations failed, 3 of them with: ValueError: nothing works on two lines\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_at_once_with_everything_written(
    tmp_path: Path, directory: Path, number: signal.Signals, code: int
) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run, workers=2) as peer:
        process = start(peer, directory, *COMMON)
        wait_until(lambda: len(peer.done) >= 50, 60, "some results")
        peer.hold.clear()
        finished = len(peer.done)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
        assert "goes on from here" in out
        assert len(rows(directory)) >= finished - 2
        peer.hold.set()
        known = len(peer.rows)
        again = start(peer, directory, *COMMON, "--max-evals", str(known + 10), attempt=2)
        assert again.wait(60) == 0
        assert dict(peer.ledger) == dict.fromkeys(range(1, known + 11), 1)
    assert len(rows(directory)) == known + 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_it_loses_and_repeats_nothing(
    tmp_path: Path, directory: Path, seed: int
) -> None:
    rng = random.Random(seed)
    with Peer(tmp_path / "endpoint.json", quadratic.run, workers=2) as peer:
        for attempt in range(1, 4):
            process = start(peer, directory, *COMMON, "--max-evals", "1000", attempt=attempt)
            target = len(peer.done) + rng.randrange(1, 250)
            wait_until(lambda t=target: len(peer.done) >= t, 60, "results")  # type: ignore[misc]
            process.kill()
            process.communicate()
        last = start(peer, directory, *COMMON, "--max-evals", "1000", attempt=9)
        assert last.wait(100) == 0, f"seed {seed}"
        last.communicate()
        assert dict(peer.ledger) == dict.fromkeys(range(1, 1001), 1), f"seed {seed}"
    assert len(rows(directory)) == 1000


def _call(
    *arguments: str, app: str = "ambs", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"nas_hpc.apps.{app}", *arguments],
        env=environ or {**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


BAD = [
    ((), "--problem"),
    (("--bogus",), "--bogus"),
    ((*COMMON, "--max-evals", "0"), "'0'"),
    ((*COMMON, "--max-evals", "many"), "'many'"),
    ((*COMMON, "--max-evals", "1.5"), "'1.5'"),
    ((*COMMON, "--seed", "-1"), "'-1'"),
    ((*COMMON, "--eval-retries", "-2"), "'-2'"),
    ((*COMMON, "--eval-env", "novalue"), "'novalue'"),
    ((*COMMON, "--eval-timeout", "soon"), "soon"),
    ((*COMMON, "--time-limit", "0"), "0"),
    ((*COMMON, "--nodes-per-eval", "0"), "'0'"),
    ((*COMMON, "--ranks-per-node", "many"), "'many'"),
    ((*COMMON, "--threads-per-rank", "-1"), "'-1'"),
    ((*COMMON, "--gpus-per-rank", "0.5"), "'0.5'"),
    ((*COMMON, "--evaluator", "ray"), "'ray'"),
    ((*COMMON, "--surrogate-model", "GP"), "'GP' is not there yet"),
    ((*COMMON, "--surrogate-model", "GBRT"), "'GBRT' is not there yet"),
    ((*COMMON, "--surrogate-model", "rf"), "'rf'"),
    ((*COMMON, "--acq-func", "gp_hedge"), "'gp_hedge' is not there yet"),
    ((*COMMON, "--acq-func", "PI"), "'PI' is not there yet"),
    ((*COMMON, "--acq-kappa", "x"), "'x'"),
    ((*COMMON, "--liar-strategy", "truth"), "'truth'"),
    ((*COMMON, "--cache-key", "nowhere.key"), "nowhere"),
    (("--problem", "nowhere.Problem", "--run", f"{MODULE}.run"), "nowhere"),
    (("--problem", f"{MODULE}.no_function", "--run", f"{MODULE}.run"), "no_function"),
    (("--problem", f"{MODULE}.Clash", "--run", f"{MODULE}.run"), "'objective'"),
    (("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.no_function"), "no_function"),
    (("--problem", f"{MODULE}.Problem", "--run", f"{MODULE}.two_arguments"), "two_arguments"),
    (("--problem", f"{MODULE}.Problem", "--run", "__main__.run"), "__main__"),
    (COMMON, "no launcher"),
]


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Peer, Callable[..., int]]]:
    """A peer, and a call of ``ambs`` in this process whose exit code is returned."""
    with as_a_program(), Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        for name, value in environment(peer, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield peer, lambda *arguments: main(ambs, arguments)


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_a_wrong_call_is_one_line_with_the_value_and_exit_code_2(
    tmp_path: Path,
    in_process: tuple[Peer, Callable[..., int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    peer, call = in_process
    if said == "no launcher":
        monkeypatch.delenv("NAS_HPC_ENDPOINT")
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert peer.rows == {}, "nothing is submitted before all is checked"
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEEPHYPER_WORKERS_PER_NODE", "0"), ("NAS_HPC_RECONNECT_S", "x"), ("NAS_HPC_ATTEMPT", "-")],
)
def test_a_bad_value_in_the_environment_is_named(
    in_process: tuple[Peer, Callable[..., int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert in_process[1](*COMMON) == 2
    assert f"{name}='{value}'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_for_the_user_has_a_traceback_only_with_debug() -> None:
    assert "Traceback" not in _call(*COMMON).stderr
    assert "Traceback" in _call(*COMMON, "--debug").stderr


@pytest.mark.parametrize("name", sorted(STANDARD_APPS))
def test_the_standard_applications_can_be_started_and_show_an_example(name: str) -> None:
    module, description = STANDARD_APPS[name]
    done = _call("--help", app=module.removeprefix("nas_hpc.apps."))
    assert done.returncode == 0
    assert f"nas-hpc app --name {name} --exec" in done.stdout
    assert "--max-evals" in done.stdout
    assert description
