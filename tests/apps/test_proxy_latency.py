"""Latencies of exported models: measured once whoever measures, waited for, and what becomes of those that
cannot be measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import trial
from nas_hpc.apps.proxy import selection, task_pictures
from nas_hpc.apps.proxy.latencies import Latencies, LatencySettings, check_latencies
from nas_hpc.apps.proxy.reference import read_reference
from nas_hpc.apps.proxy.search import ProxySearch, ProxySettings
from nas_hpc.apps.proxy.tool import follow, followed, read_state_of
from nas_hpc.apps.proxy.worker import Worker, WorkerSettings, ended
from nas_hpc.apps.trials.spec import TrialsSpec, read_spec, write_spec
from nas_hpc.cli.main import main
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial import latency, rewards
from nas_hpc.trial.jsonfiles import write_json
from nas_hpc.trial.measure import Calculator
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig
from tests.apps.played_trainer import Played, Trainer, runner_of, spec_in
from tests.apps.support import ROOT
from tests.support import wait_until

CALCULATOR = """
import json, os, pathlib, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
model = pathlib.Path(flags["saved-model-dir"])
here = pathlib.Path(__file__).parent
with open(here / "ledger", "a") as ledger:
    ledger.write(f"{flags['job-dir']} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\\n")
number = int(pathlib.Path(flags["job-dir"]).name)
while (here / f"hold{number}").exists():
    time.sleep(0.02)
if str(number) in flags.get("fails", "").split(","):
    sys.exit("this operation is not known")
parameters = json.loads(pathlib.Path(flags["nas-params-str"]).read_text())
print("warming up")
print(json.dumps({"latency_in_milli_seconds": 10 * parameters.get("y", number), "model_memory": 7}))
"""


@pytest.fixture
def calculator(tmp_path: Path) -> tuple[str, ...]:
    """One that says which models it measures in ``ledger`` beside it, and waits while there is hold<k>."""
    path = tmp_path / "calculator.py"
    path.write_text(CALCULATOR)
    return sys.executable, "-S", str(path)


def ledger(tmp_path: Path) -> list[str]:
    """The models, by their numbers, in the order in which their measurements began."""
    path = tmp_path / "ledger"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Path(line.split()[0]).name for line in lines]


def exported_in(directory: Path, count: int, *, ended: bool = True) -> list[Path]:
    """A search in ``directory`` whose trials have left models."""
    directory.mkdir(exist_ok=True)
    write_spec(TrialsSpec(job_name="first", directory=str(directory)))
    places = [directory / "nas" / "search" / str(k) for k in range(1, count + 1)]
    for place in places:
        (place / latency.MODEL_DIR).mkdir(parents=True)
        (place / latency.MODEL_DIR / "weights.npz").touch()
        write_json(place / "nas_params_str.json", {})
        if ended:
            write_json(place / "job_status.json", {"job_status": "success"})
    return places


@contextmanager
def worker(tmp_path: Path, directory: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A worker as a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "nas_hpc.cli", "run-latency-calculator-local", "--search-job-id",
               str(directory), "--latency-calculator", f"{sys.executable} -S {tmp_path / 'calculator.py'}",
               "--look-every", "0.05", "--json", *words]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a worker prints at its end."""
    out, said = process.communicate(timeout=120)
    assert out, said
    found: dict[str, Any] = json.loads(out)
    return {**found, "said": said}


# -- several workers -------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_workers_share_the_models_of_a_search_and_what_a_killed_one_had_is_measured_by_the_other(
    tmp_path: Path, calculator: tuple[str, ...]
) -> None:
    directory = tmp_path / "search"
    places = exported_in(directory, 7)
    (tmp_path / "hold2").touch()
    (tmp_path / "hold3").touch()
    several = ("--num-latency-workers", "2")
    with (
        worker(
            tmp_path, directory, *several, "--latency-worker-id", "0", "--latency-flags", "fails=5"
        ) as one,
        worker(
            tmp_path, directory, *several, "--latency-worker-id", "1", "--latency-flags", "fails=5"
        ) as two,
    ):
        wait_until(lambda: "2" in ledger(tmp_path), 120, "the first worker, whose share begins with it, at 2")
        one.kill()
        one.wait()
        (tmp_path / "hold3").unlink()
        wait_until(lambda: ledger(tmp_path).count("2") == 2, 120, lambda: f"a take-over: {ledger(tmp_path)}")
        (tmp_path / "hold2").unlink()
        write_json(directory / "search_state.json", {"state": "SUCCEEDED"})
        found = answer(two)
    assert two.returncode == 0
    assert found["state"] == "SUCCEEDED"
    assert sorted(ledger(tmp_path)) == [
        "1",
        "2",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
    ]  # once, but for the killed one's
    by_trial = {row["trial"]: row for row in found["measured"]}
    assert "this operation is not known" in by_trial[5]["error"]
    assert "this operation is not known" in latency.error_of(places[4])
    assert "this operation is not known" in (places[4] / "latency_calculator.out").read_text()
    measured = [latency.measured_latency(place) for place in places]
    assert measured == [10.0, 20.0, 30.0, 40.0, None, 60.0, 70.0]
    assert {json.loads((places[1] / "saved_model" / latency.LATENCY_FILE).read_text())["worker"]} == {"1"}


