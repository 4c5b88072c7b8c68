"""mpi mode under a real launcher with real MPI programs: who runs where, with what, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from nas_hpc.records import App, Evaluation, Job, Origin, Resources, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor
from nas_hpc.store import open_store
from tests.launcher.bench import REPOSITORY, Bench
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import TEST_ID, processes_of, stays, wait_until

RUNS = """
import json, os, random, sys, time

def _comm():
    from mpi4py import MPI
    return MPI.COMM_WORLD

def together(config):
    comm = _comm()
    begin = time.time()
    total = comm.allreduce(config["x"] * (comm.rank + 1))
    drawn = comm.gather(random.random())
    told = comm.gather([os.environ[name] for name in
                        ("NAS_HPC_RANK", "NAS_HPC_LOCAL_RANK", "NAS_HPC_RANKS", "BALSAM_JOB_MODE",
                         "BALSAM_LAUNCHER_NODES", "BALSAM_JOB_ID", "OMP_NUM_THREADS")])
    os.write(1, f"rank {comm.rank} prints\\n".encode())
    time.sleep(config.get("sleep", 0))
    if comm.rank:
        return "ignored"
    return {"objective": total, "size": comm.size, "drawn": drawn, "told": told,
            "begin": begin, "end": time.time(), "alone": "mpi4py" in sys.modules}

def one_raises(config):
    comm = _comm()
    if comm.rank == config["who"]:
        raise ValueError(f"rank {comm.rank} does not like {config['x']}")
    comm.barrier()
    return 1.0

def one_raises_without_mpi(config):
    if os.environ["NAS_HPC_RANK"] == "1":
        raise KeyError("of a rank that knows no MPI")
    time.sleep(600)

def one_dies(config):
    comm = _comm()
    if comm.rank == 1:
        os.kill(os.getpid(), 9)
    comm.barrier()

def waits(config):
    comm = _comm()
    comm.barrier()
    open(f"rank{comm.rank}", "w").write(str(os.getpid()))
    time.sleep(600)

def alone(config):
    return _comm().size
"""
SEARCH = """
import json, sys
from nas_hpc.evaluator import Settings, create
from nas_hpc.wire import Shape
run, shape, configs = sys.argv[1], Shape(**json.loads(sys.argv[2])), json.loads(sys.argv[3])
with create(settings=Settings(run=run, shape=shape)) as evaluator:
    evaluator.submit(configs)
    results = evaluator.gather("all")
    json.dump([[r.outcome, r.objective, r.metadata, r.reason] for r in results], open("results.json", "w"))
    print("capacity", evaluator.capacity())
"""


def add_search(
    bench: Bench,
    run: str,
    shape: dict[str, int],
    configs: list[dict[str, Any]],
    python: Path | str = sys.executable,
) -> Job:
    """A search of which all evaluations are known at once; ``python`` runs them."""
    (bench.directory / "runs.py").write_text(RUNS)
    bench.script("SEARCH", SEARCH)
    bench.nas("app", "--name", "SEARCH", "--restartable", "--replace",
              "--exec", f"{sys.executable} {bench.directory}/search.py")  # fmt: skip
    words = " ".join(f"'{json.dumps(one)}'" for one in (shape, configs))
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    origin = Origin(str(bench.directory), (str(bench.directory), str(REPOSITORY)), str(python), environ)
    job = Job(
        id=new_id(), name="search", workflow="W", application="SEARCH", args=f"runs.{run} {words}",
        origin=origin, environ={TEST_ID: bench.test_id}, created=time.time(),
    )  # fmt: skip
    store = open_store(Site(bench.site).database)
    store.add_jobs([job], Actor.COMMAND)
    store.close()
    return job


def results(bench: Bench) -> list[Any]:
    found: list[Any] = json.loads((bench.directory_of("search") / "results.json").read_text())
    return found


def two_ranks_several_at_once(bench: Bench, peer: MpiPeer) -> None:
    configs = [{"x": float(number), "sleep": 0.5} for number in range(6)]
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
        launcher.communicate(timeout=30)
        wait_until(lambda: not processes_of(bench.test_id), 15, "the end of all ranks")
        for path in bench.site.glob("data/W/task*/rank*"):
            path.unlink()
    outcomes = [line["outcome"] for line in bench.attempts() if line["creator"]]
    assert sorted(outcomes) == ["lost", "lost", "walltime", "walltime"]


def running(bench: Bench, *words: str) -> list[int]:
    """Pids of the test's processes with one of the words in their command lines."""
    found = []
    for process in processes_of(bench.test_id):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            found += [process.pid] if any(word in line for word in words) else []
    return found


