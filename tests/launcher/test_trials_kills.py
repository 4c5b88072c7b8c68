"""Searches of trials and the tools for proxy tasks under real launchers that are killed, controllers that are
killed, allocations that end: they come to what they come to undisturbed, and no trial is trained twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import wire
from nas_hpc.apps.proxy import search, selection, task_pictures, variance
from nas_hpc.apps.proxy.tool import PREFIXES, SEARCH_TASK, SELECTION, STATE_FILES, VARIANCE, read_tool
from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.trials import loop
from nas_hpc.apps.trials.loop import TrialLoop
from nas_hpc.apps.trials.space import load_space
from nas_hpc.apps.trials.spec import TrialsSpec, read_spec, write_spec
from tests.apps.played_trainer import runner_of
from tests.evaluator.peer import Peer
from tests.launcher import light_trainer
from tests.launcher.bench import Bench
from tests.launcher.light_trainer import SPACE, STEPS
from tests.launcher.test_trials import most_at_once
from tests.support import processes_of, wait_until, words_of

TRIALS = {"search": 10, VARIANCE: 4, SELECTION: 12, SEARCH_TASK: 10}
"""How many each of them trains in all."""
AT_ONCE = {"job": 2, "Variance_Measurement_job": 2, "Model_Selection_job": 3, "Search_controller_job": 5}
"""How many may at once, by workflow."""
TASKS = """
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig
def tasks(flags):
    return [ProxyTaskConfig(str(share), {**flags, "share": str(share)}) for share in (25, 50)]
