"""The command lines of MPI programs. Pure: from what is wanted to an argv.

The ranks' environment does not travel by command line. All of these programs but Open MPI's hand their own
environment to the ranks, Open MPI's does so on its own host, and the wrapper of each rank
(``nas_hpc.processes.rank``) reads the rest from a file of the job's directory that only its owner can read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from nas_hpc.errors import WrongCall
from nas_hpc.processes.mpi.program import MpiProgram, Start


def command(program: MpiProgram, start: Start) -> list[str]:
    """The argv that makes ``start``. Raises WrongCall for what this program cannot do."""
    if not start.hosts or start.ranks_per_node < 1:
        raise WrongCall(
            f"an MPI start on {len(start.hosts)} nodes with {start.ranks_per_node} ranks on each; "
            "there must be at least 1 of both"
        )
    return [program.path, *_JOB[program.flavour](program, start), *start.argv]


def agents_command(
    program: MpiProgram,
    hosts: Sequence[str],
    argv: Sequence[str],
    *,
    local: bool = False,
    as_root: bool = False,
) -> list[str]:
    """The argv that starts ``argv`` once on each of ``hosts``, rank i on the i-th.

    The end of one process, by whatever exit code or signal, does not end the others, except that aprun ends
    them all when one dies of a signal (``outlives_one`` says so), and that a lost node ends MPICH's and
    Open MPI's whole start. ``local``: all hosts are this machine.
    """
    start = Start(tuple(argv), tuple(hosts), local=local, as_root=as_root)
    if not start.hosts:
        raise WrongCall("a start of agents on no node; there must be at least 1")
    return [program.path, *_AGENTS[program.flavour](program, start), *start.argv]


def outlives_one(program: MpiProgram) -> bool:
    """Whether a start of agents survives one process that dies of a signal. With aprun it does not."""
    return program.flavour != "aprun"


def _mpich(program: MpiProgram, start: Start) -> list[str]:
    """Hydra. It binds nothing unless told to. Inside a batch job it would take that one's nodes by itself."""
    where = ["-rmk", "user", "-launcher", "fork"]
    if not start.local:
        where = ["-hosts", ",".join(start.hosts), "-ppn", str(start.ranks_per_node)]
    env = [word for name, value in start.environ.items() for word in ("-genv", name, value)]
    return [*where, *env, *program.flags, "-n", str(start.ranks)]


def _mpich_agents(program: MpiProgram, start: Start) -> list[str]:
    """A proxy of hydra kills all processes of its host when one dies of a signal, whatever it is told: on one
    machine each agent gets a proxy of its own, under a name that nobody has to resolve.
    """
    hosts = start.hosts
    fork: list[str] = []
    if start.local:
        hosts = tuple(f"agent{number}" for number in range(len(hosts)))
        fork = ["-rmk", "user", "-launcher", "fork"]
    where = ["-hosts", ",".join(hosts), "-ppn", "1"]
    return [*fork, "-disable-auto-cleanup", *where, *program.flags, "-n", str(start.ranks)]


def _pals(program: MpiProgram, start: Start) -> list[str]:
    bind = ["--cpu-bind", "none"]
    if start.pin:
        bind = ["--depth", str(start.threads_per_rank), "--cpu-bind", "depth"]
    elif start.cpus:
        bind = ["--cpu-bind", "list:" + ":".join(",".join(map(str, cpus)) for cpus in start.cpus)]
    env = [word for name, value in start.environ.items() for word in ("--env", f"{name}={value}")]
    return [*_pals_where(start), *bind, *env, *program.flags]


def _pals_where(start: Start) -> list[str]:
    size = ["-n", str(start.ranks), "--ppn", str(start.ranks_per_node)]
    if start.local:  # it knows no node twice
        return ["-n", str(start.ranks), "--ppn", str(start.ranks), "--hosts", start.hosts[0]]
    return [*size, "--hosts", ",".join(start.hosts)]


def _pals_agents(program: MpiProgram, start: Start) -> list[str]:
    return ["--no-abort-on-failure", *_pals_where(start), "--cpu-bind", "none", *program.flags]


def _openmpi(program: MpiProgram, start: Start) -> list[str]:
    bind = ["--bind-to", "core"] if start.pin else ["--bind-to", "none"]
    env = [word for name in start.forward for word in ("-x", name)]
    env += [word for name, value in start.environ.items() for word in ("-x", f"{name}={value}")]
    return [*_openmpi_where(start), *bind, *env, *program.flags, "-n", str(start.ranks)]


def _openmpi_where(start: Start) -> list[str]:
    """Slots are stated, for without a batch system a host has one, and within one as many as the batch job
    has tasks there. On this machine ranks may have to share cores, where spinning ones are ten times slower.
    """
    root = ["--allow-run-as-root"] if start.as_root else []
    if start.local:
        where = ["--host", f"localhost:{start.ranks}", "--mca", "mpi_yield_when_idle", "1"]
        return [*root, *where, "--map-by", "slot:OVERSUBSCRIBE"]
    where = ["--host", ",".join(f"{host}:{start.ranks_per_node}" for host in start.hosts)]
    cores = f":PE={max(1, start.threads_per_rank // start.threads_per_core)}" if start.pin else ""
    return [*root, *where, "--map-by", f"ppr:{start.ranks_per_node}:node{cores}:OVERSUBSCRIBE"]


