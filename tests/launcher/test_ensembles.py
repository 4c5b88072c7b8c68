"""Agents as processes of their own under a real launcher: started, killed, refused, shown, ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest
import zmq

from nas_hpc import __version__
from nas_hpc.records import new_id
from nas_hpc.wire import PROTOCOL, AgentHello, Dismiss, End, Endpoint, Message, pack, read_endpoint, unpack
from tests.failure import ledger
from tests.launcher.ensembles import Field, kill
from tests.support import processes_of, stays, wait_until

pytestmark = pytest.mark.slow
MPIEXEC = shutil.which("mpiexec") or ""


def until_back(field: Field, number: int, pid: int) -> int:
    """Pid of the agent that took the place of one that was killed."""
    return wait_until(
        lambda: (new := field.agents().get(number, pid)) != pid and new, 60, f"agent {number}: {field.said()}"
    )


def test_virtual_nodes_are_shared_out_and_shown(field: Field) -> None:
    field.flags = ("--nodes", "4", "--cores-per-node", "4", "--agents", "2")
    launcher = field.begun(running=4)
    shown = [(node["agent"], node["state"], node["cores"]) for node in field.nodes()]
    assert shown == [(None, "master's", 4), (0, "here", 4), (1, "here", 4), (1, "here", 4)]
    assert field.nodes()[0]["running"] == 0
    running = sorted(node["running"] for node in field.nodes()[1:])
    assert running == [1, 2, 2], "the search on the node that was there first, and its evaluators"
    table = field.bench.nas("ls", "nodes")
    assert table.splitlines()[0].split()[:4] == ["name", "host", "agent", "state"]
    assert "master's" in table
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)


def test_an_agent_that_is_killed_comes_back_and_only_what_it_ran_runs_again(field: Field) -> None:
    launcher = field.begun(running=6)
    first, second = field.agents()[0], field.agents()[1]
    theirs = [job for node in field.nodes() if node["agent"] == 1 for job in node["jobs"]]
    lost = sum(job.startswith("task") for job in theirs)
    kill(second)
    until_back(field, 1, second)
    field.until_started(6 + lost)
    assert field.agents()[0] == first
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) == lost


def test_an_agent_outlives_its_supervisor_and_both_are_replaced_when_it_dies(field: Field) -> None:
    launcher = field.begun(running=6)
    agent, supervisor = field.agents()[1], field.supervisors()[1]
    kill(supervisor)
    wait_until(lambda: "they go on" in field.said(), 60, "the launcher to notice")
    assert field.agents()[1] == agent
    kill(agent)
    until_back(field, 1, agent)
    wait_until(lambda: field.supervisors().get(1, supervisor) != supervisor, 60, "a supervisor")
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) <= 4


def test_the_loss_of_a_node_with_all_its_processes_costs_what_ran_there(field: Field) -> None:
    launcher = field.begun(running=6)
    supervisor, agent = field.supervisors()[1], field.agents()[1]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    until_back(field, 1, agent)
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) <= 4


def test_all_agents_and_supervisors_killed_at_once_are_started_again(field: Field) -> None:
    launcher = field.begun(running=4)
    before = field.agents()
    for pid in (*field.supervisors().values(), *before.values()):
        os.kill(pid, signal.SIGKILL)
    for number, pid in before.items():
        until_back(field, number, pid)
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)
    assert [line["number"] for line in field.bench.attempts() if not line["creator"]] == [1, 2]


def test_a_launcher_told_to_end_leaves_nothing_and_the_next_one_finishes(field: Field) -> None:
    launcher = field.begun()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert not processes_of(field.bench.test_id)
    assert not field.record.exists()
    assert not list((field.site / "run").glob("agent-*"))
    assert field.bench.state("search") == "RESTART_READY"
    field.finish(field.launch())
    ledger.judge(field.ledger, field.workflow, 30)


# -- strangers -------------------------------------------------------------------------------------------
class Stranger:
    """Somebody who says Hello as an agent."""

    def __init__(self, endpoint: Endpoint, *, secret: bytes = b"", public: bytes = b"") -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndtimeo = 2000
        self.socket.curve_serverkey = endpoint.server_public.encode()
        self.socket.curve_publickey = public or endpoint.client_public.encode()
        self.socket.curve_secretkey = secret or endpoint.client_secret.encode()
        self.socket.connect(endpoint.addresses[0])

    def say(self, **fields: object) -> None:
        hello = {
            "protocol": PROTOCOL, "version": __version__, "ensemble": new_id(), "number": 0,
            "incarnation": new_id(), "host": "stranger", "names": ("stranger",), "boot_id": "", "pid": 1,
            "start_ticks": 1, "cores": (), "numa": (), "threads_per_core": 1, "gpus": (), "running": (),
            "ended": (), **fields,
        }  # fmt: skip
        self.socket.send(pack(AgentHello(**hello)))  # type: ignore[arg-type]

    def hears(self, timeout_s: float = 60.0) -> Message | None:
        return unpack(self.socket.recv()) if self.socket.poll(int(1000 * timeout_s)) else None

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_strangers_are_sent_away_and_the_rest_goes_on(field: Field) -> None:
    launcher = field.begun()
    agents = field.agents()
    endpoint = read_endpoint(field.site / "run" / "endpoint.json")
    stranger = Stranger(endpoint)
    public, secret = zmq.curve_keypair()
    locked_out = Stranger(endpoint, secret=secret, public=public)
    try:
        stranger.say()
        assert isinstance(stranger.hears(), Dismiss), "an agent of another start"
        stranger.say(ensemble=field.recorded()["id"], version="9.9")
        refused = stranger.hears()
        assert isinstance(refused, End)
        assert "9.9" in refused.reason
        stranger.socket.send(b"no message at all")
        assert isinstance(stranger.hears(), End)
        with contextlib.suppress(
            zmq.Again
        ):  # its connection may have been refused before, and nothing goes out
            locked_out.say(ensemble=field.recorded()["id"])
        assert locked_out.hears(1.0) is None, "a wrong key gets no answer"
    finally:
        stranger.close()
        locked_out.close()
    wait_until(lambda: "9.9" in field.said(), 60, "a line about it")
    assert field.agents() == agents
    field.finish(launcher)
    assert ledger.judge(field.ledger, field.workflow, 30) == 0


# -- starts that fail ------------------------------------------------------------------------------------
def imposter(path: Path, body: str) -> str:
    """A program that says it is MPICH's mpiexec."""
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "HYDRA build details:"; echo "    Version:    4.1"; exit 0; fi\n'
        f"{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


