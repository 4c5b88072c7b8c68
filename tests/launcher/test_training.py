"""Trainings of architectures under a real launcher: interrupted at its end, and gone on with by the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launcher.bench import Bench
from tests.support import wait_until

pytestmark = [pytest.mark.extra("tensorflow"), pytest.mark.slow]

GATED = """
import os, time
os.environ["NAS_HPC_PROBLEM"] = "tests.nas.small.Regression"
from pathlib import Path
from nas_hpc.nas import alpha
from nas_hpc.problem import HpProblem
from nas_hpc.trial import should_stop
from tests.nas import small

Problem = HpProblem()
Problem.add_dim("gated", ["no", "yes"])
for gated in ("no", "yes"):
    Problem.add_starting_point(gated=gated)

def run(config):
    from nas_hpc.nas.steps import Steps
    train = Steps.train
    def watched(self, inputs, targets, rate):
        done = int(self.optimizer.iterations)
        if config["gated"] == "no" and done == 7:
            import numpy
            numpy.savez("step7.npz", *self.arrays())
        if config["gated"] == "yes" and done == 6 and os.environ["NAS_HPC_ATTEMPT"] == "1":
            Path("reached").touch()
            while not should_stop():
                time.sleep(0.01)
        return train(self, inputs, targets, rate)
    Steps.train = watched
    return alpha.run({"arch_seq": small.FULL})

run.prepare = alpha.prepare
"""


def arrays_in(path: Path, names: str) -> list[np.ndarray[Any, Any]]:
    with np.load(path) as archive:
        count = sum(name.removeprefix(names).isdigit() for name in archive.files)
        assert count
        return [archive[f"{names}{number}"] for number in range(count)]


@pytest.mark.timeout(600)
def test_a_training_that_the_launchers_end_interrupts_goes_on_from_its_step_and_ends_as_if_nothing_had_been(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_GRACE_S", "60")
    bench.searches()
    (bench.directory / "gated.py").write_text(GATED)
    bench.job(
        "s", "RAN", "--env", "DEEPHYPER_WORKERS_PER_NODE=2",
        args="--problem gated.Problem --run gated.run --max-evals 2",
    )  # fmt: skip
    data = bench.site / "data" / "W"

    def task_of(gated: str) -> Path | None:
        for path in data.glob("task*/job.json"):
            if json.loads(path.read_text())["config"] == {"gated": gated}:
                return path.parent
        return None

    launcher = bench.start("--job-mode", "serial")
    try:
        wait_until(
            lambda: launcher.poll() is not None
            or ((free := task_of("no")) and (free / "result.json").exists())
            and ((gated := task_of("yes")) and (gated / "reached").exists()),
            240, "one training to end and the other to come to its gate",
        )  # fmt: skip
        launcher.terminate()
        log, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, log
    free, gated = task_of("no"), task_of("yes")
    assert free is not None
    assert gated is not None
    interrupted = json.loads((gated / "result.json").read_text())
    assert interrupted["outcome"] == "walltime", interrupted

    checkpoint = gated / "checkpoint" / f"step-{7:012d}.npz"
    assert checkpoint.exists(), log
    for saved, passed in zip(arrays_in(checkpoint, "a"), arrays_in(free / "step7.npz", "arr_"), strict=True):
        np.testing.assert_array_equal(saved, passed)

    bench.launch("--job-mode", "serial", timeout_s=240)
    resumed, whole = (json.loads((one / "result.json").read_text()) for one in (gated, free))
    assert (resumed["outcome"], resumed["attempt"]) == ("ok", 2)
    assert (resumed["metadata"]["resumed_from"], resumed["metadata"]["resumed_step"]) == (1, 7)
    assert resumed["objective"] == whole["objective"]
    assert (gated / "history.json").read_text() == (free / "history.json").read_text()
    assert resumed["metadata"]["test_loss"] == whole["metadata"]["test_loss"]
    assert not (gated / "checkpoint").exists()
    assert bench.state("s") == "JOB_FINISHED"
