"""Ending what a launcher left behind: all of its processes, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from nas_hpc.processes import sessions
from nas_hpc.processes.guardian import dismiss, start_guardian
from tests.support import wait_until

MARK = sessions.MARKER_VARIABLE


def start(*argv: object, marker: str = "", log: Path | None = None) -> subprocess.Popen[bytes]:
    """A program in a session of its own, in the log if there is one."""
    environ = {**os.environ, **({MARK: marker} if marker else {})}
    process = subprocess.Popen(list(map(str, argv)), env=environ, start_new_session=True)
    if log is not None:
        with log.open("ab") as stream:
            stream.write(sessions.line(process.pid, "attempt", "j:1"))
    return process


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "sessions.log"


def test_a_process_is_alive_only_under_its_own_start_time() -> None:
    process = start("sleep", 100)
    ticks = sessions.start_ticks(process.pid)
    assert sessions.is_alive(process.pid, ticks)
    assert not sessions.is_alive(process.pid, ticks + 1)
    process.kill()
    wait_until(lambda: not sessions.is_alive(process.pid, ticks), 60, "the zombie to count as dead")
    process.wait()
    with pytest.raises(ProcessLookupError):
        sessions.start_ticks(process.pid)


def test_boot_id_is_that_of_the_kernel() -> None:
    assert uuid.UUID(sessions.boot_id())


def test_a_name_with_parentheses_and_blanks_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) b (c) 1 2 3"
    program.symlink_to("/bin/sleep")
    process = start(program, 100)
    expected = sessions.start_ticks(os.getpid())
    assert 0 <= sessions.start_ticks(process.pid) - expected < 100 * 3600 * 24
    process.kill()
    process.wait()


def test_recorded_sessions_are_ended_with_all_their_members(log: Path) -> None:
    process = start("sh", "-c", "sleep 1000 & (set -m; sleep 1000 & wait) & wait", log=log)
    members = wait_until(lambda: (found := _session(process.pid))[3:] and found, 60, "its children")
    assert sessions.end_recorded(log, "no-such-marker") == len(members)
    process.wait()
    assert _session(process.pid) == []


def test_a_leaderless_session_is_ended_by_its_marker(log: Path) -> None:
    marker = uuid.uuid4().hex
    process = start("sh", "-c", "sleep 1000 & sleep 1000 & exit", marker=marker, log=log)
    process.wait()
    assert len(_session(process.pid)) == 2
    assert sessions.end_recorded(log, "another") == 0
    assert sessions.end_recorded(log, marker) == 2


def test_a_process_that_only_carries_the_marker_is_ended_and_others_are_not(log: Path) -> None:
    marker = uuid.uuid4().hex
    daemon, other = start("sleep", 1000, marker=marker), start("sleep", 1000)
    longer = start("sleep", 1000, marker=marker + "0")
    assert sessions.end_recorded(log, marker) == 1
    assert daemon.wait() == -signal.SIGKILL
    for spared in (other, longer):
        assert spared.poll() is None
        spared.kill()
        spared.wait()


def test_a_pid_that_another_process_has_by_now_is_spared(log: Path) -> None:
    process = start("sleep", 1000)
    log.write_bytes(f"+{process.pid} {sessions.start_ticks(process.pid) - 1} attempt j:1\n".encode())
    assert sessions.end_recorded(log, "marker") == 0
    assert process.poll() is None
    process.kill()
    process.wait()


def test_what_ended_by_itself_is_not_looked_for(log: Path) -> None:
    log.write_bytes(b"+10 5 attempt j:1\n+11 5 keeper warm\n-10\n+12 7 attempt torn")
    assert set(sessions.read_log(log)) == {11, 12}
    assert sessions.read_log(log.with_name("missing")) == {}
    log.write_bytes(b"+x y z w\n-\n+1\n\xff\xfe\n")
    assert sessions.read_log(log) == {}


def test_the_caller_and_its_ancestors_are_spared_though_they_carry_the_marker(log: Path) -> None:
    marker = uuid.uuid4().hex
    code = f"""
        from pathlib import Path
        from nas_hpc.processes import sessions
        print(sessions.end_recorded(Path({str(log)!r}), {marker!r}))
    """
    environ = {**os.environ, MARK: marker, "PYTHONPATH": str(Path(__file__).parents[2])}
    shell = ["sh", "-c", 'sleep 1000 & "$0" -c "$1"', sys.executable, textwrap.dedent(code)]
    done = subprocess.run(shell, env=environ, capture_output=True, check=True, start_new_session=True)
    assert done.stdout == b"1\n"


@pytest.mark.parametrize("dies", [True, False], ids=["launcher dies", "launcher dismisses it"])
def test_the_guardian_ends_everything_when_its_launcher_dies(tmp_path: Path, log: Path, dies: bool) -> None:
    marker = uuid.uuid4().hex
    victim = start("sleep", 1000, log=log)
    daemon = start("sleep", 1000, marker=marker)
    guardian, write_fd = start_guardian(log, marker)
    if dies:
        os.close(write_fd)
        assert victim.wait(60) == daemon.wait(60) == -signal.SIGKILL
        assert guardian.wait(60) == 0
    else:
        dismiss(guardian, write_fd)
        assert victim.poll() is None
        assert daemon.poll() is None
        for process in (victim, daemon):
            process.kill()
            process.wait()


def test_a_launcher_killed_at_any_moment_leaves_no_process(tmp_path: Path) -> None:
    """Agent and guardian as a launcher has them; keepers, programs, daemons and warm children have to go."""
    (tmp_path / "subject.py").write_text("import time\ndef run(c):\n open('ready','w')\n time.sleep(1000)\n")
    code = """
        import asyncio, sys, uuid
        from pathlib import Path
        from nas_hpc.processes.guardian import start_guardian
        from tests.processes.bench import Bench

        async def main():
            async with Bench(Path(sys.argv[1])) as bench:
                guardian, write_fd = start_guardian(bench.log, bench.marker)
                for number in range(3):
                    bench.agent.start(bench.call("subject.run", name=f"warm{number}"))
                    bench.agent.start(bench.call("subject.run", name=f"fresh{number}", warm=False))
                    command = "touch ready; setsid env -i sleep 1000 & sleep 1000"
                    bench.agent.start(bench.program("sh", "-c", command))
                await asyncio.sleep(1000)
        asyncio.run(main())
    """
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    fresh = f"{tmp_path}/data"
    for moment_s in (0.05, 0.2, None):
        launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=environ)
        if moment_s is None:
            wait_until(lambda: len(list(tmp_path.glob("data/W/*/ready"))) >= 9, 60, "everything to run")
        else:
            time.sleep(moment_s)
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    wait_until(lambda: not _sleepers(fresh), 60, "the end of all processes")


def _session(session: int) -> list[int]:
    members = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(name))
    return members


def _sleepers(path: str) -> list[int]:
    """Processes whose working directory is below ``path``, whatever their environment is."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd").startswith(path):
                found.append(int(name))
        except OSError:
            continue
    return found
