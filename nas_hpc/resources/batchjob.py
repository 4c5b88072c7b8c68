"""The batch job around this process, by the variables that Cobalt, PBS and Slurm set in it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nas_hpc.errors import WrongCall
from nas_hpc.resources.hostlist import alps_name, compress, parse_hostlist, parse_node_ids, read_node_file

_ID_VARIABLES = {"cobalt": ("COBALT_JOBID",), "pbs": ("PBS_JOBID",), "slurm": ("SLURM_JOB_ID", "SLURM_JOBID")}
_NODE_VARIABLES = {
    "cobalt": ("COBALT_NODEFILE", "COBALT_PARTNAME"),
    "pbs": ("PBS_NODEFILE",),
    "slurm": ("SLURM_JOB_NODELIST", "SLURM_NODELIST"),
}
_CPUS = re.compile(r"(\d+)(?:\(x(\d+)\))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """A batch job: its system, id, and the names of its nodes in the system's order."""

    system: str
    id: str
    names: tuple[str, ...]
    cpus: tuple[int, ...] = ()
    """CPUs of each node as the system counts them (cores, or hardware threads); empty: not told."""
    gpus: int = -1
    """GPUs of each node; -1: not told."""
    notes: tuple[str, ...] = ()


def names_of_this_host(environ: Mapping[str, str]) -> tuple[str, ...]:
    """By which this machine may stand in a list of nodes. No name service is asked: it may hang."""
    host = socket.gethostname()
    slurm = environ.get("SLURMD_NODENAME", "")
    return tuple(dict.fromkeys(name for name in (slurm, host, host.split(".")[0]) if name))


def place_of_this_host(names: Sequence[str], mine: Iterable[str]) -> int | None:
    """Which of ``names`` is this machine: by the whole name, else by a short one that only one has."""
    for name in mine:
        if name in names:
            return names.index(name)
    shorts = [name.split(".")[0] for name in names]
    for name in mine:
        if shorts.count(name.split(".")[0]) == 1:
            return shorts.index(name.split(".")[0])
    return None


def find_batch_job(environ: Mapping[str, str], mine: Iterable[str]) -> tuple[CurrentJob | None, list[str]]:
    """The batch job that this process belongs to, and what is to be said.

    The system whose job id is set counts. If several ids are, one was inherited from an earlier job: the job
    that has this machine among its nodes counts. Raises WrongCall if that does not decide, and for node
    lists and files that make no sense.
    """
    ids = {system: _first(environ, variables) for system, variables in _ID_VARIABLES.items()}
    present = [system for system, (_, value) in ids.items() if value]
    if "slurm" in present and "pbs" in present and ids["slurm"][1] == ids["pbs"][1]:
        present.remove("pbs")  # Slurm's plugin for PBS scripts sets both
    notes = [
        f"{variable} is set, but {' and '.join(_ID_VARIABLES[system])} is not: it is of an earlier job"
        for system in ids
        if not ids[system][1]
        for variable in _NODE_VARIABLES[system]
        if environ.get(variable)
    ]
    if not present:
        return None, notes
    if len(present) == 1:
        return _READERS[present[0]](environ, ids[present[0]][1]), notes
    job = _decide(environ, {system: ids[system] for system in present}, tuple(mine))
    for system in present:
        if system != job.system:
            notes.append(f"{'='.join(ids[system])} is of an earlier job: {job.system} job {job.id} counts")
    return job, notes


def _decide(
    environ: Mapping[str, str], ids: Mapping[str, tuple[str, str]], mine: tuple[str, ...]
) -> CurrentJob:
    readable: list[CurrentJob] = []
    for system, (_, job_id) in ids.items():
        try:
            readable.append(_READERS[system](environ, job_id))
        except WrongCall:
            continue
    here = [job for job in readable if place_of_this_host(job.names, mine) is not None]
    for certain in (here, readable):
        if len(certain) == 1:
            return certain[0]
    said = " and ".join("=".join(pair) for pair in ids.values())
    raise WrongCall(f"{said} are set, and this machine is in one job only: unset those of the other")


