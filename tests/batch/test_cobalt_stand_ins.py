"""The stand-ins of qsub, qstat and qdel behave as Cobalt does: what the other tests of this room stand on."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.peers.cobalt import Cobalt, compact
from tests.peers.cobalt_state import clock
from tests.support import TEST_ID, stays, wait_until

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def cobalt(tmp_path: Path) -> Iterator[Cobalt]:
    with Cobalt(tmp_path / "cobalt") as one:
        yield one


def script(path: Path, body: str, *directives: str) -> Path:
    lines = ["#!/bin/bash", *(f"#COBALT {line}" for line in directives), body]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def submit(cobalt: Cobalt, body: str, *flags: str) -> str:
    """The id, of a batch job of one node and 60 minutes in debug-cache-quad unless flags say otherwise."""
    path = script(cobalt.directory / f"s{time.monotonic_ns()}.sh", body)
    words = ("-n", "1", "-t", "60", "-q", "debug-cache-quad", *flags, str(path))
    done = cobalt.run("qsub", *words)
    assert (done.returncode, done.stdout.strip().isdigit()) == (0, True), done
    return done.stdout.strip()


def gone(cobalt: Cobalt, number: str) -> int:
    """Wait for its end; its exit code."""
    wait_until(lambda: number in cobalt.ended() and not cobalt.state(number), 60, f"the end of {number}")
    return cobalt.ended()[number]


def test_success_is_the_id_alone(cobalt: Cobalt) -> None:
    path = script(cobalt.directory / "s.sh", "true")
    done = cobalt.run("qsub", "-n", "1", "-t", "60", "-q", "debug-cache-quad", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


ERRORS = {
    "no script": ("-n 1 -t 30", 1, "No executable or script specified"),
    "no time": ("-n 1 SCRIPT", 1, "'time' not provided"),
    "no nodes": ("-t 30 SCRIPT", 1, "'nodecount' not provided"),
    "script missing": ("-n 1 -t 30 no.sh", 1, "no.sh not found, or is not a file"),
    "script not executable": ("-n 1 -t 30 PLAIN", 1, "plain.sh is not executable"),
    "no nodes at all": ("-n 0 -t 30 SCRIPT", 1, "node count out of realistic range"),
    "too many nodes": ("-n 17 -t 30 SCRIPT", 1, "node count out of realistic range"),
    "nodes that are no number": ("-n abc -t 30 SCRIPT", 2, "error: option -n: invalid integer value: 'abc'"),
    "unknown option": ("--nosuch -n 1 -t 30 SCRIPT", 2, "error: "),
    "time that is none": (
        "-n 1 -t abc SCRIPT", 1, "invalid time specification: illegal value 'abc' for minutes",
    ),
    "bad queue": (
        "-n 1 -t 30 -q nosuch SCRIPT", 1,
        "<Fault 1001: \"trying to add job to non-existent queue 'nosuch'\">",
    ),
    "too long": (
        "-n 1 -t 61 -q debug-cache-quad SCRIPT", 1,
        r"Walltime greater than the 'debug-cache-quad' queue max walltime of 01:00:00\n",
    ),
    "too short": (
        "-n 1 -t 1 -q short SCRIPT", 1, r"Walltime less than the 'short' queue min walltime of 00:02:00\n",
    ),
    "too many queued": (
        "-n 1 -t 30 -q full SCRIPT", 1,
        r"The limit of 1 jobs per user in the 'full' queue has been reached\n",
    ),
    "draining": ("-n 1 -t 30 -q draining SCRIPT", 1, "The 'draining' queue is draining"),
    "bad mcdram": ("-n 1 -t 30 --attrs mcdram=x SCRIPT", 1, "component error: XMLRPC failure <Fault 1004: '"),
    "bad numa": ("-n 1 -t 30 --attrs numa=x SCRIPT", 1, "in system.validate_job"),
    "two attrs": (
        "-n 1 -t 30 --attrs mcdram=flat --attrs numa=quad SCRIPT", 1,
        "Multiple --attrs options not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_text_and_its_exit_code_and_no_id(cobalt: Cobalt, name: str) -> None:
    line, code, said = ERRORS[name]
    cobalt.queue("short", min_minutes=2)
    cobalt.queue("full", max_queued=1, state="stopped")
    cobalt.queue("draining", state="draining")
    path = script(cobalt.directory / "script.sh", "true")
    (cobalt.directory / "plain.sh").write_text("#!/bin/sh\n")
    if name == "too many queued":
        assert cobalt.run("qsub", "-n", "1", "-t", "30", "-q", "full", str(path)).returncode == 0
    words = [{"SCRIPT": "script.sh", "PLAIN": "plain.sh"}.get(word, word) for word in line.split()]
    done = cobalt.run("qsub", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert ('No handlers could be found for logger "Proxy"\n' in done.stderr) == ("<Fault" in done.stderr)
    assert not any(line.strip().isdigit() for line in done.stdout.splitlines())
    assert ("Usage" in done.stdout) == (name == "no script")


def test_a_stopped_queue_and_an_unknown_dependency_are_taken_with_a_warning(cobalt: Cobalt) -> None:
    cobalt.queue("stopped", state="stopped")
    path = script(cobalt.directory / "s.sh", "true")
    for more in (("-q", "stopped"), ("--dependencies", "77")):
        done = cobalt.run("qsub", "-n", "1", "-t", "30", *more, str(path))
        assert (done.returncode, done.stdout.strip().isdigit()) == (0, True)
        assert done.stderr.startswith("WARNING")
    wait_until(lambda: cobalt.state(2) == "dep_hold", 60)
    stays(lambda: cobalt.state(1) == "queued", 0.2)


@pytest.mark.parametrize(
    ("given", "minutes"), [("30", 30), ("1:2", 62), ("00:10:30", 10), ("1:00:00:00", 1440), ("00:00:30", 0)]
)
def test_times_lose_their_seconds_and_0_is_the_longest_there_is(
    cobalt: Cobalt, given: str, minutes: int
) -> None:
    cobalt.queue("long", max_minutes=2000)
    submit(cobalt, "true", "-h", "-q", "long", "-t", given)
    assert cobalt.jobs()["1"]["minutes"] == (minutes or 2000)


def test_directives_are_split_at_blanks_and_end_at_the_first_other_line(cobalt: Cobalt) -> None:
    path = script(cobalt.directory / "s.sh", "true", "-n 3", "-t 30", "-A P", "-h")
    path.write_text(path.read_text().replace("true\n", "\n#COBALT -q nosuch\n"))
    assert cobalt.run("qsub", "-n", "2", str(path)).returncode == 0
    job = cobalt.jobs()["1"]
    assert (job["nodes"], job["minutes"], job["project"], job["queue"]) == (2, 30, "P", "default")
    path = script(cobalt.directory / "t.sh", "true", '-O "my job"', "-n 3", "-t 30")
    done = cobalt.run("qsub", str(path))
    assert (done.returncode, done.stderr) == (1, "'time' not provided\n")
    path = script(cobalt.directory / "u.sh", "#COBALT -n 3", "-t 30 -n 2", "-h")
    path.write_text(path.read_text().replace("#!/bin/bash\n", "#!/bin/bash\n\n"))
    assert "'time' not provided" in cobalt.run("qsub", str(path)).stderr


def test_options_end_at_the_script(cobalt: Cobalt) -> None:
    path = script(cobalt.directory / "s.sh", 'echo "$@"')
    done = cobalt.run("qsub", "-n", "1", "-t", "30", "-O", "out", str(path), "-t", "60")
    assert done.returncode == 0
    assert gone(cobalt, "1") == 0
    assert (cobalt.directory / "out.output").read_text() == "-t 60\n"


def test_a_held_batch_job_waits_for_its_release(cobalt: Cobalt) -> None:
    number = submit(cobalt, "true", "-h")
    stays(lambda: cobalt.state(number) == "user_hold", 0.2)
    cobalt.release(number)
    assert gone(cobalt, number) == 0


def test_a_script_gets_only_the_bare_environment_and_env(cobalt: Cobalt) -> None:
    before = int(time.time())
    number = submit(
        cobalt, "env -0; pwd", "-O", str(cobalt.directory / "$jobid"), "-A", "P", "--env", r"A=1\:2\=3:B=4",
        "-n", "5", "--env", "C=$jobid",
    )  # fmt: skip
    assert gone(cobalt, number) == 0
    *lines, tail = (cobalt.directory / f"{number}.output").read_text().split("\0")
    assert tail == f"{cobalt.directory}\n"
    got = dict(line.split("=", 1) for line in lines)
    for name in ("PWD", "SHLVL", "_", TEST_ID):
        got.pop(name)
    start = int(got.pop("COBALT_STARTTIME"))
    assert before <= start <= time.time()
    assert got == {
        "COBALT_JOBID": number, "COBALT_ENDTIME": got["COBALT_ENDTIME"], "COBALT_PARTNAME": "1-5",
        "COBALT_PARTSIZE": "5", "COBALT_JOBSIZE": "5", "COBALT_PARTCORES": "64", "COBALT_PROJECT": "P",
        "COBALT_QUEUE": "debug-cache-quad", "HOME": pwd.getpwuid(os.getuid()).pw_dir, "USER": ME,
        "LOGNAME": ME, "SHELL": got["SHELL"], "A": "1:2=3", "B": "4", "C": number,
    }  # fmt: skip
    assert abs(int(got["COBALT_ENDTIME"]) - start - 3600) <= 1


def test_a_commodity_cluster_has_a_node_file_and_names_the_first_host(tmp_path: Path) -> None:
    with Cobalt(tmp_path / "cobalt", commodity=True) as cobalt:
        number = submit(cobalt, 'cat "$COBALT_NODEFILE"; echo $COBALT_PARTNAME', "-n", "2", "-O", "out")
        assert gone(cobalt, number) == 0
        assert (cobalt.directory / "out.output").read_text() == "nid00001\nnid00002\nnid00001\n"


@pytest.mark.parametrize(("body", "code"), [("exit 42", 42), ("kill -9 $$", 137), ("true", 0)])
def test_the_exit_code_is_in_the_log_alone(cobalt: Cobalt, body: str, code: int) -> None:
    number = submit(cobalt, body, "-O", "out")
    assert gone(cobalt, number) == code
    log = (cobalt.directory / "out.cobaltlog").read_text()
    assert f"Info: task completed normally with an exit code of {code}; " in log
    done = cobalt.run("qstat", number)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_batch_job_over_its_time_is_ended(tmp_path: Path) -> None:
    with Cobalt(tmp_path / "cobalt", minute_s=0.01) as cobalt:
        number = submit(cobalt, "exec sleep 1000", "-O", "out")
        assert gone(cobalt, number) == 143
        assert "maximum execution time exceeded" in (cobalt.directory / "out.cobaltlog").read_text()


@pytest.mark.slow
def test_it_gets_term_and_after_a_while_kill(tmp_path: Path) -> None:
    with Cobalt(tmp_path / "cobalt", grace_s=3.0) as cobalt:
        ready = cobalt.directory / "ready"
        body = f"trap 'echo term' TERM; touch {ready}; while :; do sleep 0.1; done"
        number = submit(cobalt, body, "-O", "out")
        wait_until(ready.exists, 60)
        cobalt.expire(number)
        assert gone(cobalt, number) == 137
        assert (cobalt.directory / "out.output").read_text() == "term\n"


def test_the_end_of_a_log_may_come_late(tmp_path: Path) -> None:
    with Cobalt(tmp_path / "cobalt", log_delay_s=0.5) as cobalt:
        number = submit(cobalt, "exit 3", "-O", "out")
        assert gone(cobalt, number) == 3
        log = cobalt.directory / "out.cobaltlog"
        wait_until(lambda: "exit code of 3" in log.read_text(), 60, "the log")


def test_a_dependent_batch_job_runs_after_exit_code_0_alone(cobalt: Cobalt) -> None:
    cobalt.queue("q")
    go = cobalt.directory / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done; exit"
    good, bad = submit(cobalt, f"{wait} 0", "-q", "q"), submit(cobalt, f"{wait} 1", "-q", "q")
    after = [submit(cobalt, "true", "-q", "q", "--dependencies", one) for one in (good, f"{good}:{bad}")]
    wait_until(lambda: [cobalt.state(one) for one in after] == ["dep_hold"] * 2, 60)
    go.touch()
    assert gone(cobalt, after[0]) == 0
    wait_until(lambda: cobalt.state(after[1]) == "dep_fail", 60)
    stays(lambda: cobalt.state(after[1]) == "dep_fail", 0.2)


# qstat


@pytest.mark.slow
def test_ids_are_right_padded_and_columns_two_blanks_apart(cobalt: Cobalt) -> None:
    cobalt.queue("q")
    for _ in range(10):
        submit(cobalt, "true", "-q", "q", "-h")
    done = cobalt.run("qstat", "--header", "JobID:State:Location:Nosuch", "8", "10", "77")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "JobID  State      Location  Nosuch  \n"
        "====================================\n"
        " 8     user_hold  None      -       \n"
        "10     user_hold  None      -       \n"
    )
    assert cobalt.run("qstat").stdout.splitlines()[0].split() == [
        "JobID", "User", "WallTime", "Nodes", "State", "Location"
    ]  # fmt: skip
    again = cobalt.run("qstat", "8", QSTAT_HEADER="User:JobID", CQSTAT_HEADER="Queue")
    assert again.stdout.splitlines()[2] == "q      "
    assert len(cobalt.run("qstat", "-f").stdout.splitlines()[0].split()) == 16
    vertical = cobalt.run("qstat", "-l", "--header", "JobID:State", "9").stdout
    assert vertical == "JobID: 9\n    State : user_hold\n\n"


def test_what_is_not_there_is_silent_and_what_is_wrong_is_told(cobalt: Cobalt) -> None:
    done = cobalt.run("qstat", "5")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = cobalt.run("qstat", "abc")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "abc is not a valid jobid or queue name\n"
    done = cobalt.run("qstat")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert cobalt.run("qstat", "-A").returncode == cobalt.run("qstat", "-q").returncode == 2
    cobalt.trouble("qstat", stderr="component error: Failed to connect to queue-manager\n")
    done = cobalt.run("qstat", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("component error: ")
    cobalt.mend("qstat")
    assert cobalt.run("qstat").returncode == 0


def test_times_past_a_day_have_the_days_and_columns_hold_blanks(cobalt: Cobalt) -> None:
    assert [clock(one) for one in (0, 3599, 86399, 86400, 180000)] == [
        "00:00:00", "00:59:59", "23:59:59", "01:00:00:00", "02:02:00:00"
    ]  # fmt: skip
    number = submit(cobalt, "true", "-h", "--env", "A=1:B=2", "--attrs", "mcdram=flat:numa=quad")
    row = cobalt.run("qstat", "--header", "SubmitTime:Envs:attrs", number).stdout.splitlines()[2]
    assert re.fullmatch(r"\w+ \w+ \d+ [\d:]+ \d+ \+0000 \(UTC\)  A=1 B=2  \{.*: .*, .*\}  ", row)


def test_states_of_a_run_and_its_location(cobalt: Cobalt) -> None:
    go = cobalt.directory / "go"
    number = submit(cobalt, f"while [ ! -e {go} ]; do sleep 0.05; done", "-n", "3")
    wait_until(lambda: cobalt.state(number) == "running", 60)
    cells = cobalt.run("qstat", "--header", "State:short_state:Location:Queue", number).stdout.splitlines()[2]
    assert cells.split() == ["running", "R", "1-3", "debug-cache-quad"]
    go.touch()
    assert gone(cobalt, number) == 0
    assert compact([1, 2, 3, 4, 5, 7, 10, 12, 13]) == "1-5,7,10,12-13"


# qdel


def test_qdel_is_silent_about_all_but_ones_own(cobalt: Cobalt) -> None:
    mine, other = (submit(cobalt, "true", "-h", "-q", "default") for _ in range(2))
    cobalt.change(other, user="somebody")
    for number in (other, "99"):
        done = cobalt.run("qdel", number)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert cobalt.state(other) == "user_hold"
    done = cobalt.run("qdel", mine)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "      Deleted Jobs"
    assert lines[1].split() == ["JobID", "User"]
    assert lines[3].split() == [mine, ME]
    assert not cobalt.state(mine)
    done = cobalt.run("qdel", "abc")
    assert (done.returncode, done.stderr) == (1, "jobid must be an integer: abc\n")


def test_qdel_of_a_running_batch_job_is_term_to_the_process_group(cobalt: Cobalt) -> None:
    body = "trap 'sleep 0.5; echo term; exit 5' TERM; sleep 1000 & echo $! > pid; wait"
    number = submit(cobalt, body, "-O", "out", "--cwd", str(cobalt.directory))
    pid = wait_until(lambda: (p := cobalt.directory / "pid").exists() and p.read_text().strip(), 60)
    assert "Deleted" in cobalt.run("qdel", number).stdout
    assert cobalt.state(number) == "killing"
    assert gone(cobalt, number) == 5
    assert (cobalt.directory / "out.output").read_text() == "term\n"
    log = (cobalt.directory / "out.cobaltlog").read_text()
    assert f"user delete requested with signal SIGTERM by user {ME}" in log
    wait_until(lambda: not is_running(int(pid)), 60, "the end of its child")


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_interactive_runs_the_shell_with_a_node_file(cobalt: Cobalt) -> None:
    shell = script(cobalt.directory / "shell", 'env | grep ^COBALT_ | sort; cat "$COBALT_NODEFILE"; exit 3')
    done = cobalt.run("qsub", "-I", "-n", "2", "-t", "30", SHELL=str(shell))
    assert done.returncode == 3, done
    assert [line.split("=")[0] for line in done.stdout.splitlines()] == [
        "COBALT_JOBID", "COBALT_JOBSIZE", "COBALT_NODEFILE", "COBALT_PARTNAME", "nid00001", "nid00002"
    ]  # fmt: skip
    assert gone(cobalt, "1") == 3


def test_a_command_can_be_made_to_hang(cobalt: Cobalt) -> None:
    cobalt.trouble("qstat", hang=True)
    process = subprocess.Popen([str(cobalt.bin / "qstat")], stdout=subprocess.DEVNULL)
    stays(lambda: process.poll() is None, 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
