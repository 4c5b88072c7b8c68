"""mpi mode under a real launcher with real MPI programs: who runs where, with what, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter

import psutil
import pytest

from nas_hpc.records import App, Evaluation, Job, Resources, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor
from nas_hpc.store import open_store
from tests.launcher.bench import POLYNOME, REPOSITORY, Bench
from tests.launcher.ranks import add_search, results
from tests.peers.mpi import MpiPeer
from tests.support import processes_of, wait_until


def two_ranks_several_at_once(bench: Bench, peer: MpiPeer) -> None:
    configs = [{"x": float(number), "meet": 3} for number in range(6)]
    add_search(bench, "together", {"ranks_per_node": 2}, configs, peer.python)
    log = bench.launch("--nodes", "4", "--mpi", str(peer.mpiexec), timeout_s=110)
    assert "two ranks with the mpi4py of" in log
    found = results(bench)
    assert sorted(one[1] for one in found) == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0], (found, log)
    for outcome, _, metadata, _ in found:
        assert outcome == "ok"
        assert metadata["size"] == 2
        assert metadata["told"][0][:5] == ["0", "0", "2", "mpi", "4"]
        assert metadata["told"][1][:5] == ["1", "1", "2", "mpi", "4"]
        assert metadata["told"][0][5] == metadata["told"][1][5]
        assert len(set(metadata["drawn"])) == 2
    assert len({tuple(one[2]["drawn"]) for one in found}) == 6
    spans = [(one[2]["begin"], one[2]["end"]) for one in found]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert most == 3  # the search has the fourth node
    assert Counter(bench.output("task1").split()).items() >= {"rank": 2, "0": 1, "1": 1, "prints": 2}.items()
    assert not list(bench.directory_of("task1").glob("*rank*"))


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_two_rank_evaluations_run_several_at_once_under_mpich(bench: Bench, mpich: MpiPeer) -> None:
    two_ranks_several_at_once(bench, mpich)


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_two_rank_evaluations_run_several_at_once_under_openmpi(bench: Bench, openmpi: MpiPeer) -> None:
    two_ranks_several_at_once(bench, openmpi)


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_an_evaluation_in_serial_mode_that_imports_mpi4py_is_alone(bench: Bench, mpich: MpiPeer) -> None:
    add_search(bench, "alone", {"node_packing_count": 2}, [{"x": 1}, {"x": 2}])
    bench.launch("--job-mode", "serial", "--mpi", str(mpich.mpiexec))
    assert [one[:2] for one in results(bench)] == [["ok", 1.0], ["ok", 1.0]]


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_an_error_of_any_rank_is_the_evaluations_and_the_rest_goes_on(bench: Bench, mpich: MpiPeer) -> None:
    configs = [{"x": 1, "who": 1}, {"x": 2, "who": 0}, {"x": 3, "who": 7}]
    add_search(bench, "one_raises", {"ranks_per_node": 2}, configs)
    bench.launch("--nodes", "2", "--mpi", str(mpich.mpiexec))
    found = sorted(results(bench), key=str)
    assert [one[0] for one in found] == ["error", "error", "ok"]
    assert sorted(one[3] for one in found) == [
        "",
        "rank 0: ValueError: rank 0 does not like 2",
        "rank 1: ValueError: rank 1 does not like 1",
    ]


@pytest.mark.needs_mpich
@pytest.mark.needs_openmpi
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_no_rank_outlives_a_killed_launcher_and_the_next_one_runs_them_again(
    bench: Bench, name: str, request: pytest.FixtureRequest
) -> None:
    peer: MpiPeer = request.getfixturevalue(name)

    def ranks() -> list[int]:
        return [
            int(path.read_text() or 0) for path in bench.site.glob("data/W/task*/rank*") if path.suffix == ""
        ]

    add_search(bench, "waits", {"ranks_per_node": 2}, [{"x": 1}, {"x": 2}], peer.python)
    for number in (1, 2):
        launcher = bench.start("--nodes", "3", "--mpi", str(peer.mpiexec))
        wait_until(lambda: len([pid for pid in ranks() if pid]) == 4, 60, "the ranks")
        pids = ranks()
        assert all(psutil.pid_exists(pid) for pid in pids)
        launcher.send_signal(signal.SIGKILL if number == 1 else signal.SIGTERM)
        launcher.communicate(timeout=60)
        wait_until(lambda: not processes_of(bench.test_id), 60, "the end of all ranks")
        for path in bench.site.glob("data/W/task*/rank*"):
            path.unlink()
    outcomes = [line["outcome"] for line in bench.attempts() if line["creator"]]
    assert sorted(outcomes) == ["lost", "lost", "walltime", "walltime"]


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_an_evaluation_that_is_a_program_runs_on_its_ranks(bench: Bench, mpich: MpiPeer) -> None:
    """As a job specification names it: an argv, or an application with its environment script."""
    setup = bench.directory / "my setup.sh"
    setup.write_text('export FROM_SETUP="it was sourced"; [ -n "$WRONG" ] && return 7; true\n')
    code = (
        "import os\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
        "total = world.allreduce(world.rank + 1)\n"
        "if world.rank == 0: print(os.environ.get('FROM_SETUP')); print('DH-OUTPUT:', total)\n"
    )
    (bench.directory / "sums.py").write_text(code)
    job = add_search(bench, "together", {}, [])
    store = open_store(Site(bench.site).database)
    app = App("SUMS", f"{sys.executable} {bench.directory}/sums.py", environment_script=str(setup))
    store.put_app(app, replace=True)
    argv = (sys.executable, str(bench.directory / "sums.py"))
    kinds = [("", argv, {}), ("SUMS", (), {}), ("SUMS", (), {"WRONG": "1"})]
    jobs = [
        Job(new_id(), f"task{seq}", "W", application, evaluation=Evaluation("", {}, 1, words),
            environ=environ, creator=job.id, seq=seq, resources=Resources(ranks_per_node=2))
        for seq, (application, words, environ) in enumerate(kinds, 1)
    ]  # fmt: skip
    store.add_jobs(jobs, Actor.SEARCH)
    store.close()
    log = bench.launch("--nodes", "2", "--mpi", str(mpich.mpiexec))
    ended = {line["name"]: (line["outcome"], line["objective"]) for line in bench.attempts()}
    assert ended["task1"] == ("ok", 3.0), log
    assert ended["task2"] == ("ok", 3.0), log
    assert "it was sourced" in bench.output("task2")
    assert ended["task3"] == ("error", None), log


FICKLE = """#!/bin/sh
# Fails to start ranks of jobs on its first node, as a node does that nobody reaches.
case "$*:$NAS_HPC_JOB_ID" in
    *--version*|*:mpi-check*) exec {mpiexec} "$@";;
