"""Two virtual hosts and one site: a launcher on the one, commands of the other, with and without a network.

A host is a process in namespaces of its own: it has a name and a network of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.site import Site
from nas_hpc.store.owner import read_owner
from tests.shared.owning import shared_site
from tests.support import wait_until

pytestmark = [
    pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_program("unshare"),
    pytest.mark.needs_program("nsenter"), pytest.mark.needs_program("ip"), pytest.mark.timeout(500),
]  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[2]
NAS = [sys.executable, "-m", "nas_hpc.cli"]


@dataclass(frozen=True, slots=True)
class Host:
    """A host that is there as long as ``keeper`` runs."""

    name: str
    keeper: subprocess.Popen[bytes]

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.keeper.pid}", "--uts", "--net", "--", *argv]

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*NAS, *argv), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *argv: str, code: int = 0) -> tuple[str, str]:
        """Run a command of nas-hpc; what it printed."""
        done = subprocess.run(
            self.argv(*NAS, *argv), cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == code, (argv, done)
        return done.stdout, done.stderr

    def doctor(self, site: Site) -> list[dict[str, Any]]:
        """Its findings; without a network some about MPI are bad."""
        argv = self.argv(*NAS, "--site", str(site.path), "doctor", "--quick", "--json")
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
        return found

    def jobs(self, site: Site) -> dict[str, dict[str, Any]]:
        out, _ = self.run("--site", str(site.path), "ls", "jobs", "--json")
        return {job["name"]: job for job in json.loads(out)}


@pytest.fixture
def make_host(test_id: str) -> Iterator[Callable[[str], Host]]:
    """Make a host with a network of its own, in which there is only its loopback."""
    made: list[Host] = []

    def make(name: str) -> Host:
        script = f"hostname {name} && ip link set lo up && echo up && exec sleep 600"
        keeper = subprocess.Popen(["unshare", "--uts", "--net", "sh", "-c", script], stdout=subprocess.PIPE)
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        made.append(Host(name, keeper))
        return made[-1]

    yield make
    for host in made:
        host.keeper.kill()
        host.keeper.wait(60)
        assert host.keeper.stdout is not None
        host.keeper.stdout.close()


def connect(one: Host, other: Host) -> None:
    """A cable between two hosts."""
    names = f"nas{os.getpid() % 10**6}a", f"nas{os.getpid() % 10**6}b"
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True)
    for number, (host, name) in enumerate(zip((one, other), names, strict=True), 1):
        subprocess.run(["ip", "link", "set", name, "netns", str(host.keeper.pid)], check=True)
        for argv in (
            ["ip", "addr", "add", f"10.77.0.{number}/24", "dev", name],
            ["ip", "link", "set", name, "up"],
        ):
            subprocess.run(host.argv(*argv), check=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = shared_site(tmp_path)
    made.file.write_text(made.file.read_text() + "heartbeat_s = 1.0\nlease_s = 20.0\n")
    return made


@pytest.mark.parametrize("cable", [True, False], ids=["a network between them", "no network"])
def test_jobs_are_added_listed_and_killed_from_the_other_host(
    site: Site, cable: bool, make_host: Callable[[str], Host]
) -> None:
    head, login = make_host("head"), make_host("login")
    if cable:
        connect(head, login)
    where = ("--site", str(site.path))
    login.run(*where, "app", "--name", "sleep", "--exec", "/bin/sleep")
    launcher = head.start(*where, "launcher", "--job-mode", "serial", "--persistent", "--nodes", "1")
    try:
        wait_until(lambda: site.endpoint.exists(), 120, "the launcher to listen")
        owner = read_owner(site)
        assert owner is not None
        assert (owner.host, owner.kind) == ("head", "launcher")
        for name, seconds in (("short", "0"), ("long", "600")):
            login.run(*where, "job", "--name", name, "--workflow", "W", "--app", "sleep", "--args", seconds)
        wait_until(
            lambda: {name: job["state"] for name, job in login.jobs(site).items()}
            == {"short": "JOB_FINISHED", "long": "RUNNING"},
            120, "the launcher to run what the other host added",
        )  # fmt: skip
        wait_until(lambda: not list(site.inbox.iterdir()), 60, "answered calls to be removed")
        login.run(*where, "kill", "long")
        assert login.jobs(site)["long"]["state"] == "USER_KILLED"
        login.run(*where, "rm", "short", "--yes")
        assert set(head.jobs(site)) == {"long"}
        _, refused = login.run(*where, "job", "--name", "x", "--workflow", "W", "--app", "no", code=2)
        assert "'no' is unknown" in refused
        second, _ = login.start(*where, "launcher", "--job-mode", "serial").communicate(timeout=120)
        assert "is run by a launcher" in second
        assert "head" in second
        findings = {one["name"]: one for one in login.doctor(site)}
        assert "between this host and head" in findings["locks"]["text"]
        assert findings["launcher"]["level"] == ("ok" if cable else "warn")
    finally:
        launcher.terminate()
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert not site.owner.exists()


def test_a_launcher_of_another_host_that_dies_is_succeeded_when_its_time_is_over(
    site: Site, tmp_path: Path, make_host: Callable[[str], Host]
) -> None:
    site.file.write_text(site.file.read_text().replace("lease_s = 20.0", "lease_s = 4.0"))
    head, login = make_host("head"), make_host("login")
    where = ("--site", str(site.path))
    mark, program = tmp_path / "begun", tmp_path / "cut.sh"
    program.write_text(f"#!/bin/sh\n[ -e {mark} ] && exit 0\ntouch {mark}\nexec sleep 600\n")
    program.chmod(0o755)
    login.run(*where, "app", "--name", "cut", "--exec", str(program))
    login.run(*where, "job", "--name", "cut", "--workflow", "W", "--app", "cut")
    launcher = head.start(*where, "launcher", "--job-mode", "serial", "--persistent", "--nodes", "1")
    try:
        wait_until(mark.exists, 120, "the job to run")
    finally:
        launcher.kill()
        launcher.communicate(timeout=120)
    added, _ = login.run(*where, "job", "--name", "new", "--workflow", "W", "--app", "cut")
    assert len(added.strip()) == 32  # done by this command itself, as soon as the time was over
    output, _ = login.start(*where, "launcher", "--job-mode", "serial").communicate(timeout=120)
    states = {name: job["state"] for name, job in login.jobs(site).items()}
    assert states == {"cut": "JOB_FINISHED", "new": "JOB_FINISHED"}, output
