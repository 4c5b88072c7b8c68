"""Telling an MPI program that could not start its ranks from ranks that failed: recorded and real texts."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from nas_hpc.processes.start_failures import (
    CANNOT_START,
    blames_node,
    blames_node_alone,
    lost_node,
    main_line,
    start_failure,
)
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm

RULE = "-" * 74
FAILED = {
    "hydra, no such program": (255, (
        "[proxy:0@vm] HYDU_create_process (/mpich-5.0.2/src/pm/hydra/lib/utils/launch.c:73): execvp error on "
        "file /no/such/prog (No such file or directory)\n"
    ), "execvp error on file /no/such/prog"),
    "hydra, unknown host": (255, (
        "ssh: Could not resolve hostname nohost2: Name or service not known\n"
        "[mpiexec@vm] ui_cmd_cb (/mpich-5.0.2/src/pm/hydra/mpiexec/pmiserv_pmci.c:51): Launch proxy failed.\n"
        "[mpiexec@vm] main (/mpich-5.0.2/src/pm/hydra/mpiexec/mpiexec.c:270): process manager error waiting "
        "for completion\n"
    ), "ssh: Could not resolve hostname nohost2: Name or service not known"),
    "hydra, firewall": (1, (
        "[proxy:0:1@nid00013] HYDU_sock_connect (sock.c:145): unable to connect from \"nid00013\" to "
        "\"nid00012\" (No route to host)\n"
        "[proxy:0:1@nid00013] main (pmip.c:183): unable to connect to server nid00012 at port 38461 "
        "(check for firewalls!)\n"
    ), "No route to host"),
    "hydra, whose proxy was gone too soon": (-13, "", "SIGPIPE"),
    "Open MPI 4.1, slots": (1, (
        f"{RULE}\nThere are not enough slots available in the system to satisfy the 20\nslots that were "
        f"requested by the application:\n\n  true\n\nEither request fewer slots ...\n{RULE}\n"
    ), "There are not enough slots available in the system to satisfy the 20"),
    "Open MPI 5, host": (255, (
        f"{RULE}\nA daemon failed to report back after being spawned. This could\nbe due to several factors\n"
    ), "A daemon failed to report back after being spawned. This could"),
    "Open MPI 4.1, host": (255, "ORTE was unable to reliably start one or more daemons.\n", "daemons"),
    "Open MPI 5, no such program": (183, (
        "prterun was unable to launch the specified application as it could not\naccess an executable:\n"
    ), "prterun was unable to launch the specified application as it could not"),
    "srun, no room": (1, (
        "srun: error: Unable to create step for job 1: More processors requested than permitted\n"
    ), "More processors requested than permitted"),
    "srun, older": (1, "srun: error: Unable to create job step: Requested nodes are busy\n", "busy"),
    "srun, GPUs": (1, "srun: error: Invalid generic resource (gres) specification\n", "generic resource"),
    "srun, node": (1, "srun: error: Task launch for StepId=7.0 failed on node n3: Socket timed out\n", "n3"),
    "aprun, nodes": (1, "apsched: claim exceeds reservation's node-count\n", "claim exceeds reservation"),
    "a node without the program": (127, "bash: /opt/python: No such file or directory\n", "/opt/python"),
}  # fmt: skip
RAN = {
    "success": (0, "srun: error: Unable to create step for job 1\n"),
    "an exception of a rank": (1, "Traceback (...):\nFileNotFoundError: No such file or directory\n"),
    "a rank killed": (9, (
        "===\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 15 RUNNING AT vm\n"
        "=   EXIT CODE: 9\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
    )),
    "a rank of Open MPI killed": (137, (
        "prterun noticed that process rank 1 with PID 15727 on node vm exited on\nsignal 9 (Killed).\n"
    )),
    "an abort": (16, "Abort(16) on node 0 (rank 0 in comm 496): application called MPI_Abort\n"),
    "a rank of srun": (1, "srun: error: node1: task 1: Exited with exit code 1\n"),
    "nothing said": (3, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_start_is_recognised_and_quoted(name: str) -> None:
    code, text, expected = FAILED[name]
    reason = start_failure(code, text, 0.5)
    assert expected in reason
    assert "\n" not in reason
    assert main_line(text) == reason or code in (127, -13)


@pytest.mark.parametrize("name", RAN)
def test_ranks_that_failed_are_no_failed_start(name: str) -> None:
    code, text = RAN[name]
    assert start_failure(code, text, 0.5) == ""


def test_what_happens_later_is_the_programs_own() -> None:
    missing = FAILED["a node without the program"]
    assert start_failure(127, missing[1], 6.0) == ""
    assert start_failure(*FAILED["srun, no room"][:2], 3600.0) == ""
    assert start_failure(*FAILED["Open MPI 5, host"][:2], 60.0) != ""  # a host that does not answer


def test_what_a_node_may_be_to_blame_for_is_told_from_what_was_asked_for() -> None:
    def judged(said: str) -> tuple[bool, bool]:
        return blames_node(CANNOT_START + said), blames_node_alone(CANNOT_START + said)

    assert judged("srun: error: Task launch for 7.1 failed on node n3: Socket timed out") == (True, True)
    # For a step that asks for too much, and for one on a node that the job has lost.
    assert judged("Unable to create step for job 7: Requested node configuration is not available") == (
        True, False,
    )  # fmt: skip
    assert judged("There are not enough slots available in the system") == (False, False)
    assert not blames_node("exit code 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("srun: error: Node failure on node4\n", "Node failure on node4"),
        (
            "slurmstepd: error: *** STEP 7.1 ON n1 CANCELLED AT 1 DUE TO NODE FAILURE ***",
            "DUE TO NODE FAILURE",
        ),
        ("PRTE has lost communication with a remote daemon.", "PRTE has lost communication"),
        ("rank 0 prints node failure\n", ""),
    ],
)
def test_the_loss_of_a_node_is_seen_in_what_the_mpi_program_says(text: str, said: str) -> None:
    assert lost_node(text).startswith(said)
    assert bool(lost_node(text)) == bool(said)


def run(*argv: object) -> str:
    """The reason of a real start that has to fail."""
    begun = time.monotonic()
    done = subprocess.run(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    reason = start_failure(done.returncode, done.stdout[-2000:], time.monotonic() - begun)
    assert reason, done
    return reason


@pytest.mark.needs_mpich
def test_real_mpich_that_cannot_start(tmp_path: Path, mpich: MpiPeer) -> None:
    refuse = tmp_path / "ssh"
    refuse.write_text("#!/bin/sh\necho 'ssh: connect to host n7 port 22: Connection refused' >&2\nexit 255\n")
    refuse.chmod(0o755)
    assert re.search("/no/such|SIGPIPE", run(mpich.mpiexec, "-n", 2, "/no/such"))
    assert "Connection refused" in run(
        mpich.mpiexec, "-launcher-exec", refuse, "-hosts", "n7", "-n", 1, "true"
    )
    assert "unrecognized argument nosuch" in run(mpich.mpiexec, "-nosuch", "-n", 1, "true")


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_real_openmpi_that_cannot_start(openmpi: MpiPeer) -> None:
    base = (openmpi.mpiexec, "--allow-run-as-root")
    assert "not enough slots" in run(*base, "--host", "localhost:1", "-n", 20, "true")
    assert "unable to launch" in run(*base, "-n", 1, "/no/such")
    assert "unrecognized option" in run(*base, "--nosuch", "-n", 1, "true")


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_real_srun_that_cannot_start(slurm: Slurm) -> None:
    for flags in ("--ntasks=9", "--nodelist=node9", "--gpus-per-task=1"):
        done = slurm.run("salloc", "--quiet", "--nodes=1", "srun", "--exact", flags, "true", code=1)
        assert start_failure(1, done.stdout + done.stderr, 0.5), done
    done = slurm.run("salloc", "--quiet", "--nodes=1", "srun", "/no/such", code=None)
    assert "/no/such" in start_failure(done.returncode, done.stdout + done.stderr, 0.5)