def _cobalt(environ: Mapping[str, str], job: str) -> CurrentJob:
    wanted = _whole_number(environ, "COBALT_JOBSIZE")
    path, part = environ.get("COBALT_NODEFILE", ""), environ.get("COBALT_PARTNAME", "")
    notes: tuple[str, ...] = ()
    if path:
        names = read_node_file(path, "COBALT_NODEFILE")
        if wanted and wanted != len(names):
            notes = (f"COBALT_NODEFILE {path} has {len(names)} nodes, COBALT_JOBSIZE is {wanted}",)
        return CurrentJob("cobalt", job, tuple(names), notes=notes)
    if not part:
        raise _no_nodes("cobalt", job)
    names = [alps_name(number) for number in parse_node_ids(part, "COBALT_PARTNAME")]
    if wanted and wanted != len(names):
        raise WrongCall(
            f"COBALT_PARTNAME {part} has {len(names)} nodes, but COBALT_JOBSIZE is {wanted}: they must agree"
        )
    return CurrentJob("cobalt", job, tuple(names))


def _pbs(environ: Mapping[str, str], job: str) -> CurrentJob:
    path = environ.get("PBS_NODEFILE", "")
    if not path:
        raise _no_nodes("pbs", job)
    return CurrentJob("pbs", job, tuple(read_node_file(path, "PBS_NODEFILE")))


def _slurm(environ: Mapping[str, str], job: str) -> CurrentJob:
    variable, text = _first(environ, _NODE_VARIABLES["slurm"])
    if not text:
        raise _no_nodes("slurm", job)
    names = parse_hostlist(text, variable)
    notes = []
    counted = environ.get("SLURM_JOB_CPUS_PER_NODE", "")
    cpus = parse_cpus_per_node(counted)
    if counted and len(cpus) != len(names):
        notes.append(f"SLURM_JOB_CPUS_PER_NODE={counted!r} does not tell the CPUs of {len(names)} nodes")
        cpus = ()
    if _whole_number(environ, "SLURM_HET_SIZE") > 1:
        notes.append(f"Slurm job {job} has several components: only {compress(names)} is used")
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    return CurrentJob("slurm", job, tuple(names), cpus, int(gpus) if gpus.isdecimal() else -1, tuple(notes))


_READERS = {"cobalt": _cobalt, "pbs": _pbs, "slurm": _slurm}


def parse_cpus_per_node(text: str) -> tuple[int, ...]:
    """``16(x3),8`` as (16, 16, 16, 8); nothing for what is no such list."""
    counts: list[int] = []
    for part in text.strip().split(","):
        match = _CPUS.fullmatch(part.strip())
        if match is None or int(match[1]) < 1 or int(match[2] or 1) > 100_000:
            return ()
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def _first(environ: Mapping[str, str], variables: Sequence[str]) -> tuple[str, str]:
    """The first of the variables that is set, and its value; the first and "" if none is."""
    for variable in variables:
        value = environ.get(variable, "").strip()
        if value:
            return variable, value
    return variables[0], ""


def _whole_number(environ: Mapping[str, str], variable: str) -> int:
    """The number in a variable, 0 if it is not set. Raises WrongCall if it is no number."""
    text = environ.get(variable, "").strip()
    if text and not (text.isdecimal() and int(text) > 0):
        raise WrongCall(f"{variable} is {text!r}; it should be a number of nodes")
    return int(text or 0)


def _no_nodes(system: str, job: str) -> WrongCall:
    variables = " and ".join(_NODE_VARIABLES[system])
    name = _ID_VARIABLES[system][0]
    return WrongCall(
        f"{name} is {job}, but {variables} do not say its nodes: unset {name} outside of the job"
    )
