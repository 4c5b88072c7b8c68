"""The bridge to a real Balsam database: what a request does, what is pushed, what an error says."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.integrations.balsam.bridge_database import Database
from nas_hpc.integrations.balsam.bridge_jobs import line
from nas_hpc.integrations.balsam.bridge_requests import Requests
from nas_hpc.integrations.balsam.process import Bridge
from nas_hpc.integrations.balsam.protocol import Answer, BridgeError, Event, job_id
from tests.peers.balsam import Balsam
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]


@pytest.fixture
def bridge(balsam: Balsam) -> Iterator[Bridge]:
    with Bridge(environ=balsam.environ()) as one:
        yield one


@pytest.fixture
def search(balsam: Balsam, bridge: Bridge) -> str:
    """The id of a job that is a search's."""
    bridge.call("register", applications=[{"name": "trial", "executable": "true"}])
    return balsam.add_job("search", "W", "trial")


def ask(seq: int, **more: Any) -> dict[str, Any]:
    files = {"job.json": json.dumps({"seq": seq})}
    base = {"seq": seq, "name": f"task{seq}", "workflow": "W", "application": "trial", "files": files}
    return {**base, **more}


def add(bridge: Bridge, search: str, attempt: int, *jobs: dict[str, Any]) -> dict[str, Any]:
    for job in jobs:
        job["data"] = {"nas_hpc": {"creator": search, "seq": job["seq"]}}
    return bridge.call("add", job=search, attempt=attempt, jobs=list(jobs))


def set_state(balsam: Balsam, job: str, *states: str) -> None:
    """As Balsam's launcher does."""
    for state in states:
        balsam.do(
            f"UPDATE core_balsamjob SET state = '{state}',"
            f" state_history = state_history || '{line(state, 'so it is')}' WHERE job_id = '{job}'"
        )


