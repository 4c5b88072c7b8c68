"""The module of PBS on its stand-ins: batch jobs from qsub to their end, and answers without sense."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nas_hpc.batch.pbs import Pbs
from nas_hpc.batch.system import Status, ask
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.states import BatchState
from tests.batch.recorded import batch_job, request
from tests.peers.pbs import SERVER, PbsPro
from tests.support import wait_until

S = BatchState


@pytest.fixture
def pbs(tmp_path: Path, test_id: str) -> Iterator[PbsPro]:
    with PbsPro(tmp_path / "pbs", grace_s=0.5) as stand_in:
        yield stand_in


class Bench:
    """What a command sees."""

    def __init__(self, pbs: PbsPro, directory: Path) -> None:
        self.pbs, self.directory, self.system = pbs, directory, Pbs()
        self.ask = partial(ask, environ={**os.environ, "PATH": pbs.path}, timeout_s=60.0)

    def submit(self, body: str, **more: object) -> str:
        wanted = request(
            **{"nodes": 1, "directory": self.directory, "output": self.directory / "T-1", **more}
        )
        script = self.directory / "T-1.sh"
        script.write_text("\n".join(["#!/bin/bash", *self.system.directives(wanted), body]) + "\n")
        script.chmod(0o700)
        return self.system.submit(wanted, script, self.ask)

    def status(self, id_: str) -> Status:
        return self.system.status([batch_job(id_, "pbs")], self.ask)[id_]

    def until(self, id_: str, *states: BatchState) -> Status:
        def reached() -> Status | None:
            status = self.status(id_)
            return status if status.state in states else None

        return wait_until(reached, 60, lambda: f"{states}: {self.pbs.job(id_)}")  # type: ignore[return-value]


@pytest.fixture
def bench(pbs: PbsPro, tmp_path: Path) -> Bench:
    return Bench(pbs, tmp_path)


def test_a_script_runs_with_a_bare_environment_and_its_end_is_told(bench: Bench) -> None:
    id_ = bench.submit("env; pwd; exit 3", project="datascience", queue="prod", nodes=2)
    assert id_ == f"101.{SERVER}"
    assert bench.until(id_, S.ENDED) == Status(S.ENDED, "", 3)
    output = wait_until(
        lambda: (bench.directory / "T-1.output").exists() and (bench.directory / "T-1.output"), 20
    )
    text = Path(str(output)).read_text()
    assert f"PBS_JOBID={id_}\n" in text
    assert f"PBS_O_WORKDIR={os.getcwd()}\n" in text
    assert "PYTHONPATH" not in text
    assert bench.pbs.job(id_)["placed"] == list(bench.pbs.nodes[:2])
    assert bench.pbs.job(id_)["account"] == "datascience"


@pytest.mark.slow
def test_a_walltime_that_is_over_and_a_deleted_batch_job_are_told_apart(bench: Bench) -> None:
    late = bench.submit("trap 'sleep 600' TERM; sleep 600")
    bench.until(late, S.RUNNING)
    bench.pbs.expire(late)
    status = bench.until(late, S.TIMEOUT)
    assert "exceeded resource walltime" in status.reason
    other, waiting = bench.submit("exec sleep 600", nodes=2), bench.submit("echo", nodes=2)
    after = bench.submit("exit 0", dependencies=(other,))
    bench.until(other, S.RUNNING)
    assert bench.until(after, S.HELD).reason == "it waits for the batch jobs that it depends on"
    assert bench.system.cancel([other, waiting], bench.ask) == {}
    assert bench.until(other, S.CANCELLED).state is S.CANCELLED
    assert bench.until(waiting, S.CANCELLED, S.ENDED).state in (S.CANCELLED, S.ENDED)
    assert bench.until(after, S.ENDED).exit_code == 0


@pytest.mark.slow
def test_what_is_forgotten_or_refused_or_anothers_is_told(bench: Bench) -> None:
    id_ = bench.submit("exec sleep 600")
    bench.pbs.change(id_, owner="somebody")
    assert "Unauthorized" in bench.system.cancel([id_], bench.ask)[id_]
    bench.pbs.change(id_, owner="")
    bench.system.cancel([id_], bench.ask)
    bench.until(id_, S.CANCELLED)
    bench.pbs.forget(id_)
    assert bench.status(id_).state is S.GONE
    with pytest.raises(BatchRefused, match=r"Unknown queue; sent: qsub .*T-1.sh"):
        bench.submit("echo", queue="nix")
    with pytest.raises(BatchRefused, match="violates queue and/or server resource limits"):
        bench.submit("echo", nodes=3, queue="debug")


@pytest.mark.slow
def test_an_environment_that_breaks_the_json_and_commands_that_fail_change_no_state(bench: Bench) -> None:
    id_ = bench.submit("exec sleep 600")
    bench.pbs.invalid_json()
    assert bench.until(id_, S.RUNNING).state is S.RUNNING
    garbage = (
        {"stdout": "<html>"},
        {"stdout": "<html>", "code": 0},
        {"stderr": "qstat: cannot connect", "code": 255},
    )
    for words in garbage:
        bench.pbs.trouble("qstat", **words)  # type: ignore[arg-type]
        with pytest.raises(BatchSilent):
            bench.status(id_)
    bench.pbs.trouble("qstat", hang=True)
    with pytest.raises(BatchSilent, match="did not answer"):
        bench.system.status([batch_job(id_, "pbs")], partial(bench.ask, timeout_s=0.5))
    bench.pbs.mend("qstat")
    assert bench.status(id_).state is S.RUNNING
    with pytest.raises(WrongCall, match="no qstat on PATH"):
        bench.system.queues(partial(ask, environ={"PATH": "/nowhere"}))


def test_queues_are_told(bench: Bench) -> None:
    found = {queue.name: queue for queue in bench.system.queues(bench.ask)}
    assert (found["debug"].max_nodes, found["debug"].max_minutes, found["debug"].open) == (2, 60, True)
    assert not found["closed"].open


def test_an_interactive_shell_has_its_nodes_and_variables(bench: Bench) -> None:
    argv = bench.system.interactive_argv(request(nodes=2, environ={"NAS_HPC_SITE": "/my, site"}))
    line = f"echo 'env; cat $PBS_NODEFILE' | {shlex.join(argv)}"
    done = bench.pbs.run("/bin/bash", "-c", line)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "NAS_HPC_SITE=/my, site" in lines
    assert "PBS_ENVIRONMENT=PBS_INTERACTIVE" in lines
    assert set(bench.pbs.nodes[:2]) <= set(lines)
