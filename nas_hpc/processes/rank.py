"""The first steps of each rank of a job: its environment, cores and GPUs, then the program itself.

An MPI program starts this wrapper on every rank; it execs the job's program or, for a run function, the
interpreter that calls it (``rank_call``). What it does is said by a file in the job's directory,
``.ranks.json`` with mode 0600, written by the keeper before the start and removed after the end: so neither
secrets nor a long environment stand on a command line, and every MPI program is treated alike.

Standard library only, Python 3.8 or later. It runs without site-packages in the launcher's interpreter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time

from nas_hpc.processes import boot, child, ranks, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

FILE = ".ranks.json"
_OF_MPI = re.compile(
    r"(?:PMI|PMIX|OMPI|OPAL|PRTE|ORTE|PALS|HYDI|MPI_LOCAL|ALPS|SLURM|SLURMD|PBS|COBALT|BATCH)(?:_|\Z)"
)
"""Variables by which a rank finds its MPI start: what the MPI program set holds. All others are the job's."""


def write_file(order: dict[str, Any]) -> None:
    """Have what ``order`` (a keeper's) says of its ranks written for them. Raises OSError."""
    spec = {name: order[name] for name in ("job", "attempt", "name", "dir", "env", "call")}
    spec.update(order["mpi"])
    path = os.path.join(order["dir"], FILE)
    temporary = f"{path}.{os.getpid()}.{order['serial']}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(json.dumps(spec).encode("ascii"))
        stream.flush()
        os.fsync(fd)  # other hosts read it at once
    os.replace(temporary, path)


def read_file(directory: str) -> dict[str, Any]:
    """What ``write_file`` wrote. Raises OSError, ValueError."""
    with open(os.path.join(directory, FILE), "rb") as stream:
        content: dict[str, Any] = json.loads(stream.read())
    return content