HOSTS = """#!/bin/sh
# Stands in for ssh: runs the command here, with the host's name in its environment.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
echo "$host" >> "$(dirname "$0")/hosts"
FAKE_HOST=$host exec sh -c "$*"
"""
PLACES = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
mine = [os.environ.get("FAKE_HOST", "here"), os.environ.get("NAS_HPC_RANK", "0"),
        os.environ.get("NAS_HPC_LOCAL_RANK", "0"), os.environ["MARK"], world.size]
everybody = world.gather(mine)
if world.rank == 0:
    for one in everybody:
        print("place", *one)
"""


def places(bench: Bench, name: str) -> list[str]:
    """What a job of PLACES printed of its ranks."""
    return [line for line in bench.output(name).splitlines() if line.startswith("place")]


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_jobs_reach_other_hosts_by_the_mpi_program_with_their_ranks_on_each(
    bench: Bench, mpich: MpiPeer
) -> None:
    """hydra starts its proxies by a stand-in for ssh that runs them on this machine."""
    ssh = bench.directory / "ssh"
    ssh.write_text(HOSTS)
    ssh.chmod(0o755)
    nodes = bench.directory / "nodes"
    nodes.write_text("".join(f"{name}\n" for name in (os.uname().nodename, "far1", "far2")))
    show = bench.script("PLACES", PLACES)
    bench.job("big", show, "--num-nodes", "3", "--ranks-per-node", "2", "--env", "MARK=1")
    bench.job("pair", show, "--num-nodes", "2", "--env", "MARK=2")
    for number in range(3):
        bench.job(f"single{number}", show, "--env", f"MARK={number}")
    environ = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "COBALT_JOBID": "7", "COBALT_NODEFILE": str(nodes),
        "COBALT_ENDTIME": str(time.time() + 3600), "COBALT_PARTNAME": "x",
        "NAS_HPC_MPI": str(mpich.mpiexec), "NAS_HPC_MPI_FLAGS": f"-launcher ssh -launcher-exec {ssh}",
    }  # fmt: skip
    launcher = bench.start(environ=environ)
    log, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, log
    tried = (bench.directory / "hosts").read_text().split()[:2]
    assert sorted(tried) == ["far1", "far2"], log
    words = [line.split()[1:] for line in places(bench, "big")]
    hosts = [word[0] for word in words]
    assert hosts[::2] == hosts[1::2]
    assert {*hosts} in ({"here", "far1", "far2"}, {os.uname().nodename, "far1", "far2"})
    assert [word[1:] for word in words] == [[str(n), str(n % 2), "1", "6"] for n in range(6)]
    assert len(places(bench, "pair")) == 2
    singles = {places(bench, f"single{number}")[0].split()[1] for number in range(3)}
    assert singles <= {"here", "far1", "far2"}
    assert all(
        places(bench, f"single{number}")[0].split()[2:] == ["0", "0", str(number), "1"] for number in range(3)
    )


@pytest.mark.needs_slurm
@pytest.mark.needs_mpich
@pytest.mark.slow
def test_in_a_slurm_allocation_srun_starts_jobs_on_their_nodes_beside_each_other(
    bench: Bench, slurm: Slurm, mpich: MpiPeer
) -> None:
    code = (
        PLACES.replace('"FAKE_HOST", "here"', '"SLURMD_NODENAME", "node1"') + "import time; time.sleep(2)\n"
    )
    show = bench.script("PLACES", code)
    bench.job("big", show, "--num-nodes", "2", "--ranks-per-node", "2", "--env", "MARK=1")
    for number in range(4):
        bench.job(f"single{number}", show, "--env", f"MARK={number}")
    line = f"exec {sys.executable} -m nas_hpc.cli --site {bench.site} launcher"
    script = f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}"
    job = slurm.sbatch(script, "--nodes=4", "--exclusive", "--time=5")
    slurm.wait_job(job, timeout_s=100)
    log = slurm.output(job)
    assert "MPI: Slurm's srun" in log
    assert "find each other" in log
    big = places(bench, "big")
    assert [one.split()[2:4] for one in big] == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert len({one.split()[1] for one in big}) == 2
    lines = {one["name"]: one for one in bench.attempts()}
    for name in ("big", *(f"single{number}" for number in range(4))):
        assert lines[name]["outcome"] == "ok", (name, log)
        assert {one.split()[1] for one in places(bench, name)} == set(lines[name]["nodes"])
    spans = [(lines[f"single{n}"]["start"], lines[f"single{n}"]["end"]) for n in range(4)]
    assert max(sum(begin < one[1] and one[0] < end for one in spans) for begin, end in spans) >= 2
    assert not [line for line in log.splitlines() if "cannot run" in line]


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_steps_of_srun_end_with_a_killed_launcher_while_the_allocation_goes_on(
    bench: Bench, slurm: Slurm
) -> None:
    code = "import os, time; open('at' + os.environ['NAS_HPC_RANK'], 'w').close(); time.sleep(600)"
    bench.job("big", bench.script("WAITS", code), "--num-nodes", "2", "--ranks-per-node", "2")
    line = f"{sys.executable} -m nas_hpc.cli --site {bench.site} launcher --mpi $(command -v srun)"
    script = (
        f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}\nexec sleep 600"
    )
    job = slurm.sbatch(script, "--nodes=2", "--exclusive", "--time=5")
    try:
        wait_until(lambda: len(list(bench.site.glob("data/W/big_*/at*"))) == 4, 60, slurm.output(job))
        owner = json.loads((bench.site / "run" / "owner.json").read_text())
        os.kill(owner["pid"], signal.SIGKILL)

        wait_until(lambda: not running(bench, "waits.py"), 20, "the end of the ranks")

        def steps() -> list[str]:
            listed = slurm.run("squeue", "-h", "-s", "-j", str(job), "-o", "%i").stdout.split()
            return [step for step in listed if not step.endswith((".batch", ".extern"))]

        wait_until(lambda: not steps(), 20, "the end of the steps")
        assert slurm.job(job)["JobState"] == "RUNNING"
    finally:
        slurm.cancel(job)


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_steps_that_outlived_launcher_guardian_and_srun_are_ended_before_anything_runs_again(
    bench: Bench, slurm: Slurm
) -> None:
    code = (
        "import os, time; open(f'at{os.getpid()}', 'w').close()\n"
        "time.sleep(0 if os.environ['NAS_HPC_ATTEMPT'] == '2' else 600)\n"
    )
    bench.job("big", bench.script("WAITS", code), "--num-nodes", "2")
    line = f"{sys.executable} -m nas_hpc.cli --site {bench.site} launcher --mpi $(command -v srun)"
    go = bench.directory / "go"
    script = (
        f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}\n"
        f"while [ ! -e {go} ]; do sleep 0.1; done\n{line}\n"
    )
    job = slurm.sbatch(script, "--nodes=2", "--exclusive", "--time=5")

    def ranks() -> list[int]:
        return [int(path.name[2:]) for path in bench.site.glob("data/W/big_*/at*")]

    wait_until(lambda: len(ranks()) == 2, 60, slurm.output(job))
    first = ranks()
    victims = [pid for pid in running(bench, "nas_hpc", "srun") if pid not in first]
    for number in (
        signal.SIGSTOP,
        signal.SIGKILL,
    ):  # the launcher's host dies; nobody reacts to another's end
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    stays(lambda: all(psutil.pid_exists(pid) for pid in first), 2.0, "the ranks' life")
    go.touch()
    slurm.wait_job(job, timeout_s=100)
    log = slurm.output(job)
    assert bench.state("big") == "JOB_FINISHED", log
    assert not [pid for pid in first if psutil.pid_exists(pid)]
    assert [one["outcome"] for one in bench.attempts()] == ["lost", "ok"]


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
    assert [line["outcome"] for line in bench.attempts() if line["name"] == "two"] == ["start_failed"] * 3
    assert "Launch proxy failed" in bench.listing("two")["state"] + log
    assert bench.states("two")[-1] == "FAILED"
    assert "nothing more is started on" in log
    assert all(bench.state(f"one{number}") == "JOB_FINISHED" for number in range(3))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("missing", "cannot be started: No such file or directory (setting mpi)"),
        ("garbage", "is no MPI program that is known: to --version it said 'what?'"),
        ("broken", "was tried: it does not start two ranks: I am tired (exit code 3)"),
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
    log = bench.launch("--nodes", "2", "--mpi", str(path), code=1)
    assert bench.state("one") == "JOB_FINISHED"
    assert bench.state("two") == "READY"
    assert said in log
    assert "job two" in log
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


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_mpi_starts_keep_to_the_rate_and_to_the_number_at_a_time(bench: Bench, mpich: MpiPeer) -> None:
    show = bench.script("SHOW", "import time; time.sleep(1.5)")
    for number in range(4):
        bench.job(f"two{number}", show, "--ranks-per-node", "2")
    limits = {"NAS_HPC_STARTS_PER_S": "1", "NAS_HPC_CONCURRENT_STARTS": "2"}
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **limits}
    launcher = bench.start("--nodes", "5", "--mpi", str(mpich.mpiexec), environ=environ)
    log, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, log
    spans = sorted((line["start"], line["end"]) for line in bench.attempts())
    assert spans[3][0] - spans[0][0] > 2  # placed a second apart
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) == 2


FRONT = """#!/bin/sh
# Takes the flags of aprun or of PALS mpiexec and starts the ranks by hydra on this machine.
[ "$1" = --version ] && {{ echo '{version}'; exit 0; }}
echo "$@" | head -c 200 | tr '\\n' ' ' >> "$(dirname "$0")/lines"; echo >> "$(dirname "$0")/lines"
while :; do
    case $1 in
        -n) count=$2; shift 2;;
        -N|--ppn) per=$2; shift 2;;
        -L|--hosts) hosts=$2; shift 2;;
        -cc|-d|-j|--depth|--cpu-bind) shift 2;;
        *) break;;
    esac
