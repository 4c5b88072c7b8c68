"""A command's calls by way of the owner: the same answers, errors and promises as with the open database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc import errors
from nas_hpc.errors import NasHpcError, ProtocolError, SiteError, StoreError
from nas_hpc.records import App, Job, Origin, ParentFailure, Resources, Stages, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import JobFilter, Store, calls, open_store
from nas_hpc.store.remote import RemoteStore
from nas_hpc.wire import PROTOCOL, StoreCall, pack, unpack
from tests.shared.owning import Owning, shared_site
from tests.store.supply import evaluation, person_job

WAYS = ("endpoint", "inbox", "own")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return shared_site(tmp_path)


@pytest.fixture(params=WAYS)
def store(request: pytest.FixtureRequest, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The database by each way that there is."""
    monkeypatch.setattr("nas_hpc.store.remote.ENDPOINT_S", 0.0)
    if request.param == "own":
        opened = RemoteStore(site)
        yield cast("Store", opened)
        opened.close()
        return
    with Owning(site, listens=request.param == "endpoint"):
        opened = RemoteStore(site)
        yield cast("Store", opened)
        opened.close()


def rich_job() -> Job:
    """A job in which every field says something."""
    return replace(
        person_job("rich"),
        args="--a 'b c'", environ={"A": "1"}, origin=Origin("/home", ("/a", "/b"), "/bin/python", {"X": "ü"}),
        resources=Resources(2, 3, 4, 1, 1, 5, 6.5, 7.5), retries=2, data={"n": [1, 2.5, None, {"k": True}]},
        stages=Stages("./pre", "./post", "*.h5", True, True, ParentFailure.RUN), created=1.25,
    )  # fmt: skip


def test_what_is_written_is_read_as_it_was(store: Store) -> None:
    app = App("sim", "/bin/sim -x", "a simulation", True, "/env.sh", "./pre", "./post")
    store.put_app(app)
    assert store.apps() == [app]
    parent = replace(rich_job(), application="sim")
    child = person_job("child", parents=[parent])
    [stored, waiting] = store.add_jobs([parent, child], Actor.COMMAND)
    assert stored == replace(parent, state=State.READY)
    assert waiting.state is State.AWAITING_PARENTS
    assert store.jobs(JobFilter()) == [stored, waiting]
    assert store.jobs(JobFilter(ids=(stored.id[:8],))) == [stored]
    assert store.jobs(JobFilter(states=frozenset({State.READY}))) == [stored]
    assert store.jobs(JobFilter(workflow="nowhere")) == []
    assert store.counts(JobFilter()) == {State.READY: 1, State.AWAITING_PARENTS: 1}
    store.modify([replace(stored, args="--new", retries=5)])
    [changed] = store.jobs(JobFilter(name="rich"))
    assert (changed.args, changed.retries, changed.data) == ("--new", 5, parent.data)
    moved = store.set_state([stored.id], State.USER_KILLED, Actor.COMMAND, "by hand")
    assert [job.id for job in moved] == [stored.id]
    assert moved[0].state is State.READY
    [made, killed] = store.events([stored.id])
    assert (made.old, made.new, killed.new, killed.message) == (
        State.CREATED, State.READY, State.USER_KILLED, "by hand",
    )  # fmt: skip
    assert [event.id for event in store.events()] == sorted(event.id for event in store.events())
    assert len(store.events([stored.id, waiting.id], limit=2)) == 2
    assert store.attempts([stored.id]) == []
    removed = store.remove(JobFilter(ids=(stored.id, waiting.id)))
    assert [job.id for job in removed] == [stored.id, waiting.id]
    store.remove_app("sim")
    assert store.apps() == []
    assert store.leases() == []


