"""Slurm: what it is asked and how its answers are read. The texts were recorded with Slurm 22.05.8."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.batch.slurm import Slurm, parse_fields, parse_partitions, parse_qos, parse_rows, submit_argv
from nas_hpc.batch.slurm_states import STATES, status_of
from nas_hpc.batch.system import QueueState, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.states import BatchState
from tests.batch.recorded import Replies, batch_job, request

S = BatchState
SCRIPT = Path("/site/qsubmit/TEST-1.sh")

SHOWN = (
    "JobId=35176327 JobName=f.sh UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901748 Nice=0 "
    "Account=(null) QOS=(null) JobState=FAILED Reason=NonZeroExitCode Dependency=(null) Requeue=1 Restarts=0 "
    "BatchFlag=1 Reboot=0 ExitCode=3:0 RunTime=00:00:01 TimeLimit=365-00:00:00 TimeMin=N/A "
    "SubmitTime=2026-11-21T16:32:13 EligibleTime=2026-11-21T16:32:13 StartTime=2026-11-21T16:32:13 "
    "EndTime=2026-11-21T16:32:14 Deadline=N/A SuspendTime=None SecsPreSuspend=0 Scheduler=Backfill "
    "Partition=debug AllocNode:Sid=vm:16989 ReqNodeList=(null) ExcNodeList=(null) NodeList=node2 "
    "BatchHost=node2 NumNodes=1 NumCPUs=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,node=1,billing=1 "
    "Command=/scratch/a b/f.sh WorkDir=/scratch/a b StdErr=/scratch/a b/x.out Power= "
)
UNKNOWN = (1, "", "slurm_load_jobs error: Invalid job id specified\n")
AWAY = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
NO_ACCOUNTING = (1, "", "Slurm accounting storage is disabled\n")


def state(replies: dict[str, object], *ids: str) -> dict[str, Status]:
    return Slurm().status([batch_job(id_, "slurm") for id_ in ids], Replies(replies))  # type: ignore[arg-type]


def test_the_script_has_one_long_option_a_line_and_asks_for_whole_nodes_that_may_be_lost() -> None:
    wanted = request(queue="debug", project="m1234", attrs=("constraint=gpu", "gpus-per-node=4"))
    assert Slurm().directives(wanted) == [
        "#SBATCH --job-name=TEST",
        "#SBATCH --nodes=4",
        "#SBATCH --time=60",
        "#SBATCH --partition=debug",
        "#SBATCH --account=m1234",
        "#SBATCH --exclusive",
        "#SBATCH --no-kill",
        "#SBATCH --constraint=gpu",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --chdir=/site/qsubmit",
        "#SBATCH --output=/site/qsubmit/TEST-1.output",
        "#SBATCH --open-mode=append",
    ]
    assert submit_argv(wanted, SCRIPT, {}) == ["sbatch", "--parsable", str(SCRIPT)]


@pytest.mark.parametrize("flag", ["--qos", "qos"])
def test_a_machine_says_how_its_queues_are_named(flag: str) -> None:
    lines = Slurm().directives(request(queue="regular", queue_flag=flag))
    assert "#SBATCH --qos=regular" in lines
    assert not [line for line in lines if "partition" in line]


@pytest.mark.parametrize("more", [{"attrs": ("oversubscribe",)}, {"flags": ("--ntasks-per-node=1",)}])
def test_who_says_how_much_of_a_node_he_wants_gets_no_whole_ones(more: dict[str, tuple[str, ...]]) -> None:
    assert "#SBATCH --exclusive" not in Slurm().directives(request(**more))


def test_what_a_directive_cuts_off_or_splits_goes_by_the_command_line() -> None:
    wanted = request(directory=Path("/my site/q#1"), output=Path("/my site/q#1/100%j"))
    assert not [line for line in Slurm().directives(wanted) if "chdir" in line or "output" in line]
    assert submit_argv(wanted, SCRIPT, {}) == [
        "sbatch", "--parsable", "--chdir=/my site/q#1", "--output=/my site/q#1/100%%j.output", str(SCRIPT)
    ]  # fmt: skip


def test_what_a_variable_of_the_shell_would_beat_goes_by_the_command_line_too() -> None:
    environ = {"SBATCH_ACCOUNT": "mine", "SBATCH_TIMELIMIT": "5", "SBATCH_QOS": "low", "SBATCH_DEBUG": "1"}
    wanted = request(project="ours", queue="debug", flags=("--mail-type=END",), dependencies=("7", "8.es"))
    assert submit_argv(wanted, SCRIPT, environ) == [
        "sbatch", "--parsable", "--time=60", "--account=ours", "--dependency=afterany:7:8", "--mail-type=END",
        str(SCRIPT),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"dependencies": ("12;rm",)}, "12;rm"),
        ({"flags": ("x.sh",)}, "x.sh"),
        ({"walltime_minutes": 0}, "0 min"),
    ],
)
def test_what_slurm_would_take_for_something_else_is_refused(more: dict[str, object], word: str) -> None:
    with pytest.raises(WrongCall, match=word):
        submit_argv(request(**more), SCRIPT, {})


def test_an_interactive_shell_gets_its_variables_and_no_output_file() -> None:
    argv = Slurm().interactive_argv(request(queue="debug", environ={"NAS_HPC_SITE": "/my site"}))
    assert argv[:3] == ["env", "NAS_HPC_SITE=/my site", "salloc"]
    assert "--nodes=4" in argv
    assert "--chdir=/site/qsubmit" in argv
    assert not [word for word in argv if word.startswith(("--output", "--open-mode"))]


@pytest.mark.parametrize(
    ("said", "id_"), [("123\n", "123"), ("123;es\n", "123.es"), ("site policy: be nice\n123\n", "123")]
)
def test_sbatch_tells_the_id_and_maybe_the_cluster(said: str, id_: str) -> None:
    assert Slurm().submit(request(), SCRIPT, Replies({"sbatch": (0, said, "")})) == id_


def test_a_refusal_has_slurms_words_and_what_was_sent() -> None:
    said = (
        "sbatch: error: invalid partition specified: nix\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    with pytest.raises(BatchRefused) as refused:
        Slurm().submit(request(), SCRIPT, Replies({"sbatch": (1, "", said)}))
    assert "invalid partition specified: nix" in str(refused.value)
    assert f"sent: sbatch --parsable {SCRIPT}" in str(refused.value)


@pytest.mark.parametrize(
    "reply",
    [
        (
            1,
            "",
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
        ),
        (1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        (0, "", ""),
        (0, "<html>maintenance</html>", ""),
    ],
)
def test_nobody_knows_whether_a_job_was_taken_by_a_controller_that_is_away(
    reply: tuple[int, str, str],
) -> None:
    with pytest.raises(BatchSilent):
        Slurm().submit(request(), SCRIPT, Replies({"sbatch": reply}))


ROWS = """\
35176322|PENDING|PartitionNodeLimit
35176323|PENDING|Dependency
35176324|PENDING|DependencyNeverSatisfied
35176325|PENDING|JobHeldUser
35176326|PENDING|BeginTime
35176330|RUNNING|None
35176331|PENDING|ReqNodeNotAvail, UnavailableNodes:node[1-2,7]
35176332|PENDING|(Nodes required for job are DOWN, DRAINED | reserved for jobs in higher priority partitions)
35176333|COMPLETING|None
35176334|CONFIGURING|None
35176335|SUSPENDED|None
"""


def test_every_waiting_job_says_why() -> None:
    found = state({"squeue": (0, ROWS, "")}, *(f"351763{n}" for n in range(22, 36) if n not in (27, 28, 29)))
    assert {id_[-2:]: status.state for id_, status in found.items()} == {
        "22": S.QUEUED, "23": S.HELD, "24": S.HELD, "25": S.HELD, "26": S.QUEUED, "30": S.RUNNING,
        "31": S.QUEUED, "32": S.QUEUED, "33": S.ENDING, "34": S.RUNNING, "35": S.RUNNING,
    }  # fmt: skip
    assert found["35176322"].reason.startswith("PartitionNodeLimit: ")
    assert "it does not start" in found["35176322"].reason
    assert "never starts" in found["35176324"].reason
    assert found["35176331"].reason.startswith("ReqNodeNotAvail, UnavailableNodes:node[1-2,7]: ")
    assert "DRAINED | reserved" in found["35176332"].reason
    assert found["35176335"].reason == "SUSPENDED"
    assert found["35176330"].reason == ""


@pytest.mark.parametrize(
    ("word", "reason", "code", "expected"),
    [
        ("COMPLETED", "None", "0:0", Status(S.ENDED, "", 0)),
        ("FAILED", "NonZeroExitCode", "3:0", Status(S.ENDED, "", 3)),
        ("FAILED", "JobLaunchFailure", "0:9", Status(S.ENDED, "JobLaunchFailure, signal 9", 137)),
        (
            "OUT_OF_MEMORY",
            "OutOfMemory",
            "0:125",
            Status(S.ENDED, "OUT_OF_MEMORY, OutOfMemory, signal 125", 253),
        ),
        ("TIMEOUT", "TimeLimit", "0:15", Status(S.TIMEOUT)),
        ("DEADLINE", "DeadLine", "0:15", Status(S.TIMEOUT, "DEADLINE, DeadLine")),
        ("CANCELLED", "None", "0:15", Status(S.CANCELLED)),
        ("CANCELLED by 1000", "", "0:15", Status(S.CANCELLED, "by 1000")),
        ("CANCELLED", "PartitionNodeLimit", "0:0", Status(S.CANCELLED)),
        ("NODE_FAIL", "NodeDown", "0:0", Status(S.LOST, "NODE_FAIL, NodeDown")),
        ("BOOT_FAIL", "None", "0:0", Status(S.LOST, "BOOT_FAIL")),
        ("PREEMPTED", "None", "0:15", Status(S.LOST, "PREEMPTED")),
        ("REQUEUED", "None", "0:0", Status(S.QUEUED, "REQUEUED")),
        ("REQUEUE_HOLD", "None", "0:0", Status(S.HELD, "REQUEUE_HOLD")),
    ],
)
def test_every_end_is_told_apart(word: str, reason: str, code: str, expected: Status) -> None:
    assert status_of(word, reason, code) == expected


def test_a_state_that_nobody_knows_is_none() -> None:
    assert status_of("DREAMING") is None
    assert all(status_of(word) is not None for word in STATES)


def test_the_exit_code_of_a_job_that_is_over_comes_from_scontrol() -> None:
    asked = Replies({"squeue": (0, "35176327|FAILED|NonZeroExitCode\n", ""), "scontrol": (0, SHOWN, "")})
    found = Slurm().status([batch_job("35176327", "slurm")], asked)
    assert found == {"35176327": Status(S.ENDED, "", 3)}
    assert asked.asked == [
        "squeue -h -t all -o %i|%T|%r -j 35176327", "scontrol -o show job 35176327"
    ]  # fmt: skip


def test_a_job_that_squeue_does_not_list_is_asked_of_scontrol_and_the_accounting() -> None:
    accounted = "77|TIMEOUT|0:0\n"
    replies = {"squeue": UNKNOWN, "scontrol": UNKNOWN, "sacct": (0, accounted, "")}
    assert state(replies, "77") == {"77": Status(S.TIMEOUT)}
    assert state({**replies, "sacct": (0, "77|CANCELLED by 1000|0:0\n", "")}, "77")["77"].state is S.CANCELLED
    assert state({**replies, "squeue": (0, "", ""), "scontrol": (0, SHOWN, "")}, "77")["77"].exit_code == 3


@pytest.mark.parametrize("sacct", [NO_ACCOUNTING, (0, "", ""), WrongCall("there is no sacct on PATH")])
def test_a_job_of_which_nothing_tells_is_gone(sacct: object) -> None:
    found = state({"squeue": UNKNOWN, "scontrol": UNKNOWN, "sacct": sacct}, "77")
    assert found["77"].state is S.GONE


def test_a_job_is_not_gone_because_the_accounting_is_away() -> None:
    away = (1, "", "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection")
    assert state({"squeue": UNKNOWN, "scontrol": UNKNOWN, "sacct": away}, "77") == {}
    assert state({"squeue": UNKNOWN, "scontrol": UNKNOWN, "sacct": BatchSilent("no answer")}, "77") == {}


@pytest.mark.parametrize(
    "squeue",
    [AWAY, (0, "<html>", ""), (0, "77|DREAMING|None\n", ""), (1, "", ""), (0, "77 PENDING\n", "")],
)
def test_an_answer_without_sense_is_no_state(squeue: tuple[int, str, str]) -> None:
    with pytest.raises(BatchSilent):
        state({"squeue": squeue, "scontrol": UNKNOWN, "sacct": NO_ACCOUNTING}, "77")


@pytest.mark.parametrize("shown", ["", "fire\n", "JobState=FAILED\n", "JobId=77 JobState=DREAMING\n"])
def test_a_job_that_scontrol_shows_without_sense_has_no_state(shown: str) -> None:
    with pytest.raises(BatchSilent):
        state({"squeue": UNKNOWN, "scontrol": (0, shown, "")}, "77")


def test_a_controller_that_goes_between_two_questions_changes_nothing() -> None:
    with pytest.raises(BatchSilent):
        state({"squeue": UNKNOWN, "scontrol": AWAY}, "77")


def test_parts_of_arrays_and_heterogeneous_jobs_do_no_harm() -> None:
    rows = (
        "12_1|COMPLETED|None\n12_2|RUNNING|None\n12_[3-9%2]|PENDING|Resources\n"
        "120|RUNNING|None\n14+0|RUNNING|None\n"
    )
    found = state({"squeue": (0, rows, ""), "scontrol": (0, SHOWN, "")}, "12", "12_2", "14", "120", "x")
    assert found["12"].state is S.RUNNING
    assert found["12_2"].state is S.RUNNING
    assert found["14"].state is S.RUNNING
    assert found["x"].state is S.GONE


def test_jobs_of_other_clusters_are_asked_for_there() -> None:
    asked = Replies(
        {"squeue -h -M es": (0, "CLUSTER: es\n7|RUNNING|None\n", ""), "squeue": (0, "7|PENDING|None\n", "")}
    )
    found = Slurm().status([batch_job("7", "slurm"), batch_job("7.es", "slurm")], asked)
    assert (found["7"].state, found["7.es"].state) == (S.QUEUED, S.RUNNING)


def test_cancel_tells_what_is_there_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_hpc.batch.slurm._LOOKS_S", (0.0, 0.0))
    asked = Replies({
        "scancel": (1, "", "scancel: error: Kill job error on job id 8: Access/permission denied\n"),
        "squeue": (0, "7|COMPLETING|None\n8|RUNNING|None\n", ""),
    })  # fmt: skip
    refused = Slurm().cancel(["7", "8", "9", "x"], asked)
    assert asked.asked[0] == "scancel 7 8 9"
    assert refused == {
        "x": "'x' is no id of a Slurm job",
        "8": "scancel: error: Kill job error on job id 8: Access/permission denied",
    }
    with pytest.raises(BatchSilent):
        Slurm().cancel(
            ["7"], Replies({"scancel": (8, "", "scancel: error: Unable to contact slurm controller")})
        )


def test_partitions_have_limits_of_nodes_and_time() -> None:
    text = (
        "debug|up|infinite|1-infinite|4\nlong|drain|7-00:00:00|2-64|1000\n"
        "one|inact|30:00|1|12\nhalf|down|n/a|4-infinite|9\n"
    )
    assert parse_partitions(text) == [
        QueueState("debug", True, 1, 4, None),
        QueueState("long", False, 2, 64, 10080),
        QueueState("one", False, 1, 1, 30),
        QueueState("half", True, 4, 9, None),
    ]
    with pytest.raises(BatchSilent):
        parse_partitions("sinfo: fire\n")


def test_qos_are_queues_where_there_is_accounting() -> None:
    asked = Replies({
        "sinfo": (0, "debug|up|infinite|1-infinite|4\n", ""),
        "sacctmgr": (0, "normal||\nregular|2-00:00:00|node=128,gres/gpu=512\ndebug|00:30:00|node=8\n", ""),
    })  # fmt: skip
    assert Slurm().queues(asked) == [
        QueueState("debug", True, 1, 4, None),
        QueueState("normal"),
        QueueState("regular", max_nodes=128, max_minutes=2880),
    ]
    for reply in (
        (1, "", "You are not running a supported accounting_storage plugin"),
        WrongCall("no sacctmgr"),
    ):
        without = Replies({"sinfo": (0, "debug|up|infinite|1-infinite|4\n", ""), "sacctmgr": reply})
        assert [queue.name for queue in Slurm().queues(without)] == ["debug"]
    assert parse_qos("nonsense\n") == []


def test_values_with_blanks_are_read_whole() -> None:
    fields = parse_fields(SHOWN)
    assert (fields["WorkDir"], fields["ExitCode"], fields["Power"]) == ("/scratch/a b", "3:0", "")


@given(
    st.text(
        st.characters(exclude_characters="\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029", exclude_categories=["Cs"])
    )
)
def test_a_reason_may_hold_anything(reason: str) -> None:
    [(id_, status)] = parse_rows(f"7|RUNNING|{reason}")
    assert (id_, status.state) == ("7", S.RUNNING)


@given(st.text())
def test_no_text_is_read_as_a_wrong_state(text: str) -> None:
    try:
        rows = parse_rows(text)
    except BatchSilent:
        return
    assert len(rows) == len(
        [line for line in text.splitlines() if line.strip() and not line.startswith("CLUSTER: ")]
    )
