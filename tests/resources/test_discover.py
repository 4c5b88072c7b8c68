"""The allocation around the process: its nodes, what they have, and when it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.resources import Found, as_reported, discover, local_nodes
from tests.peers.slurm import Slurm
from tests.resources import trees

NOW = 1_800_000_000.0
HOST = socket.gethostname()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine with 8 cores of 2 hardware threads and 4 GPUs."""
    root = tmp_path / "root"
    trees.cpus(root, [[n, n + 8] for n in range(8)])
    trees.nvidia(root, 4)
    return root


def found(environ: Mapping[str, str], tree: Path, **how: Any) -> Found:
    how = {"run": trees.nothing, "cpus": range(16), "now": NOW, **how}
    return discover(environ, root=tree, **how)


def names(allocation: Found) -> list[str]:
    return [node.name for node in allocation.nodes]


def node_file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "nodefile"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def said(allocation: Found) -> str:
    """The one note, but for that of the missing nvidia-smi."""
    notes = [note for note in allocation.notes if "nvidia-smi" not in note]
    assert len(notes) <= 1, notes
    return "".join(notes)


# -- this machine -----------------------------------------------------------------------------------------
def test_without_a_batch_job_it_is_this_machine(tree: Path) -> None:
    one = found({}, tree)
    [node] = one.nodes
    assert (node.name, node.cores, node.gpus) == (HOST, tuple(range(8)), ("0", "1", "2", "3"))
    assert node.threads_per_core == 2
    assert (one.source, one.job, one.ends, one.virtual) == ("local", "", 0.0, False)
    assert one.pinned
    assert one.elsewhere == ()
    assert str(one) == f"this machine: 1 node {HOST} with 8 cores x 2 threads, 4 GPUs (0, 1, 2, 3)"


def test_virtual_nodes_share_this_machine_but_never_a_gpu(tree: Path) -> None:
    three = found({}, tree, nodes=3)
    assert names(three) == [f"{HOST}-{n}" for n in range(3)]
    assert {node.address for node in three.nodes} == {HOST}
    assert [node.gpus for node in three.nodes] == [("0", "1"), ("2",), ("3",)]
    assert three.virtual
    assert not three.pinned
    assert three.elsewhere == ()


def test_numbers_that_a_person_gives_hold_by_ids_of_the_machine_or_made_up(tree: Path) -> None:
    some = found({}, tree, cores_per_node=3, gpus_per_node=2)
    assert some.nodes[0].cores == (0, 1, 2)
    assert some.nodes[0].gpus == ("0", "1")
    assert some.pinned
    more = found({}, tree, nodes=2, cores_per_node=12, gpus_per_node=6)
    assert [len(node.cores) for node in more.nodes] == [12, 12]
    assert more.nodes[1].gpus == ("0", "1", "2", "3", "4", "5")
    assert not found({}, tree, cores_per_node=12).pinned, "made-up cores are pinned to nowhere"


@pytest.mark.parametrize("how", [{"nodes": -1}, {"cores_per_node": -2}, {"gpus_per_node": -1}])
def test_negative_numbers_are_refused(tree: Path, how: dict[str, int]) -> None:
    with pytest.raises(WrongCall, match="must not be negative"):
        found({}, tree, **how)


def test_local_nodes_are_as_ever() -> None:
    assert [node.name for node in local_nodes(2, 4)] == [f"{HOST}-0", f"{HOST}-1"]
    assert set(local_nodes()[0].cores) <= os.sched_getaffinity(0)
    for wrong in ((0, 0), (1, -1)):
        with pytest.raises(WrongCall):
            local_nodes(*wrong)


# -- Cobalt -----------------------------------------------------------------------------------------------
ALPS = {
    "COBALT_JOBID": "7",
    "COBALT_PARTNAME": "1-5,7,10",
    "COBALT_JOBSIZE": "7",
    "COBALT_ENDTIME": "1800003600",
}


def test_cobalt_on_a_cray_gives_node_ids_and_the_end(tree: Path) -> None:
    job = found(ALPS, tree)
    assert names(job) == [f"nid{n:05d}" for n in (1, 2, 3, 4, 5, 7, 10)]
    assert (job.source, job.job, job.ends) == ("cobalt", "7", 1800003600.0)
    assert job.here == "", "a batch script runs on a head node"
    assert job.elsewhere == tuple(names(job))
    assert not job.pinned