def test_ctrl_c_ends_a_worker_and_its_calculator_and_leaves_the_model_to_others(
    tmp_path: Path, calculator: tuple[str, ...]
) -> None:
    directory = tmp_path / "search"
    [place] = exported_in(directory, 1)
    (tmp_path / "hold1").touch()
    with worker(tmp_path, directory, "--device", "3", "--local-output-dir", "logs") as process:
        wait_until(lambda: ledger(tmp_path), 120, "the measurement to begin")
        process.send_signal(signal.SIGINT)
        found = answer(process)
    assert process.returncode == 130
    assert found["measured"] == []
    assert (tmp_path / "ledger").read_text() == f"{place} 3\n"  # its device
    assert (tmp_path / "logs" / "search_1.out").exists()
    assert sorted(os.listdir(place / "saved_model")) == ["weights.npz"]  # no claim is left
    (tmp_path / "hold1").unlink()
    later = Worker(settings_of(directory, calculator), lambda: "SUCCEEDED", print)
    assert later.run() is None
    assert latency.measured_latency(place) == 10.0


def settings_of(directory: Path, calculator: tuple[str, ...], **fields: Any) -> WorkerSettings:
    made = Calculator(command=calculator, worker="w", **fields)
    return WorkerSettings(directory=str(directory), calculator=made, look_every_s=0.02)


def test_a_claim_of_another_host_is_taken_over_only_when_it_is_older_than_it_was_to_be(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    [place] = exported_in(tmp_path / "search", 1)
    claim = latency.claim(place, "away", limit_s=60.0)
    assert claim is not None
    written = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps({**written, "host": "elsewhere"}))
    assert latency.claim(place, "here") is None
    claim.path.write_text(
        json.dumps({**written, "host": "elsewhere", "timestamp": written["timestamp"] - 200})
    )
    taken = latency.claim(place, "here")
    assert taken is not None
    assert taken.is_mine()
    assert not claim.is_mine()
    assert latency.claim(place, "third") is None
    taken.release()
    again = latency.claim(place, "third")
    assert again is not None
    assert again.is_mine()


