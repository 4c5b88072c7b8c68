"""Telling an MPI program that could not start its ranks from ranks that failed.

Standard library only, Python 3.8 or later: it is loaded in keepers. The texts are those of MPICH 3 to 5, Open
MPI 4.1 and 5, Slurm 22.05, PALS and ALPS. The wrapper of each rank reports by itself that a program cannot be
started (``nas_hpc.processes.rank``), so what is looked for here happens before any wrapper runs.
"""

from __future__ import annotations

import re
import signal

START_S = 5.0
"""What an MPI program cannot start, it usually gives up within this time."""
CANNOT_START = "the MPI program cannot start the ranks: "
_PATIENT_S = 120.0
"""But connecting to a host that does not answer takes longer; only unmistakable texts count then."""

_CERTAIN = (
    # hydra
    r"Launch proxy failed",
    r"HYDU_create_process .*execvp error on file",
    r"HYDU_sock_connect .*unable to connect",
    r"unable to connect to server .* at port",
    r"unrecognized argument",
    r"unable to parse user arguments",
    # Open MPI
    r"There are not enough slots available in the system",
    r"was unable to launch the specified application",
    r"A daemon failed to report back after being spawned",
    r"unable to reliably start one or more daemons",
    r"An unrecognized option was included on the \S+ command line",
    r"has detected an attempt to run as root",
    r"requested more processes than the ppr",
    r"would result in binding more processes than cpus",
    r"would require binding to more cpus",
    r"(?:PRTE|ORTE) has lost communication with a remote daemon",
    # srun
    r"srun: error: Unable to create (?:job )?step",
    r"srun: error: Invalid generic resource",
    r"srun: error: Unable to (?:allocate|confirm allocation)",
    r"srun: error: Task launch for .* failed",
    r"srun: error: .*[Uu]nrecognized option",
    r"srun: fatal:",
    r"slurmstepd\S*: error: execve\(\)",
    # aprun and PALS
    r"apsched: (?:claim exceeds|no matching|requested|request exceeds)",
    r"aprun: .*(?:Unable to|could not|not allowed)",
    r"mpiexec: .*(?:Application launch|Failed to (?:launch|connect)|No hosts)",
    # ssh, started by any of them
    r"ssh: (?:connect to host|Could not resolve hostname)",
    r"Host key verification failed",
)
_CERTAINLY = re.compile("|".join(_CERTAIN))
_NOT_FOUND = re.compile(r"(?:command not found|No such file or directory)")
_ENDED = re.compile(
    r"EXIT STRING: (.*)|noticed that (process rank [\s\S]*? exited on\s+signal \d+(?: \(.*?\))?)|"
    r"srun: error: (.*: task.*)|(?:apid|Apid|PE RANK).*?(exit signal.*)"
)
_NOISE = re.compile(
    r"^[-= ]*$|cluster configuration lacks support|component_repository_open|YOUR APPLICATION TERMINATED|"
    r"BAD TERMINATION|This typically refers|Please see the FAQ|nas-hpc-check "
)


def start_failure(return_code: int | None, text: str, duration_s: float) -> str:
    """Why an MPI program could not start its ranks, one line; empty if it did start them or that is unknown.

    ``text`` is its output (the end of it is enough), ``duration_s`` how long it ran.
    """
    if not return_code or duration_s > _PATIENT_S:
        return ""
    if return_code == -signal.SIGPIPE and duration_s <= START_S and not text.strip():
        return "it ended by SIGPIPE and said nothing"  # hydra, if its proxy goes before it has read from it
    match = _CERTAINLY.search(text)
    if match is None:
        quick = duration_s <= START_S and return_code in (126, 127)
        match = _NOT_FOUND.search(text) if quick else None
    if match is None:
        return ""
    begin = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return " ".join(text[begin : end if end >= 0 else len(text)].split())[:300]


_OF_REQUEST = re.compile(
    r"not enough slots|unrecognized|parse user arguments|run as root|the ppr|would (?:result|require)|"
    r"More processors|generic resource|claim exceeds"
)
_OF_EITHER = "configuration is not available"
"""Slurm's word for a step that asks for too much, and for one on a node that the job has lost."""


def blames_node(reason: str) -> bool:
    """Whether a failed start may be the node's fault: what was asked for was not impossible anywhere, and the
    node did not get so far as to say itself what it cannot start.
    """
    return reason.startswith(CANNOT_START) and _OF_REQUEST.search(reason) is None


def blames_node_alone(reason: str) -> bool:
    """Whether it is the node's fault for sure, and not what this one job asked for."""
    return blames_node(reason) and _OF_EITHER not in reason


_LOST = re.compile(
    r"srun: error: (Node failure on \S+)|(DUE TO NODE FAILURE)|"
    r"((?:PRTE|ORTE) has lost communication with a remote daemon)|"
    r"((?:control_cb|HYDT_\w+) .*assert \(!closed\) failed)"
)


def lost_node(text: str) -> str:
    """What an MPI program says of a node that went while ranks ran there; empty if nothing."""
    match = _LOST.search(text)
    return next(filter(None, match.groups()), "") if match else ""


def ended_line(text: str) -> str:
    """How a rank ended, in the words of the MPI program; empty if it says nothing of the kind."""
    match = _ENDED.search(text)
    return " ".join(next(filter(None, match.groups()), "").split())[:300] if match else ""


_BY_SIGNAL = re.compile(r"\bsignal (\d+)\b")


def signal_of(reason: str) -> int:
    """The signal by which a rank ended, as the reason of a failed MPI start tells; 0 if it tells of none."""
    match = _BY_SIGNAL.search(reason)
    return int(match.group(1)) if match else 0


def main_line(text: str) -> str:
    """The line of an MPI program's output that tells most; empty if there is none."""
    match = _CERTAINLY.search(text)
    if match is not None:
        begin = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        return " ".join(text[begin : end if end >= 0 else len(text)].split())[:300]
    lines = [line.strip() for line in text.splitlines() if not _NOISE.search(line)]
    return lines[-1][:300] if lines else ""
