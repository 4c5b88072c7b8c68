"""The command lines of MPI programs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.processes.mpi import FLAVOURS, MpiProgram, Start, agents_command, command, outlives_one

HOSTS = ("nid00012", "nid00345")


def built(flavour: str, *flags: str, **fields: Any) -> str:
    start = Start(("prog", "a b"), **{"hosts": HOSTS, "ranks_per_node": 4, **fields})
    return shlex.join(command(MpiProgram(f"/opt/{flavour}", flavour, flags=flags), start))


@pytest.mark.parametrize(
    ("flavour", "fields", "expected"),
    [
        ("mpich", {}, "/opt/mpich -hosts nid00012,nid00345 -ppn 4 -n 8 prog 'a b'"),
        ("mpich", {"pin": True}, "/opt/mpich -hosts nid00012,nid00345 -ppn 4 -n 8 prog 'a b'"),
        ("mpich", {"environ": {"A": "1 2"}},
         "/opt/mpich -hosts nid00012,nid00345 -ppn 4 -genv A '1 2' -n 8 prog 'a b'"),
        ("mpich", {"local": True, "hosts": ("me", "me")},
         "/opt/mpich -rmk user -launcher fork -n 8 prog 'a b'"),
        ("pals", {}, "/opt/pals -n 8 --ppn 4 --hosts nid00012,nid00345 --cpu-bind none prog 'a b'"),
        ("pals", {"pin": True, "threads_per_rank": 16},
         "/opt/pals -n 8 --ppn 4 --hosts nid00012,nid00345 --depth 16 --cpu-bind depth prog 'a b'"),
        ("pals", {"ranks_per_node": 2, "cpus": ((0, 1), (4, 5)), "environ": {"A": "1"}},
         "/opt/pals -n 4 --ppn 2 --hosts nid00012,nid00345 --cpu-bind list:0,1:4,5 --env A=1 prog 'a b'"),
        ("openmpi", {},
         "/opt/openmpi --host nid00012:4,nid00345:4 --map-by ppr:4:node:OVERSUBSCRIBE "
         "--bind-to none -n 8 prog 'a b'"),
        ("openmpi",
         {"pin": True, "threads_per_rank": 2, "forward": ("P",), "environ": {"A": "1"}, "as_root": True},
         "/opt/openmpi --allow-run-as-root --host nid00012:4,nid00345:4 "
         "--map-by ppr:4:node:PE=2:OVERSUBSCRIBE --bind-to core -x P -x A=1 -n 8 prog 'a b'"),
        ("openmpi", {"local": True, "hosts": ("me", "me"), "ranks_per_node": 1},
         "/opt/openmpi --host localhost:2 --mca mpi_yield_when_idle 1 --map-by slot:OVERSUBSCRIBE "
         "--bind-to none -n 2 prog 'a b'"),
        ("slurm", {"threads_per_rank": 2, "mem_per_cpu_mb": 500, "gpus_per_rank": 1, "pin": True},
         "/opt/slurm --exact --overlap --nodes=2 --nodelist=nid00012,nid00345 --ntasks=8 "
         "--ntasks-per-node=4 --distribution=block --cpus-per-task=2 --threads-per-core=1 "
         "--mem-per-cpu=500M --gpus-per-task=1 "
         "--cpu-bind=cores --kill-on-bad-exit=1 --export=ALL prog 'a b'"),
        ("slurm", {"environ": {"A": "1"}, "hosts": ("n1", "n1"), "threads_per_core": 2, "name": "mine"},
         "/opt/slurm --exact --job-name=mine --nodes=1 --nodelist=n1 --ntasks=8 --ntasks-per-node=8 "
         "--distribution=block --cpus-per-task=1 --threads-per-core=2 --mem=0 --gres=none "
         "--kill-on-bad-exit=1 --export=ALL,A=1 prog 'a b'"),
        ("aprun",
         {"pin": True, "threads_per_rank": 16, "threads_per_core": 2, "environ": {"A": "1", "B": "2"}},
         "/opt/aprun -n 8 -N 4 -L 12,345 -cc depth -d 16 -j 2 -e A=1 -e B=2 prog 'a b'"),
        ("aprun", {"threads_per_rank": 16, "threads_per_core": 2},
         "/opt/aprun -n 8 -N 4 -L 12,345 -cc none prog 'a b'"),
    ],
)  # fmt: skip
def test_a_start_is_a_command_line(flavour: str, fields: dict[str, Any], expected: str) -> None:
    assert built(flavour, **fields) == expected


@pytest.mark.parametrize(
    ("flavour", "local", "expected"),
    [
        ("mpich", False, "/opt/mpich -disable-auto-cleanup -hosts nid00012,nid00345 -ppn 1 -n 2 agent"),
        ("mpich", True,
         "/opt/mpich -rmk user -launcher fork -disable-auto-cleanup -hosts agent0,agent1 -ppn 1 -n 2 agent"),
        ("pals", False,
         "/opt/pals --no-abort-on-failure -n 2 --ppn 1 --hosts nid00012,nid00345 --cpu-bind none agent"),
        ("openmpi", False,
         "/opt/openmpi --runtime-options recoverable,error-nonzero-status=0 --host nid00012:1,nid00345:1 "
         "--map-by ppr:1:node:OVERSUBSCRIBE --bind-to none -n 2 agent"),
        ("slurm", False,
         "/opt/slurm --overlap --nodes=2 --nodelist=nid00012,nid00345 --ntasks=2 --ntasks-per-node=1 "
         "--distribution=block --cpu-bind=none --mpi=none --kill-on-bad-exit=0 "
         "--no-kill --wait=0 --export=ALL agent"),
        ("aprun", False, "/opt/aprun -C -n 2 -N 1 -L 12,345 -cc none agent"),
    ],
)  # fmt: skip
def test_agents_start_once_on_each_host_and_outlive_each_other(
    flavour: str, local: bool, expected: str
) -> None:
    program = MpiProgram(f"/opt/{flavour}", flavour)
    assert shlex.join(agents_command(program, HOSTS, ["agent"], local=local)) == expected
    assert outlives_one(program) == (flavour != "aprun")


def test_an_older_open_mpi_gets_the_flags_that_it_knows() -> None:
    argv = agents_command(MpiProgram("/opt/mpirun", "openmpi", "4.1.4"), HOSTS, ["agent"])
    assert argv[1:5] == ["--enable-recovery", "--mca", "orte_abort_on_non_zero_status", "0"]
    assert "--runtime-options" not in argv


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_more_flags_stand_before_what_the_ranks_run(flavour: str) -> None:
    words = command(
        MpiProgram("/m", flavour, flags=("--more", "7")), Start(("prog", "-n"), HOSTS, ranks_per_node=2)
    )
    assert words.index("--more") + 1 == words.index("7") < words.index("prog")
    agents = agents_command(MpiProgram("/m", flavour, flags=("--more", "7")), HOSTS, ["prog"])
    assert agents.index("--more") < agents.index("prog")


@given(st.sampled_from(list(FLAVOURS)), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_every_start_has_all_its_ranks(flavour: str, nodes: int, per_node: int, pin: bool) -> None:
    hosts = tuple(f"nid{number:05}" for number in range(nodes))
    words = command(MpiProgram("/m", flavour), Start(("prog",), hosts, ranks_per_node=per_node, pin=pin))
    count = f"--ntasks={nodes * per_node}" if flavour == "slurm" else str(nodes * per_node)
    assert words[-1] == "prog"
    assert count in words


@pytest.mark.parametrize("host", ["x12", "nid", "nid12.site", ""])
def test_aprun_refuses_a_host_without_a_number(host: str) -> None:
    with pytest.raises(WrongCall, match=r"it must look like nid00012"):
        command(MpiProgram("/aprun", "aprun"), Start(("prog",), (host,)))


def test_a_start_of_nothing_is_refused() -> None:
    for flavour in FLAVOURS:
        with pytest.raises(WrongCall, match="at least 1"):
            command(MpiProgram("/m", flavour), Start(("prog",), ()))
        with pytest.raises(WrongCall, match="at least 1"):
            command(MpiProgram("/m", flavour), Start(("prog",), HOSTS, ranks_per_node=0))
        with pytest.raises(WrongCall, match="at least 1"):
            agents_command(MpiProgram("/m", flavour), (), ["agent"])


def test_srun_refuses_a_value_that_it_would_cut() -> None:
    with pytest.raises(WrongCall, match="no comma"):
        built("slurm", environ={"A": "1,2"})