MANY = ("--nodes", "3", "--cores-per-node", "2", "--agents", "2", "--agent-start", "ensemble")


def test_without_an_mpi_program_agents_that_need_one_are_refused_in_a_line(field: Field) -> None:
    field.flags = (*MANY, "--mpi", "none")
    assert field.launch().wait(60) == 1
    last = field.said().strip().splitlines()[-1]
    assert last.startswith("nas-hpc: error: no agent can be started")
    assert "setting mpi is none" in last
    assert not field.record.exists()


NOISY = (
    "echo 'ssh: Could not resolve hostname nid002' >&2; "
    "echo '[mpiexec@vm] main (hydra/mpiexec.c:270): error waiting' >&2; exit 7"
)


def test_an_mpi_program_that_fails_is_quoted_and_given_up_after_some_starts(field: Field) -> None:
    program = imposter(field.bench.directory / "mpiexec", NOISY)
    field.flags = (*MANY, "--mpi", program)
    launcher = field.launch()
    wait_until(lambda: "Could not resolve hostname nid002" in field.said(), 60, "the failure")
    assert "(exit code 7: ssh: Could not resolve hostname nid002)" in field.said(), (
        "the cause, not MPICH's account of it"
    )
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)


def test_agents_that_never_come_end_the_launcher_after_its_deadline(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_AGENT_DEADLINE_S", "3")
    program = imposter(field.bench.directory / "mpiexec", "exec sleep 60")
    field.flags = (*MANY, "--mpi", program)
    launcher = field.launch()
    assert launcher.wait(60) == 1
    last = field.said().strip().splitlines()[-1]
    assert last.startswith("nas-hpc: error: no agent has reached the launcher for 3 s")
    assert not processes_of(field.bench.test_id), "the MPI program is ended, too"
    assert field.bench.state("search") == "READY"


def test_agents_that_have_not_come_yet_do_not_hold_up_the_end(field: Field) -> None:
    field.bench.searches()
    field.ledger.touch()  # nothing to run
    program = imposter(field.bench.directory / "mpiexec", "exec sleep 60")
    field.flags = (*MANY, "--mpi", program)
    patient = "from nas_hpc.launcher import ensemble; ensemble.FAREWELL_S = 600.0"
    field.program = ("-c", f"{patient}; from nas_hpc.cli.main import main; raise SystemExit(main())")
    launcher = field.launch("--persistent")
    wait_until(lambda: field.recorded().get("processes"), 60, lambda: f"the start: {field.said()}")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0, "it does not wait as long as for agents that have come"
    assert not processes_of(field.bench.test_id)
    assert not field.record.exists()
    assert not list((field.site / "log").iterdir()), "nobody printed anything"


# -- by a real MPI program -------------------------------------------------------------------------------
@pytest.mark.needs_program("mpiexec")
def test_agents_of_one_mpi_start_survive_each_other_and_the_launcher(field: Field) -> None:
    field.flags = ("--nodes", "4", "--cores-per-node", "4", "--agents", "3", "--agent-start", "ensemble",
                   "--use-master-node", "--mpi", MPIEXEC)  # fmt: skip
    launcher = field.begun(running=6)
    agents = field.agents()
    assert set(agents) == {0, 1, 2}
    assert len(field.recorded()["processes"]) == 1
    kill(agents[2])
    until_back(field, 2, agents[2])
    assert (field.agents()[0], field.agents()[1]) == (agents[0], agents[1])
    kill(launcher.pid)
    now = field.agents()
    launcher = field.launch()
    wait_until(lambda: "goes on with" in field.said(), 60, "the takeover")
    assert field.agents() == now
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)


