"""As many trials at once as do not fit the nodes are said, or refused, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.cli import quota
from nas_hpc.cli.context import settings_of
from nas_hpc.cli.main import main
from nas_hpc.cli.quota import Nodes, check_quota
from nas_hpc.records import BatchJob
from nas_hpc.site import Site, create_site
from nas_hpc.states import BatchState

SPEC = TrialsSpec(job_name="a", directory="", max_parallel=10, trials_per_node=4)


@pytest.mark.parametrize(
    ("nodes", "spec", "said"),
    [
        (Nodes(1, "x has", batch=False, serial=True), SPEC, "4 at once, the others wait; --trials-per-node"),
        (Nodes(1, "x has", batch=True, serial=True), SPEC, "3 at once, the others wait; 4 nodes would do"),
        (Nodes(3, "x has", batch=True, serial=True), SPEC, "7 at once, the others wait; 4 nodes would do"),
        (Nodes(4, "x has", batch=True, serial=True), SPEC, ""),
        (Nodes(3, "x has", batch=True, serial=True, use_master=True), SPEC, ""),
        (Nodes(9, "x has", batch=True, serial=False), SPEC, "8 at once, the others wait; 11 nodes would do"),
        (Nodes(6, "x has", batch=True, serial=False), replace(SPEC, trials_per_node=0, nodes_per_trial=3),
         "x has 6 nodes, 3 nodes for each trial: 1 at once, the others wait; 31 nodes would do"),
        (Nodes(2, "x has", batch=True, serial=True), replace(SPEC, gpus_per_rank=1, trials_per_node=0), ""),
    ],
)  # fmt: skip
def test_trials_that_have_to_wait_are_told_with_what_would_fit(
    nodes: Nodes,
    spec: TrialsSpec,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Capacities as DeepHyper counts them: (N-1)W-1 in serial mode, N W-1 in mpi mode."""
    monkeypatch.setattr(quota, "_here", lambda spec, settings: nodes)
    check_quota(None, spec, settings_of(None), launched=True)
    err = capsys.readouterr().err
    assert said in err if said else not err


def test_the_nodes_of_live_batch_jobs_count_for_a_job_that_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site: Site = create_site(tmp_path / "site")
    asked = BatchJob("k", "slurm", "m", "s", "o", nodes=2, walltime_minutes=9, job_mode="serial", id="77",
                     state=BatchState.QUEUED)  # fmt: skip
    jobs = [
        asked,
        replace(asked, nodes=50, state=BatchState.ENDED),
        replace(asked, nodes=50, workflow="other"),
    ]
    monkeypatch.setattr("nas_hpc.batch.jobs.read_jobs", lambda site, say: jobs)
    check_quota(site, SPEC, settings_of(site), launched=False)
    assert "batch job 77 has 2 nodes, 4 trials on each: 3 at once" in capsys.readouterr().err
    jobs[:] = []
    check_quota(site, SPEC, settings_of(site), launched=False)
    assert capsys.readouterr().err == "", "nobody knows yet"


def test_where_not_one_trial_fits_the_search_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text("Problem = {'x': [1, 2]}\n")
    words = "search --job-name a --nas-target-reward-metric acc --search-space-module s.py --trainer true"
    assert main([*words.split(), "--root-output-dir", "r", "--nodes-per-trial", "2", "--nodes", "2"]) == 2
    assert "2 nodes for each trial: not one trial fits; 5 nodes would do" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