def environment(spec: Mapping[str, Any], here: ranks.Ranks, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of one rank: the job's, with what the MPI program set for it, and its own place.

    Of the library path both count: an Open MPI that was moved puts its own libraries there.
    """
    wanted = {name: value for name, value in spec["env"].items() if not _OF_MPI.match(name)}
    environ = {**inherited, **wanted}
    path = "LD_LIBRARY_PATH"
    parts = [part for part in inherited.get(path, "").split(":") if part]
    parts += [part for part in wanted.get(path, "").split(":") if part and part not in parts]
    if parts:
        environ[path] = ":".join(parts)
    place = local_place(spec, here)
    environ.update(
        {
            "NAS_HPC_RANK": str(here.rank),
            "NAS_HPC_LOCAL_RANK": str(place[1]),
            ranks.RANKS_VARIABLE: str(spec["ranks"]),
            ranks.RANKS_PER_NODE_VARIABLE: str(spec["ranks_per_node"]),
        }
    )
    gpus = share_of(spec["gpus"], place, spec["gpus_per_rank"])
    if gpus and not (spec["gpus_by_mpi"] and any(name in inherited for name in child.GPU_MASKS)):
        environ.update(child.masks(gpus))
    return environ


def local_place(spec: Mapping[str, Any], here: ranks.Ranks) -> tuple[int, int]:
    """(number of the rank's node among the job's, number of the rank on it). Nodes are filled in order.

    Of a real node the MPI program's own count of its ranks is believed; virtual ones it does not know.
    """
    per_node = spec["ranks_per_node"]
    node, local = divmod(here.rank, per_node)
    if not spec["virtual"] and here.local_rank is not None:
        local = here.local_rank % per_node
    return node, local


def share_of(ids_by_node: Sequence[Sequence[Any]], place: tuple[int, int], each: int) -> list[Any]:
    """The ``each`` ids of a rank's node that are its own; fewer where the node has not so many."""
    node, local = place
    ids = ids_by_node[node] if node < len(ids_by_node) else ()
    return list(ids[local * each : (local + 1) * each])


def cpus_of(spec: Mapping[str, Any], place: tuple[int, int]) -> list[int]:
    """The hardware threads that a rank is pinned to; none: it is not pinned. The node's cores are divided;
    where ranks are more than cores, they share them in turn.
    """
    node, local = place
    cores = spec["cores"][node] if node < len(spec["cores"]) else ()
    if not cores:
        return []
    each = len(cores) // spec["ranks_per_node"]
    mine = share_of(spec["cores"], place, each) if each else [cores[local % len(cores)]]
    cpus = [cpu for core in mine for cpu in _threads_of(core)[: spec["threads_per_core"]]]
    return sorted(set(cpus) & os.sched_getaffinity(0)) or mine


def _threads_of(core: int) -> list[int]:
    """The hardware threads of the core with the hardware thread ``core``, itself first."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            with open(f"/sys/devices/system/cpu/cpu{core}/topology/{name}") as stream:
                text = stream.read().strip()
        except OSError:
            continue
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        return [core, *(cpu for cpu in found if cpu != core)]
    return [core]


# -- failures ------------------------------------------------------------------------------------------


def failure_file(rank: int) -> str:
    """Name of the file in which a rank leaves why it failed."""
    return f"result.rank{rank}.json"


def fail(spec: Mapping[str, Any], rank: int, result: dict[str, Any]) -> NoReturn:
    """Leave ``result`` as this rank's and end so that the MPI program ends all others.

    By a signal: on that every MPI program ends a start; some let the others wait for ever for one that ended
    by an exit code. The reason is printed, too, for a file system may show files of other hosts late.
    """
    line = f"{MARK}{rank}: {result['outcome']}: {result['reason']}\n"
    os.write(2, line.encode("utf-8", "backslashreplace"))
    body = json.dumps(result).encode("ascii")
    try:
        results.replace_file(spec["dir"], failure_file(rank), body, sync=True)
    except OSError as error:
        os.write(2, f"cannot write {failure_file(rank)}: {error.strerror}\n".encode())
    if spec["ranks"] > 1:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGABRT])
        os.abort()
    os._exit(1)


MARK = "nas-hpc: rank "


def failure_of(order: dict[str, Any]) -> dict[str, Any] | None:
    """Why the ranks of an ended attempt failed: what the first of them to fail left; None if none did.

    Removes all such files, what a rank was writing when it was killed, and the file of ``write_file``.
    """
    directory = order["dir"]
    found: list[tuple[float, int, dict[str, Any]]] = []
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    for name in names:
        match = re.fullmatch(r"result\.rank(\d+)\.json", name)
        if not (match or name.startswith((FILE, ".result."))):
            continue
        path = os.path.join(directory, name)
        if match:
            left = results.read(directory, order["job"], order["attempt"], name=name)
            if left is not None:
                found.append((left.get("end") or 0.0, int(match.group(1)), left))
        try:
            os.unlink(path)
        except OSError:
            continue
    if not found:
        return None
    _, rank, first = min(found, key=_when)
    several = order["mpi"]["ranks"] > 1
    first["reason"] = results.one_line((f"rank {rank}: " if several else "") + first["reason"])
    return first


def _when(found: tuple[float, int, dict[str, Any]]) -> tuple[float, int]:
    return found[:2]


def why(order: dict[str, Any], failure: str, code: int, end: float) -> tuple[str, str]:
    """(outcome, reason) of a start that failed without any rank having said why."""
    from nas_hpc.processes import start_failures

    text = _output(order)
    reason = start_failures.start_failure(code, text, end - order["start"])
    if reason:
        return "start_failed", start_failures.CANNOT_START + reason
    gone = lost_with_node(order)
    if gone:
        return "lost", gone
    said = rank_line(text) or start_failures.ended_line(text)
    return "error", f"{failure}: {said}" if said else failure


def lost_with_node(order: dict[str, Any]) -> str:
    """What the MPI program says of the loss of a node; empty if nothing. It may end well all the same."""
    from nas_hpc.processes import start_failures

    gone = start_failures.lost_node(_output(order))
    return f"a node was lost: {gone}" if gone else ""


def _output(order: dict[str, Any]) -> str:
    return results.tail(os.path.join(order["dir"], order["name"] + ".out"), order.get("offset", 0))


def rank_line(text: str) -> str:
    """What a rank printed of its failure, in the output of the MPI program; empty: none did."""
    match = re.search(re.escape(MARK) + r"(\d+: )\w+: (.*)", text)
    return f"rank {match.group(1)}{match.group(2)}" if match else ""


# -- entry ---------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> NoReturn:
    """Entry: the job's directory."""
    directory = arguments[0]
    here = ranks.find()
    rank = 0 if here is None else here.rank
    spec: dict[str, Any] = {}
    try:
        spec = read_file(directory)
        if here is None:
            if spec["ranks"] > 1:
                raise child.StartFailed("the MPI program tells its ranks no number (see: nas-hpc doctor)")
            here = ranks.Ranks(0, 1, 0, 1)
        _enter(spec, here)
    except child.StartFailed as error:
        fail(
            spec,
            rank,
            results.make({**spec, "start": time.time()}, "start_failed", str(error), end=time.time()),
        )
    except (OSError, ValueError, KeyError) as error:
        os.write(2, f"{MARK}{rank}: start_failed: cannot read {directory}/{FILE}: {error}\n".encode())
        os._exit(127)
    raise AssertionError("unreachable")


def _enter(spec: dict[str, Any], here: ranks.Ranks) -> NoReturn:
    """Become the job's program. Raises StartFailed."""
    environ = environment(spec, here, os.environ)
    cpus = cpus_of(spec, local_place(spec, here))
    if cpus:
        child.pin(cpus)
    try:
        os.chdir(spec["dir"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    except OSError as error:
        raise child.StartFailed(f"cannot use the directory {spec['dir']}: {error.strerror}") from None
    argv = spec["argv"]
    if spec["call"]:
        argv = boot.command(spec["interpreter"], "rank_call", spec["dir"])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        raise child.StartFailed(f"cannot start {argv[0]}: {error.strerror}") from None