REFUSED: dict[str, Callable[[Store], object]] = {
    "an unknown application": lambda store: store.add_jobs(
        [person_job(application="nothing")], Actor.COMMAND
    ),
    "an unknown id": lambda store: store.jobs(JobFilter(ids=("12345678",))),
    "no id": lambda store: store.jobs(JobFilter(ids=("xyz!",))),
    "an unknown application to remove": lambda store: store.remove_app("nothing"),
    "an application that is there": lambda store: [
        store.put_app(App("a", program)) for program in ("/bin/a", "/bin/b")
    ],
    "data that is no JSON": lambda store: store.add_jobs(
        [replace(person_job(), data={"a": object()})], Actor.COMMAND
    ),
    "a name that is no text": lambda store: store.add_jobs([person_job("\ud800")], Actor.COMMAND),
    "an unknown job to change": lambda store: store.modify([replace(person_job(), id="0" * 32)]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_database_refuses_is_refused_with_the_same_class_and_text(
    case: str, site: Site, tmp_path: Path
) -> None:
    with open_store(tmp_path / "other.sqlite3", create=True) as local, pytest.raises(NasHpcError) as here:
        REFUSED[case](local)
    with Owning(site):
        remote = RemoteStore(site)
        with pytest.raises(NasHpcError) as there:
            REFUSED[case](cast("Store", remote))
        assert type(there.value) is type(here.value)
        assert str(there.value).replace(_id(there.value), "") == str(here.value).replace(_id(here.value), "")
        assert remote.jobs(JobFilter()) == []
        remote.close()


def _id(error: NasHpcError) -> str:
    words = str(error).split()
    return next((word for word in words if len(word) == 32), "#")


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NasHpcError)]


@given(st.sampled_from(KINDS), st.text(), st.booleans())
def test_every_error_of_the_package_arrives_as_it_was(
    kind: type[NasHpcError], text: str, transient: bool
) -> None:
    error = kind(text)
    error.transient = transient
    [message] = calls.messages(7, calls.Answer([], error=error))
    assert unpack(pack(message)) == message
    with pytest.raises(NasHpcError) as caught:
        calls.answer_of([message])
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.transient) == (text, transient)


def test_an_error_of_a_class_that_others_do_not_know_arrives_as_its_nearest() -> None:
    class Special(SiteError):
        pass

    [message] = calls.messages(1, calls.Answer([], error=Special("x")))
    with pytest.raises(SiteError, match="x"):
        calls.answer_of([message])


def test_what_only_launchers_do_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="for the owner of the job database alone"):
        store.claim("lease", [])
    assert getattr(store, "no_such_thing", None) is None


def test_who_opened_it_for_reading_writes_nothing(site: Site) -> None:
    with Owning(site) as owning:
        remote = RemoteStore(site, read_only=True)
        with pytest.raises(SiteError, match="for reading only"):
            remote.add_jobs([person_job()], Actor.COMMAND)
        assert remote.jobs(JobFilter()) == []
        assert "add_jobs" not in owning.calls
        remote.close()


NONSENSE: dict[str, StoreCall] = {
    "another protocol": StoreCall(PROTOCOL + 1, 1, new_id(), "jobs", []),
    "an unknown call": StoreCall(PROTOCOL, 1, new_id(), "claim", []),
    "too few arguments": StoreCall(PROTOCOL, 1, new_id(), "jobs", []),
    "a filter that is none": StoreCall(PROTOCOL, 1, new_id(), "jobs", [[1, 2]]),
    "a job that is none": StoreCall(PROTOCOL, 1, new_id(), "add_jobs", [[["x"]], "command"]),
    "an actor that is none": StoreCall(PROTOCOL, 1, new_id(), "add_jobs", [[], "nobody"]),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_call_that_makes_no_sense_is_refused_and_writes_nothing(case: str, site: Site) -> None:
    remote = RemoteStore(site)
    way = cast("Any", remote._way)
    with pytest.raises(ProtocolError):
        way.do(NONSENSE[case])
    assert remote.jobs(JobFilter()) == []
    [count] = way.store.raw().execute("SELECT count(*) FROM requests").fetchone()
    assert count == 0
    remote.close()


def test_a_launcher_of_another_protocol_is_refused(site: Site) -> None:
    with Owning(site):
        body = json.loads(site.endpoint.read_text())
        site.endpoint.write_text(json.dumps({**body, "protocol": PROTOCOL + 1}))
        with pytest.raises(ProtocolError, match=f"protocol {PROTOCOL + 1}"):
            RemoteStore(site)


def test_a_change_is_carried_out_once_however_often_it_comes(site: Site) -> None:
    job = person_job()
    with Owning(site) as owning:
        remote = RemoteStore(site)
        [stored] = remote.add_jobs([job], Actor.COMMAND)
        way = cast("Any", remote._way)
        kill = StoreCall(PROTOCOL, 0, new_id(), "set_state", [[job.id], "USER_KILLED", "command", "once"])
        assert not way.do(kill).repeated
        remote.set_state([job.id], State.RESTART_READY, Actor.COMMAND)
        assert way.do(kill).repeated
        [now] = remote.jobs(JobFilter(ids=(stored.id,)))
        assert now.state is State.RESTART_READY
        again = StoreCall(PROTOCOL, 0, new_id(), "add_jobs", [[calls.put_job(job)], "command"])
        assert [calls.get_job(row).id for _ in range(2) for row in way.do(again).rows] == [job.id] * 2
        assert len(remote.jobs(JobFilter())) == 1
        assert owning.changes >= 3
        remote.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["received", "committed"])
