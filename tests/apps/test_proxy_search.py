"""The search for a proxy task: what ends a task, what is the best, how it goes on after every kill."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.proxy import task_pictures
from nas_hpc.apps.proxy.generator import check_known
from nas_hpc.apps.proxy.reference import read_reference
from nas_hpc.apps.proxy.search import ProxySearch, ProxySettings
from nas_hpc.apps.proxy.tool import SEARCH_TASK, StateFile, read_state_of
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.client import Client
from nas_hpc.trial import proxy
from nas_hpc.trial.jsonfiles import write_json
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig
from nas_hpc.wire import Shape
from tests.evaluator.peer import Peer

MODELS = 6
STEPS, CYCLE = 100, 20
SCRAMBLED = [3, 5, 1, 4, 0, 2]
"""How a task that is no good ranks the models."""


def good_from(step: int) -> Callable[[int, int], float]:
    """Scores that rank the models rightly from ``step`` on, and quite otherwise before."""
    return lambda model, now: (model if now >= step else SCRAMBLED[model]) / 10 + now / 1000


@dataclass
class Trainer:
    """Trains within the peer's threads: writes curves by a formula, and obeys the files."""

    score: Mapping[str, Callable[[int, int], float]]
    """By task."""
    cycle_s: Mapping[str, float] = field(default_factory=dict)
    slow: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """The same, by task and model."""
    latency: Callable[[int], float] = lambda model: 1.0 + model
    fails: frozenset[tuple[str, int]] = frozenset()
    """(task, model)."""
    peer: Peer | None = None
    trained: dict[str, int] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def __call__(self, config: Mapping[str, Any]) -> float:
        place, model = self._directory(config), int(config["model"])
        task = place.parts[-4].removeprefix("ProxyTask_job_")
        if (task, model) in self.fails:
            raise ValueError("it does not train")
        step = 0
        while step < STEPS and not proxy.stop_training(place, step - 1, STEPS):
            score, end = self.score[task](model, step + CYCLE), step + CYCLE
            spent = self.slow.get((task, model), self.cycle_s.get(task, 360.0))
            proxy.update_trial_training_accuracy_metric(place, score, step, end - 1, spent, STEPS)
            step = end
        proxy.update_trial_training_latency_metric(place, self.latency(model))
        with self._lock:
            self.trained[str(place)] = step
        return 1.0

    def _directory(self, config: Mapping[str, Any]) -> Path:
        assert self.peer is not None
        with self._lock:
            for row in list(self.peer.rows.values()):
                place = str(row.ask.data["directory"])
                waits = row.done is None and place not in self._begun  # and was not cancelled before
                if waits and dict(row.ask.config) == dict(config):
                    self._begun.add(place)
                    return Path(place)
        raise AssertionError("nobody asked for it")


def selection_in(tmp_path: Path, accuracy: Sequence[float], latency: Sequence[float] | None = None) -> Path:
    """Full trainings of so many models."""
    place = tmp_path / "full"
    for number, score in enumerate(accuracy, 1):
        trial = place / "nas" / "search" / str(number)
        trial.mkdir(parents=True)
        write_json(trial / "nas_params_str.json", {"model": number - 1})
        proxy.update_trial_training_accuracy_metric(trial, 0.01, 0, 49, 1.0, 100)
        proxy.update_trial_training_accuracy_metric(trial, score, 50, 99, 1.0, 100)
        if latency is not None:
            proxy.update_trial_training_latency_metric(trial, latency[number - 1])
    return place