def until(bridge: Bridge, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first pushed job of which ``found`` is true."""
    for _ in range(100):
        for one in bridge.receive(30):
            assert isinstance(one, Event)
            for job in one.body.get("jobs", []):
                if found(job):
                    return dict(job)
    raise AssertionError("it was not pushed")


def test_evaluations_are_made_once_with_their_directories_and_are_ready_to_run(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    assert bridge.call("search", job=search)["attempt"] == 1
    assert add(bridge, search, 1, ask(0), ask(1, environ={"A": "1", "B": "x=2"})) == {"added": 2}
    (balsam.database / "data/W" / f"task0_{job_id(search, 0)[:8]}" / "job.json").write_text("its own")
    assert add(bridge, search, 1, ask(0), ask(1), ask(2)) == {"added": 1}
    found = {job["seq"]: job for job in bridge.call("children", job=search)["jobs"]}
    assert sorted(found) == [0, 1, 2]
    assert [state for _, state, _ in found[1]["history"]] == ["CREATED", "PREPROCESSED"]
    assert (Path(found[0]["directory"]) / "job.json").read_text() == "its own"
    assert json.loads((Path(found[2]["directory"]) / "job.json").read_text()) == {"seq": 2}
    rows = {row["name"]: row for row in balsam.jobs("W")}
    assert str(rows["task1"]["job_id"]) == found[1]["id"] == job_id(search, 1)
    assert rows["task1"]["environ_vars"] == "A=1:B=x=2"
    assert rows["task1"]["state"] == "PREPROCESSED"


def test_changes_are_pushed_with_results_which_are_noted_where_balsams_tools_look(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    bridge.call("search", job=search)
    add(bridge, search, 1, *(ask(seq) for seq in range(4)))
    folders = [
        Path(job["directory"]) for job in sorted(bridge.call("children", job=search)["jobs"], key=_seq)
    ]
    assert bridge.call("watch", job=search)["announced"]
    set_state(balsam, job_id(search, 0), "RUNNING")
    running = until(bridge, lambda job: job["state"] == "RUNNING")
    assert running["seq"] == 0
    assert running["history"][-1][1:] == ["RUNNING", "so it is"]
    (folders[0] / "result.json").write_text(json.dumps({"objective": 0.5, "outcome": "ok"}))
    set_state(balsam, job_id(search, 0), "RUN_DONE")
    done = until(bridge, lambda job: job["state"] == "RUN_DONE")
    assert done["result"] == {"objective": 0.5, "outcome": "ok"}
    wait_until(lambda: balsam.jobs("W")[0]["data"].get("dh_objective") == 0.5, 60, "it is noted")
    (folders[1] / "task1.out").write_text("training\nDH-OUTPUT: 0.25\n")
    set_state(balsam, job_id(search, 1), "RUN_DONE")
    assert until(bridge, lambda job: job["seq"] == 1)["result"] == {"objective": 0.25, "source": "output"}
    (folders[2] / "task2.out").write_text("it broke\n")
    set_state(balsam, job_id(search, 2), "RUN_ERROR")
    failed = until(bridge, lambda job: job["seq"] == 2)["result"]
    assert (failed["objective"], failed["tail"]) == (None, "it broke\n")
    set_state(balsam, job_id(search, 3), "RUN_DONE")  # its result is seen later
    (folders[3] / "late").write_text(json.dumps({"objective": 3.0}))
    (folders[3] / "late").rename(folders[3] / "result.json")
    assert until(bridge, lambda job: job["seq"] == 3)["result"] == {"objective": 3.0}
    set_state(balsam, search, "USER_KILLED")
    (event,) = bridge.receive(30)
    assert isinstance(event, Event)
    assert event.body == {"event": "search", "state": "USER_KILLED", "attempt": 1}


def test_objectives_are_noted_in_the_order_in_which_balsam_holds_jobs(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    import psycopg

    first, last = sorted(balsam.add_job(f"task{seq}", "W", "trial") for seq in range(2))
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = 'balsam' AND wait_event_type = 'Lock'"

    def note() -> None:
        with psycopg.connect(balsam.url) as ours:
            requests = Requests(Database(str(balsam.database)))
            requests.note_objectives(ours.cursor(), [(last, 2.0), (first, 1.0)])

    with ThreadPoolExecutor(1) as other, psycopg.connect(balsam.url) as launcher:
        launcher.execute("SELECT 1 FROM core_balsamjob WHERE job_id = %s FOR UPDATE", (first,))
        noted = other.submit(note)
        wait_until(lambda: noted.done() or balsam.do(waits), 30, "that who notes waits for the launcher")
        launcher.execute("SELECT 1 FROM core_balsamjob WHERE job_id = %s FOR UPDATE NOWAIT", (last,))
        launcher.commit()
        noted.result(30)
    assert sorted(row["data"].get("dh_objective", 0) for row in balsam.jobs("W")) == [0, 1.0, 2.0]


def test_a_later_attempt_supersedes_an_earlier_one(balsam: Balsam, bridge: Bridge, search: str) -> None:
    first = bridge.call("search", job=search)
    assert (first["workflow"], first["state"], first["children"], first["others"]) == ("W", "CREATED", 0, 0)
    add(bridge, search, 1, ask(0))
    balsam.add_job("another", "W", "trial")
    bridge.call("watch", job=search)
    with Bridge(environ=balsam.environ()) as later:
        second = later.call("search", job=search)
        assert (second["attempt"], second["children"], second["others"]) == (2, 1, 1)
    events = [one for one in bridge.receive(30) if isinstance(one, Event) and one.kind == "search"]
    assert events[-1].body["attempt"] == 2
    for request in (
        {"do": "add", "jobs": [ask(1)]},
        {"do": "kill", "seqs": [0]},
        {"do": "retry", "seqs": [0]},
    ):
        with pytest.raises(BridgeError, match="superseded: attempt 2 of the search") as caught:
            bridge.call(**request, job=search, attempt=1)
        assert caught.value.kind == "refused"
    assert len(balsam.jobs("W")) == 3


def test_what_has_ended_is_not_killed_and_what_has_not_failed_is_not_retried(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    bridge.call("search", job=search)
    add(bridge, search, 1, *(ask(seq) for seq in range(4)))
    set_state(balsam, job_id(search, 1), "RUNNING")
    set_state(balsam, job_id(search, 2), "RUNNING", "RUN_DONE", "JOB_FINISHED")
    set_state(balsam, job_id(search, 3), "RUNNING", "RUN_ERROR", "FAILED")
    assert bridge.call("kill", job=search, attempt=1, seqs=[1, 2, 3], message="too long") == {"killed": [1]}
    assert bridge.call("retry", job=search, attempt=1, seqs=[0, 1, 2, 3]) == {"retried": [3]}
    found = {job["seq"]: job for job in bridge.call("children", job=search)["jobs"]}
    states = [found[seq]["state"] for seq in range(4)]
    assert states == ["PREPROCESSED", "USER_KILLED", "JOB_FINISHED", "RESTART_READY"]
    assert found[1]["history"][-1][1:] == ["USER_KILLED", "too long"]
    assert (Path(found[1]["directory"]) / "stop").exists()


def test_a_bridge_that_is_killed_is_started_again_and_loses_nothing(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    bridge.call("search", job=search)
    add(bridge, search, 1, *(ask(seq) for seq in range(2)))
    bridge.call("children", job=search)
    bridge.call("watch", job=search)
    os.kill(bridge.pid, signal.SIGKILL)
    set_state(balsam, job_id(search, 0), "RUNNING")
    number = bridge.ask(
        "add", job=search, attempt=1, jobs=[ask(2, data={"nas_hpc": {"creator": search, "seq": 2}})]
    )
    seen: dict[int, str] = {}
    answers: list[Answer] = []
    for _ in range(100):
        for one in bridge.receive(30):
            if isinstance(one, Answer):
                answers.append(one)
            else:
                seen |= {job["seq"]: job["state"] for job in one.body["jobs"]}
        if answers and seen.get(0) == "RUNNING":
            break
    assert [(one.id, one.ok) for one in answers] == [(number, {"added": 1})]
    set_state(balsam, job_id(search, 2), "RUNNING")
    until(bridge, lambda job: job["seq"] == 2 and job["state"] == "RUNNING")


def test_a_server_that_was_away_is_found_again_and_what_happened_is_told(
    balsam: Balsam, bridge: Bridge, search: str
) -> None:
    bridge.call("search", job=search)
    add(bridge, search, 1, ask(0))
    bridge.call("children", job=search)
    bridge.call("watch", job=search)
    balsam.stop_server()
    with pytest.raises(
        BridgeError, match=r"does not answer at localhost:\d+ .*source balsamactivate"
    ) as caught:
        bridge.call("children", job=search)
    assert caught.value.kind == "down"
    balsam.port = 0  # it comes back at another port
    balsam.start_server()
    set_state(balsam, job_id(search, 0), "RUNNING")
    assert until(bridge, lambda job: job["state"] == "RUNNING")["seq"] == 0


def test_of_a_database_that_is_none_or_foreign_one_line_says_what_to_do(
    balsam: Balsam, bridge: Bridge, search: str, tmp_path: Path
) -> None:
    def error(database: Path, **environ: str) -> tuple[str, str]:
        with Bridge(database, environ=balsam.environ(**environ)) as one:
            with pytest.raises(BridgeError) as caught:
                one.call("hello")
            assert "\n" not in caught.value.message
            return caught.value.kind, caught.value.message

    kind, message = error(tmp_path)
    assert (kind, "balsam init makes one" in message) == ("missing", True)
    kind, message = error(balsam.database, BALSAM_USER="somebody")
    assert kind == "permission"
    assert "does not let somebody in" in message
    assert "balsam server --add-user somebody" in message
    (tmp_path / "server-info").write_text('{"host": "", "port": ""}')
    kind, message = error(tmp_path)
    assert (kind, "is stopped: source balsamactivate starts it" in message) == ("down", True)
    bridge.call("search", job=search)
    with pytest.raises(BridgeError, match=r"has no application other: nas-hpc balsam register /") as caught:
        add(bridge, search, 1, ask(0, application="other"))
    assert caught.value.kind == "missing"
    with pytest.raises(BridgeError, match="there is no job") as caught:
        bridge.call("search", job=str(uuid.uuid4()))
    assert caught.value.kind == "missing"


def test_applications_of_another_are_changed_only_when_it_is_asked_for(
    balsam: Balsam, bridge: Bridge
) -> None:
    balsam.add_app("AMBS", "/old/python -m nas_hpc.apps.ambs")
    wanted = [{"name": "AMBS", "executable": "/new/python"}, {"name": "PPO", "executable": "/new/python"}]
    first = bridge.call("register", applications=wanted)
    assert (first["added"], first["different"]) == (["PPO"], {"AMBS": "/old/python -m nas_hpc.apps.ambs"})
    second = bridge.call("register", applications=wanted, replace=True)
    assert (second["changed"], second["same"], second["trigger"]) == (["AMBS"], ["PPO"], True)
    hello = bridge.call("hello")
    assert hello["applications"] == {"AMBS": "/new/python", "PPO": "/new/python"}
    assert (hello["version"], hello["trust"], hello["trigger"]) == ("0.5.0", False, True)


def test_jobs_come_in_pages(balsam: Balsam, bridge: Bridge, search: str) -> None:
    bridge.call("search", job=search)
    add(bridge, search, 1, *(ask(seq) for seq in range(5)))
    names: list[str] = []
    after = None
    while True:
        page = bridge.call("jobs", workflow="W", after=after, limit=2)
        names += [job["name"] for job in page["jobs"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(names) == ["search", "task0", "task1", "task2", "task3", "task4"]
    assert bridge.call("jobs", workflow="other") == {"jobs": [], "next": None}


def _seq(job: dict[str, Any]) -> int:
    return int(job["seq"])
