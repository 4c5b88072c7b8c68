"""kill -9 of a job's MPI program, its proxy, single ranks and the launcher: nothing lost, nothing twice.

Evaluations of two ranks under real MPI programs, three at a time on virtual nodes.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.records import new_id
from nas_hpc.states import Actor
from nas_hpc.store import open_store
from nas_hpc.store.base import JobFilter
from tests.failure import functions
from tests.failure.ledger import LEDGER, WORK_S
from tests.failure.scene import Scene
from tests.peers.mpi import MpiPeer
from tests.support import wait_until

EVALUATIONS = 24
KILLS = 9
KINDS = {
    "mpich": ("mpiexec", "mpiexec", "proxy", "proxy", "rank", "rank", "launcher", "launcher", "starter"),
    "openmpi": ("mpiexec", "mpiexec", "rank", "rank", "launcher"),
}
"""Open MPI has no proxy on the host of its mpirun."""


def flags(peer: MpiPeer) -> tuple[str, ...]:
    """Of the launcher: one node for the search, three for evaluations."""
    return ("--job-mode", "mpi", "--nodes", "4", "--mpi", str(peer.mpiexec))


def prepared(tmp_path: Path, test_id: str, peer: MpiPeer, seed: int) -> Scene:
    """A search whose evaluations meet on two ranks."""
    print(f"seed {seed}")
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.gate.touch()
    scene.prepare(
        seed=seed, run="tests.failure.functions.lone_pair", environ={WORK_S: "0.5"},
        flags="--ranks-per-node 2 --eval-retries 1000",
    )  # fmt: skip
    store = open_store(scene.site / "db.sqlite3")
    [job] = store.remove(JobFilter(workflow=scene.name))
    # As if it were submitted from the environment of that MPI.
    origin = replace(job.origin, interpreter=str(peer.python))
    store.add_jobs([replace(job, id=new_id(), origin=origin)], Actor.COMMAND)
    store.close()
    return scene


def kill_often(scene: Scene, peer: MpiPeer, chance: random.Random) -> int:
    """A launcher, kills, the same command again after each of the launcher's; how the last one ended."""
    launcher = scene.launcher(*flags(peer))
    for number in range(KILLS):
        until = min(scene.started() + chance.randint(0, 4), EVALUATIONS - 6)
        wait_until(
            lambda: scene.started() >= until or launcher.poll() is not None,  # noqa: B023
            90, lambda: f"{until} starts: {scene.log()[-3000:]}",  # noqa: B023
        )  # fmt: skip
        kind = chance.choice(KINDS[peer.name])
        print(f"kill {number + 1}, of a {kind}, after {scene.ended()} ends")
        if kind == "launcher":
            launcher = scene.restarted(launcher, *flags(peer))
        else:
            wait_until(
                lambda: scene.kill(kind, chance) or launcher.poll() is not None,  # noqa: B023
                60, lambda: f"a {kind}: {scene.log()[-3000:]}",  # noqa: B023
            )  # fmt: skip
    return launcher.wait(200)


def survives(scene: Scene, peer: MpiPeer, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random kills, and the outside judge."""
    monkeypatch.setenv("NAS_HPC_LOST_LIMIT", "1000")
    code = kill_often(scene, peer, random.Random(seed))
    assert code == 0, scene.log()[-3000:]
    cut_short = scene.judge()
    assert list(scene.directory.glob("ledger-*-places/*"))
    assert not list(scene.directory.glob("ledger-*-places/overlap-*")), "ranks of two attempts met"
    assert cut_short <= 4 * KILLS, "a kill costs no more than what its program ran, the launcher's all of it"


def test_ranks_of_two_attempts_that_live_at_a_time_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "_held", [])
    for name, value in {LEDGER: f"{tmp_path}/ledger", "NAS_HPC_JOB_ID": "ab", "NAS_HPC_ATTEMPT": "1"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1", "0"):
        assert not list(tmp_path.glob("ledger-places/overlap-*"))
        monkeypatch.setenv("NAS_HPC_RANK", rank)
        functions.hold_place()
    assert [path.name for path in tmp_path.glob("ledger-places/overlap-*")] == ["overlap-ab.1.0"]


@pytest.mark.needs_mpich
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mpich_programs_proxies_ranks_and_launchers_killed_at_random(
    mpi_seed: int, tmp_path: Path, test_id: str, mpich: MpiPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    survives(prepared(tmp_path, test_id, mpich, mpi_seed), mpich, mpi_seed, monkeypatch)


@pytest.mark.needs_openmpi
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_openmpi_programs_ranks_and_launchers_killed_at_random(
    mpi_seed: int, tmp_path: Path, test_id: str, openmpi: MpiPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    survives(prepared(tmp_path, test_id, openmpi, mpi_seed), openmpi, mpi_seed, monkeypatch)