done
PER=$per HOSTS=$hosts exec {mpiexec} -rmk user -launcher fork -n "$count" {python} -c '
import os, sys
number, per = int(os.environ["PMI_RANK"]), int(os.environ["PER"])
os.environ["AT"] = os.environ["HOSTS"].split(",")[number // per]
os.environ.update({{"{rank}": str(number), **{more}}})
os.execv(sys.argv[1], sys.argv[1:])' "$@"
"""
FRONTS = {
    "aprun": ("aprun (ALPS) 6.6.59", "ALPS_APP_PE", "{}", "-n 6 -N 2 -L 3,4,12 -cc depth -d 1 -j 1"),
    "pals": (
        "mpiexec version 1.8.0 revision 1234", "PALS_RANKID", '{"PALS_LOCAL_RANKID": str(number % per)}',
        "-n 6 --ppn 2 --hosts nid00003,nid00004,nid00012 --depth 1 --cpu-bind depth",
    ),
}  # fmt: skip


@pytest.mark.needs_mpich
@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
def test_where_no_node_is_the_launchers_own_the_machines_program_starts_everything(
    bench: Bench, mpich: MpiPeer, name: str
) -> None:
    """As on a head node: jobs, a search and its evaluations, of one rank and of several."""
    version, rank, more, line = FRONTS[name]
    front = bench.directory / "bin" / ("aprun" if name == "aprun" else "mpiexec")
    front.parent.mkdir()
    front.write_text(
        FRONT.format(version=version, rank=rank, more=more, mpiexec=mpich.mpiexec, python=sys.executable)
    )
    front.chmod(0o755)
    show = bench.script("PLACES", PLACES.replace('"FAKE_HOST", "here"', '"AT", "?"'))
    bench.job("big", show, "--num-nodes", "3", "--ranks-per-node", "2", "--env", "MARK=1")
    bench.job("one", show, "--env", "MARK=2")
    add_search(bench, "together", {}, [{"x": 1.0}, {"x": 2.0}, {"y": 0.0}])
    environ = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{front.parent}:{os.environ['PATH']}",
        "COBALT_JOBID": "7", "COBALT_PARTNAME": "3-4,12", "COBALT_JOBSIZE": "3",
        "COBALT_ENDTIME": str(time.time() + 3600), "NAS_HPC_CORES_PER_NODE": "2",
    }  # fmt: skip
    launcher = bench.start("--wf-filter", "W", environ=environ)
    log, _ = launcher.communicate(timeout=110)
    assert launcher.returncode == 0, log
    assert f"MPI: {'ALPS aprun' if name == 'aprun' else 'PALS mpiexec'}" in log
    assert any(said.startswith(line) for said in (front.parent / "lines").read_text().splitlines()), log
    words = [said.split()[1:] for said in places(bench, "big")]
    ids = ["3", "3", "4", "4", "12", "12"] if name == "aprun" else [
        "nid00003", "nid00003", "nid00004", "nid00004", "nid00012", "nid00012"
    ]  # fmt: skip
    assert words == [[ids[n], str(n), str(n % 2), "1", "6"] for n in range(6)]
    assert len(places(bench, "one")) == 1
    found = sorted(results(bench), key=str)
    assert [one[0] for one in found] == ["error", "ok", "ok"]
    assert sorted(one[1] for one in found[1:]) == [1.0, 2.0]
    assert found[0][3] == "KeyError: 'x'"
