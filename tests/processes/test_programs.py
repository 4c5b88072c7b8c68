"""External programs: how they start, what they get, how their end is judged."""

from __future__ import annotations

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from nas_hpc.processes import linux, sessions
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go
from tests.support import wait_until


def test_a_program_that_succeeds_leaves_only_job_json_and_result_json(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.program("true")
            ended = await bench.run(order)
            assert ended.result.outcome is Outcome.OK
            assert ended.result.return_code == 0
            assert ended.result.start <= ended.result.end
            assert sorted(os.listdir(order.directory)) == ["job.json", "result.json"]
            assert json.loads((Path(order.directory) / "job.json").read_text()) == order.job_json
            assert ended.usage["max_rss_bytes"] > 0

    go(scenario())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('bye'); sys.exit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9 (SIGKILL)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", "killed by signal 10 (SIGUSR1)"),
    ],
)
def test_a_failing_program_says_how_it_failed(tmp_path: Path, code: str, reason: str) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            ended = await bench.run(bench.python(code))
            assert (ended.result.outcome, ended.result.reason) == (Outcome.ERROR, reason)
            assert ended.tail == ("bye\n" if "bye" in code else "")

    go(scenario())


@pytest.mark.parametrize(
    ("output", "objective", "reason"),
    [
        ("x\nDH-OUTPUT: 0.5\nDH-OUTPUT: 7", 0.5, ""),
        ("a DH-OUTPUT: val_acc = -1e3 ", -1000.0, ""),
        ("nothing", None, "no line with DH-OUTPUT: in task1.out"),
        ("", None, "no line with DH-OUTPUT: in task1.out"),
        ("DH-OUTPUT: nan", None, "gives nan; the objective must be finite"),
        ("DH-OUTPUT: inf", None, "gives inf; the objective must be finite"),
        ("DH-OUTPUT: good", None, "ends with 'good', not with a number"),
        ("DH-OUTPUT:", None, "ends with '', not with a number"),
    ],
)
def test_the_objective_is_the_last_word_of_the_first_marked_line(
    tmp_path: Path, output: str, objective: float | None, reason: str
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            ended = await bench.run(bench.python(f"print({output!r})", expects_result=True))
            assert ended.result.objective == objective
            assert reason in ended.result.reason
            expected = Outcome.OK if objective is not None else Outcome.INVALID_RESULT
            assert ended.result.outcome is expected

    go(scenario())


def test_binary_output_does_not_hide_the_objective_or_break_the_tail(tmp_path: Path) -> None:
    code = """
        import os, sys
        os.write(1, os.urandom(300000).replace(b"\\n", b"") + b"\\xff\\xfe\\n")
        print("DH-OUTPUT: 2.5")
        if len(sys.argv) > 1: sys.exit(1)
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            assert (await bench.run(bench.python(code, expects_result=True))).result.objective == 2.5
            failing = bench.python(code + "\n        sys.exit(1)", expects_result=True)
            ended = await bench.run(failing)
            assert ended.result.outcome is Outcome.ERROR
            assert ended.tail.endswith("DH-OUTPUT: 2.5\n")
            assert len(ended.tail) <= 2000

    go(scenario())


def test_a_valid_result_json_of_the_program_itself_counts(tmp_path: Path) -> None:
    code = """
        import json, os, sys
        job = os.environ["NAS_HPC_JOB_ID"]
        attempt = int(os.environ["NAS_HPC_ATTEMPT"]) + SHIFT
        json.dump({"job": job, "attempt": attempt, "outcome": "ok", "objective": 4.0, "metadata": {"a": 1}},
                  open("result.json", "w"))
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            ended = await bench.run(bench.python(code.replace("SHIFT", "0"), expects_result=True))
            assert (ended.result.objective, ended.result.metadata) == (4.0, {"a": 1})
            assert ended.result.end > 0
            foreign = await bench.run(bench.python(code.replace("SHIFT", "-1"), expects_result=True))
            assert foreign.result.outcome is Outcome.INVALID_RESULT

    go(scenario())


def test_the_output_of_an_earlier_attempt_is_kept_and_not_believed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            first = bench.python("print('DH-OUTPUT: 1')", expects_result=True)
            assert (await bench.run(first)).result.objective == 1.0
            second = bench.python("print('no number')", expects_result=True, attempt=2, job=first.key[0])
            ended = await bench.run(second)
            assert ended.result.outcome is Outcome.INVALID_RESULT
            assert ended.tail == "no number\n"
            output = (Path(first.directory) / "task1.out").read_text()
            assert output == "DH-OUTPUT: 1\nno number\n"

    go(scenario())


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("no-such-program-here", "cannot start no-such-program-here: no such program in PATH"),
        ("/no/such/file", "cannot start /no/such/file: no such file"),
        ("/etc/passwd", "cannot start /etc/passwd: Permission denied"),
        ("/tmp", "cannot start /tmp: Permission denied"),
        ("SCRIPT", "its interpreter (the #! line) does not exist"),
        ("NOFORMAT", "Exec format error"),
    ],
)
def test_a_program_that_cannot_be_started_is_start_failed(tmp_path: Path, program: str, reason: str) -> None:
    for name, content in {"SCRIPT": "#!/no/interpreter\n", "NOFORMAT": "echo hello\n"}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    path = str(tmp_path / program) if program.isupper() else program

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            ended = await bench.run(bench.program(path))
            assert ended.result.outcome is Outcome.START_FAILED
            assert reason in ended.result.reason

    go(scenario())


