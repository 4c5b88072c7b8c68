"""A launcher that succeeds a dead one takes over its agents and what they run, by the outside ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.failure import ledger
from tests.launcher.ensembles import Field, kill
from tests.support import processes_of, wait_until, words_of

pytestmark = pytest.mark.slow


def search_of(field: Field) -> int:
    """Pid of the search's process."""
    [pid] = [
        process.pid
        for process in processes_of(field.bench.test_id)
        if "nas_hpc.apps.random_search" in " ".join(words_of(process))
    ]
    return pid


def master_killed(field: Field, *, running: int = 4) -> None:
    """The first launcher, killed while so many evaluations wait."""
    launcher = field.begun(running)
    kill(launcher.pid)
    assert launcher.wait(60) == -signal.SIGKILL


def until_taken_over(field: Field, launcher: subprocess.Popen[str], agents: int) -> None:
    """Wait until the second launcher goes on with what so many agents run."""
    wait_until(
        lambda: field.said().count("goes on with") == agents or launcher.poll() is not None,
        60,
        f"the takeover: {field.said()}",
    )


def until_agents(field: Field, count: int, old: dict[int, int]) -> None:
    """Wait for so many agents under a launcher that answers, none of them one of ``old``."""

    def there() -> bool:
        now = field.agents()
        return len(now) == count and not set(old.values()) & set(now.values()) and bool(field.nodes())

    wait_until(there, 60, lambda: f"{count} new agents: {field.said()[-2000:]}")


def test_evaluations_and_search_go_on_under_the_next_launcher_and_no_agent_is_started(field: Field) -> None:
    launcher = field.begun(running=4)
    agents, supervisors, search = field.agents(), field.supervisors(), search_of(field)
    assert set(agents) == {0, 1}
    kill(launcher.pid)
    begun = field.count("start")
    launcher = field.launch()
    until_taken_over(field, launcher, agents=2)
    assert (field.agents(), field.supervisors(), search_of(field)) == (agents, supervisors, search)
    field.finish(launcher)
    assert field.count("start") == 30, f"{begun} had begun before the kill: none of them began again"
    assert ledger.judge(field.ledger, field.workflow, 30) == 0
    searches = [line["number"] for line in field.bench.attempts() if not line["creator"]]
    assert searches == [1], "the first attempt of the search went on"
    assert not field.record.exists()


def test_what_ended_while_no_launcher_was_there_is_not_run_again(field: Field) -> None:
    master_killed(field)
    field.open()
    wait_until(lambda: field.count("end") == field.count("start"), 60, "the evaluations to end alone")
    field.finish(field.launch())
    assert ledger.judge(field.ledger, field.workflow, 30) == 0


def test_a_launcher_killed_again_and_again_loses_nothing(field: Field) -> None:
    for _ in range(3):
        master_killed(field)
    launcher = field.launch()
    until_taken_over(field, launcher, agents=2)
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) == 0


def test_what_an_agent_that_died_with_the_launcher_ran_is_run_again_by_the_next(field: Field) -> None:
    launcher = field.begun(running=6)
    search_there, agents = search_of(field), field.agents()
    above = {process.pid for process in psutil.Process(search_there).parents()}
    [number] = [number for number, pid in agents.items() if pid not in above]
    kill(launcher.pid)
    kill(field.supervisors()[number])
    kill(agents[number])
    assert search_of(field) == search_there, "the search is on the other agent's node"
    before = field.count("start")
    began = time.monotonic()
    launcher = field.launch()
    wait_until(lambda: field.count("start") > before, 60, "the lost evaluations to run again")
    print(f"lost evaluations run again {time.monotonic() - began:.2f} s after the launcher's start")
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) <= 4, "only what the dead agent ran"


def test_after_the_death_of_everything_the_next_launcher_starts_anew(field: Field) -> None:
    launcher = field.begun()
    first = field.recorded()["id"]
    for pid in (launcher.pid, *field.supervisors().values(), *field.agents().values()):
        kill(pid)
    launcher = field.launch()
    wait_until(lambda: field.recorded().get("id", first) != first, 60, "a new start")
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)


def _garbage(record: Path) -> None:
    record.write_bytes(b"{ this is no record \xff")


def _empty(record: Path) -> None:
    record.write_text("{}")


def _other_allocation(record: Path) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), "allocation": "slurm 4711"}))


def _other_version(record: Path) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": "0.0.1"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_garbage, "ensemble.json cannot be read"),
        (_empty, "is no record of agents"),
        (_other_allocation, "they belong to another allocation (slurm 4711)"),
        (_other_version, "they are of nas-hpc 0.0.1"),
    ],
)
def test_agents_that_do_not_fit_are_ended_before_anything_runs(
    field: Field, spoil: Callable[[Path], None], said: str
) -> None:
    field.max_evals = 12
    master_killed(field)
    agents, evaluations = field.agents(), field.evaluations()
    assert evaluations
    spoil(field.record)
    launcher = field.launch()
    until_agents(field, 2, agents)
    assert said in field.said()
    assert not set(evaluations) & {process.pid for process in processes_of(field.bench.test_id)}
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 12)


@pytest.mark.parametrize(
    ("flags", "agents"),
    [
        (("--nodes", "4", "--cores-per-node", "4", "--agents", "3", "--use-master-node"), 3),
        (("--nodes", "4", "--cores-per-node", "4", "--agents", "0"), 0),
    ],
)
def test_a_launcher_that_wants_other_agents_ends_those_that_are_there(
    field: Field, flags: tuple[str, ...], agents: int
) -> None:
    field.max_evals = 12
    master_killed(field)
    old = field.agents()
    field.flags = flags
    launcher = field.launch()
    until_agents(field, agents, old)
    assert "agents of an earlier launch are ended" in field.said()
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 12)
    assert not field.record.exists()


def test_a_launcher_stopped_beyond_its_lease_loses_its_agents_and_does_not_touch_them(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "2")
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "0.5")
    first = field.begun(running=4)
    agents, supervisors = field.agents(), field.supervisors()
    first.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() - stopped > 2.5, 60, "the lease to run out")
    second = field.launch()
    until_taken_over(field, second, agents=2)
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 1
    assert "lease" in field.said()
    assert (field.agents(), field.supervisors()) == (agents, supervisors)
    field.finish(second)
    assert ledger.judge(field.ledger, field.workflow, 30) == 0