def test_of_many_that_claim_a_model_at_once_one_has_it_also_when_it_is_taken_over(tmp_path: Path) -> None:
    places = exported_in(tmp_path / "search", 8)
    for place in places[::2]:  # of a worker that has died
        dead = {"host": os.uname().nodename, "pid": os.getpid(), "started": 1, "timestamp": 0, "limit_s": 1}
        write_json(place / "saved_model" / latency.CLAIM_FILE, dead)
    together = threading.Barrier(6)
    got: list[tuple[Path, latency.Claim]] = []

    def claims(worker: str) -> None:
        for place in places:
            together.wait(60)
            mine = latency.claim(place, worker)
            if mine is not None:
                got.append((place, mine))

    several = [threading.Thread(target=claims, args=(str(number),)) for number in range(6)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert sorted(str(place) for place, _ in got) == sorted(map(str, places))
    assert all(mine.is_mine() for _, mine in got)


def test_a_worker_that_begins_later_measures_again_what_could_not_be_measured(
    tmp_path: Path, calculator: tuple[str, ...]
) -> None:
    directory = tmp_path / "search"
    places = exported_in(directory, 2)
    said: list[str] = []
    bad = Worker(settings_of(directory, calculator, flags={"fails": "1"}), lambda: "SUCCEEDED", said.append)
    bad.run()
    assert [one["error"] != "" for one in bad.measured] == [True, False]
    assert any(
        "search/1: the calculator ended with 1: this operation is not known; see" in one for one in said
    )
    Worker(settings_of(directory, calculator), lambda: "SUCCEEDED", said.append).run()
    assert [latency.measured_latency(place) for place in places] == [10.0, 20.0]
    assert ledger(tmp_path) == ["1", "2", "1"]


def test_a_calculator_that_takes_too_long_prints_nothing_of_use_or_cannot_be_started(
    tmp_path: Path, calculator: tuple[str, ...]
) -> None:
    directory = tmp_path / "search"
    [place] = exported_in(directory, 1)
    (tmp_path / "hold1").touch()
    for command, limit_s, said in (
        (calculator, 0.2, "it took longer than 0.2 s"),
        (("/bin/echo", "about 3 ms"), 60.0, "did not print a number of milliseconds"),
    ):
        Worker(settings_of(directory, command, limit_s=limit_s), lambda: "over", print).run()
        assert said in latency.error_of(place)
    with pytest.raises(WorkFailed, match="/no/such cannot be started"):
        Worker(settings_of(directory, ("/no/such",)), lambda: "over", print).run()
    assert latency.claim(place, "other") is not None


def test_what_calculators_print_is_understood() -> None:
    understood = {"x\n3.5\n": 3.5, '{"latency_ms": 2}': 2.0, "DH-OUTPUT: 4\nbye": 4.0}
    for text, found in (*understood.items(), *((one, None) for one in ("-1", "NaN", "true", ""))):
        parsed = latency.parsed(text)
        assert (parsed and parsed[latency.LATENCY_KEY]) == found, text


# -- what a worker follows -------------------------------------------------------------------------
def test_how_a_search_or_a_tool_has_ended_is_in_its_files(tmp_path: Path) -> None:
    for kind in ("search", "selection"):
        spec = spec_in(tmp_path / kind, kind)
        assert ended(spec) == ""
        if kind == "search":
            for state, over in (("RUNNING", ""), ("INTERRUPTED", ""), ("FAILED", "FAILED")):
                write_json(Path(spec.directory, "search_state.json"), {"state": state})
                assert ended(spec) == over
        else:
            follow(spec.directory, "job_iter_1")
            assert ended(spec) == ""
            follow(spec.directory, state="SUCCEEDED")
            assert ended(spec) == "SUCCEEDED"
            assert followed(spec.directory) == ("job_iter_1", "SUCCEEDED")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one of --search-job-id and --controller-job-id"),
        (("--search-job-id", "DIR", "--controller-job-id", "DIR"), "give one of --search-job-id and"),
        (("--search-job-id", "DIR"), "give --latency-calculator"),
        (("--search-job-id", "DIR", "--latency-calculator", "no-such"), "there is no program 'no-such'"),
        (("--search-job-id", "DIR", "--latency-calculator", "true", "--latency-worker-id", "1"), "from 0"),
        (("--search-job-id", "/tmp", "--latency-calculator", "true"), "'/tmp' is no directory of a search"),
    ],
)
def test_calls_of_a_worker_that_cannot_be(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported_in(tmp_path / "search", 0)
    given = [str(tmp_path / "search") if word == "DIR" else word for word in words]
    assert main(["run-latency-calculator-local", *given]) == 2
    assert said in capsys.readouterr().err


# -- the trainer's side ----------------------------------------------------------------------------
def test_a_trainer_waits_for_who_measures_if_anybody_does(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    [place] = exported_in(tmp_path / "search", 1, ended=False)
    assert trial.wait_for_latency(place) is None  # nobody
    monkeypatch.setenv(rewards.VARIABLE, rewards.environment(workers=True)[rewards.VARIABLE])
    with pytest.raises(WorkFailed, match="nobody has measured the latency of .* within 0.01 s"):
        trial.wait_for_latency(place, 0.01)
    (place / "saved_model" / latency.REQUEST_FILE).unlink()
    over = threading.Event()
    at_work = Worker(settings_of(tmp_path / "search", calculator), lambda: "x" * over.is_set(), print)
    latency.write_latency(place, {"error": "of a calculator that was corrected"}, "old")

    def wait() -> None:
        try:
            trial.wait_for_latency(place, 120.0)
        finally:
            over.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    at_work.run()  # a model of a trial that still runs is measured only because it is waited for
    waiting.join()
    found = trial.wait_for_latency(place)
    assert found is not None
    assert (found["latency_in_milli_seconds"], found["model_memory"]) == (10.0, 7)


def test_a_trial_of_a_search_with_a_calculator_measures_its_model_itself(
    tmp_path: Path, calculator: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    [place] = exported_in(tmp_path / "search", 1, ended=False)
    trainer = """if 1:
        import json, sys
        from nas_hpc import trial
        found = trial.wait_for_latency() if sys.argv[1] == "asks" else None
        memory = found["model_memory"] if found else 5
        trial.report("accuracy", trial.compute_reward(0.8, 5, memory), 1)
        """
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **rewards.environment(command=calculator, limit_s=60.0),
               "NAS_HPC_JOB_DIR": str(tmp_path), "NAS_HPC_JOB_ID": "a", "NAS_HPC_ATTEMPT": "1"}  # fmt: skip
    run = [sys.executable, "-m", "nas_hpc.trial.run", "--trial-dir", str(place), "--metric", "accuracy", "--",
           sys.executable, "-c", trainer]  # fmt: skip
    latency.request_latency(place)  # of an attempt that was interrupted
    for word, reward in (("asks not", 0.8), ("asks", 0.8 * 5 / 7)):
        subprocess.run([*run, word], env=environ, check=True)
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["objective"] == pytest.approx(reward)
        assert (place / "saved_model" / latency.REQUEST_FILE).exists() == (word == "asks")
        assert result["metadata"]["latency_in_milli_seconds"] == 10.0
        (place / "saved_model" / latency.LATENCY_FILE).unlink()
        (place / "job_status.json").unlink()
    assert ledger(tmp_path) == ["1", "1"]
    assert "warming up" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "more", "reward"),
    [
        ((0.8, 50, 100), {}, 0.4),
        ((0.8, 100, 50), {}, 0.8),
        ((0.8, 100, 50), {"weight": 0.07, "use_hard_limit": False}, 0.8397733469),
        ((0.8, 50, 100), {"weight": 0.07, "use_hard_limit": False}, 0.7621103984),
        ((0.8, 50, 100, 1000, 2000), {}, 0.2),
    ],
)
def test_rewards_with_a_latency_are_those_of_the_reference(
    words: tuple[float, ...], more: dict[str, Any], reward: float
) -> None:
    assert trial.compute_reward(*words, **more) == pytest.approx(reward, rel=1e-9)
    for wrong in ((0.8, 0, 5), (0.8, 5, 0), (0.8, 5, float("nan")), (0.8, 5, 5, 1000, 0)):
        with pytest.raises(WrongCall, match="both have to be above 0"):
            trial.compute_reward(*wrong)


