"""The module of Slurm on a real one: what its commands say of scripts that end in every way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from nas_hpc.batch.slurm import Slurm as System
from nas_hpc.batch.system import Status, ask
from nas_hpc.errors import BatchSilent
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.batch.recorded import batch_job, request
from tests.peers.slurm import Slurm
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm]

S = BatchState


class Bench:
    """What a command sees."""

    def __init__(self, slurm: Slurm, directory: Path) -> None:
        self.directory, self.system = directory, System()
        self.ask = partial(ask, environ=slurm.environ)

    def submit(self, body: str, **more: object) -> str:
        wanted = request(**{"nodes": 1, "directory": self.directory, "output": self.directory / "T", **more})
        script = self.directory / "T.sh"
        script.write_text("\n".join(["#!/bin/bash", *self.system.directives(wanted), body]) + "\n")
        return self.system.submit(wanted, script, self.ask)

    def status(self, *ids: str) -> dict[str, Status]:
        return self.system.status([batch_job(id_, "slurm") for id_ in ids], self.ask)

    def ended(self, *ids: str) -> list[Status]:
        """Their ends, in their order."""

        def reached() -> dict[str, Status] | None:
            found = self.status(*ids)
            return found if all(found[id_].state in BATCH_FINAL for id_ in ids) else None

        found = wait_until(reached, 60, lambda: f"ends: {self.status(*ids)}")
        return [found[id_] for id_ in ids]


@pytest.fixture
def bench(slurm: Slurm, tmp_path: Path) -> Bench:
    directory = tmp_path / "a site's #1 100%j"
    directory.mkdir()
    return Bench(slurm, directory)


def test_every_end_of_a_script_is_told_and_its_output_is_where_it_was_asked_for(bench: Bench) -> None:
    well = bench.submit('pwd; echo "nodes $SLURM_JOB_NUM_NODES, cpus $SLURM_CPUS_ON_NODE"', nodes=2)
    ends = bench.ended(well, bench.submit("exit 3"), bench.submit("kill -9 $$"))
    assert ends[:2] == [Status(S.ENDED, "", 0), Status(S.ENDED, "", 3)]
    assert (ends[2].state, ends[2].exit_code) == (S.ENDED, 137)
    said = (bench.directory / "T.output").read_text()
    assert said.splitlines() == [str(bench.directory), "nodes 2, cpus 4"], "as a whole, and in its directory"


def test_waiting_cancelled_and_unknown_jobs_are_told_apart(bench: Bench) -> None:
    running = bench.submit("exec sleep 300")
    never, after = bench.submit("true", nodes=9), bench.submit("true", dependencies=(running,))
    wait_until(lambda: bench.status(running)[running].state is S.RUNNING, 60, "its start")
    wait_until(lambda: "PartitionNodeLimit: " in bench.status(never)[never].reason, 60, "the reason")
    known = bench.status(running, never, after, "99999999", "12_3")
    assert [status.state for status in known.values()] == [S.RUNNING, S.QUEUED, S.HELD, S.GONE, S.GONE]
    assert bench.system.cancel([running, never, "99999999"], bench.ask) == {}
    assert [end.state for end in bench.ended(running, never, after)] == [S.CANCELLED, S.CANCELLED, S.ENDED]
    [debug] = bench.system.queues(bench.ask)
    assert (debug.name, debug.max_nodes, debug.max_minutes) == ("debug", 4, None)


def test_a_controller_that_is_away_is_silent_and_nothing_is_known(bench: Bench, slurm: Slurm) -> None:
    id_ = bench.submit("true")
    bench.ended(id_)
    text = (slurm.directory / "slurm.conf").read_text()
    text = text.replace("SlurmctldPort=", "MessageTimeout=2\nTCPTimeout=1\nSlurmctldPort=1#")
    (bench.directory / "slurm.conf").write_text(text)
    environ = {**slurm.environ, "SLURM_CONF": str(bench.directory / "slurm.conf")}
    away = partial(ask, environ=environ, timeout_s=3.0)
    with pytest.raises(BatchSilent):
        bench.system.status([batch_job(id_, "slurm")], away)
    with pytest.raises(BatchSilent):
        bench.system.cancel([id_], away)
