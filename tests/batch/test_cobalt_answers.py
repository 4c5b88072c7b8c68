"""How answers and logs of Cobalt are read, on texts as it prints them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.batch import cobalt
from nas_hpc.batch.cobalt import STATES, Cobalt
from nas_hpc.batch.system import Answer, Status
from nas_hpc.errors import BatchSilent
from nas_hpc.states import BatchState
from tests.batch.cobalt_texts import NOISE, Played, batch_job, table
from tests.peers.cobalt_state import SHORT_STATES, clock

# States


def test_every_state_is_known_by_its_long_and_its_short_name() -> None:
    for state, short in SHORT_STATES.items():
        assert state in STATES
        assert short in STATES
    held = {"user_hold", "dep_hold", "maxrun_hold", "dep_fail", "admin_hold"}
    assert {name for name, state in STATES.items() if state is BatchState.HELD} == held | {"H"}
    assert {name for name, state in STATES.items() if state is BatchState.RUNNING} == {
        "starting", "running", "preempting", "R"
    }  # fmt: skip
    assert {name for name, state in STATES.items() if state is BatchState.ENDING} == {
        "killing", "exiting", "done", "K", "E"
    }  # fmt: skip


@given(
    st.dictionaries(
        st.integers(1, 10**7).map(str), st.sampled_from(sorted(SHORT_STATES)), min_size=1, max_size=20
    ),
    st.sets(st.integers(10**7 + 1, 10**8).map(str), max_size=3),
    st.sampled_from(["", NOISE, "get_config_option: Option cqstat_header not found in section [cqm]\n"]),
)
def test_a_table_gives_the_states_of_those_it_knows(
    known: dict[str, str], unknown: set[str], noise: str
) -> None:
    ask = Played((0, noise + table(list(known.items())), noise))
    jobs = [batch_job(number) for number in (*known, *unknown)]
    got = Cobalt().status(jobs, ask)
    assert {number: got[number].state for number in known} == {n: STATES[s] for n, s in known.items()}
    assert {got[number].state for number in unknown} <= {BatchState.GONE}
    [argv] = ask.asked
    assert argv == ["qstat", "--header", "JobID:State", *known, *unknown]


@given(st.lists(st.tuples(*[st.text("ab :=,", max_size=9).map(str.strip)] * 3), min_size=1, max_size=6))
def test_a_table_is_cut_at_its_header_so_that_values_may_hold_blanks(rows: list[tuple[str, ...]]) -> None:
    header = ("JobID", "Envs", "attrs")
    numbered = [(str(n), *row[1:]) for n, row in enumerate(rows)]
    widths = [max(len(row[n]) for row in (header, *numbered)) for n in range(3)]
    lines = ["".join(f"{c:<{w}}  " for c, w in zip(row, widths, strict=True)) for row in (header, *numbered)]
    text = "\n".join([lines[0], "=" * (sum(widths) + 6), *lines[1:]])
    got = cobalt.parse_table(text, ["JobID"])
    assert [tuple(row.values()) for row in got] == numbered


def test_why_a_batch_job_waits_is_told() -> None:
    ask = Played((0, table([("1", "dep_hold"), ("2", "dep_fail"), ("3", "queued")]), ""))
    got = Cobalt().status([batch_job(number) for number in "123"], ask)
    assert got["1"] == Status(BatchState.HELD, "it waits for the batch jobs that it depends on")
    assert "did not end with exit code 0" in got["2"].reason
    assert got["3"] == Status(BatchState.QUEUED)


def test_nothing_and_exit_code_1_means_that_it_is_not_there() -> None:
    got = Cobalt().status([batch_job("5")], Played((1, "", "")))
    assert got["5"].state is BatchState.GONE
    assert "/none/k.cobaltlog" in got["5"].reason


ROW = table([("5", "running")])
SILENT = {
    "down": (1, "", "component error: Failed to connect to queue-manager\n", "Failed to connect"),
    "wrong id": (1, "", "abc is not a valid jobid or queue name\n", "abc is not a valid jobid"),
    "no table": (0, "Segmentation fault\n", "", "gave no table of JobID, State: Segmentation fault"),
    "nothing": (0, "", "", "gave no table of JobID, State: nothing"),
    "header alone": (0, "JobID  State  \n==============\n", "", "told of none of 5"),
    "another header": (0, "JobID  User  \n=============\n5      me    \n", "", "gave no table"),
    "unknown state": (0, ROW.replace("running", "rumming"), "", "'rumming'"),
    "cut off": (0, ROW[: ROW.index("running")], "", "does not fit its header"),
    "cut in the state": (0, ROW[: ROW.index("running") + 3], "", "'run'"),
    "no id": (0, ROW.replace("5 ", "x "), "", "'x'"),
    "another's rows": (0, table([("6", "running")]), "", "told of none of 5"),
    "killed": (-9, "", "", "exit code -9, and no word"),
    "rows and failure": (1, ROW, "", "qstat: "),
}


@pytest.mark.parametrize("name", SILENT)
def test_trouble_is_no_state(name: str) -> None:
    code, stdout, stderr, said = SILENT[name]
    with pytest.raises(BatchSilent) as caught:
        Cobalt().status([batch_job("5")], Played((code, stdout, stderr)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 10**7))
def test_times_are_read_as_they_are_printed(whole: int) -> None:
    assert cobalt.seconds(clock(whole)) == whole
    assert cobalt.minutes(clock(whole)) == whole // 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:00:30", 30), ("01:00:00", 3600), ("01:02:03:04", 93784), ("378981:57:19", 1364335039),
        ("N/A", None), ("None", None), ("-", None), ("", None), ("1:2", None),
    ],
)  # fmt: skip
def test_what_is_no_time_is_none(text: str, expected: int | None) -> None:
    assert cobalt.seconds(text) == expected


# The end, by the log

WHEN = "Thu Nov 05 17:29:30 2020 +0000 (UTC) "
START = f"/usr/bin/qsub -n 1 k.sh\n\n{WHEN}submitted with cwd set to: /a dir\n"
LOGS: dict[str, tuple[str, Status | None]] = {
    "an exit code": (
        f"{WHEN}Info: task completed normally with an exit code of 42; initiating job cleanup and removal\n",
        Status(BatchState.ENDED, "", 42),
    ),
    "success": (
        f"{WHEN}Info: task completed normally with an exit code of 0; initiating job cleanup and removal\n",
        Status(BatchState.ENDED, "", 0),
    ),
    "a SIGKILL": (
        f"{WHEN}Info: task completed normally with an exit code of 137; initiating job cleanup and removal\n",
        Status(BatchState.ENDED, "killed by signal 9", 137),
    ),
    "an unknown exit code": (
        f"{WHEN}Info: task completed normally with an exit code of None; initiating job cleanup\n",
        Status(BatchState.ENDED, "Cobalt does not know its exit code", None),
    ),
    "deleted while it ran": (
        f"{WHEN}Info: user delete requested with signal SIGTERM by user X\n"
        f"{WHEN}Info: task completed normally with an exit code of 143; initiating job cleanup and removal\n",
        Status(BatchState.CANCELLED, "user delete requested with signal SIGTERM by user X", 143),
    ),
    "deleted in the queue": (
        f"{WHEN}Info: user delete requested; removing job from the queue\n",
        Status(BatchState.CANCELLED, "user delete requested; removing job from the queue", None),
    ),
    "over its walltime": (
        f"{WHEN}Info: maximum execution time exceeded; initiating job terminiation\n",
        Status(BatchState.TIMEOUT, "maximum execution time exceeded", None),
    ),
    "over its walltime, then deleted": (
        f"{WHEN}Info: maximum execution time exceeded; initiating job terminiation\n"
        f"{WHEN}Info: user delete requested with signal SIGKILL by user X\n",
        Status(BatchState.TIMEOUT, "maximum execution time exceeded", None),
    ),
    "nothing yet": ("", None),
    "cut off": (f"{WHEN}Info: task completed normally with an ex", None),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_a_batch_job_that_is_gone_is_settled_by_its_log(tmp_path: Path, name: str) -> None:
    text, expected = LOGS[name]
    (tmp_path / "k.cobaltlog").write_text(START + text)
    got = Cobalt().status([batch_job("5", tmp_path / "k.output")], Played((1, "", "")))["5"]
    if expected is None:
        assert got.state is BatchState.GONE
        assert "does not tell how it ended" in got.reason
    else:
        assert got == expected


def test_an_id_that_is_none_is_not_asked_for() -> None:
    ask = Played((1, "", ""))
    assert Cobalt().status([batch_job("abc")], ask)["abc"].state is BatchState.GONE
    assert ask.asked == []


# Queues

QUEUES = "\n".join(
    f"{line}  "
    for line in """\