# -- selection and correlation ---------------------------------------------------------------------
class Exporting(Trainer):
    """A trainer that says other latencies than its model has."""

    def run(self, ask: Any) -> float:
        score = super().run(ask)
        place = Path(ask.environ["NAS_HPC_TRIAL_DIR"])
        (place / latency.MODEL_DIR).mkdir(exist_ok=True)
        (place / latency.MODEL_DIR / "weights.npz").touch()
        (place / "job_status.json").write_text('{"job_status": "success"}')
        return score


class Measuring(Played):
    """A launcher that also runs the evaluations that measure."""

    def evaluate(self, ask: Any) -> float:
        if "nas_hpc.trial.measure" not in ask.argv:
            return super().evaluate(ask)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(ask.argv, env=environ, text=True, stdout=subprocess.PIPE, check=True)
        return float(done.stdout.rpartition("DH-OUTPUT:")[2])


def select(peer: Played, directory: Path, run: Callable[[Any], None] | None = None, **settings: Any) -> Any:
    """A selection of four models, of which three stay."""
    spec = spec_in(directory, "selection")
    write_spec(spec)
    few = {"start_num_models": 4, "final_num_models": 3, "num_models_to_remove_per_iter": 1,
           "accuracy_metric_id": "accuracy", "max_failure_pct": 30.0, **settings}  # fmt: skip
    runner = runner_of(peer, spec)
    with runner.evaluator:
        selection.begin(spec, few, 5)(runner)
    return json.loads((directory / "MODEL_SELECTION_STATE.json").read_text())


