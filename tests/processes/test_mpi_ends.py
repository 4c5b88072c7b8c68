"""MPI programs are asked to end before they are killed, whoever is gone; what is no MPI program is killed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nas_hpc.processes import sessions
from nas_hpc.processes.orders import Order
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go
from tests.support import processes_of, wait_until

PROGRAM = """
    import os, signal, sys, time
    def asked(number, frame):
        os.write(os.open("asked", os.O_CREAT | os.O_WRONLY), b"1")
        time.sleep(0.2)
        open("ended", "w").close()
        sys.exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else asked)
    open("ready", "w").close()
    time.sleep(600)
"""
SPEC = {
    "argv": (), "ranks": 1, "ranks_per_node": 1, "threads_per_core": 1, "cores": (), "gpus": (),
    "gpus_per_rank": 0, "gpus_by_mpi": False, "virtual": True,
}  # fmt: skip


def order(bench: Bench, *, mpi: bool, stubborn: bool = False) -> Order:
    plain = bench.python(PROGRAM.format(stubborn=stubborn), name=f"p{mpi}{stubborn}")
    return replace(plain, mpi=True, ranks=SPEC) if mpi else plain


@pytest.mark.parametrize("who", ["agent", "keeper", "kill_all", "disowned", "next launcher"])
@pytest.mark.slow
def test_an_mpi_program_is_asked_before_it_is_killed(tmp_path: Path, test_id: str, who: str) -> None:
    async def scenario() -> tuple[Path, Path, Path]:
        async with Bench(tmp_path, grace_s=10.0 if who == "disowned" else 1.0) as bench:
            orders = [order(bench, mpi=True), order(bench, mpi=False), order(bench, mpi=True, stubborn=True)]
            places = [Path(one.directory) for one in orders]
            for one in orders:
                bench.agent.start(one)
            await eventually(lambda: all((place / "ready").exists() for place in places), 60, "the programs")
            if who == "keeper":
                os.kill(bench.keepers()["starter"], signal.SIGKILL)
            elif who == "kill_all":
                bench.agent.kill_all()
            elif who == "disowned":
                pids = [(await bench.start_of(one.key)).pid for one in orders]
                for one in orders:
                    bench.agent.disown(one.key)
                await eventually(lambda: not any(map(psutil.pid_exists, pids)), 60, "the end of all three")
                assert not bench.ended
                assert not any((place / "result.json").exists() for place in places)
            elif who == "next launcher":  # as after the death of launcher, keeper and guardian at once
                recorded = bench.log.read_text()
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    os.kill(bench.keepers()["starter"], number)
                log = tmp_path / "copy.log"
                log.write_text("".join(line for line in recorded.splitlines(True) if "keeper" not in line))
                assert sessions.end_recorded(log, bench.marker) >= 1
            if who not in ("agent", "disowned"):
                for one in orders:
                    assert (await bench.end_of(one.key)).result.outcome is Outcome.LOST
        return places[0], places[1], places[2]

    asked, plain, stubborn = go(scenario())
    wait_until(lambda: not processes_of(test_id), 60, "the end of all")
    assert (asked / "ended").exists()
    assert not (stubborn / "ended").exists()
    assert who == "kill_all" or not (plain / "asked").exists()  # there it is asked, too, but not waited for
    assert not (plain / "ended").exists()