@pytest.mark.parametrize("call", ["add_jobs", "set_state", "remove"])
def test_an_owner_killed_in_the_middle_of_a_call_neither_loses_nor_doubles_it(
    site: Site, moment: str, call: str, test_id: str
) -> None:
    first = person_job("first")
    local = RemoteStore(site)
    local.add_jobs([first], Actor.COMMAND)
    local.close()
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.shared.owning", str(site.path), moment, call],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    remote = RemoteStore(site)
    new = person_job("new")
    if call == "add_jobs":
        assert [job.id for job in remote.add_jobs([new], Actor.COMMAND)] == [new.id]
    elif call == "set_state":
        done = remote.set_state([first.id], State.USER_KILLED, Actor.COMMAND, "once")
        assert [job.id for job in done] == [first.id]
    else:
        assert [job.id for job in remote.remove(JobFilter(ids=(first.id,)))] == [first.id]
    assert owner.wait(60) == -9
    names = {job.name: job for job in remote.jobs(JobFilter())}
    assert set(names) == {"add_jobs": {"first", "new"}, "set_state": {"first"}, "remove": set()}[call]
    if call == "set_state":
        assert names["first"].state is State.USER_KILLED
        assert [event.message for event in remote.events([first.id])].count("once") == 1
    remote.close()
    owner.stdin.close()  # type: ignore[union-attr]
    owner.stdout.close()


def test_a_large_listing_comes_in_pages_in_order_and_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PAGE", 40)
    monkeypatch.setattr(calls, "PART", 30)
    search = person_job("search")
    jobs = [search, *(evaluation(search.id, seq) for seq in range(1, 200))]
    with Owning(site) as owning:
        remote = RemoteStore(site)
        assert len(remote.add_jobs(jobs, Actor.COMMAND)) == 200
        assert [job.id for job in remote.jobs(JobFilter())] == [job.id for job in jobs]
        assert owning.calls.count("page") == 5
        assert len(remote.events([job.id for job in jobs])) == 200
        some = remote.jobs(JobFilter(creator=search.id, limit=50))
        assert [job.seq for job in some] == list(range(1, 51))
        killed = remote.set_state([job.id for job in jobs], State.USER_KILLED, Actor.COMMAND)
        assert [job.id for job in killed] == [job.id for job in jobs]
        remote.close()


def test_a_result_and_its_attempt_are_the_same_by_every_way(site: Site) -> None:
    from nas_hpc.records import Result

    search = person_job("search")
    result = Result(Outcome.OK, 0.5, {"loss": [1.5, "ü"]}, start=1.0, end=2.0)
    own = RemoteStore(site)
    own.add_jobs([search], Actor.COMMAND)
    inner = cast("Any", own._way).store
    inner.add_finished([(evaluation(search.id, 1), result)])
    expected = inner.finished(search.id)
    assert own.finished(search.id) == expected
    own.close()
    with Owning(site):
        remote = RemoteStore(site)
        assert remote.finished(search.id) == expected
        assert remote.attempts([expected[0].job.id]) == [expected[0].attempt]
        remote.close()


@pytest.mark.slow
def test_other_commands_are_waited_for_and_go_on_at_once(site: Site, test_id: str) -> None:
    """Five commands at a time on a site without a launcher: each owns the database for a moment."""
    code = (
        "import sys; from pathlib import Path; from nas_hpc.site import Site;"
        "from nas_hpc.states import Actor;"
        "from nas_hpc.store.remote import RemoteStore; from tests.store.supply import person_job;"
        "s = RemoteStore(Site(Path(sys.argv[1])));"
        "[s.add_jobs([person_job(f'j{sys.argv[2]}-{n}')], Actor.COMMAND) for n in range(5)]; s.close()"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(site.path), str(number)], cwd=REPOSITORY)
        for number in range(5)
    ]
    assert [one.wait(60) for one in running] == [0] * 5
    remote = RemoteStore(site)
    assert len({job.name for job in remote.jobs(JobFilter())}) == 25
    remote.close()
    assert not site.owner.exists()
