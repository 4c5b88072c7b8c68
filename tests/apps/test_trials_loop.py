"""The loop of a search of trials: how many run, which limit ends it, what it leaves, how it goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.trials.loop import TrialLoop
from nas_hpc.apps.trials.records import read_state, read_trials
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.space import space_of
from nas_hpc.apps.trials.spec import TrialsSpec, id_of, read_spec, write_spec
from nas_hpc.errors import WorkFailed
from nas_hpc.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.client import Client
from nas_hpc.wire import Shape
from tests.evaluator.peer import Peer

SPACE = {"x": [0, 1, 2, 3, 4, 5, 6, 7], "y": [0, 1, 2, 3, 4, 5, 6, 7]}


class Ledger:
    """A run function that counts how many of it run at once."""

    def __init__(self, fail: Callable[[Mapping[str, Any]], bool] = lambda config: False) -> None:
        self._fail, self._lock = fail, threading.Lock()
        self.now = self.most = 0

    def __call__(self, config: Mapping[str, Any]) -> float:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if self._fail(config):
                raise MemoryError("too large")
            return float(config["x"] * 10 + config["y"])
        finally:
            with self._lock:
                self.now -= 1


def spec_in(tmp_path: Path, **fields: Any) -> TrialsSpec:
    spec = TrialsSpec(
        job_name="test",
        directory=str(tmp_path / "root"),
        trainer=("true",),
        metric="reward",
        seed=5,
        **fields,
    )
    Path(spec.directory).mkdir(exist_ok=True)
    write_spec(spec)
    return spec


def run(
    peer: Peer, spec: TrialsSpec, *, attempt: int = 1, space: Any = SPACE, stop_after: int = 0
) -> TrialRunner:
    """Run the loop in this process; with ``stop_after`` it is interrupted after so many results."""

    def connect(settings: Settings) -> LauncherEvaluator:
        client = Client(peer.path, job=peer.job, attempt=attempt, shape=Shape(), reconnect_s=10.0)
        return LauncherEvaluator(client, replace(settings, shape=Shape()))

    runner = TrialRunner(spec, connect)
    place = space_of(space, "space")
    with runner.evaluator as evaluator:
        if stop_after:
            gather = evaluator.gather

            def interrupted(*words: Any, **flags: Any) -> Any:
                if len(runner.order) >= stop_after:
                    raise Interrupted(15)
                return gather(*words, **flags)

            evaluator.gather = interrupted  # type: ignore[method-assign]
        TrialLoop(spec, runner, ResultsFile(Path(spec.directory), place.names), place, 5).run()
    return runner


def peer_at(tmp_path: Path, function: Any, workers: int = 4) -> Peer:
    return Peer(tmp_path / "endpoint.json", function, workers)


@pytest.mark.parametrize(("parallel", "total"), [(1, 4), (2, 10), (3, 2)])
def test_exactly_so_many_trials_run_and_never_more_at_once_than_allowed(
    tmp_path: Path, parallel: int, total: int
) -> None:
    ledger = Ledger()
    with peer_at(tmp_path, ledger) as peer:
        run(peer, spec_in(tmp_path, max_trials=total, max_parallel=parallel))
        assert sum(peer.ledger.values()) == len(peer.rows) == total
    assert ledger.most <= parallel
    rows = read_trials(tmp_path / "root")
    assert [row["trial"] for row in rows] == list(range(1, total + 1))
    assert {row["state"] for row in rows} == {"SUCCEEDED"}
    for row in rows:
        assert json.loads(Path(row["directory"], "nas_params_str.json").read_text()) == row["parameters"]
        assert row["reward"] == row["parameters"]["x"] * 10 + row["parameters"]["y"]
    state = read_state(tmp_path / "root")
    assert state["state"] == "SUCCEEDED"
    assert f"{total} of {total} trials done" in state["message"]


def test_at_the_cap_of_failures_the_search_fails_and_says_which_limit_it_was(tmp_path: Path) -> None:
    with peer_at(tmp_path, Ledger(lambda config: True)) as peer:
        with pytest.raises(
            WorkFailed, match=r"[34] trials failed .*--max-failed-nas-trial is 3; the last failure: \w+"
        ):
            run(peer, spec_in(tmp_path, max_trials=20, max_parallel=2, max_failed=3))
        assert len(peer.rows) <= 4  # the third failure, and what ran beside it
    state = read_state(tmp_path / "root")
    assert state["state"] == "FAILED"
    assert state["failures"]["error"] in (3, 4)


def test_a_few_failures_are_borne_and_kept_with_their_reason(tmp_path: Path) -> None:
    with peer_at(tmp_path, Ledger(lambda config: config["x"] == 3)) as peer:
        run(peer, spec_in(tmp_path, max_trials=8, max_failed=0), space={"x": [1, 2, 3, 4], "y": [1, 2]})
    failed = [row for row in read_trials(tmp_path / "root") if row["state"] == "FAILED"]
    assert [row["parameters"]["x"] for row in failed] == [3, 3]
    assert all(row["reason"] and row["reward"] is None for row in failed)


def test_a_reward_that_no_trial_reports_ends_the_search_at_once_with_what_was_reported(
    tmp_path: Path,
) -> None:
    said = "the search waits for 'reward', and this trainer reports 'loss'"

    def fail(config: Mapping[str, Any]) -> bool:
        for place in (tmp_path / "root" / "nas" / "search").iterdir():
            status = {"job_status": "failed", "reason_class": "metric", "reason": said}
            (place / "job_status.json").write_text(json.dumps(status))
        return True

    with peer_at(tmp_path, Ledger(fail), workers=1) as peer:
        with pytest.raises(WorkFailed, match=said):
            run(peer, spec_in(tmp_path, max_trials=20, max_parallel=1, max_failed=7))
        assert len(peer.rows) == 1


def test_a_space_of_which_everything_was_tried_ends_the_search_and_it_says_so(tmp_path: Path) -> None:
    with peer_at(tmp_path, Ledger()) as peer:
        run(peer, spec_in(tmp_path, max_trials=50), space={"x": [1, 2], "y": [1, 2, 3]})
        assert len(peer.rows) == 6
    assert "every configuration of the space was tried" in read_state(tmp_path / "root")["message"]


@pytest.mark.parametrize("algorithm", ["random", "evo", "ppo"])
def test_a_search_that_goes_on_has_the_future_that_it_would_have_had(tmp_path: Path, algorithm: str) -> None:
    def search(name: str, *stops: int) -> list[Any]:
        place = tmp_path / name
        place.mkdir()
        spec = spec_in(place, max_trials=24, max_parallel=1, max_failed=0, algorithm=algorithm)
        with peer_at(place, Ledger(lambda config: config["x"] == 5), workers=1) as peer:
            for attempt, stop in enumerate((*stops, 0), start=1):
                if stop:
                    with pytest.raises(Interrupted):
                        run(peer, spec, attempt=attempt, stop_after=stop)
                    assert read_state(place / "root")["state"] == "INTERRUPTED"
                else:
                    run(peer, spec, attempt=attempt)
            assert set(peer.ledger.values()) == {1}, "nothing runs twice"
        return [row["parameters"] for row in read_trials(place / "root")]

    assert search("interrupted", 3, 11, 12) == search("whole")


def test_a_search_that_ends_after_every_result_goes_on_to_the_same_state(tmp_path: Path) -> None:
    def search(name: str, *, every: bool) -> list[Any]:
        place = tmp_path / name
        place.mkdir()
        spec = spec_in(place, max_trials=9, max_parallel=1, max_failed=0, algorithm="evo", train_flags={},
                       train_frequency=3, train_max_parallel=1)  # fmt: skip
        with peer_at(place, Ledger(lambda config: config["x"] == 5), workers=1) as peer:
            for attempt in range(1, 12 if every else 1):
                with pytest.raises(Interrupted):
                    run(peer, spec, attempt=attempt, stop_after=attempt)
            run(peer, spec, attempt=12)
            assert set(peer.ledger.values()) == {1}, "nothing runs twice"
        state, times = read_state(place / "root"), ("started", "ended", "seconds", "updated", "directory")
        state["best"] = {name: value for name, value in state["best"].items() if name not in times}
        rows = [{**row, **dict.fromkeys(times)} for row in read_trials(place / "root")]
        assert len(rows) == 12
        assert {row["state"] for row in rows} == {"SUCCEEDED", "FAILED"}
        return [{**state, "updated": 0}, rows]

    assert search("interrupted", every=True) == search("whole", every=False)


def test_stage_2_trains_the_best_of_every_so_many(tmp_path: Path) -> None:
    spec = spec_in(
        tmp_path, max_trials=8, train_flags={"epochs": "9"}, train_frequency=4, train_max_parallel=2
    )
    with peer_at(tmp_path, Ledger()) as peer:
        run(peer, spec)
        argv = {seq: row.ask.argv for seq, row in peer.rows.items()}
    rows = read_trials(tmp_path / "root")
    first, second = ([row for row in rows if row["stage"] == stage] for stage in ("search", "train"))
    assert (len(first), len(second)) == (8, 4)
    assert len({row["nas_trial_id"] for row in second}) == 4
    best = max(first, key=lambda row: row["reward"])["trial"]
    assert best in {row["nas_trial_id"] for row in second}
    for row in second:
        words = argv[id_of(spec, "train", row["trial"])]
        assert "--epochs=9" in words
        [flag] = [word for word in words if word.startswith("--retrain-search-job-trials=")]
        assert flag.partition("=")[2].split(",")[row["trial"] - 1] == str(row["nas_trial_id"])
        assert row["parameters"] == first[row["nas_trial_id"] - 1]["parameters"]


def test_failed_trials_that_are_asked_for_again_run_again_within_the_limits(tmp_path: Path) -> None:
    broken = {"yes": True}
    ledger = Ledger(lambda config: broken["yes"])
    spec = spec_in(tmp_path, max_trials=6, max_parallel=2, max_failed=4)
    with peer_at(tmp_path, ledger) as peer:
        with pytest.raises(WorkFailed):
            run(peer, spec)
        before = read_trials(tmp_path / "root")
        again = {f"search/{row['trial']}": 1 for row in before}
        broken["yes"] = False
        run(peer, replace(spec, again=again), attempt=2)
    rows = read_trials(tmp_path / "root")
    assert [row["state"] for row in rows] == ["SUCCEEDED"] * 6
    assert [row["parameters"] for row in rows[: len(before)]] == [row["parameters"] for row in before]
    assert ledger.most <= 2


def test_the_time_limit_ends_the_search_and_is_no_failure(tmp_path: Path) -> None:
    with peer_at(tmp_path, Ledger(), workers=1) as peer:
        run(peer, spec_in(tmp_path, max_trials=3, max_parallel=1))  # something to count
        peer.hold.clear()
        spec = replace(read_spec(tmp_path / "root"), max_trials=9, time_limit_s=0.2)
        run(peer, spec, attempt=2)
    state = read_state(tmp_path / "root")
    assert (state["state"], "--time-limit" in state["message"]) == ("SUCCEEDED", True)
    states = [row["state"] for row in read_trials(tmp_path / "root")]
    assert states[:3] == ["SUCCEEDED"] * 3
    assert set(states[3:]) <= {"CANCELLED"}