class Site:
    """One search in ``tmp_path``, its launcher, and its trainer."""

    def __init__(self, tmp_path: Path, trainer: Trainer, *, latency: bool = False, **settings: Any) -> None:
        scores = [0.5 + model / 20 for model in range(MODELS)]
        full = selection_in(tmp_path, scores, [2.0 + m for m in range(MODELS)] if latency else None)
        self.trainer = trainer
        self.settings = ProxySettings(
            generator="none", selection=str(full), **{"look_every_s": 0.02, **settings}
        )
        self.reference = read_reference(full)
        self.directory = tmp_path / "tool"
        self.directory.mkdir()
        self.spec = TrialsSpec(
            job_name="job", directory=str(self.directory), kind=SEARCH_TASK, trainer=("true",),
            metric="accuracy", max_parallel=MODELS, seed=5,
        )  # fmt: skip
        self.peer = Peer(tmp_path / "endpoint.json", trainer, workers=MODELS)
        trainer.peer = self.peer
        self.attempts = 0

    def run(self, tasks: Sequence[str | ProxyTaskConfig]) -> dict[str, Any]:
        """As one attempt of the job; what the state file says then."""
        self.attempts += 1
        attempt = self.attempts

        def connect(settings: Settings) -> LauncherEvaluator:
            client = Client(
                self.peer.path, job=self.peer.job, attempt=attempt, shape=Shape(), reconnect_s=10.0
            )
            return LauncherEvaluator(client, replace(settings, shape=Shape()))

        made = [ProxyTaskConfig(one, {"task": one}) if isinstance(one, str) else one for one in tasks]
        check_known(self.spec.directory, made)
        runner = TrialRunner(self.spec, connect)
        with runner.evaluator:
            ProxySearch(self.spec, self.settings, self.reference, made, runner, 5).run()
        return self.state

    @property
    def state(self) -> dict[str, Any]:
        return read_state_of(self.directory, SEARCH_TASK)

    def stats(self, task: str) -> dict[str, Any]:
        found: dict[str, Any] = self.state["proxy_tasks_map"][task]["proxy_task_stats"]
        return found


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pictures" not in request.node.name:
        monkeypatch.setattr(task_pictures, "_drawn", lambda call: None)


def test_the_best_is_the_cheapest_task_that_ranks_as_the_full_training(tmp_path: Path) -> None:
    trainer = Trainer({"late": good_from(80), "soon": good_from(40), "never": good_from(1000)})
    site = Site(tmp_path, trainer, early_stop_proxy_task_if_not_best=False)
    with site.peer:
        state = site.run(["late", "soon", "never"])
    assert state["best_proxy_task_name"] == "soon"
    assert site.stats("late")["stopping_state"] == "Met desired correlation"
    assert site.stats("never")["stopping_state"] == "Ran till completion"
    assert site.stats("never")["training_steps"] == [19, 39, 59, 79, 99]
    soon = site.stats("soon")
    assert soon["training_steps"] == [19, 39]
    assert soon["accuracy_correlation_over_step"][-1] == pytest.approx(1.0)
    assert 19 < soon["final_training_steps"] <= 39  # on the line between the two
    assert 0.0 < soon["final_training_time_in_hours"] <= 0.2
    assert soon["posted_stop_trials_message"] is True
    best = (site.directory / "best_proxy_task.yaml").read_text()
    assert f"training_steps: {soon['final_training_steps'] + 1}\n" in best
    assert '"task": "soon"' in best


def test_a_task_that_is_told_to_stop_does_stop(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"soon": good_from(0)}))
    gate = threading.Event()
    formula = site.trainer.score["soon"]

    def slow(model: int, now: int) -> float:
        if now > CYCLE:  # the second cycle ends only after the stop was posted
            assert gate.wait(60)
        return formula(model, now)

    site.trainer.score = {"soon": slow}
    post = proxy.post_desired_training_pct

    def posted(place: Any, pct: float) -> None:
        post(place, pct)
        if Path(place).name == str(MODELS):
            gate.set()

    with pytest.MonkeyPatch.context() as patch, site.peer:
        patch.setattr("nas_hpc.apps.proxy.rounds.post_desired_training_pct", posted)
        site.run(["soon"])
    assert set(site.trainer.trained.values()) == {2 * CYCLE}
    assert site.stats("soon")["training_steps"] == [CYCLE - 1]  # what came after the decision does not count


def test_limits_of_time_and_of_the_best_so_far_end_a_task_and_say_so(tmp_path: Path) -> None:
    trainer = Trainer(
        {"first": good_from(40), "longer": good_from(1000), "dear": good_from(1000)},
        cycle_s={"first": 360.0, "longer": 360.0, "dear": 7200.0},
    )
    site = Site(tmp_path, trainer, training_time_hrs_limit=1.0)
    with site.peer:
        state = site.run(["dear", "first", "longer"])
    assert site.stats("dear")["stopping_state"] == "Exceeded training time limit"
    assert site.stats("longer")["stopping_state"] == "Exceeded best training time"
    assert state["best_proxy_task_name"] == "first"
    assert max(trainer.trained[one] for one in trainer.trained if "_dear/" in one) == CYCLE