def test_cobalts_node_file_counts_before_its_partition(tree: Path, tmp_path: Path) -> None:
    path = node_file(tmp_path, "cc1", "cc2")
    job = found({**ALPS, "COBALT_NODEFILE": path, "COBALT_PARTNAME": "cc1", "COBALT_JOBSIZE": "2"}, tree)
    assert names(job) == ["cc1", "cc2"]
    assert said(job) == ""
    assert "COBALT_JOBSIZE is 3" in said(
        found({**ALPS, "COBALT_NODEFILE": path, "COBALT_JOBSIZE": "3"}, tree)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"COBALT_JOBSIZE": "8"}, "has 7 nodes, but COBALT_JOBSIZE is 8: they must agree"),
        ({"COBALT_JOBSIZE": "many"}, "COBALT_JOBSIZE is 'many'"),
        ({"COBALT_PARTNAME": "1-5;7"}, "COBALT_PARTNAME '1-5;7'"),
        ({"COBALT_PARTNAME": ""}, "COBALT_JOBID is 7, but COBALT_NODEFILE and COBALT_PARTNAME do not say"),
        ({"COBALT_NODEFILE": "/no/such"}, "COBALT_NODEFILE /no/such cannot be read"),
    ],
)
def test_what_cobalt_says_wrongly_is_refused(tree: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(WrongCall) as caught:
        found({**ALPS, **changed}, tree)
    assert message in str(caught.value)


@pytest.mark.parametrize("end", ["soon", "", "nan", "-1", "01:00:00"])
def test_an_end_that_cannot_be_read_is_told_and_unknown(tree: Path, end: str) -> None:
    job = found({**ALPS, "COBALT_ENDTIME": end}, tree)
    assert job.ends == 0
    assert "COBALT_ENDTIME" in said(job)


def test_the_end_of_an_interactive_cobalt_job_is_asked_for(tree: Path) -> None:
    interactive = {name: value for name, value in ALPS.items() if name != "COBALT_ENDTIME"}
    head = "JobID  TimeRemaining  \n======================\n"
    for left, expected in (("00:30:05", 1805), ("01:02:03:04", 93784)):
        job = found(interactive, tree, run=trees.answers(qstat=f"{head}7      {left}  \n"))
        assert (job.ends, said(job)) == (NOW + expected, "")
    for answer, why in (
        (None, "qstat does not answer"), ("", "qstat does not tell"),
        (f"{head}7      N/A  \n", "does not tell"), (f"{head}7      00:99:00  \n", "does not tell"),
        (f"{head}7      01:99:00:00  \n", "does not tell"),
        (f"{head}8      00:30:05  \n", "does not tell"), (f"{head}7\n", "does not tell"),
    ):  # fmt: skip
        job = found(interactive, tree, run=trees.answers(qstat=answer))
        assert job.ends == 0
        assert "when Cobalt job 7 ends is unknown: no COBALT_ENDTIME; qstat" in said(job)
        assert why in said(job)


# -- PBS --------------------------------------------------------------------------------------------------
def pbs(tmp_path: Path, **more: str) -> dict[str, str]:
    path = node_file(tmp_path, "x1.hsn.org", "x1.hsn.org", "", f"{HOST}.hsn.org", "x3.hsn.org")
    return {"PBS_JOBID": "12345.polaris-pbs-01", "PBS_NODEFILE": path, **more}


def qstat(walltime: object = "01:00:00", stime: object = "Fri Jan 15 08:00:00 2027", **more: Any) -> str:
    job = {"job_state": "R", "Resource_List": {"ncpus": 64, "walltime": walltime}, "stime": stime, **more}
    return json.dumps({"timestamp": 1, "Jobs": {"12345.polaris-pbs-01": job}})


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_pbs_gives_each_node_once_and_the_launchers_first(tree: Path, tmp_path: Path) -> None:
    job = found(pbs(tmp_path), tree)
    assert names(job) == [f"{HOST}.hsn.org", "x1.hsn.org", "x3.hsn.org"]
    assert job.here == f"{HOST}.hsn.org"
    assert job.elsewhere == ("x1.hsn.org", "x3.hsn.org")
    assert job.real
    assert not job.pinned, "other nodes' cores are not this machine's"
    assert [len(node.cores) for node in job.nodes] == [8, 8, 8], "until their agents tell"
    assert names(found(pbs(tmp_path), tree, nodes=2)) == names(job)[:2]


@pytest.mark.usefixtures("utc")
def test_the_end_of_a_pbs_job_is_asked_for(tree: Path, tmp_path: Path) -> None:
    begun = 1_800_000_000  # Fri Jan 15 08:00:00 2027
    for answer in (
        qstat(),
        qstat("1:00:00"),
        qstat(3600),
        qstat().replace('"ncpus": 64', '"nodefile": 007'),  # as a variable of a user's makes it
    ):
        job = found(pbs(tmp_path), tree, run=trees.answers(qstat=answer))
        assert (job.ends, said(job)) == (begun + 3600, ""), answer
    assert found(pbs(tmp_path), tree, run=trees.answers(qstat=qstat("36:00:00"))).ends == begun + 129600


@pytest.mark.parametrize(
    "answer",
    [None, "", "qstat: Unknown Job Id", "{}", '{"Jobs": {}}', '{"Jobs": []}', qstat(stime="yesterday"),
     qstat(walltime="INVALID"), qstat(stime=None)],
)  # fmt: skip
def test_a_qstat_that_fails_or_says_nothing_is_told_and_the_end_unknown(
    tree: Path, tmp_path: Path, answer: str | None
) -> None:
    job = found(pbs(tmp_path), tree, run=trees.answers(qstat=answer))
    assert job.ends == 0
    assert "when PBS job 12345.polaris-pbs-01 ends is unknown: qstat" in said(job)


def test_a_pbs_jobs_end_follows_from_its_scripts_start_and_walltime(tree: Path, tmp_path: Path) -> None:
    script = {"NAS_HPC_BATCH_START": str(NOW - 60), "NAS_HPC_BATCH_WALLTIME": "00:30:00"}
    job = found(pbs(tmp_path, **script), tree)
    assert job.ends == NOW - 60 + 1800
    assert "qstat does not answer" in said(job)
    written = os.stat(pbs(tmp_path)["PBS_NODEFILE"]).st_mtime
    assert found(pbs(tmp_path, PBS_WALLTIME="1800"), tree).ends == pytest.approx(written + 1800, abs=1)
    wrong = found(pbs(tmp_path, NAS_HPC_BATCH_WALLTIME="a while"), tree)
    assert (wrong.ends, "'a while' is no duration" in said(wrong)) == (0, True)


def test_nobody_is_asked_for_the_end_where_a_limit_is_given(tree: Path, tmp_path: Path) -> None:
    def asked(argv: Any, timeout_s: float) -> str | None:
        assert argv[0] == "nvidia-smi", f"asked {argv}"
        return None

    job = found(pbs(tmp_path), tree, run=asked, ask_end=False)
    assert (job.ends, said(job)) == (0, "")
    slurm = found({**SLURM, "SLURM_JOB_END_TIME": "1800000600"}, tree, run=asked, ask_end=False)
    assert slurm.ends == 1_800_000_600


# -- Slurm ------------------------------------------------------------------------------------------------
SLURM = {
    "SLURM_JOB_ID": "99",
    "SLURM_JOB_NODELIST": "node[1,3-5]",
    "SLURMD_NODENAME": "node1",
    "SLURM_JOB_CPUS_PER_NODE": "16(x3),8",
}


def test_slurm_gives_nodes_cores_gpus_and_end(tree: Path) -> None:
    job = found({**SLURM, "SLURM_JOB_END_TIME": "1800000600", "SLURM_GPUS_ON_NODE": "4"}, tree)
    assert names(job) == ["node1", "node3", "node4", "node5"]
    assert [len(node.cores) for node in job.nodes] == [8, 8, 8, 4], "16 CPUs are 8 cores of 2 threads"
    assert [len(node.gpus) for node in job.nodes] == [4, 4, 4, 4]
    assert (job.source, job.job, job.ends, job.here) == ("slurm", "99", 1_800_000_600, "node1")
    assert job.notes == () or "nvidia-smi" in job.notes[0]
    old = {"SLURM_JOBID": "99", "SLURM_NODELIST": "node[1,3-5]"}
    assert names(found(old, tree)) == names(job)


def test_other_nodes_are_like_this_one_until_their_agents_tell(tree: Path) -> None:
    unknown = found({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "a,b"}, tree, gpus_per_node=2)
    assert [(len(n.cores), n.gpus) for n in unknown.nodes] == [(8, ("0", "1"))] * 2
    told = as_reported(unknown.nodes[1], cores=range(4, 10), threads_per_core=4, numa=[(4, 5, 6), (7, 8, 9)],
                       gpus=["10", "9"])  # fmt: skip
    assert (told.name, told.cores, told.gpus) == ("b", (4, 5, 6, 7, 8, 9), ("9", "10"))
    assert (told.threads_per_core, told.numa) == (4, ((4, 5, 6), (7, 8, 9)))
    assert unknown.guessed == ("a", "b")
    assert found(SLURM, tree).guessed == (), "Slurm has told"
    confined = as_reported(unknown.nodes[1], cores=range(64), most=16)
    assert confined.cores == tuple(range(16)), "the agent is not confined to what the job has"
    fewer = as_reported(unknown.nodes[1], cores=range(4, 10), cores_per_node=2, gpus=["7"], gpus_per_node=1)
    assert (fewer.cores, fewer.gpus) == ((4, 5), ("7",))


def test_a_job_that_has_a_part_of_this_machine_gets_no_more(tree: Path) -> None:
    part = {**SLURM, "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_CPUS_PER_NODE": "6"}
    assert len(found(part, tree).nodes[0].cores) == 3, "not confined, 6 hardware threads"
    confined = found(part, tree, cpus=[2, 10, 3, 11, 4, 12])
    assert confined.nodes[0].cores == (2, 3, 4)
    whole = found({**part, "SLURM_JOB_CPUS_PER_NODE": "8"}, tree)
    assert len(whole.nodes[0].cores) == 8, "where CPUs are cores, 8 are all"
    more = found({**part, "SLURM_JOB_CPUS_PER_NODE": "64"}, tree)
    assert len(more.nodes[0].cores) == 64
    assert not more.pinned


@pytest.mark.parametrize("cpus", ["16(x3)", "16(x3),8,8", "many", "16(x3),0", "16(x-1)"])
def test_cpus_that_do_not_match_the_nodes_are_told_and_not_believed(tree: Path, cpus: str) -> None:
    job = found({**SLURM, "SLURM_JOB_CPUS_PER_NODE": cpus, "SLURM_JOB_END_TIME": "1800000600"}, tree)
    assert "SLURM_JOB_CPUS_PER_NODE" in said(job)
    assert [len(node.cores) for node in job.nodes] == [8] * 4


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        ({"squeue": "1800000600 10:00\n"}, NOW + 600),
        ({"squeue": "N/A 59:30\n"}, NOW + 3570),
        ({"squeue": "N/A 0:45\n"}, NOW + 45),
        ({"squeue": "N/A 1-00:00:00\n"}, NOW + 86400),
        ({"squeue": "N/A UNLIMITED\n"}, 0),
        ({"scontrol": "JobId=99 StartTime=1 EndTime=1800000600 Deadline=N/A\n"}, NOW + 600),
        ({"squeue": "garbage\n", "scontrol": "JobId=99 EndTime=1800000600\n"}, NOW + 600),
        ({"squeue": "N/A INVALID\n", "scontrol": "JobId=99 EndTime=1800000600\n"}, NOW + 600),
    ],
)
def test_slurm_is_asked_for_the_end(tree: Path, answers: dict[str, str], ends: float) -> None:
    job = found(SLURM, tree, run=trees.answers(**answers))
    assert (job.ends, said(job)) == (ends, "")