Name              Users    MinTime   MaxTime   MaxRunning  MaxQueued  MaxUserNodes  TotalNodes  State
=====================================================================================================
default           None     00:30:00  24:00:00  None        20         None          None        running
debug-cache-quad  None     None      01:00:00  1           1          8             None        stopped
R.special         me:you   None      None      None        None       None          None        draining
""".splitlines()
)


def test_queues_are_told_with_their_times_and_whether_they_take_batch_jobs() -> None:
    got = Cobalt().queues(Played((0, QUEUES, "")))
    assert [(q.name, q.open, q.max_minutes, q.min_nodes, q.max_nodes) for q in got] == [
        ("default", True, 1440, None, None),
        ("debug-cache-quad", True, 60, None, None),
        ("R.special", False, None, None, None),
    ]


def test_queues_of_a_version_with_other_columns_are_read_by_name_and_state() -> None:
    text = "Name  Cron  State    \n=====================\nq     a b   running  \n"
    [queue] = Cobalt().queues(Played((0, text, "")))
    assert (queue.name, queue.open, queue.max_minutes) == ("q", True, None)


@pytest.mark.parametrize("answer", [(1, "", ""), (0, "", ""), (1, "", "component error: x"), (0, "Name", "")])
def test_queues_that_nobody_tells_of_are_unknown(answer: tuple[int, str, str]) -> None:
    with pytest.raises(BatchSilent):
        Cobalt().queues(Played(answer))


READERS: list[Callable[[str], object]] = [
    lambda text: cobalt.parse_table(text, ["JobID", "State"]),
    cobalt.parse_queues,
    cobalt.parse_log,
    cobalt.seconds,
    lambda text: cobalt.words(Answer(("qsub",), 1, text, text)),
    lambda text: cobalt.submitted_id(Answer(("qsub",), 0, text, "")),
]


@given(st.one_of(st.text(max_size=200), st.text("JobIDState =\n0123<Fault>\"'\\", max_size=200)))
def test_no_text_breaks_a_reader(text: str) -> None:
    for reader in READERS:
        with suppress(BatchSilent):
            reader(text)