def test_the_cheapest_by_node_hours_is_another_one_and_node_hours_have_a_limit(tmp_path: Path) -> None:
    """Six trainings on half a node each: of "even" all take as long, of "odd" one takes very long."""
    trainer = Trainer(
        {"even": good_from(40), "odd": good_from(40), "dear": good_from(1000)},
        cycle_s={"even": 720.0, "odd": 360.0, "dear": 5400.0}, slow={("odd", 1): 36000.0},
    )  # fmt: skip
    settings: dict[str, Any] = {"cost": "node-hours", "node_hours_limit": 12.0, "max_p_value": 0.01}
    site = Site(tmp_path, trainer, **settings)
    site.spec = replace(site.spec, trials_per_node=2)
    with site.peer:
        state = site.run(["odd", "even"])
        assert [site.stats(one)["stopping_state"] for one in ("odd", "even")] == [
            "Met desired correlation"
        ] * 2
        odd, even = site.stats("odd"), site.stats("even")
        assert odd["final_training_time_in_hours"] < even["final_training_time_in_hours"]
        assert odd["final_node_hours"] > even["final_node_hours"]
        assert state["best_proxy_task_name"] == "even"
        site.settings = replace(site.settings, early_stop_proxy_task_if_not_best=False)
        site.run(["odd", "even", "dear"])
    assert site.stats("dear")["stopping_state"] == "Exceeded node-hours limit"
    assert site.stats("dear")["final_node_hours"] == pytest.approx(6 * 1.5 * 59 / 20 / 2)


def test_a_desired_accuracy_ends_a_task_that_is_then_as_good_as_one_by_correlation(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"a": good_from(1000)}), desired_accuracy=0.4)
    with site.peer:
        state = site.run(["a"])
    assert site.stats("a")["stopping_state"] == "Met desired accuracy"
    assert state["best_proxy_task_name"] == "a"


def test_a_task_that_reaches_the_correlation_in_its_last_cycle_is_seen(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"last": good_from(100)}), look_every_s=60.0)
    with site.peer:
        state = site.run(["last"])
    assert site.stats("last")["stopping_state"] == "Met desired correlation"
    assert state["best_proxy_task_name"] == "last"


def test_too_many_failures_end_a_task_and_the_next_one_is_tried(tmp_path: Path) -> None:
    fails = frozenset(("bad", model) for model in range(3))
    site = Site(tmp_path, Trainer({"bad": good_from(0), "good": good_from(0)}, fails=fails))
    with site.peer:
        state = site.run(["bad", "good"])
    assert site.stats("bad")["stopping_state"] == "Excess trial failures"
    assert "error" in state["proxy_tasks_map"]["bad"]["notes"][0]
    assert state["best_proxy_task_name"] == "good"


def test_when_no_task_can_be_compared_the_search_fails_and_says_why(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"bad": good_from(0)}, fails=frozenset(("bad", m) for m in range(MODELS))))
    with site.peer, pytest.raises(WorkFailed, match="too few trials are left"):
        site.run(["bad"])
    assert not (site.directory / "best_proxy_task.yaml").exists()


def test_scores_that_are_all_equal_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"flat": lambda model, now: 0.5}))
    with site.peer:
        state = site.run(["flat"])
    assert set(site.stats("flat")["accuracy_correlation_over_step"]) == {-5.0}
    assert "all models have the same score" in state["proxy_tasks_map"]["flat"]["notes"][0]
    assert "NaN" not in (site.directory / "SEARCH_CONTROLLER_STATE.json").read_text()


@pytest.mark.parametrize(
    ("latency", "state", "tau"),
    [
        (lambda model: 1.0 + model, "Met desired correlation", 1.0),
        (lambda model: 9.0 - model, "Failed desired latency correlation", -1.0),
        (lambda model: 3.0, "Failed desired latency correlation", -5.0),
    ],
)
def test_latencies_that_rank_otherwise_make_a_task_fail(
    tmp_path: Path, latency: Callable[[int], float], state: str, tau: float
) -> None:
    site = Site(tmp_path, Trainer({"a": good_from(0)}, latency=latency), latency=True)
    with site.peer:
        found = site.run(["a"])
    assert site.stats("a")["stopping_state"] == state
    assert site.stats("a")["latency_correlation"] == pytest.approx(tau)
    assert found["best_proxy_task_name"] == ("a" if tau == 1.0 else "")