"""


class Here(Peer):
    """A launcher in the test's own process, whose evaluations are trainings of the light trainer."""

    def evaluate(self, ask: wire.Ask) -> float:
        accuracy, latency = light_trainer.train(ask.argv[ask.argv.index("--") + 3 :], ask.environ)
        other = {"latency": latency}
        line = {"step": STEPS, "value": accuracy, "metric": "accuracy", "other_metrics": other}
        Path(ask.environ["NAS_HPC_TRIAL_DIR"], "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return accuracy


class Disturbed:
    """The jobs of one site, their directories by kind, and the ledger of their trainers."""

    def __init__(self, bench: Bench, step_s: float, *more: str) -> None:
        self.bench, self.ledger = bench, bench.directory / "ledger"
        self.directories: dict[str, Path] = {}
        self._flags = [
            "--trainer", f"{sys.executable} {light_trainer.__file__}", "--root-output-dir", "out", "--seed",
            "5", "--no-launch", "--env", f"NAS_HPC_TEST_ID={bench.test_id}", "--env",
            f"LEDGER={self.ledger}", "--env", f"STEP_S={step_s}", "--trials-per-node", "28", *more,
        ]  # fmt: skip
        (bench.directory / "space.py").write_text(f"space = {SPACE}\n")
        (bench.directory / "tasks.py").write_text(TASKS)
        self.space = ["--search-space-module", f"{bench.directory}/space.py:space"]

    def add(self, kind: str, command: str, *flags: str) -> None:
        """Make a job called ``job``."""
        self.bench.nas(command, "--job-name", "job", *self._flags, *flags)
        name = f"{PREFIXES.get(kind, '')}{'_' * (kind in PREFIXES)}job_"
        [self.directories[kind]] = (self.bench.directory / "out").glob(f"{name}*")

    def add_search(self) -> None:
        """Ten trials, two at once."""
        self.add("search", "search", *self.space, "--nas-target-reward-metric", "accuracy",
                 "--max-nas-trial", "10", "--max-parallel-nas-trial", "2")  # fmt: skip

    def add_variance(self) -> None:
        """A try and three copies."""
        self.add(VARIANCE, "measure-proxy-task-variance", *self.space, "--copies", "3", "--seed-flag", "seed",
                 "--max-parallel-nas-trial", "2")  # fmt: skip

    def add_all(self) -> None:
        """The search of trials and the three tools."""
        self.add_search()
        self.add_variance()
        self.add(SELECTION, "select-proxy-task-models", *self.space, "--accuracy-metric-id", "accuracy",
                 "--start-num-models", "5", "--final-num-models", "3", "--num-models-to-remove-per-iter", "1",
                 "--max-parallel-nas-trial", "3")  # fmt: skip
        full = _trained(self.bench.directory / "full", 5)
        self.add(SEARCH_TASK, "search-proxy-task", "--proxy-task-config-generator-module",
                 f"{self.bench.directory}/tasks.py:tasks", "--proxy-task-model-selection-job-id", str(full),
                 "--look-every", "0.3s", "--max-parallel-nas-trial", "5")  # fmt: skip

    def said(self, word: str) -> int:
        """How often the trainers wrote ``word``."""
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return sum(line.startswith(f"{word} ") for line in text.splitlines())

    def controllers(self) -> list[int]:
        """The processes of searches and tools that run now."""
        found = processes_of(self.bench.test_id)
        mine = [one for one in found if {"nas_hpc.apps.trials", "nas_hpc.apps.proxy"} & set(words_of(one))]
        return [one.pid for one in mine]

    def until(self, steps: int, launcher: subprocess.Popen[str]) -> bool:
        """Wait for so many steps of trainings in all; False if the launcher has ended before."""

        def there() -> bool:
            return self.said("step") >= steps or launcher.poll() is not None

        wait_until(there, 300, lambda: f"{steps} steps; there are {self.said('step')}")
        return launcher.poll() is None

    # -- what is to be the same in the end -----------------------------------------------------------
    def outcome(self, kind: str, directory: Path) -> Any:
        """What a job leaves, but for its times, and for where it is."""
        if kind == "search":
            state = json.loads((directory / "search_state.json").read_text())
            best = {name: state["best"][name] for name in ("id", "number", "reward", "parameters")}
            rows = loop.records.read_trials(directory)
            columns = ("stage", "trial", "state", "reward", "parameters")
            kept = [{name: row.get(name) for name in columns} for row in rows]
            return [state[name] for name in ("state", "message", "trials", "failures")], best, kept
        files = [STATE_FILES[kind], "variance_and_smoothness.json", "best_proxy_task.yaml"]
        texts = [(directory / name).read_text() for name in files if (directory / name).exists()]
        return [text.replace(str(directory), "DIR") for text in texts]

    def undisturbed(self, kind: str) -> Any:
        """What the same job comes to within this process, where nothing happens to it."""
        place = self.bench.directory / "undisturbed" / kind
        place.mkdir(parents=True)
        with Here(place / "endpoint.json", lambda config: 0.0, workers=5) as peer:
            if kind == "search":
                _search(peer, replace(read_spec(self.directories[kind]), directory=str(place)))
            else:
                spec, settings = read_tool(self.directories[kind])
                begin = {VARIANCE: variance, SELECTION: selection, SEARCH_TASK: search}[kind].begin
                spec = replace(spec, directory=str(place))
                runner = runner_of(peer, spec)
                with runner.evaluator:
                    begin(spec, settings, 5)(runner)
            assert len(peer.rows) == TRIALS[kind]
        return self.outcome(kind, place)

    def check(self, kinds: list[str]) -> None:
        """All is as undisturbed; every trial is one evaluation, which was finished once."""
        for kind in kinds:
            assert self.outcome(kind, self.directories[kind]) == self.undisturbed(kind), kind
        trials = self.trials()
        assert len(trials) == sum(TRIALS[kind] for kind in kinds)
        assert len({(job["workflow"], job["name"]) for job in trials}) == len(trials)
        for job in trials:
            assert Counter(event["new"] for event in job["history"])["JOB_FINISHED"] == 1, job
            assert job["state"] == "JOB_FINISHED", job
        for workflow, most in AT_ONCE.items():
            assert most_at_once([job for job in trials if job["workflow"] == workflow]) <= most, workflow
        assert not self.said("twice"), self.ledger.read_text()

    def trials(self) -> list[dict[str, Any]]:
        """What the event table says of all of them."""
        jobs = json.loads(self.bench.nas("ls", "jobs", "--history", "--json"))
        return [job for job in jobs if job["creator"]]


def _search(peer: Peer, spec: TrialsSpec) -> None:
    space, runner = load_space(spec.space), runner_of(peer, spec)
    with runner.evaluator:
        TrialLoop(spec, runner, ResultsFile(Path(spec.directory), space.names), space, 5).run()


def _trained(directory: Path, count: int) -> Path:
    """Full trainings of so many models."""
    for number in range(1, count + 1):
        place = directory / "nas" / "search" / str(number)
        place.mkdir(parents=True)
        model = {"x": 14 * number, "y": 1 + number % 3}
        (place / "nas_params_str.json").write_text(json.dumps(model))
        light_trainer.train([], {"NAS_HPC_TRIAL_DIR": str(place), "NAS_HPC_TRIAL": str(number)})
    write_spec(TrialsSpec(job_name="full", directory=str(directory), metric="accuracy"))
    return directory


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real controllers draw them; here they take longer than all the rest."""
    monkeypatch.setattr(selection, "_draw", lambda *words: None)
    monkeypatch.setattr(variance.Measurement, "_draw", lambda *words: None)
    monkeypatch.setattr(task_pictures, "_drawn", lambda call: None)
    monkeypatch.setattr(loop, "_draw", lambda *words: None)


@contextlib.contextmanager
def launched(site: Disturbed, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher, at whose end its output is shown."""
    launcher = site.bench.start(*flags)
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            launcher.kill()
        print(launcher.communicate(timeout=120)[0])


def kill_some(site: Disturbed, chance: random.Random) -> None:
    """kill -9 of one controller at least."""
    pids = site.controllers()
    for pid in chance.sample(pids, chance.randint(1, len(pids)) if pids else 0):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


ENDS = (signal.SIGTERM, signal.SIGKILL)
"""Of launchers: the first is what the end of an allocation is."""


def disturb(
    site: Disturbed,
    chance: random.Random,
    kinds: list[str],
    *flags: str,
    ends: tuple[signal.Signals, ...] = ENDS,
) -> None:
    """At random moments of the work let controllers die, and their launcher, by each of ``ends`` once."""
    total = STEPS * sum(TRIALS[kind] for kind in kinds) * 6 // 10  # a half of the selection's are parts
    moments = sorted(chance.sample(range(3, total), 2 * len(ends)))
    print(f"disturbed after {moments} steps")
    for kill, end, number in zip(moments[::2], moments[1::2], ends, strict=True):
        with launched(site, "--job-mode", *flags) as launcher:
            if site.until(kill, launcher):
                kill_some(site, chance)
            if site.until(end, launcher):
                os.kill(launcher.pid, number)
                launcher.wait(timeout=120)
    site.bench.launch("--job-mode", *flags, timeout_s=300)


@pytest.mark.slow
def test_controllers_that_are_killed_at_random_moments_come_to_the_same_end(bench: Bench) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    site = Disturbed(bench, step_s=0.05)
    site.add_all()
    disturb(site, random.Random(seed), list(TRIALS), "serial")
    site.check(list(TRIALS))


@pytest.mark.slow
def test_a_search_in_mpi_mode_that_is_killed_comes_to_the_same_end(bench: Bench) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    site = Disturbed(bench, 0.05)
    site.add_search()
    disturb(site, random.Random(seed), ["search"], "mpi", "--nodes", "3", ends=(signal.SIGKILL,))
    site.check(["search"])
    assert most_at_once(site.trials()) == 2
    lines = [line for line in bench.attempts("job") if line["creator"]]
    assert len({tuple(line["nodes"]) for line in lines}) == 2, "one node is the search's"


@pytest.mark.slow
def test_what_is_killed_and_goes_on_at_once_is_not_trained_twice_and_keeps_what_it_has(bench: Bench) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    site = Disturbed(bench, 0.1, "--env", "DEAF=yes")  # trainers that end when they like
    site.add_search()
    site.add_variance()
    with launched(site, "--job-mode", "serial", "--idle-timeout", "120") as launcher:
        assert site.until(random.Random(seed).randrange(15, 60), launcher)
        bench.nas("kill", "job", PREFIXES[VARIANCE] + "_job")
        before = {job["id"] for job in site.trials() if job["state"] == "JOB_FINISHED"}
        bench.nas("search-resume", "job", "--no-launch")
        flag = ("--previous-variance-dir", str(site.directories[VARIANCE]))
        bench.nas("measure-proxy-task-variance", *flag, "--no-launch")
        wait_until(lambda: _over(bench), 300, "the end of both")
    site.check(["search", VARIANCE])
    for job in site.trials():
        assert job["id"] not in before or job["attempt"] == 1, "nothing finished runs again"


def _over(bench: Bench) -> bool:
    jobs = json.loads(bench.nas("ls", "jobs", "--json"))
    return all(
        job["state"] in ("JOB_FINISHED", "FAILED", "USER_KILLED") for job in jobs if not job["creator"]
    )