def _openmpi_agents(program: MpiProgram, start: Start) -> list[str]:
    """Until 4 recovery is one flag and exit codes are another; since 5 the first alone ends the start at the
    second loss, and the parameter prte_abort_on_non_zero_status alone at the first.
    """
    survive = ["--runtime-options", "recoverable,error-nonzero-status=0"]
    if program.version.partition(".")[0] in ("1", "2", "3", "4"):
        survive = ["--enable-recovery", "--mca", "orte_abort_on_non_zero_status", "0"]
    return [*survive, *_openmpi_where(start), "--bind-to", "none", *program.flags, "-n", str(start.ranks)]


def _slurm(program: MpiProgram, start: Start) -> list[str]:
    """Without ``--exact`` a step takes all of its nodes, and the next one waits; so it does for memory and
    GPUs, unless the step says how much of them it wants (0: memory is shared). Which cores a step has, Slurm
    decides. A step that has its nodes whole overlaps with whatever Slurm thinks is there: once a job has lost
    a node, Slurm 22.05 never gives back the cores of steps that end, and later ones would wait for ever.
    """
    memory = f"--mem-per-cpu={start.mem_per_cpu_mb}M" if start.mem_per_cpu_mb else "--mem=0"
    gpus = f"--gpus-per-task={start.gpus_per_rank}" if start.gpus_per_rank else "--gres=none"
    export = ",".join(["ALL", *(f"{name}={value}" for name, value in start.environ.items())])
    if "," in "".join(start.environ.values()):
        raise WrongCall(f"srun takes no comma in the value of a variable: {dict(start.environ)}")
    cores = (f"--cpus-per-task={start.threads_per_rank}", f"--threads-per-core={start.threads_per_core}")
    bind = ["--cpu-bind=cores"] if start.pin else []
    name = [f"--job-name={start.name}"] if start.name else []
    flags = [*_slurm_where(start), *cores, memory, gpus, *bind, "--kill-on-bad-exit=1", f"--export={export}"]
    whole = ["--overlap"] if start.pin else []
    return ["--exact", *whole, *name, *flags, *program.flags]


def _slurm_where(start: Start) -> list[str]:
    hosts = list(dict.fromkeys(start.hosts))  # a node that stands twice has twice the ranks
    per_node = start.ranks // len(hosts)
    return [
        f"--nodes={len(hosts)}", f"--nodelist={','.join(hosts)}", f"--ntasks={start.ranks}",
        f"--ntasks-per-node={per_node}", "--distribution=block",
    ]  # fmt: skip


def _slurm_agents(program: MpiProgram, start: Start) -> list[str]:
    """Agents overlap with the steps of jobs, and have all that the batch job has on their nodes."""
    return [
        "--overlap", *_slurm_where(start), "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=0",
        "--no-kill", "--wait=0", "--export=ALL", *program.flags,
    ]  # fmt: skip


def _aprun(program: MpiProgram, start: Start) -> list[str]:
    bind = ["-cc", "none"]
    if start.pin:
        bind = ["-cc", "depth", "-d", str(start.threads_per_rank), "-j", str(start.threads_per_core)]
    env = [word for name, value in start.environ.items() for word in ("-e", f"{name}={value}")]
    return [*_aprun_where(start), *bind, *env, *program.flags]


def _aprun_where(start: Start) -> list[str]:
    ids = [node_id(host) for host in start.hosts]
    size = ["-n", str(start.ranks), "-N", str(start.ranks_per_node)]
    return [*size, "-L", ",".join(map(str, ids))]


def _aprun_agents(program: MpiProgram, start: Start) -> list[str]:
    """``-C`` keeps the start through the loss of a node; for the death of one process aprun has nothing."""
    return ["-C", *_aprun_where(start), "-cc", "none", *program.flags]


def node_id(host: str) -> int:
    """The number of a Cray node: 12 of "nid00012" or "12". Raises WrongCall for another name."""
    match = re.fullmatch(r"(?:nid)?0*(\d+)", host)
    if match is None:
        raise WrongCall(f"aprun knows nodes by number, and {host!r} has none: it must look like nid00012")
    return int(match.group(1))


_JOB: dict[str, Callable[[MpiProgram, Start], list[str]]] = {
    "mpich": _mpich, "pals": _pals, "openmpi": _openmpi, "slurm": _slurm, "aprun": _aprun,
}  # fmt: skip
_AGENTS: dict[str, Callable[[MpiProgram, Start], list[str]]] = {
    "mpich": _mpich_agents, "pals": _pals_agents, "openmpi": _openmpi_agents,
    "slurm": _slurm_agents, "aprun": _aprun_agents,
}  # fmt: skip
