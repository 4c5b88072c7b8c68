"""The program as a process: quick to start, quiet when its reader goes, and in touch with a running
launcher.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from nas_hpc.cli.client import live_endpoint
from nas_hpc.site import Site
from nas_hpc.wire import Endpoint, write_endpoint
from tests.cli.conftest import Run
from tests.support import wait_until

PROGRAM = (sys.executable, "-m", "nas_hpc.cli")
HEAVY = (
    "sqlalchemy",
    "zmq",
    "rich",
    "msgpack",
    "numpy",
    "pandas",
    "ConfigSpace",
    "sklearn",
    "importlib.metadata",
)


def test_the_help_loads_nothing_heavy(nas_hpc: Run) -> None:
    code = (
        "import sys; from nas_hpc.cli.main import main; main(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], len(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy, count = done.stderr.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert int(count) < 200, "each costs a fraction of a millisecond at every start"


def test_a_reader_that_goes_is_no_error(full_site: Site, nas_hpc: Run) -> None:
    for index in range(3):
        assert nas_hpc("job", "--name", f"j{index}", "--workflow", "W", "--app", "echo").code == 0
    reading, writing = os.pipe()
    os.close(reading)
    try:
        argv = [*PROGRAM, "ls", "jobs", "--json", "--history"]
        done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == b""


@pytest.fixture
def launcher(full_site: Site, nas_hpc: Run) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that waits for work; the jobs of the site are killed before."""
    assert nas_hpc("kill", "--workflow", "W", "--yes").code == 0
    assert nas_hpc("kill", "--workflow", "V", "--yes").code == 0
    sleeper = f"{sys.executable} -c 'import time; print(1, flush=True); time.sleep(60)'"
    assert nas_hpc("app", "--name", "sleeper", "--exec", sleeper).code == 0
    process = subprocess.Popen(
        [*PROGRAM, "launcher", "--job-mode", "serial", "--idle-timeout", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: live_endpoint(full_site) is not None, 60, "the launcher's endpoint")
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.wait(60)


def state_of(nas_hpc: Run, name: str) -> str:
    [job] = json.loads(nas_hpc("ls", "jobs", "--json", "--name", name).out)
    return str(job["state"])


def test_a_running_launcher_is_woken_shown_and_obeys(
    launcher: subprocess.Popen[bytes], full_site: Site, nas_hpc: Run
) -> None:
    added = nas_hpc("job", "--name", "long", "--workflow", "L", "--app", "sleeper")
    assert (added.code, added.err) == (0, "")
    wait_until(lambda: state_of(nas_hpc, "long") == "RUNNING", 60, "the woken launcher to start the job")
    [node] = json.loads(nas_hpc("ls", "nodes", "--json").out)
    assert node["jobs"] == ["long"]
    assert "long" in nas_hpc("ls", "nodes").out + nas_hpc("watch", "--once").out
    assert json.loads(nas_hpc("watch", "--json").out)["pid"] == launcher.pid
    assert "the launcher says: it is running on" in nas_hpc("why", "long").out
    assert f"process {launcher.pid}" in nas_hpc("doctor", "--quick").out
    second = nas_hpc("launcher")
    assert second.code == 2
    assert f"is already run by a launcher (process {launcher.pid}" in second.err
    follower = subprocess.Popen(
        [*PROGRAM, "log", "long", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert nas_hpc("kill", "long").code == 0
    out, err = follower.communicate(timeout=60)
    assert out == b"1\n"
    assert b"is USER_KILLED" in err
    [node] = wait_until(
        lambda: [n for n in json.loads(nas_hpc("ls", "nodes", "--json").out) if not n["jobs"]],
        60,
        "the killed job to leave its node",
    )
    assert node["free"] == 1.0


def test_a_launcher_that_is_stopped_is_not_waited_for_long(
    full_site: Site, nas_hpc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_hpc.cli.client.WAKE_S", 0.3)
    monkeypatch.setattr("nas_hpc.cli.client.query.__defaults__", ("", 0.3))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        public, secret = (key.decode() for key in zmq.curve_keypair())
        endpoint = Endpoint(
            (f"tcp://127.0.0.1:{port}",), public, public, secret, "e", socket.gethostname(), os.getpid()
        )
        write_endpoint(full_site.endpoint, endpoint)
        added = nas_hpc("job", "--name", "new", "--workflow", "W", "--app", "echo")
        assert added.code == 0
        assert "did not answer within 0.3 s" in added.err
        looked = nas_hpc("ls", "nodes")
        assert looked.code == 1
        assert f"process {os.getpid()}" in looked.err


def test_the_endpoint_of_a_dead_launcher_is_as_good_as_none(full_site: Site, nas_hpc: Run) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait(60)
    write_endpoint(
        full_site.endpoint,
        Endpoint(("tcp://127.0.0.1:1",), "p", "p", "s", "e", socket.gethostname(), dead.pid),
    )
    added = nas_hpc("job", "--name", "new", "--workflow", "W", "--app", "echo")
    assert (added.code, added.err) == (0, "")
    assert "no launcher is running" in nas_hpc("ls", "nodes").err
    assert "did not end in order" in nas_hpc("doctor", "--quick").out


@pytest.mark.slow
def test_the_launcher_prints_its_last_view_as_json_alone(full_site: Site, nas_hpc: Run) -> None:
    done = subprocess.run(
        [*PROGRAM, "launcher", "--job-mode", "serial", "--json"], capture_output=True, timeout=60, check=False
    )
    body = json.loads(done.stdout)
    assert (body["exit_code"], done.returncode) == (0, 0)
    assert {job["state"] for job in json.loads(nas_hpc("ls", "jobs", "--json").out)} == {"JOB_FINISHED"}
    assert nas_hpc("log", "ready").out == "[]\n"
    assert "ended ok" in nas_hpc("why", "ready").out
    assert Path(full_site.data / "W").is_dir()