def test_a_directory_that_cannot_be_made_is_start_failed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.program("true")
            bench.agent.start(order)
            ended = await bench.end_of(order.key)
            assert ended.result.outcome is Outcome.START_FAILED
            assert ended.result.reason.startswith("cannot make the directory")
            assert bench.notes, "that no result.json could be written is said"

    go(scenario())


def test_a_program_finds_a_clean_process(tmp_path: Path) -> None:
    code = """
        import json, os, resource, signal
        names = ["SIGINT", "SIGTERM", "SIGPIPE", "SIGCHLD", "SIGHUP", "SIGXFSZ"]
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps({
            "cwd": os.getcwd(), "sid": os.getsid(0) == os.getpid(), "stdin": os.readlink("/proc/self/fd/0"),
            "ignored": int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24), "blocked": int(status["SigBlk"], 16),
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
            "cores": sorted(os.sched_getaffinity(0)), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "job": os.environ["NAS_HPC_JOB_ID"], "mine": os.environ.get("MINE"), "gpu":
            os.environ.get("CUDA_VISIBLE_DEVICES"),
        }))
    """

    async def scenario() -> None:
        async with Bench(tmp_path, nofile=222) as bench:
            order = bench.python(code, cores=(1,), gpus=(2, 3), environ={"MINE": "yes"})
            await bench.run(order)
            seen = json.loads((Path(order.directory) / "task1.out").read_text())
            assert seen == {
                "cwd": order.directory,
                "sid": True,
                "stdin": "/dev/null",
                "ignored": 0,
                "blocked": 0,
                "fds": [0, 1, 2],
                "cores": [1],
                "files": 222,
                "job": order.key[0],
                "mine": "yes",
                "gpu": "2,3",
            }

    go(scenario())