def test_measured_latencies_are_those_of_a_selection_and_one_that_fails_stops_no_other(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_draw", lambda *words: None)
    directory = tmp_path / "tool"
    with Measuring(tmp_path / "endpoint", Exporting()) as peer:
        state = select(peer, directory, latency_calculator=calculator, latency_flags={"fails": "2"})
        trained = [row for row in peer.rows.values() if row.ask.data["stage"] == "search"]
        assert set(peer.ledger.values()) == {1}
    first, last = state["iterations"]
    assert first["latency_calculator_job_name"] == "job_latency"
    assert Path(first["latency_calculator_job_link"]) == directory / "job" / "nas" / "search"
    assert [row["trial"] for row in first["trials"] if row["reason"]] == ["2"]
    assert "this operation is not known" in first["trials"][1]["reason"]
    parameters = [dict(row.ask.config) for row in trained]
    told = [row["latency"] for row in first["trials"]]
    assert told == [None if k == 2 else 10.0 * one["y"] for k, one in enumerate(parameters[:4], 1)]
    assert len(last["trials"]) == 3
    assert sum(row["latency"] is not None for row in last["trials"]) == 2  # its second one fails again


def test_measured_latencies_are_compared_and_not_those_of_trainers(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_pictures, "_drawn", lambda call: None)
    for number, place in enumerate(exported_in(tmp_path / "full", 5), 1):
        write_json(place / "nas_params_str.json", {"x": 10 * number, "y": 6 - number})
        trial.update_trial_training_accuracy_metric(place, number / 10, 0, 99, 1.0, 100)
        latency.write_latency(place, {latency.LATENCY_KEY: 6.0 - number}, "w")
    spec = spec_in(tmp_path / "tool", "proxy_search", max_parallel=5)
    reference = read_reference(tmp_path / "full")
    trainer = Exporting(latency=lambda parameters: float(parameters["x"]))
    with Measuring(tmp_path / "endpoint", trainer, workers=5) as peer:
        for calls, told in ((calculator, 1.0), ((), -1.0)):
            name = "measured" if calls else "told"
            latencies = LatencySettings(latency_calculator=calls, num_latency_workers=2)
            settings = ProxySettings(generator="", selection="", look_every_s=0.02, latencies=latencies)
            runner = runner_of(peer, spec, 1 if calls else 2)
            with runner.evaluator:
                task = ProxyTaskConfig(name, {"task": name})
                ProxySearch(spec, settings, reference, [task], runner, 5).run()
            record = read_state_of(spec.directory, "proxy_search")["proxy_tasks_map"][name]
            assert record["proxy_task_stats"]["latency_correlation"] == pytest.approx(told), record
            assert record["latency_calculator_job_name"] == (
                "ProxyTask_job_measured_latency" if calls else ""
            )
    assert sorted(ledger(tmp_path)) == ["1", "2", "3", "4", "5"]


def test_workers_beside_a_selection_measure_its_models_in_every_round(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_draw", lambda *words: None)
    monkeypatch.setattr(selection, "LOOK_EVERY_S", 0.05)
    directory, said, over = tmp_path / "tool", list[str](), threading.Event()
    directory.mkdir()
    at_work = Worker(settings_of(directory, calculator), lambda: "x" * over.is_set(), said.append)

    def tool() -> None:
        try:
            with Played(tmp_path / "endpoint", Exporting()) as peer:
                select(peer, directory, on_premises_latency=True, latency_wait_s=120.0)
        finally:
            over.set()

    beside = threading.Thread(target=tool)
    beside.start()
    at_work.run()  # here, for a child's signals are the main thread's
    beside.join()
    state = json.loads((directory / "MODEL_SELECTION_STATE.json").read_text())
    assert [one["latency_calculator_job_name"] for one in state["iterations"]] == ["on premises"] * 2
    assert len(state["selected_models"]) == 3
    drawn = state["models"]
    for one in state["iterations"]:
        assert [row["latency"] for row in one["trials"]] == [10.0 * drawn[str(m)]["y"] for m in one["models"]]
    assert [row["round"] for row in at_work.measured] == ["job"] * 4 + ["job_iter_1"] * 3
    assert "follows job_iter_1" in said


def test_where_nobody_measures_a_selection_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Played(tmp_path / "endpoint", Exporting()) as peer,
        pytest.raises(
            WorkFailed, match=r"4 of 4 models are invalid.*it has no latency \(it was not measured\)"
        ),
    ):
        select(peer, tmp_path / "tool", on_premises_latency=True, latency_wait_s=0.05)
    spec = read_spec(tmp_path / "tool")
    with Played(tmp_path / "endpoint2", Trainer()) as peer:
        runner = runner_of(peer, spec)
        with runner.evaluator:
            idle = Latencies(spec, runner, LatencySettings(on_premises_latency=True))
            assert idle.measure(None, []) == ""  # type: ignore[arg-type]


def test_full_trainings_have_measured_latencies_or_those_of_their_trainers_but_not_both(
    tmp_path: Path,
) -> None:
    places = exported_in(tmp_path / "search", 6)
    for number, place in enumerate(places, 1):
        trial.update_trial_training_accuracy_metric(place, number / 10, 0, 99, 1.0, 100)
        trial.update_trial_training_latency_metric(place, 5.0)
    measures = LatencySettings(latency_calculator=("true",))
    assert list(read_reference(tmp_path / "search").latency) == [5.0] * 6
    for place in places[:4]:
        latency.write_latency(place, {latency.LATENCY_KEY: float(place.name)}, "w")
    few = read_reference(tmp_path / "search")
    assert list(few.latency[:4]) == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(WrongCall, match="--latency-calculator: 4 of the 6 full trainings .* have a latency"):
        check_latencies(measures, few)
    latency.write_latency(places[4], {latency.LATENCY_KEY: 5.0}, "w")
    check_latencies(measures, read_reference(tmp_path / "search"))


# -- all of it -------------------------------------------------------------------------------------
TRAINER = """
import argparse, pathlib
from nas_hpc import trial
parser = argparse.ArgumentParser()
trial.add_arguments(parser)
flags = parser.parse_args()
y = trial.read_architecture(flags)["y"]
for step in range(2):
    trial.update_trial_training_accuracy_metric(flags.job_dir, y / 10 + step / 100, step, step, 1.0, 2)
model = pathlib.Path(flags.job_dir, "saved_model")
model.mkdir(exist_ok=True)
(model / "weights").touch()
found = trial.wait_for_latency(flags.job_dir)
waited = found["latency_in_milli_seconds"] if found else -1.0
trial.report("accuracy", y / 10, 2, other_metrics={"waited": waited})
"""


def nas(tmp_path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nas_hpc.cli", *words, "--site", str(tmp_path / "site")]


@pytest.mark.slow
def test_a_worker_outlives_the_selection_that_it_measures_for(
    tmp_path: Path, calculator: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "space.py").write_text("space = {'y': [1, 2, 3, 4, 5]}\n")
    launcher = nas(tmp_path, "launcher", "--job-mode", "serial")

    subprocess.run([sys.executable, "-m", "nas_hpc.cli", "init", str(tmp_path / "site")], check=True)
    made = nas(
        tmp_path, "select-proxy-task-models", "--job-name", "a", "--root-output-dir", "out", "--no-launch",
        "--trainer", f"{sys.executable} trainer.py", "--search-space-module", "space.py:space",
        "--accuracy-metric-id", "accuracy", "--start-num-models", "5", "--final-num-models", "5",
        "--max-parallel-nas-trial", "2", "--on-premises-latency",
    )  # fmt: skip
    subprocess.run(made, check=True)
    [selected] = (tmp_path / "out").glob("Model_Selection_a_*")
    (tmp_path / "hold2").touch()
    with worker(tmp_path, selected) as beside:
        with subprocess.Popen(launcher) as first:
            wait_until(
                lambda: "2" in ledger(tmp_path), 120, "the worker to measure a model that is waited for"
            )
            first.kill()
        (tmp_path / "hold2").unlink()
        assert beside.poll() is None
        subprocess.run(launcher, check=True, timeout=200)
        found = answer(beside)
    assert found["state"] == "SUCCEEDED"
    assert sorted(ledger(tmp_path)) == ["1", "2", "3", "4", "5"]  # once, though trainings began anew
    [only] = json.loads((selected / "MODEL_SELECTION_STATE.json").read_text())["iterations"]
    latencies = [row["latency"] for row in only["trials"]]
    assert latencies == [100 * row["accuracy"] for row in only["trials"]]
    assert sorted(latencies) == [10.0, 20.0, 30.0, 40.0, 50.0]
    reported = (Path(only["search_job_link"]) / "trials.csv").read_text()
    assert "-1.0" not in reported  # all trainers have got theirs