esac
echo "[mpiexec@vm] ui_cmd_cb (pmiserv_pmci.c:51): Launch proxy failed." >&2
exit 255
"""


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_a_failed_start_is_tried_again_and_a_node_where_all_fail_is_not_used_any_more(
    bench: Bench, mpich: MpiPeer
) -> None:
    fickle = bench.directory / "mpiexec"
    fickle.write_text(FICKLE.format(mpiexec=mpich.mpiexec))
    fickle.chmod(0o755)
    show = bench.script("SHOW", "print('it runs')")
    bench.job("two", show, "--ranks-per-node", "2")
    for number in range(3):
        bench.job(f"one{number}", show)
    log = bench.launch("--mpi", str(fickle), code=1)
    tried = [line["outcome"] for line in bench.attempts() if line["name"] == "two"]
    assert len(tried) >= 3, "a job that runs there in between begins the count anew"
    assert set(tried) == {"start_failed"}
    assert "Launch proxy failed" in bench.listing("two")["state"] + log
    assert bench.state("two") == "RESTART_READY", "it is not to blame: another launcher may run it"
    assert "nothing more is started on" in log
    assert all(bench.state(f"one{number}") == "JOB_FINISHED" for number in range(3))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("missing", "cannot be started: No such file or directory (setting mpi)"),
        pytest.param(
            "garbage", "is no MPI program that is known: to --version it said 'what?'", marks=pytest.mark.slow
        ),
        pytest.param(
            "broken", "MPI: it does not start two ranks: I am tired (exit code 3)", marks=pytest.mark.slow
        ),
    ],
)
def test_with_an_mpi_program_of_no_use_jobs_of_one_rank_run_and_others_are_named(
    bench: Bench, setting: str, said: str
) -> None:
    path = bench.directory / "mpiexec"
    hydra = "HYDRA build details:\n    Version:  4.1\n"
    if setting != "missing":
        known = f"[ $1 = --version ] && printf '{hydra}' && exit 0\n" if setting == "broken" else ""
        path.write_text(f"#!/bin/sh\n{known}echo {'I am tired' if known else 'what?'}\nexit 3\n")
        path.chmod(0o755)
    show = bench.script("SHOW", "print('it runs')")
    bench.job("one", show)
    two = bench.job("two", show, "--num-nodes", "2")
    bench.job("three", show, "--ranks-per-node", "2")
    log = bench.launch("--nodes", "2", "--mpi", str(path), code=1)
    assert bench.state("one") == "JOB_FINISHED"
    assert bench.state("two") == "READY"
    assert said in log
    assert log.count(said.rpartition(": ")[2]) == 1, "what it said is told once"
    for name, shape in (("two", "2 nodes x 1 rank"), ("three", "1 node x 2 ranks")):
        needs = f"cannot run here: it has {shape}, which need an MPI program, and there is none (see above)"
        assert re.search(rf"job {name} \(\w+\) {re.escape(needs)}\n", log), log
    assert "no launcher is running" in bench.nas("why", two)


def test_in_serial_mode_several_ranks_are_named_with_what_would_be_right(bench: Bench) -> None:
    show = bench.script("SHOW", "print('it runs')")
    bench.job("one", show)
    two = bench.job("two", show, "--num-nodes", "2", "--ranks-per-node", "3")
    log = bench.launch("--job-mode", "serial", "--nodes", "3", code=1)
    assert (
        f"cannot run here: it has 2 nodes x 3 ranks, and serial mode runs one rank on one node: use "
        f"--job-mode mpi, or nas-hpc modify {two[:8]} --num-nodes 1 --ranks-per-node 1" in log
    )
    assert bench.state("one") == "JOB_FINISHED"
    assert bench.state("two") == "READY"


@pytest.mark.slow
def test_in_serial_mode_a_search_for_several_ranks_is_told_of_mpi_mode_and_of_the_nodes_it_wants(
    bench: Bench,
) -> None:
    bench.searches()
    for name, flags in (("ranks", "--ranks-per-node 2"), ("nodes", "--nodes-per-eval=2")):
        bench.job(name, "RAN", args=f"{POLYNOME} --max-evals 3 {flags}")
    log = bench.launch("--job-mode", "serial", "--nodes", "2", code=1)
    only = "and serial mode runs one rank on one node: use --job-mode mpi"
    assert f"cannot run here: its evaluations are to have 1 node x 2 ranks, {only}\n" in log
    assert (
        f"cannot run here: its evaluations are to have 2 nodes x 1 rank, {only} on 3 nodes or more\n" in log
    )


MEET = """
import glob, os, time
open("../met-" + os.environ["NAS_HPC_JOB_ID"], "w").close()
while len(glob.glob("../met-*")) < 2:
    time.sleep(0.05)
"""
"""The first one waits for the second."""


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_mpi_starts_keep_to_the_rate_and_to_the_number_at_a_time(bench: Bench, mpich: MpiPeer) -> None:
    show = bench.script("MEET", MEET)
    for number in range(4):
        bench.job(f"two{number}", show, "--ranks-per-node", "2")
    limits = {"NAS_HPC_STARTS_PER_S": "1", "NAS_HPC_CONCURRENT_STARTS": "2"}
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **limits}
    launcher = bench.start("--nodes", "5", "--mpi", str(mpich.mpiexec), environ=environ)
    log, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, log
    spans = sorted((line["start"], line["end"]) for line in bench.attempts())
    jobs = json.loads(bench.nas("ls", "jobs", "--history", "--json"))
    placed = sorted(one["time"] for job in jobs for one in job["history"] if one["new"] == "RUNNING")
    assert placed[3] - placed[0] > 2  # a second apart
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) == 2
