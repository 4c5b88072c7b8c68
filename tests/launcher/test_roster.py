"""Which agents an allocation is to have, and which recorded ones may be taken over."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher import LauncherOptions, roster
from nas_hpc.launcher.roster import Process, Roster
from nas_hpc.processes import sessions
from nas_hpc.records import Node
from nas_hpc.resources import Found
from nas_hpc.site import Site, create_site


def virtual(count: int) -> Found:
    return Found(tuple(Node(f"h-{k}", (0, 1), host="h") for k in range(count)), virtual=True)


def hosts(count: int, here: str = "n0") -> Found:
    return Found(tuple(Node(f"n{k}", (0, 1)) for k in range(count)), "slurm", "17", here=here)


def wanted(found: Found, **options: object) -> Roster | None:
    return roster.wanted(LauncherOptions(**{"job_mode": "serial", **options}), found)  # type: ignore[arg-type]


def blocks(found: Found, **options: object) -> tuple[tuple[str, ...], ...]:
    made = wanted(found, **options)
    return () if made is None else made.nodes


def test_without_other_hosts_and_without_being_asked_the_launcher_does_all_itself() -> None:
    assert wanted(virtual(4)) is None
    assert wanted(Found((Node("h", (0,)),), here="h")) is None
    assert wanted(hosts(4), job_mode="mpi") is None
    assert wanted(virtual(4), job_mode="mpi", agents=2) is None


@given(nodes=st.integers(1, 40), agents=st.integers(1, 50), master=st.booleans())
def test_virtual_nodes_are_shared_out_in_blocks_that_differ_by_one_at_most(
    nodes: int, agents: int, master: bool
) -> None:
    found = virtual(nodes)
    got = blocks(found, agents=agents, use_master_node=master)
    served = [node.name for node in found.nodes][0 if nodes == 1 or master else 1 :]
    assert [name for block in got for name in block] == served
    assert len(got) == min(agents, len(served))
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_each_other_host_has_one_agent_and_the_master_s_has_none() -> None:
    made = wanted(hosts(4))
    assert made is not None
    assert made.nodes == (("n1",), ("n2",), ("n3",))
    assert (made.start, made.allocation) == ("ensemble", "slurm 17")
    assert blocks(hosts(4), use_master_node=True) == (("n1",), ("n2",), ("n3",)), (
        "the launcher serves its own"
    )
    away = hosts(4, here="")
    assert blocks(away) == (("n1",), ("n2",), ("n3",)), "the first one is the master's all the same"
    assert blocks(away, use_master_node=True) == (("n0",), ("n1",), ("n2",), ("n3",))
    assert blocks(hosts(1, here="")) == (("n0",),)


@pytest.mark.parametrize(
    ("found", "flag", "start"),
    [
        (hosts(3), "auto", "ensemble"),
        (hosts(3), "ensemble", "ensemble"),
        (hosts(3), "per_node", "per_node"),
        (virtual(3), "auto", "direct"),
        (virtual(3), "per_node", "direct"),
        (virtual(3), "ensemble", "ensemble"),
    ],
)
def test_how_agents_are_started(found: Found, flag: str, start: str) -> None:
    made = wanted(found, agents=2, agent_start=flag)
    assert made is not None
    assert made.start == start


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return create_site(tmp_path / "site")


def myself(*numbers: int, **other: object) -> Process:
    ticks = sessions.start_ticks(os.getpid())
    here = os.uname().nodename
    made = Process(here, sessions.boot_id(), os.getpid(), ticks, numbers)
    return replace(made, **other)  # type: ignore[arg-type]


def test_the_record_comes_back_as_it_was_written_and_nobody_else_may_read_it(site: Site) -> None:
    made = wanted(hosts(3))
    assert made is not None
    made = made.with_processes([myself(0, 1), myself(2, pid=1, start_ticks=0)])
    roster.write(site, made)
    assert roster.read(site) == made
    assert stat.S_IMODE(roster.file_of(site).stat().st_mode) == 0o600
    assert made.living(site) == {0, 1}, "the second process is another one by now"
    roster.remove(site, replace(made, id="somebody else's"))
    assert roster.read(site) == made
    roster.remove(site, made)
    assert roster.read(site) is None


def test_only_a_start_of_this_allocation_version_and_these_nodes_is_taken_over(site: Site) -> None:
    want = wanted(hosts(3))
    assert want is not None
    old = replace(want, id="old", processes=(myself(0, 1),))
    assert roster.why_not(site, old, want) == ""
    assert "without agents" in roster.why_not(site, old, None)
    assert "another allocation (slurm 18)" in roster.why_not(site, replace(old, allocation="slurm 18"), want)
    assert "nas-hpc 7" in roster.why_not(site, replace(old, version="7"), want)
    assert "protocol 99" in roster.why_not(site, replace(old, protocol=99), want)
    assert "other nodes" in roster.why_not(site, replace(old, nodes=(("n1",),)), want)
    gone = replace(old, processes=(myself(0, 1, boot_id="before"),))
    assert "none of them is alive" in roster.why_not(site, gone, want)
    elsewhere = replace(old, processes=(myself(0, 1, host="another"),))
    assert roster.why_not(site, elsewhere, want) == "", "nobody can prove the death of another host's process"
