"""The peer Balsam is a real one: its launcher runs a job of its database to the end."""

from __future__ import annotations

import pytest

from tests.peers.balsam import Balsam
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]


def test_its_launcher_runs_a_job_to_its_end(balsam: Balsam) -> None:
    balsam.add_app("words", "echo well")
    balsam.balsam(
        "job", "--name", "one", "--workflow", "W", "--application", "words", "--args", "done", "--yes"
    )
    launcher = balsam.launcher("--wf-filter", "W", "--job-mode", "mpi", "--time-limit-minutes", "5")
    wait_until(lambda: balsam.jobs("W")[0]["state"] == "JOB_FINISHED", 60, "the job finished")
    balsam.end_launcher(launcher)
    (row,) = balsam.jobs()
    assert (balsam.job_directory(row) / "one.out").read_text() == "well done\n"