@pytest.mark.needs_program("mpiexec")
def test_a_killed_mpi_program_does_not_take_the_work_with_it(field: Field) -> None:
    field.flags = ("--nodes", "4", "--cores-per-node", "4", "--agents", "3", "--agent-start", "ensemble",
                   "--use-master-node", "--mpi", MPIEXEC)  # fmt: skip
    launcher = field.begun(running=6)
    [started] = field.recorded()["processes"]
    kill(started["pid"])
    wait_until(lambda: "ended (" in field.said(), 60, "the launcher to notice")
    wait_until(lambda: set(field.agents()) == {0, 1, 2}, 60, f"all agents: {field.said()}")
    field.finish(launcher)
    ledger.judge(field.ledger, field.workflow, 30)


# -- waiting for work ------------------------------------------------------------------------------------
def test_a_persistent_launcher_waits_for_work_until_it_is_told_to_end(field: Field) -> None:
    field.bench.searches()
    field.ledger.touch()
    launcher = field.launch("--persistent")
    wait_until(lambda: len(field.agents()) == 2, 60, "the agents")
    stays(lambda: launcher.poll() is None, 1.0, "the launcher")
    quick = field.bench.script("QUICK", "print('done')")
    field.bench.job("late", quick)
    wait_until(lambda: field.bench.state("late") == "JOB_FINISHED", 60, "the late job")
    stays(lambda: launcher.poll() is None, 1.0, "the launcher")
    began = time.monotonic()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert not processes_of(field.bench.test_id)
