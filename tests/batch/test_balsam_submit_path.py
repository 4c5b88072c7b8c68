"""From balsam-submit to the end of a search: by the line of Theta's users, and on a machine like this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nas_hpc.batch
from nas_hpc.batch.jobs import read_jobs, read_launch
from nas_hpc.cli.context import open_database
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState, State
from nas_hpc.store.base import JobFilter
from tests.launcher.bench import REPOSITORY, Bench
from tests.peers.cobalt import Cobalt
from tests.peers.fronts import write_front
from tests.peers.mpi import MpiPeer
from tests.support import assert_no_processes, wait_until

POLYNOME = "nas_hpc.problems.hps.polynome2"
OBJECTS = ("-p", f"{POLYNOME}.Problem", "-r", f"{POLYNOME}.run")
APRUN = "/opt/cray/alps/default/bin"


def made_site(tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    bench = Bench(tmp_path, test_id)
    bench.nas("init", str(bench.site))
    return bench


def finished(bench: Bench, evaluations: int) -> str:
    """The state of the only batch job at its end, when its search has done ``evaluations``."""
    site = Site(bench.site)
    [record] = read_jobs(site)

    def said() -> bool:
        launch = read_launch(site, record.key)  # costs nothing to look at
        return launch is not None and launch.ended > 0

    wait_until(said, 180, lambda: bench.nas("why", "test/test"))
    final = {state.value for state in BATCH_FINAL}

    def ended() -> str:
        out = bench.nas("ls", "queues", "--all", "--json")
        [job] = json.JSONDecoder().raw_decode(out, out.index("{"))[0]["batch_jobs"]
        return str(job["state"]) if job["state"] in final else ""

    state = wait_until(ended, 60, lambda: bench.nas("why", f"batch:{record.id}"))
    with open_database(site, read_only=True) as store:
        counts = store.counts(JobFilter(workflow="test"))
    assert counts == {State.JOB_FINISHED: evaluations + 1}, bench.nas("why", "test/test")
    return state


@pytest.mark.slow
@pytest.mark.needs_mpich
@pytest.mark.timeout(300)
def test_the_line_of_thetas_users_runs_a_search_to_its_end(
    tmp_path: Path, test_id: str, mpich: MpiPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = made_site(tmp_path, test_id, monkeypatch)
    with Cobalt(tmp_path / "cobalt", grace_s=0.3) as cobalt:
        write_front(cobalt.bin, "aprun", mpich)
        text = (Path(nas_hpc.batch.__path__[0]) / "machines" / "theta.toml").read_text()
        assert APRUN in text
        (bench.site / "machines").mkdir()
        (bench.site / "machines" / "theta.toml").write_text(text.replace(APRUN, str(cobalt.bin)))
        monkeypatch.setenv("PATH", cobalt.path)
        monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
        line = ("-t", "60", "-q", "debug-cache-quad", "-n", "4", "-A", "datascience", "-j", "mpi")
        said = bench.nas("balsam-submit", "hps", "test", *OBJECTS, *line, "--", "--max-evals", "4")
        assert finished(bench, 4) == BatchState.ENDED.value
        [log] = [word for word in said.split() if word.endswith("test.out")]
        assert "4 evaluations in all" in Path(log).read_text()
    assert_no_processes(test_id)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_without_a_batch_system_runs_it_in_the_background(
    tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = made_site(tmp_path, test_id, monkeypatch)
    monkeypatch.setenv("NAS_HPC_MACHINE", "local")
    monkeypatch.setenv("DEEPHYPER_WORKERS_PER_NODE", "3")
    line = ("-t", "10", "-n", "1", "-j", "serial", "--app", "RAN", "--", "--max-evals", "4")
    bench.nas("balsam-submit", "hps", "test", *OBJECTS, *line)
    assert finished(bench, 4) == BatchState.ENDED.value
    assert_no_processes(test_id)