@pytest.mark.slow
def test_killed_at_every_save_the_search_ends_with_the_same_state(tmp_path: Path) -> None:
    def search(place: Path, kill_at: int) -> tuple[str, int]:
        """The files at the end, and how often the state was saved by the first attempt."""
        place.mkdir()
        trainer = Trainer(
            {"a": good_from(60), "b": good_from(20), "c": good_from(1000)}, cycle_s={"b": 180.0}
        )
        site = Site(place, trainer, latency=True)
        saves, save = 0, StateFile.save

        def counted(self: StateFile) -> None:
            nonlocal saves
            save(self)
            saves += 1
            if saves == kill_at:
                raise Interrupted(9)

        with pytest.MonkeyPatch.context() as patch, site.peer:
            patch.setattr(StateFile, "save", counted)
            if kill_at:
                with pytest.raises(Interrupted):
                    site.run(["a", "b", "c"])
            site.run(["a", "b", "c"])
            assert set(site.peer.ledger.values()) == {1}  # no training was made twice
        text = (site.directory / "SEARCH_CONTROLLER_STATE.json").read_text()
        best = (site.directory / "best_proxy_task.yaml").read_text()
        return (text + best).replace(str(place), "PLACE"), saves

    whole, least = search(tmp_path / "whole", 0)
    state = json.loads(whole[: whole.index("# The best")])
    assert state["best_proxy_task_name"] == "b"
    for kill_at in range(
        1, 14
    ):  # four of each task, which is entered, decided, told to stop, finished; the end
        again, _ = search(tmp_path / f"killed{kill_at}", kill_at)
        assert again == whole, f"killed at save {kill_at} of at least {least}"


def test_the_space_can_be_extended_later_and_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"a": good_from(80), "b": good_from(20)}))
    with site.peer:
        assert site.run(["a"])["best_proxy_task_name"] == "a"
        before = site.stats("a")
        assert site.run(["a", "b"])["best_proxy_task_name"] == "b"
        assert len(site.peer.rows) == 2 * MODELS
    assert site.stats("a") == before


def test_a_task_of_the_same_name_with_other_flags_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"a": good_from(20)}))
    with site.peer:
        site.run(["a"])
        with pytest.raises(WrongCall, match="'a' had task='a' and has task='b' now"):
            site.run([ProxyTaskConfig("a", {"task": "b"})])


@pytest.mark.slow
def test_pictures_have_the_names_of_the_reference(tmp_path: Path) -> None:
    site = Site(tmp_path, Trainer({"a": good_from(20)}), latency=True)
    with site.peer:
        site.run(["a"])
    names = {one.name for one in site.directory.glob("*.png")}
    assert names == {
        "proxy_task_a_accuracy_correlation_at_step_19.png",
        "proxy_task_a_accuracy_correlation_vs_training_steps.png",
        "proxy_task_a_accuracy_correlation_vs_training_time.png",
        "proxy_task_a_accuracy_vs_training_steps.png",
        "proxy_task_a_accuracy_vs_training_time.png",
        "proxy_task_a_latency_correlation.png",
    }


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ([0.1, 0.2, 0.3, 0.4], "has 4 models with the score of a full training, of 4"),
        ([0.5] * 6, "all have the score 0.5"),
        ([0.1, 0.2, 0.3, 0.4, 0.5, float("nan"), float("nan"), float("nan")], "has 5 models .* of 8"),
    ],
)
def test_full_trainings_that_cannot_be_compared_with_are_refused(
    tmp_path: Path, accuracy: list[float], said: str
) -> None:
    with pytest.raises(WrongCall, match=said):
        read_reference(selection_in(tmp_path, accuracy))


def test_a_metric_that_no_full_training_reported_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    place = selection_in(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5])
    for trial in (place / "nas" / "search").iterdir():
        (trial / "metrics.jsonl").write_text('{"step": 1, "metric": "top_1", "value": 0.5}\n')
    with pytest.raises(WrongCall, match="'top_5'; they reported 'top_1'"):
        read_reference(place, "top_5")
    for trial in (place / "nas" / "search").iterdir():
        (trial / "metrics.jsonl").write_text(f'{{"step": 1, "metric": "top_1", "value": 0.{trial.name}}}\n')
    with pytest.raises(WrongCall, match="'speed'; they reported 'top_1'"):
        read_reference(place, "top_1", "speed")


def test_a_selection_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    write_json(
        tmp_path / "MODEL_SELECTION_STATE.json",
        {"iterations": [{"search_job_name": "a", "desired_training_step_pct": 3.3, "trials": []}]},
    )
    with pytest.raises(WrongCall, match="is not finished"):
        read_reference(tmp_path)
