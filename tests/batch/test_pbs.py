"""PBS: what it is asked and how its answers are read.

The records are made as OpenPBS 19 to 23 print them, the invalid ones as its bug reports show them.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.batch.pbs import Pbs, parse_jobs, parse_queues, submit_argv
from nas_hpc.batch.pbs_states import STATES, status_of
from nas_hpc.batch.system import QueueState, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.states import BatchState
from tests.batch.recorded import Replies, batch_job, request

S = BatchState
SCRIPT = Path("/site/qsubmit/TEST-1.sh")
SERVER = "polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov"
HEAD = f'''{{
    "timestamp":1752246824,
    "pbs_version":"2024.1.2.20241017100211",
    "pbs_server":"{SERVER}"'''
ENVIRONMENT = """\
                "HOME":"/home/me",
                "PS1":"\\\\[\\033[1m\\]me\\$ ",
                "BASH_FUNC_module%%":"() {  eval "$(modulecmd bash $*)"; }
",
                "job_state":"F",
                "Exit_status":0,
                "NUMBER":007
"""
"""What makes the JSON invalid."""


def record(
    number: int, state: str, *more: str, environment: str = '                "HOME":"/home/me"\n'
) -> str:
    """One job, as qstat indents it."""
    attributes = "".join(f",\n            {line}" for line in more)
    return f'''\
        "{number}.{SERVER}":{{
            "Job_Name":"TEST",
            "Job_Owner":"me@login-1",
            "resources_used":{{
                "cpupercent":0,
                "walltime":"00:01:02"
            }},
            "job_state":"{state}",
            "queue":"debug",
            "Resource_List":{{
                "nodect":2,
                "place":"scatter",
                "select":"2:system=polaris",
                "walltime":"00:01:00"
            }},
            "Variable_List":{{
{environment}            }}{attributes}
        }}'''


def answer(*records: str) -> str:
    return HEAD + ',\n    "Jobs":{\n' + ",\n".join(records) + "\n    }\n}\n"


def state(reply: object, *ids: str) -> dict[str, Status]:
    jobs = [batch_job(id_, "pbs") for id_ in ids or ("12",)]
    return Pbs().status(jobs, Replies({"qstat": reply}))  # type: ignore[dict-item]


def test_the_script_has_one_option_a_line() -> None:
    wanted = request(
        queue="debug", project="datascience", attrs=("system=polaris", "filesystems=home:eagle", "ngpus=4")
    )
    assert Pbs().directives(wanted) == [
        "#PBS -N TEST",
        "#PBS -A datascience",
        "#PBS -q debug",
        "#PBS -l select=4:system=polaris:ngpus=4",
        "#PBS -l walltime=01:00:00",
        "#PBS -l place=scatter",
        "#PBS -l filesystems=home:eagle",
        "#PBS -j oe",
        "#PBS -o /site/qsubmit/TEST-1.output",
    ]
    assert submit_argv(wanted, SCRIPT) == ["qsub", str(SCRIPT)]


def test_a_machine_may_place_its_jobs_otherwise_and_hours_go_over_a_day() -> None:
    lines = Pbs().directives(request(attrs=("place=scatter:excl",), walltime_minutes=2 * 1440 + 5))
    assert [line for line in lines if "place" in line] == ["#PBS -l place=scatter:excl"]
    assert "#PBS -l walltime=48:05:00" in lines


def test_paths_with_blanks_and_dependencies_go_by_the_command_line() -> None:
    wanted = request(output=Path("/my site/T"), dependencies=("7.pbs", "8"), flags=("-k", "doe"))
    assert not [line for line in Pbs().directives(wanted) if " -o " in line]
    assert submit_argv(wanted, SCRIPT) == [
        "qsub", "-o", "/my site/T.output", "-W", "depend=afterany:7.pbs:8", "-k", "doe", str(SCRIPT)
    ]  # fmt: skip


def test_an_interactive_shell_gets_its_variables() -> None:
    argv = Pbs().interactive_argv(request(environ={"NAS_HPC_SITE": "/a,b", "B": "1"}, flags=("-X",)))
    assert argv[:2] == ["qsub", "-I"]
    assert argv[argv.index("-v") + 1] == 'NAS_HPC_SITE="/a,b",B=1'
    assert not {"-o", "-j"} & set(argv)
    assert argv[-1] == "-X"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"dependencies": ("x",)}, "'x'"),
        ({"flags": ("x.sh",)}, "x.sh"),
        ({"walltime_minutes": 0}, "0 min"),
        ({"attrs": ("gpus",)}, "NAME=VALUE"),
        ({"attrs": ("a=b c",)}, "no blank"),
    ],
)
def test_what_pbs_would_take_for_something_else_is_refused(more: dict[str, Any], word: str) -> None:
    with pytest.raises(WrongCall, match=word):
        submit_argv(request(**more), SCRIPT)


def test_qsub_tells_the_id_and_refuses_in_its_own_words() -> None:
    reply = (0, "\nwelcome to the debug queue\n12345.polaris-pbs-01\n", "")
    assert Pbs().submit(request(), SCRIPT, Replies({"qsub": reply})) == "12345.polaris-pbs-01"
    said = (170, "", "qsub: Job violates queue and/or server resource limits\n")
    with pytest.raises(BatchRefused, match=r"violates queue .* sent: qsub /site"):
        Pbs().submit(request(), SCRIPT, Replies({"qsub": said}))


@pytest.mark.parametrize(
    "reply",
    [
        (111, "", "Connection refused\nqsub: cannot connect to server pbs (errno=111)\n"),
        (0, "", ""),
        (0, "<html>", ""),
    ],
)
def test_nobody_knows_whether_a_server_that_is_away_took_it(reply: tuple[int, str, str]) -> None:
    with pytest.raises(BatchSilent):
        Pbs().submit(request(), SCRIPT, Replies({"qsub": reply}))


@pytest.mark.parametrize(
    ("letter", "more", "expected"),
    [
        ("Q", ['"comment":"Not Running: Insufficient amount of resource: ncpus"'], S.QUEUED),
        ("H", ['"Hold_Types":"s"', '"depend":"afterany:11.pbs@pbs"'], S.HELD),
        ("W", [], S.QUEUED),
        ("T", [], S.QUEUED),
        ("M", [], S.QUEUED),
        ("R", ['"comment":"Job run at Tue Oct 04 at 21:23 on (x1:ncpus=64)"'], S.RUNNING),
        ("B", [], S.RUNNING),
        ("S", [], S.RUNNING),
        ("U", [], S.RUNNING),
        ("E", [], S.ENDING),
    ],
)
def test_every_letter_of_a_job_that_is_not_over_has_a_state(
    letter: str, more: list[str], expected: S
) -> None:
    status = state((0, answer(record(12, letter, *more)), ""))["12"]
    assert status.state is expected
    assert (status.reason == "") == (letter in "RBE")


def test_a_job_that_waits_says_why() -> None:
    comment = '"comment":"Not Running: Insufficient amount of resource: ncpus"'
    assert state((0, answer(record(12, "Q", comment)), ""))["12"].reason.startswith("Not Running: Insuff")
    assert "depends on" in state((0, answer(record(12, "H", '"depend":"afterany:11"')), ""))["12"].reason


def over(*more: str) -> Status:
    return state((0, answer(record(12, "F", *more)), ""))["12"]


RAN = '"comment":"Job run at Fri Jul 11 at 15:02 on (x3006c0s1b0n0:ncpus=64) and '


@pytest.mark.parametrize(
    ("more", "expected", "code"),
    [
        (['"Exit_status":0', '"substate":92', RAN + 'finished"'], S.ENDED, 0),
        (['"Exit_status":3', '"substate":93', RAN + 'failed"'], S.ENDED, 3),
        (['"Exit_status":"3"', '"substate":93'], S.ENDED, 3),
        (['"Exit_status":-29', '"substate":93', RAN + 'exceeded resource walltime"'], S.TIMEOUT, None),
        (['"Exit_status":271', '"substate":93'], S.TIMEOUT, None),
        (['"Exit_status":143', '"substate":93'], S.TIMEOUT, None),
        (['"Exit_status":143', '"resources_used":{"walltime":"00:00:10"}', '"substate":93'], S.ENDED, 143),
        (['"Exit_status":1', '"substate":93'], S.ENDED, 1),
        (['"Exit_status":265', '"resources_used":{"walltime":"00:00:10"}', '"substate":93'], S.ENDED, 137),
        (
            ['"Exit_status":271', '"resources_used":{"walltime":"00:00:10"}', '"substate":91'],
            S.CANCELLED,
            None,
        ),
        (['"Exit_status":0', '"substate":91', RAN + 'terminated"'], S.CANCELLED, None),
        (['"substate":91', '"comment":"Not Running: Insufficient nodes and terminated"'], S.CANCELLED, None),
        (['"substate":91'], S.CANCELLED, None),
        (['"substate":93', '"comment":"job held, too many failed attempts to run"'], S.LOST, None),
        (['"Exit_status":-27', '"substate":93'], S.ENDED, None),
        (['"Exit_status":-4', '"substate":93'], S.LOST, None),
        (['"Exit_status":-99', '"substate":93'], S.LOST, None),
    ],
)
def test_every_end_is_told_apart(more: list[str], expected: S, code: int | None) -> None:
    status = over(*more)
    assert (status.state, status.exit_code) == (expected, code)


def test_ends_that_are_pbss_own_say_what_happened() -> None:
    assert over('"Exit_status":-27').reason == "it used more memory than it asked for (Exit_status -27)"
    assert "first node was started anew (Exit_status -4)" in over('"Exit_status":-4').reason


def test_a_state_that_nobody_knows_is_no_answer() -> None:
    with pytest.raises(BatchSilent, match="'Z'"):
        state((0, answer(record(12, "Z")), ""))
    assert all(status_of({"job_state": letter}) for letter in STATES)


def test_json_that_is_none_is_read_by_its_lines_and_no_variable_is_taken_for_an_attribute() -> None:
    text = answer(
        record(12, "R", '"Exit_status":7', environment=ENVIRONMENT),
        record(13, "F", '"Exit_status":271', '"substate":93', environment=ENVIRONMENT),
    )
    with pytest.raises(ValueError, match=r"\\"):
        json.loads(text, strict=False)
    found = state((0, text, ""), "12", "13")
    assert found["12"].state is S.RUNNING
    assert found["13"].state is S.TIMEOUT, "its walltimes are read, too"


def test_each_of_several_jobs_may_begin_the_jobs_anew() -> None:
    """As in PBS 14 to 18."""
    text = HEAD + "".join(f',\n    "Jobs":{{\n{record(number, "R")}\n' for number in (12, 13)) + "    }\n}\n"
    with pytest.raises(ValueError, match="."):
        json.loads(text, strict=False)
    assert {one.state for one in state((0, text, ""), "12", "13").values()} == {S.RUNNING}
    assert len(state((0, text, ""), "12", "13")) == 2


def test_who_is_not_told_of_among_several_is_asked_for_alone() -> None:
    """Some versions tell of the first only."""
    asked = Replies({
        f"qstat -x -f -F json 12.{SERVER} 13": (0, answer(record(12, "R")), ""),
        "qstat -x -f -F json 13": (0, answer(record(13, "Q")), ""),
    })  # fmt: skip
    found = Pbs().status([batch_job(f"12.{SERVER}", "pbs"), batch_job("13.polaris-pbs-01", "pbs")], asked)
    assert [one.state for one in found.values()] == [S.RUNNING, S.QUEUED]
    assert len(asked.asked) == 2


@pytest.mark.parametrize(
    "said",
    [
        "qstat: Unknown Job Id 13.polaris-pbs-01\n",
        "qstat: Unknown Job Id Error 13.polaris-pbs-01\n",
        f"qstat: 13.{SERVER} Job has finished, use -x or -H to obtain historical job information\n",
    ],
)
def test_a_job_that_pbs_has_forgotten_is_gone_and_the_others_are_told(said: str) -> None:
    found = state((153, answer(record(12, "R")), said), "12", "13")
    assert (found["12"].state, found["13"].state) == (S.RUNNING, S.GONE)
    assert state((153, HEAD + "\n}\n", said), "13")["13"].state is S.GONE
    assert state((153, "", said), "13")["13"].state is S.GONE


@pytest.mark.parametrize(
    "reply",
    [
        (255, "", "Connection refused\nqstat: cannot connect to server pbs (errno=15010)\n"),
        (1, "", ""),
        (0, "", ""),
        (0, HEAD + "\n}\n", ""),
        (0, "<html>down for maintenance</html>", ""),
        (0, '{"Jobs": 3}', ""),
        (0, '{"Jobs": {"12.x": {"Job_Name": "T"}}}', ""),
        (0, answer(record(99, "F")), ""),
        (153, "", "qstat: Unknown Job Id 99.pbs\n"),
    ],
)
def test_an_answer_without_sense_is_no_state(reply: tuple[int, str, str]) -> None:
    with pytest.raises(BatchSilent):
        state(reply, "12")


def test_ids_of_arrays_and_servers_are_told_apart() -> None:
    found = state((0, answer(record(12, "R")), ""), "12", f"12.{SERVER}", "12.polaris-pbs-01", "no id")
    assert [one.state for one in found.values()].count(S.RUNNING) == 3
    assert found["no id"].state is S.GONE
    with pytest.raises(BatchSilent):
        state((0, answer(record(12, "R")), ""), "12.other-pbs", "12[]")


def test_cancel_tells_what_is_there_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_hpc.batch.pbs._LOOKS_S", (0.0, 0.0))
    asked = Replies({
        "qdel": (159, "", "qdel: Unauthorized Request  13.polaris-pbs-01\n"),
        "qstat": (0, answer(record(12, "E"), record(13, "R")), ""),
    })  # fmt: skip
    assert Pbs().cancel(["12", "13", "x"], asked) == {
        "x": "'x' is no id of a PBS job",
        "13": "qdel: Unauthorized Request 13.polaris-pbs-01",
    }
    assert asked.asked == ["qdel 12 13", "qstat -x -f -F json 12 13"]
    there = Replies({"qdel": (0, "", ""), "qstat": (0, answer(record(12, "R")), "")})
    assert "PBS has it still (running)" in Pbs().cancel(["12"], there)["12"]


def test_cancel_needs_a_server_that_answers() -> None:
    away = (255, "", "qstat: cannot connect to server pbs (errno=15010)\n")
    with pytest.raises(BatchSilent):
        Pbs().cancel(["12"], Replies({"qdel": away, "qstat": away}))


QUEUES = (
    HEAD
    + """,
    "Queue":{
        "debug":{
            "queue_type":"Execution",
            "total_jobs":7,
            "state_count":"Transit:0 Queued:3 Held:0 Waiting:0 Running:4 Exiting:0 Begun:0 ",
            "max_queued":"[o:PBS_ALL=10]",
            "max_queued":"[u:PBS_GENERIC=2]",
            "resources_max":{
                "nodect":2,
                "walltime":"01:00:00"
            },
            "resources_min":{
                "nodect":1
            },
            "enabled":"True",
            "started":"True"
        },
        "prod":{
            "queue_type":"Route",
            "route_destinations":"small,medium,large",
            "enabled":"False",
            "started":"False"
        }
    }
}
"""
)


def test_queues_have_limits_of_nodes_and_time() -> None:
    asked = Replies({"qstat -Q -f -F json": (0, QUEUES, "")})
    assert Pbs().queues(asked) == [QueueState("debug", True, 1, 2, 60), QueueState("prod", False)]
    for reply in ((0, "<html>", ""), (1, "", "qstat: cannot connect"), (0, '{"Queue": {"a": 1}}', "")):
        with pytest.raises(BatchSilent):
            Pbs().queues(Replies({"qstat": reply}))
    with pytest.raises(BatchSilent):
        parse_queues("[]")


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\r'), max_size=40)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_]{1,12}", fullmatch=True), LINES, max_size=5))
def test_no_environment_of_a_user_hides_or_changes_a_state(environ: dict[str, str]) -> None:
    body = ",\n".join(f'                "{name}":"{value}"' for name, value in environ.items())
    text = answer(record(12, "F", '"Exit_status":5', environment=f"{body}\n"), record(13, "R"))
    found = state((0, text, ""), "12", "13")
    assert found["12"] == Status(S.ENDED, "", 5)
    assert found["13"].state is S.RUNNING


@given(st.text())
def test_no_text_is_read_as_jobs_that_it_does_not_tell_of(text: str) -> None:
    with contextlib.suppress(BatchSilent):
        assert parse_jobs(text) == {}
