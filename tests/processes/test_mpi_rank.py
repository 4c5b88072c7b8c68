"""What a rank gets: its environment, cores and GPUs; and how its failure becomes the trial's."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher.mpi_orders import Surroundings, mpi_order
from nas_hpc.processes import rank, rank_call, sessions
from nas_hpc.processes.mpi import MpiProgram
from nas_hpc.processes.orders import Order
from nas_hpc.processes.ranks import Ranks
from nas_hpc.records import Job, Resources
from nas_hpc.resources import Placement
from nas_hpc.states import Outcome
from tests.peers.mpi import MpiPeer
from tests.processes.bench import Bench, eventually, go
from tests.support import processes_of, wait_until, words_of

SPEC: dict[str, Any] = {
    "env": {"A": "1", "PATH": "/job/bin", "LD_LIBRARY_PATH": "/job/lib:/both", "OMPI_COMM_WORLD_RANK": "9"},
    "ranks": 4, "ranks_per_node": 2, "threads_per_core": 1, "cores": (), "gpus": (("0", "1"), ("4", "7")),
    "gpus_per_rank": 1, "gpus_by_mpi": False, "virtual": False,
}  # fmt: skip
MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def test_a_rank_gets_the_jobs_environment_and_its_place() -> None:
    inherited = {
        "PATH": "/login", "LOGIN": "yes", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3",
        "LD_LIBRARY_PATH": "/mpi/lib:/both", "SLURM_PROCID": "3",
    }  # fmt: skip
    environ = rank.environment(SPEC, Ranks(3, 4, 1, 2), inherited)
    assert environ["A"] == "1"
    assert environ["PATH"] == "/job/bin"
    assert environ["LD_LIBRARY_PATH"] == "/mpi/lib:/both:/job/lib"
    assert environ["OMPI_COMM_WORLD_RANK"] == environ["PMIX_RANK"] == environ["SLURM_PROCID"] == "3"
    place = {name: environ[f"NAS_HPC_{name}"] for name in ("RANK", "LOCAL_RANK", "RANKS", "RANKS_PER_NODE")}
    assert place == {"RANK": "3", "LOCAL_RANK": "1", "RANKS": "4", "RANKS_PER_NODE": "2"}
    assert {environ[name] for name in MASKS} == {"7"}


def test_gpus_that_srun_has_masked_stay_so() -> None:
    spec = {**SPEC, "gpus_by_mpi": True}
    masked = rank.environment(spec, Ranks(3, 4, 1), {"CUDA_VISIBLE_DEVICES": "0"})
    assert masked["CUDA_VISIBLE_DEVICES"] == "0"
    assert rank.environment(spec, Ranks(3, 4, 1), {})["CUDA_VISIBLE_DEVICES"] == "7"


def test_the_local_rank_is_the_mpi_programs_but_on_virtual_nodes() -> None:
    assert rank.local_place(SPEC, Ranks(2, 4, 1)) == (1, 1)  # as with another order of the ranks
    assert rank.local_place({**SPEC, "virtual": True}, Ranks(3, 4, 3)) == (1, 1)
    assert rank.local_place(SPEC, Ranks(3)) == (1, 1)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 4), st.integers(0, 24))
def test_ranks_of_a_node_share_neither_gpus_nor_cores_while_there_are_enough(
    nodes: int, per_node: int, each: int, cores: int
) -> None:
    gpus = [[f"{node}.{gpu}" for gpu in range(each * per_node)] for node in range(nodes)]
    mine = set(os.sched_getaffinity(0))
    spec = {
        **SPEC, "ranks": nodes * per_node, "ranks_per_node": per_node, "gpus": gpus, "gpus_per_rank": each,
        "cores": [[1000 + core for core in range(cores)]] * nodes, "virtual": True,
    }  # fmt: skip
    taken: dict[int, list[str]] = {}
    pinned: dict[int, list[int]] = {}
    for number in range(nodes * per_node):
        place = rank.local_place(spec, Ranks(number))
        got = rank.share_of(gpus, place, each)
        assert len(got) == each
        taken.setdefault(place[0], []).extend(got)
        cpus = rank.cpus_of(spec, place)
        assert bool(cpus) == bool(cores)
        pinned.setdefault(place[0], []).extend(cpus)
    assert all(len(set(ids)) == each * per_node for ids in taken.values())
    for cpus in pinned.values():
        shared = len(cpus) - len(set(cpus))
        assert shared == (max(0, per_node - cores) if cores else 0)
    assert mine == set(os.sched_getaffinity(0))


def test_random_generators_of_ranks_start_apart_and_rank_0s_as_alone() -> None:
    seeds = [rank_call.seed_of(17, number) for number in range(100)]
    assert seeds[0] == 17
    assert len(set(seeds)) == 100
    assert seeds == [rank_call.seed_of(17, number) for number in range(100)]
    assert rank_call.seed_of(18, 1) != seeds[1]


# -- through an agent and a real MPI program ---------------------------------------------------------------

MODULE = """
    import os, signal, sys, threading, time
    def comm():
        from mpi4py import MPI
        return MPI.COMM_WORLD
    def good(config):
        world = comm()
        return {"objective": world.allreduce(1.0), "pinned": world.gather(sorted(os.sched_getaffinity(0))),
                "masks": world.gather(os.environ.get("CUDA_VISIBLE_DEVICES"))}
    def raises(config):
        world = comm()
        if world.rank in config["who"]:
            time.sleep(0.2 * world.rank)
            raise ValueError(f"rank {world.rank} of {world.size}")
        world.barrier()
        return 1.0
    def raises_apart(config):
        if os.environ["NAS_HPC_RANK"] == "1":
            raise KeyError("it has no MPI")
        time.sleep(600)
    def late(config):
        world = comm()
        world.barrier()
        if world.rank == 1:
            time.sleep(0.5)
            raise RuntimeError("after rank 0 had returned")
        return 2.0
    def dies(config):
        world = comm()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.barrier()
    def bad(config):
        return "no number" if comm().rank == 0 else None
    def waits(config):
        world = comm()
        if config.get("stubborn"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(f"here{world.rank}", "w").close()
        time.sleep(600)
"""


def ranks_order(
    bench: Bench, peer: MpiPeer, order: Order, *, per_node: int = 2, nodes: int = 1, **around: Any
) -> Order:
    """``order`` for ``per_node`` ranks on each of ``nodes`` virtual nodes."""
    job = Job("j", "task1", "W", resources=Resources(num_nodes=nodes, ranks_per_node=per_node,
              gpus_per_rank=around.pop("gpus_per_rank", 0)))  # fmt: skip
    names = tuple(f"v{number}" for number in range(nodes))
    cores, gpus = around.pop("cores", ((),) * nodes), around.pop("gpus", ((),) * nodes)
    placement = Placement(names, 1, cores, gpus)  # type: ignore[arg-type]
    surroundings = Surroundings(
        {name: "me" for name in names}, lambda _: True, lambda _: bool(around.pop("real", False)), environ={}
    )
    return mpi_order(order, job, placement, surroundings, MpiProgram(str(peer.mpiexec), peer.name))


def call(bench: Bench, peer: MpiPeer, run: str, config: dict[str, Any] | None = None, **more: Any) -> Order:
    bench.module("ranks_of", MODULE)
    around = {
        key: more.pop(key)
        for key in ("per_node", "nodes", "cores", "gpus", "gpus_per_rank", "real")
        if key in more
    }
    order = bench.call(f"ranks_of.{run}", config, warm=False, interpreter=str(peer.python), **more)
    return ranks_order(bench, peer, order, **around)


PEERS = (
    pytest.param("mpich", marks=pytest.mark.needs_mpich),
    pytest.param("openmpi", marks=[pytest.mark.needs_openmpi, pytest.mark.slow]),
)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> MpiPeer:
    """Each of the MPI installations."""
    found: MpiPeer = request.getfixturevalue(request.param)
    return found


def test_rank_0s_result_is_the_trials_and_nothing_else_is_left(tmp_path: Path, peer: MpiPeer) -> None:
    core = min(os.sched_getaffinity(0))

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = call(
                bench, peer, "good", real=True, cores=((core,),), gpus=(("5", "8"),), gpus_per_rank=1
            )
            result = (await bench.run(order)).result
            assert (result.outcome, result.objective) == (Outcome.OK, 2.0), result
            assert result.metadata["pinned"] == [[core], [core]]
            assert result.metadata["masks"] == ["5", "8"]
            assert {path.name for path in Path(order.directory).iterdir()} <= {
                "job.json", "result.json", "task1.out"
            }  # fmt: skip

    go(scenario())


@pytest.mark.parametrize(
    ("run", "config", "reason"),
    [
        pytest.param("raises", {"who": [1]}, "rank 1: ValueError: rank 1 of 2", marks=pytest.mark.slow),
        pytest.param("raises", {"who": [0]}, "rank 0: ValueError: rank 0 of 2", marks=pytest.mark.slow),
        ("raises", {"who": [0, 1]}, "rank 0: ValueError: rank 0 of 2"),
        pytest.param("raises_apart", {}, "rank 1: KeyError: 'it has no MPI'", marks=pytest.mark.slow),
        ("late", {}, "rank 1: RuntimeError: after rank 0 had returned"),
        pytest.param(
            "missing", {}, "rank 0: module ranks_of has no function missing", marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_rank_raises_is_the_trials_failure_and_no_rank_stays(
    tmp_path: Path, peer: MpiPeer, test_id: str, run: str, config: dict[str, Any], reason: str
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = call(bench, peer, run, config)
            ended = await bench.run(order)
            assert ended.result.outcome is Outcome.ERROR
            wanted = reason.replace("rank 0: module", "rank 1: module") if run == "missing" else reason
            assert ended.result.reason in (reason, wanted), (ended.result, ended.tail)
            assert run == "missing" or "Traceback" in (Path(order.directory) / "task1.out").read_text()
            assert not list(Path(order.directory).glob("*rank*"))

    go(scenario())


def test_a_result_of_rank_0_that_is_none_is_named(tmp_path: Path, peer: MpiPeer) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            result = (await bench.run(call(bench, peer, "bad"))).result
            assert result.outcome is Outcome.INVALID_RESULT
            assert "the string 'no number'" in result.reason

    go(scenario())


def test_a_rank_that_is_killed_ends_the_trial_and_the_mpi_programs_words_are_the_reason(
    tmp_path: Path, peer: MpiPeer
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            result = (await bench.run(call(bench, peer, "dies"))).result
            assert result.outcome is Outcome.ERROR
            assert "Killed" in result.reason, result

    go(scenario())


def test_neither_secrets_nor_the_environment_stand_on_a_command_line(
    tmp_path: Path, peer: MpiPeer, test_id: str
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = call(bench, peer, "waits", environ={"MY_TOKEN": "s3cr3t", "LONG": "y" * 3000})
            bench.agent.start(order)
            directory = Path(order.directory)
            await eventually(lambda: len(list(directory.glob("here*"))) == 2, 60, "the ranks")
            mode = stat.S_IMODE((directory / rank.FILE).stat().st_mode)
            assert mode == 0o600
            lines = [" ".join(words_of(process)) for process in processes_of(test_id)]
            assert any("ranks_of" in line or "rank_call" in line for line in lines)
            assert not [line for line in lines if "s3cr3t" in line or "yyyy" in line]
            bench.agent.stop(order.key, Outcome.TIMEOUT, "long enough")
            ended = await bench.end_of(order.key)
            assert (ended.result.outcome, ended.result.reason) == (Outcome.TIMEOUT, "long enough")
            assert not (directory / rank.FILE).exists()

    go(scenario())


@pytest.mark.parametrize(
    "who", ["keeper", *(pytest.param(who, marks=pytest.mark.slow) for who in ("agent's end", "at once"))]
)
def test_ranks_end_with_whoever_started_them(tmp_path: Path, peer: MpiPeer, test_id: str, who: str) -> None:
    """Also those that do not heed SIGTERM: the MPI program is asked first and killed then."""

    def ranks_left() -> list[psutil.Process]:
        return [p for p in processes_of(test_id) if any("rank" in word for word in words_of(p))]

    async def scenario() -> None:
        async with Bench(tmp_path, grace_s=1.0) as bench:
            orders = [
                call(bench, peer, "waits", {"stubborn": stubborn}, name=f"t{stubborn}") for stubborn in (0, 1)
            ]
            for order in orders:
                bench.agent.start(order)
            await eventually(lambda: len(list(tmp_path.rglob("here*"))) == 4, 60, "the ranks")
            assert {s.kind for s in sessions.read_log(bench.log).values()} == {"keeper", "mpi"}
            assert len(ranks_left()) >= 4
            if who == "keeper":
                os.kill(bench.keepers()["starter"], 9)
                for order in orders:
                    assert (await bench.end_of(order.key)).result.outcome is Outcome.LOST
            elif who == "at once":
                bench.agent.kill_all()
                for order in orders:
                    assert (await bench.end_of(order.key)).result.outcome is Outcome.LOST
            if who != "agent's end":
                await eventually(lambda: not ranks_left(), 60, "the ranks' end")
        wait_until(lambda: not ranks_left(), 60, "the ranks' end")

    go(scenario())


def test_a_program_on_several_virtual_nodes_has_all_its_ranks_and_one_that_is_missing_is_named(
    tmp_path: Path, peer: MpiPeer
) -> None:
    code = (
        "import os; e = os.environ\n"
        'os.write(1, f\'at {e["NAS_HPC_RANK"]} {e["NAS_HPC_LOCAL_RANK"]}\\n\'.encode())'
    )

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = ranks_order(bench, peer, bench.python(code, name="p"), nodes=2)
            assert (await bench.run(order)).result.outcome is Outcome.OK
            said = (Path(order.directory) / "p.out").read_text().splitlines()
            assert sorted(line for line in said if line.startswith("at")) == [
                "at 0 0", "at 1 1", "at 2 0", "at 3 1"
            ]  # fmt: skip
            order = ranks_order(bench, peer, bench.program("/no/such/program", name="q"))
            result = (await bench.run(order)).result
            assert result.outcome is Outcome.START_FAILED
            assert "cannot start /no/such/program: No such file or directory" in result.reason

    go(scenario())


def test_an_mpi_program_that_cannot_start_ranks_is_a_failed_start(tmp_path: Path, mpich: MpiPeer) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.program("true")
            broken = MpiPeer("mpich", mpich.mpiexec, mpich.python)
            order = ranks_order(bench, broken, order)
            argv = (order.argv[0], "-hosts", "no-such-host", "-launcher-exec", "/bin/false", *order.argv[4:])
            result = (await bench.run(replace(order, argv=argv))).result
            assert result.outcome is Outcome.START_FAILED
            assert result.reason.startswith("the MPI program cannot start the ranks: "), result
            assert (
                json.loads((Path(order.directory) / "result.json").read_text())["outcome"] == "start_failed"
            )

    go(scenario())