@pytest.mark.usefixtures("utc")
def test_slurms_local_times_are_read_too(tree: Path) -> None:
    job = found(SLURM, tree, run=trees.answers(squeue="2027-01-15T08:10:00 10:00\n"))
    assert job.ends == NOW + 600


@pytest.mark.parametrize("answer", [None, "", "N/A INVALID\n", "Unknown NOT_SET", "slurm_load_jobs error"])
def test_an_end_that_slurm_does_not_tell_is_said_and_not_taken_for_none(
    tree: Path, answer: str | None
) -> None:
    job = found(SLURM, tree, run=trees.answers(squeue=answer))
    assert job.ends == 0
    assert "when Slurm job 99 ends is unknown" in said(job)


@pytest.mark.parametrize("text", ["node[1", "", "node[5-1]"])
def test_a_node_list_that_cannot_be_parsed_is_refused(tree: Path, text: str) -> None:
    with pytest.raises(WrongCall, match="SLURM_JOB_NODELIST"):
        found({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": text}, tree)


# -- how many, and which batch system ---------------------------------------------------------------------
def test_nodes_are_the_first_so_many_and_more_than_there_are_are_refused(tree: Path) -> None:
    assert names(found(SLURM, tree, nodes=2)) == ["node1", "node3"]
    with pytest.raises(WrongCall, match=r"--nodes 5: slurm job 99 has 4 \(node\[1,3-5\]\)"):
        found(SLURM, tree, nodes=5)


def test_variables_without_a_job_id_are_of_an_earlier_job_and_told(tree: Path, tmp_path: Path) -> None:
    job = found({"PBS_NODEFILE": node_file(tmp_path, "a"), "SLURM_JOB_CPUS_PER_NODE": "4"}, tree)
    assert job.source == "local"
    assert said(job) == "PBS_NODEFILE is set, but PBS_JOBID is not: it is of an earlier job"


def test_of_two_jobs_the_one_that_has_this_machine_counts(tree: Path, tmp_path: Path) -> None:
    both = {**SLURM, **pbs(tmp_path), "SLURM_JOB_END_TIME": "1800000600"}
    del both["SLURMD_NODENAME"]
    job = found(both, tree, ask_end=False)
    assert job.source == "pbs"
    assert said(job) == f"SLURM_JOB_ID=99 is of an earlier job: pbs job {job.job} counts"
    other = found(
        {**both, "PBS_NODEFILE": node_file(tmp_path, "elsewhere"), "SLURMD_NODENAME": "node1"}, tree
    )
    assert other.source == "slurm"
    broken = found({**both, "PBS_NODEFILE": "/no/such"}, tree)
    assert broken.source == "slurm"


def test_two_jobs_that_cannot_be_told_apart_are_refused(tree: Path, tmp_path: Path) -> None:
    both = {
        **SLURM,
        "PBS_JOBID": "1.x",
        "PBS_NODEFILE": node_file(tmp_path, "elsewhere"),
        "SLURMD_NODENAME": "",
    }
    with pytest.raises(WrongCall, match="PBS_JOBID=1.x and SLURM_JOB_ID=99 are set"):
        found(both, tree)
    same = found({**both, "PBS_JOBID": "99"}, tree, ask_end=False)
    assert same.source == "slurm", "Slurm sets PBS's variables for scripts of PBS's users"


def test_a_short_name_that_two_nodes_share_is_nobodys(tree: Path, tmp_path: Path) -> None:
    environ = pbs(tmp_path)
    node_file(tmp_path, f"{HOST}.a.org", f"{HOST}.b.org")
    assert found(environ, tree, ask_end=False).here == ""


# -- the real thing ---------------------------------------------------------------------------------------
SHOW = """
import json
from nas_hpc.resources import discover
found = discover()
print("FOUND", json.dumps([[n.name for n in found.nodes], [len(n.cores) for n in found.nodes], found.ends,
                           found.here, list(found.elsewhere), list(found.notes), found.job]))
"""


@pytest.mark.slow
@pytest.mark.needs_slurm
def test_a_real_slurm_job_is_found_with_its_end(slurm: Slurm, checkout: Path) -> None:
    script = f"cd {checkout}; {sys.executable} -c '{SHOW.replace(chr(39), chr(34))}'"
    job = slurm.sbatch(script, "-N3", "--cpus-per-task=3", "--time=0:10:00")
    slurm.wait_job(job)
    [line] = [line for line in slurm.output(job).splitlines() if line.startswith("FOUND")]
    nodes, cores, ends, here, elsewhere, notes, number = json.loads(line.removeprefix("FOUND"))
    assert nodes == ["node1", "node2", "node3"]
    assert cores == [3, 3, 3]
    assert (here, elsewhere, notes, number) == ("node1", ["node2", "node3"], [], str(job))
    assert ends == pytest.approx(time.time() + 600, abs=60)