@pytest.mark.slow
def test_a_time_limit_ends_a_program_by_term(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            await bench.run(bench.program("true"))  # who starts it is there now
            ended = await bench.run(bench.program("sleep", 600, timeout_s=2.0))
            assert ended.result.outcome is Outcome.TIMEOUT
            assert ended.result.reason == "ran longer than 2 s"
            assert ended.result.return_code == -signal.SIGTERM

    go(scenario())


def test_a_program_that_could_not_be_started_within_its_limit_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            await bench.run(bench.program("true"))
            keeper = bench.keepers()["starter"]
            os.kill(keeper, signal.SIGSTOP)
            order = bench.program("sleep", 600, timeout_s=0.2)
            bench.agent.start(order)
            await eventually(lambda: bench.agent._attempts[order.key].stop, what="the limit")
            os.kill(keeper, signal.SIGCONT)
            ended = await bench.end_of(order.key)
            assert ended.result.outcome is Outcome.TIMEOUT
            assert ended.result.reason == "it had not been started after 0.2 s"

    go(scenario())


def test_a_program_deaf_to_term_is_killed_after_the_grace_with_its_session(tmp_path: Path) -> None:
    code = """
        import os, signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"])
        print(child.pid, flush=True)
        open("ready", "w").close()
        child.wait()
        signal.pause()
    """

    async def scenario() -> None:
        async with Bench(tmp_path, grace_s=0.3) as bench:
            order = bench.python(code)
            bench.agent.start(order)
            await eventually(lambda: os.path.exists(order.directory + "/ready"))
            bench.agent.stop(order.key, Outcome.KILLED, "a person said so")
            ended = await bench.end_of(order.key, 60)
            assert (ended.result.outcome, ended.result.reason) == (Outcome.KILLED, "a person said so")
            assert ended.result.return_code == -signal.SIGKILL
            pid = int((Path(order.directory) / "task1.out").read_text())
            assert not Path(f"/proc/{pid}").exists()

    go(scenario())


def runs(pid: int) -> bool:
    """Whether there is such a process; a zombie that nobody has waited for yet is none."""
    try:
        return linux.stat_fields(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def test_grandchildren_and_daemons_end_with_their_program(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys, time
        plain = subprocess.Popen(["sleep", "1001"])
        group = subprocess.Popen(["sleep", "1002"], preexec_fn=os.setpgrp)
        if os.fork() == 0:            # a daemon: its own session, its parent gone, no pipe to us
            os.setsid()
            if os.fork() == 0:
                child = subprocess.Popen(["sleep", "1003"])
                print(os.getpid(), child.pid, flush=True)
                child.wait()
            os._exit(0)
        os.wait()
        print(plain.pid, group.pid, flush=True)
        while len(open("task1.out").read().split()) < 4: time.sleep(0.01)
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            other = bench.program("sleep", 30)
            bench.agent.start(other)
            await bench.start_of(other.key)
            order = bench.python(code)
            assert (await bench.run(order)).result.outcome is Outcome.OK
            pids = re.findall(r"\d+", (Path(order.directory) / "task1.out").read_text())
            assert len(pids) == 4
            assert [pid for pid in pids if runs(int(pid))] == []
            assert other.key in bench.agent.running()

    go(scenario())


def test_a_daemon_of_a_running_program_is_left_alone(tmp_path: Path) -> None:
    daemon = """
        import os, signal
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                signal.pause()
            os._exit(0)
        os.wait()
        signal.pause()
    """

    async def scenario() -> None:
        async with Bench(tmp_path, grace_s=0.1) as bench:
            order = bench.python(daemon)
            bench.agent.start(order)
            output = Path(order.directory) / "task1.out"
            pid = int(await eventually(lambda: output.exists() and output.read_text()))
            await bench.run(bench.program("true"))
            assert sessions.is_alive(pid, sessions.start_ticks(pid))
            bench.agent.stop(order.key, Outcome.KILLED, "enough")
            await bench.end_of(order.key)
            assert not Path(f"/proc/{pid}").exists()

    go(scenario())


@pytest.mark.gentle("a program that was killed is not waited for a result from")
def test_a_stop_before_the_end_is_known_changes_nothing_of_a_finished_program(tmp_path: Path) -> None:
    code = """
        import json, os, time, signal
        json.dump({"job": os.environ["NAS_HPC_JOB_ID"], "attempt": 1, "outcome": "ok", "objective": 1.5},
                  open("result.json.tmp", "w"))
        os.rename("result.json.tmp", "result.json")
        signal.pause()
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.python(code, expects_result=True)
            bench.agent.start(order)
            await eventually(lambda: os.path.exists(order.directory + "/result.json"))
            bench.agent.stop(order.key, Outcome.TIMEOUT, "too long")
            ended = await bench.end_of(order.key)
            assert (ended.result.outcome, ended.result.objective) == (Outcome.OK, 1.5)

    go(scenario())


def test_a_killed_starter_leaves_no_process_and_its_attempts_are_lost_unless_done(tmp_path: Path) -> None:
    daemon = """
        import os, signal
        if os.fork() == 0:
            os.setsid()
            print(os.getpid(), flush=True)
        signal.pause()
    """
    done = """
        import json, os, signal
        result = {"job": os.environ["NAS_HPC_JOB_ID"], "attempt": 1, "outcome": "ok", "objective": 3.0}
        json.dump(result, open("r", "w"))
        os.rename("r", "result.json")
        signal.pause()
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            lost, finished = bench.python(daemon), bench.python(done, expects_result=True)
            bench.agent.start(lost)
            bench.agent.start(finished)
            output = Path(lost.directory) / "task1.out"
            pid = int(await eventually(lambda: output.exists() and output.read_text()))
            await eventually(lambda: os.path.exists(finished.directory + "/result.json"))
            os.kill(bench.keepers()["starter"], signal.SIGKILL)
            first = await bench.end_of(lost.key)
            assert first.result.outcome is Outcome.LOST
            assert first.result.reason.startswith("its keeper died (killed by signal 9")
            assert (await bench.end_of(finished.key)).result.objective == 3.0
            for gone in (pid, bench.started[lost.key].pid, bench.started[finished.key].pid):
                wait_until(partial(_gone, gone), 60, "the end of the session")
            assert (await bench.run(bench.program("true"))).result.outcome is Outcome.OK

    go(scenario())


def _gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_every_session_is_in_the_log_while_its_program_runs(tmp_path: Path) -> None:
    look = 'until grep "^+$$ .*$NAS_HPC_JOB_ID:1" %s; do sleep 0.01; done'  # it is written after the start

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.program("sh", "-c", look % bench.log, timeout_s=60)
            assert (await bench.run(order)).result.outcome is Outcome.OK
            assert len((Path(order.directory) / "task1.out").read_text().splitlines()) == 1
            assert [s.kind for s in sessions.read_log(bench.log).values()] == ["keeper"]

    go(scenario())


def test_many_programs_at_once_all_end_with_their_own_result(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            orders = [
                bench.program("echo", "DH-OUTPUT:", number, expects_result=True, name=f"task{number}")
                for number in range(60)
            ]
            ends = await bench.run_all(orders)
            assert [end.result.objective for end in ends] == [float(number) for number in range(60)]

    go(scenario())


def test_kill_all_ends_everything_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            orders = [bench.program("sh", "-c", "trap '' TERM; sleep 1000 & wait") for _ in range(3)]
            for order in orders:
                bench.agent.start(order)
            for order in orders:
                await bench.start_of(order.key)
            bench.agent.kill_all()
            for order in orders:
                assert (await bench.end_of(order.key, 60)).result.outcome is Outcome.LOST

    go(scenario())


def test_closing_the_agent_leaves_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.program("sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000")
            bench.agent.start(order)
            await bench.start_of(order.key)
        assert order.key not in bench.ended

    go(scenario())  # what is left would be found by the fixture of all tests
