"""The supervisor of a node's agent: what it survives, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nas_hpc.processes import boot
from nas_hpc.processes.mpi import MpiProgram, agents_command
from nas_hpc.wire import Dismiss
from tests.launcher.played import Host, Played, alive, playing, until
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import processes_of, wait_until


@pytest.fixture
def host(site_dir: Path) -> Host:
    return Host(site_dir)


@pytest.mark.slow
def test_an_agent_that_cannot_start_is_tried_with_growing_pauses_until_the_deadline(host: Host) -> None:
    (host.path / "run").rmdir()
    host.deadline_s = 4.0
    supervisor = host.supervise()
    began = time.monotonic()
    assert supervisor.wait(60) == 0
    took = time.monotonic() - began
    lines = host.said().splitlines()
    print(f"{len(lines)} tries in {took:.1f} s")
    assert took >= host.deadline_s - 0.1
    assert 2 <= len(lines) <= 6, "0.1 s, doubled every time"
    assert all("ended (exit code 1; FileNotFoundError" in line for line in lines), lines
    log = (host.path / "log" / f"agents-{host.ensemble[:8]}-0.log").read_text()
    assert log.count("Traceback") == len(lines), "what an agent prints is kept"


@pytest.mark.parametrize("arguments", [[], ["/nowhere", "e", "x", "1"], ["/nowhere", "e", "0", "soon"]])
def test_a_supervisor_that_is_called_wrongly_says_so_and_its_exit_code_is_0(arguments: list[str]) -> None:
    argv = boot.command(sys.executable, "supervisor", *arguments, isolated=True)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "gives up: ValueError" in done.stderr


@pytest.mark.parametrize(
    ("environ", "number"),
    [
        pytest.param({}, 4, marks=pytest.mark.slow),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 7),
        pytest.param({"OMPI_COMM_WORLD_RANK": "1"}, 7, marks=pytest.mark.slow),
        pytest.param({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, 7, marks=pytest.mark.slow),
    ],
)
def test_a_rank_of_an_mpi_start_keeps_the_agent_of_its_number(
    host: Host, environ: dict[str, str], number: int
) -> None:
    async def scenario() -> None:
        async with playing(host) as launcher:
            host.supervise(numbers="4,7", environ={**os.environ, **environ})
            assert (await launcher.hello()).number == number

    asyncio.run(scenario())


def test_a_supervisor_goes_on_when_who_started_it_is_gone(host: Host) -> None:
    async def scenario() -> None:
        async with playing(host) as launcher:
            reads, writes = os.pipe()
            argv = boot.command(
                sys.executable, "supervisor", host.path, host.ensemble, "0", "30", isolated=True
            )
            starter = subprocess.Popen(
                ["sh", "-c", '"$@" & echo $!; wait', "sh", *argv], stdin=subprocess.DEVNULL,
                stdout=writes, stderr=writes, start_new_session=True,
            )  # fmt: skip
            os.close(writes)
            supervisor = int(await asyncio.to_thread(os.read, reads, 100))
            hello = await launcher.hello()
            os.killpg(starter.pid, signal.SIGHUP)
            os.kill(starter.pid, signal.SIGKILL)
            starter.wait()
            os.close(reads)  # nobody reads what it says
            os.kill(hello.pid, signal.SIGKILL)
            again = await launcher.hello(2)
            assert psutil.Process(again.pid).ppid() == supervisor
            launcher.say(Dismiss("done"))
            await until(lambda: not alive([supervisor, again.pid]), what="the end of both")

    asyncio.run(scenario())


def test_sigterm_between_two_agents_ends_the_supervisor(host: Host) -> None:
    (host.path / "run").rmdir()
    supervisor = host.supervise()
    wait_until(lambda: host.said().count("ended") == 2, 60, "the second failure")
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert "no launcher" not in host.said(), "it did not wait for the deadline"


def test_nothing_of_mpi_is_loaded_by_the_supervisor(host: Host) -> None:
    async def scenario() -> None:
        async with playing(host) as launcher:
            supervisor = host.supervise()
            await launcher.hello()
            maps = Path(f"/proc/{supervisor.pid}/maps").read_text()
            assert "libmpi" not in maps
            assert "site-packages" not in maps, "standard library only"

    asyncio.run(scenario())


def test_an_agent_whose_supervisor_dies_before_it_has_begun_does_not_begin(host: Host, test_id: str) -> None:
    supervisor = host.supervise()
    wait_until(lambda: len(processes_of(test_id)) == 2, 60, "the agent's process")
    agent = next(process for process in processes_of(test_id) if process.pid != supervisor.pid)
    agent.suspend()
    early = not host.logs()
    supervisor.kill()
    supervisor.wait()
    agent.resume()
    assert early, "this machine is too slow for the test"
    wait_until(lambda: not processes_of(test_id), 60, "the agent's end")
    assert not host.logs()


async def _agents_of_a_start(host: Host, peer: MpiPeer, test_id: str) -> None:
    """A whole start: one supervisor dies, then the MPI program; what runs goes on, and all are dismissed."""
    argv = boot.command(sys.executable, "supervisor", host.path, host.ensemble, "0,1,2", "30", isolated=True)
    program = MpiProgram(str(peer.mpiexec), peer.name)
    command = agents_command(program, ["me"] * 3, argv, local=True, as_root=os.geteuid() == 0)
    log = (host.path / "supervisors.log").open("ab")
    async with _closing(Played(host)) as launcher:
        start = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        await launcher.hello(3, 60)
        assert {hello.number for hello in launcher.hellos} == {0, 1, 2}
        assert len({hello.cores for hello in launcher.hellos}) == 1, "no agent is bound to a part"
        assert set(launcher.hellos[0].cores) <= os.sched_getaffinity(0)
        orders = [host.python("import time; time.sleep(600)") for _ in range(3)]
        for number, order in enumerate(orders):
            launcher.order(order, number)
            await launcher.start_of(order.key)
        alone = host.python("from mpi4py import MPI; assert MPI.COMM_WORLD.size == 1")
        alone = replace(alone, argv=(str(peer.python), *alone.argv[1:]))
        assert (await launcher.run(alone)).outcome == "ok", "it is no rank of the agents' start"
        supervisors = {psutil.Process(hello.pid).ppid() for hello in launcher.hellos}
        assert len(supervisors) == 3
        os.kill(psutil.Process(launcher.hellos[0].pid).ppid(), signal.SIGKILL)
        await asyncio.sleep(1.5)
        pids = [hello.pid for hello in launcher.hellos]
        assert alive(pids) == pids
        start.kill()
        await asyncio.to_thread(start.wait)
        await asyncio.sleep(1.5)
        assert alive(pids) == pids, "agents outlive the MPI program"
        assert len(launcher.hellos) == 3
        assert not any(launcher.ended(order.key) for order in orders)
        for number in range(3):
            launcher.say(Dismiss("done"), number)
        await until(lambda: not processes_of(test_id), what="everything to end")


@contextlib.asynccontextmanager
async def _closing(launcher: Played):  # type: ignore[no-untyped-def]
    try:
        yield launcher
    finally:
        launcher.close()


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_agents_started_by_mpich_outlive_it(host: Host, mpich: MpiPeer, test_id: str) -> None:
    asyncio.run(_agents_of_a_start(host, mpich, test_id))


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_agents_started_by_openmpi_outlive_it(host: Host, openmpi: MpiPeer, test_id: str) -> None:
    asyncio.run(_agents_of_a_start(host, openmpi, test_id))


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_agents_started_by_srun_outlive_a_supervisor_and_a_node(host: Host, slurm: Slurm) -> None:
    hosts = ["node3", "node1", "node4"]
    argv = boot.command(sys.executable, "supervisor", host.path, host.ensemble, "0,1,2", "30", isolated=True)
    srun = slurm.run("sh", "-c", "command -v srun").stdout.strip()
    command = agents_command(MpiProgram(srun, "slurm"), hosts, argv, local=False, as_root=os.geteuid() == 0)

    async def scenario() -> None:
        async with _closing(Played(host)) as launcher:
            start = slurm.start("salloc", "--no-kill", "--nodes=4", "--quiet", *command)
            await launcher.hello(3, 60)
            on = {hello.names[0]: hello for hello in launcher.hellos}
            assert set(on) == set(hosts), "Slurm numbers ranks by its own order of nodes"
            order = host.python("import time; time.sleep(600)")
            launcher.order(order, on["node4"].number)
            await launcher.start_of(order.key)
            os.kill(psutil.Process(on["node3"].pid).ppid(), signal.SIGKILL)
            await asyncio.to_thread(slurm.lose, "node1")
            await asyncio.sleep(3.0)
            pids = [on[node].pid for node in ("node3", "node4")]
            assert alive([*pids, on["node1"].pid]) == pids
            assert start.poll() is None
            assert launcher.ended(order.key) == []
            for node in ("node3", "node4"):
                launcher.say(Dismiss("done"), on[node].number)
            await until(lambda: not alive(pids), what="the end of the others")
            assert await asyncio.to_thread(start.wait, 60) is not None

    asyncio.run(scenario())
