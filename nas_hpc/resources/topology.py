"""What this machine has: physical cores, hardware threads, NUMA domains, GPUs; as far as this process may use
them.

Everything is read below a root directory, so that recorded trees of other machines can be read, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nas_hpc.errors import WrongCall
from nas_hpc.resources.hostlist import parse_node_ids

SMI_TIMEOUT_S = 20.0
"""nvidia-smi takes seconds where no driver is held in memory; a broken driver hangs it."""
Run = Callable[[Sequence[str], float], "str | None"]
"""Runs a command for so many seconds at most; its output, or None if it is missing, fails or hangs."""
_NOT_ALLOWED = ("", "-1", "none", "void", "nodevfiles", "no_dev_files")
_MIG = re.compile(r"^\s+MIG\s.*\(UUID:\s*(MIG-[^)\s]+)\)", re.MULTILINE)
_GPU = re.compile(r"^GPU\s+(\d+):.*\(UUID:\s*(GPU-[^)\s]+)\)((?:\n\s+MIG\s.*)*)", re.MULTILINE)
_INTEL_BUILT_IN = "0000:00:02.0"
"""Where the graphics of an Intel processor sit: no accelerator."""


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine. A core's id is that of its first hardware thread that may be used."""

    cores: tuple[int, ...]
    threads_per_core: int = 1
    numa: tuple[tuple[int, ...], ...] = ()
    """Cores by NUMA domain; empty: one domain."""
    gpus: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What should be said to the user, a line each."""


def this_machine(
    environ: Mapping[str, str] | None = None,
    *,
    root: Path = Path("/"),
    cpus: Iterable[int] | None = None,
    run: Run | None = None,
) -> Machine:
    """The machine as this process may use it: by its affinity (``cpus``: instead of it) and by the GPU masks
    of ``environ``.
    """
    environ = os.environ if environ is None else environ
    allowed = frozenset(os.sched_getaffinity(0) if cpus is None else cpus)
    siblings = {cpu: threads_beside(cpu, root) & allowed for cpu in allowed}
    cores = sorted({min(threads) for threads in siblings.values()})
    gpus, notes = find_gpus(environ, root=root, run=run or run_bounded)
    return Machine(
        cores=tuple(cores),
        threads_per_core=min((len(siblings[core]) for core in cores), default=1),
        numa=_numa(cores, root),
        gpus=gpus,
        notes=notes,
    )


def threads_beside(cpu: int, root: Path = Path("/")) -> frozenset[int]:
    """The hardware threads of the core of ``cpu``, itself among them."""
    directory = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is its name before Linux 5.3
        found = _cpu_list(directory / name)
        if cpu in found:
            return found
    return frozenset((cpu,))


@lru_cache(maxsize=4096)
def pinning(cores: tuple[int, ...], root: Path = Path("/")) -> tuple[int, ...]:
    """The hardware threads of these cores: what a process that holds them is pinned to."""
    found = {thread for core in cores for thread in threads_beside(core, root)}
    return tuple(sorted(found & os.sched_getaffinity(0))) or cores


def _numa(cores: Sequence[int], root: Path) -> tuple[tuple[int, ...], ...]:
    domains = []
    for directory in sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=_natural_name):
        inside = _cpu_list(directory / "cpulist").intersection(cores)
        if inside:
            domains.append(tuple(sorted(inside)))
    return tuple(domains) if len(domains) > 1 and sum(map(len, domains)) == len(cores) else ()


def _cpu_list(path: Path) -> frozenset[int]:
    """The numbers of a file such as "0-3,8-11"; none if there is no such file."""
    try:
        text = path.read_text().strip()
        return frozenset(parse_node_ids(text)) if text else frozenset()
    except (OSError, ValueError, WrongCall):
        return frozenset()


# -- GPUs ----------------------------------------------------------------------------------------------
def find_gpus(
    environ: Mapping[str, str], *, root: Path = Path("/"), run: Run
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The GPUs that may be used, by the ids that their runtime's mask takes, and what is to be said."""
    kinds = (
        ("NVIDIA", "CUDA_VISIBLE_DEVICES", _nvidia),
        ("AMD", "ROCR_VISIBLE_DEVICES", _amd),
        ("Intel", "ZE_AFFINITY_MASK", _intel),
    )
    notes: list[str] = []
    found: dict[str, tuple[str, ...]] = {}
    for maker, variable, look in kinds:
        there, aliases, said = look(root, run, environ)
        notes += said
        mask = environ.get(variable)
        if mask is not None:
            there, wrong = under_mask(mask, there, aliases)
            notes += [f"{variable}={mask}: {wrong}"] if wrong else []
        if there:
            found[maker] = there
    if len(found) > 1:
        used, *others = found
        notes.append(f"GPUs of {' and '.join(found)}: only those of {used} are given to jobs")
    return next(iter(found.values()), ()), tuple(notes)


def under_mask(mask: str, there: Sequence[str], aliases: Iterable[str] = ()) -> tuple[tuple[str, ...], str]:
    """The GPUs that a mask such as ``0,2`` or ``GPU-8932…`` leaves, by the names that it uses, and what is
    wrong with it ("": nothing).

    ``aliases`` are other names of those that are ``there``. As the runtimes do, the list ends at the first
    entry that stands for none.
    """
    chosen: list[str] = []
    known = {*there, *aliases}
    for word in (word.strip() for word in mask.split(",")):
        if word.lower() in _NOT_ALLOWED:
            break
        if not _is_known(word, known):
            has = f"there are {', '.join(sorted(there, key=natural))}" if there else "this machine has none"
            return tuple(chosen), f"there is no GPU {word}; {has}"
        if word not in chosen:
            chosen.append(word)
    return tuple(chosen), ""


def _is_known(word: str, known: set[str]) -> bool:
    """A UUID may be shortened, a card stands for its tiles."""
    if word in known:
        return True
    if word.startswith(("GPU-", "MIG-")):
        return any(name.startswith(word) for name in known)
    return any(name.split(".")[0] == word for name in known)


_Look = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Ids, other names of the same GPUs, what is to be said."""


def _nvidia(root: Path, run: Run, environ: Mapping[str, str]) -> _Look:
    """By nvidia-smi, which also knows MIG devices and what a control group allows; else by the driver."""
    cards = len(_entries(root / "proc/driver/nvidia/gpus"))
    if not cards and not list((root / "dev").glob("nvidia[0-9]*")):
        return (), (), ()
    output = run(("nvidia-smi", "-L"), SMI_TIMEOUT_S)
    if output is None or not (_GPU.search(output) or "No devices" in output):
        said = "nvidia-smi -L tells nothing; the GPUs are counted by the driver's files"
        return tuple(map(str, range(cards))), (), (said,)
    ids: list[str] = []
    aliases: list[str] = []
    for number, uuid, below in _GPU.findall(output):
        slices = _MIG.findall(below)
        ids += slices or [number]
        aliases += [uuid, number]
    return tuple(ids), tuple(aliases), ()


def _amd(root: Path, run: Run, environ: Mapping[str, str]) -> _Look:
    """By the kernel driver's nodes: those with SIMD units that this process may read."""
    uuids = []
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    for directory in sorted(_entries(nodes), key=_natural_name):
        values = _properties(directory / "properties")
        if values.get("simd_count", 0) > 0:
            uuids.append(f"GPU-{values.get('unique_id', 0):016x}")
    return tuple(map(str, range(len(uuids)))), tuple(uuids), ()


def _intel(root: Path, run: Run, environ: Mapping[str, str]) -> _Look:
    """By the kernel's cards. Each tile is a GPU, and called "card.tile" where the hierarchy is composite."""
    tiles = []
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*"), key=_natural_name):
        device = card / "device"
        if "-" in card.name or _text(device / "vendor") != "0x8086" or _pci(device) == _INTEL_BUILT_IN:
            continue
        tiles.append(max(1, len(list(card.glob("gt/gt[0-9]*"))), len(list(device.glob("tile[0-9]*")))))
    if environ.get("ZE_FLAT_DEVICE_HIERARCHY", "FLAT").upper() != "COMPOSITE":
        return tuple(map(str, range(sum(tiles)))), (), ()
    named = [[str(n)] if count == 1 else [f"{n}.{t}" for t in range(count)] for n, count in enumerate(tiles)]
    return tuple(name for names in named for name in names), (), ()


def _pci(device: Path) -> str:
    match = re.search(r"^PCI_SLOT_NAME=(\S+)$", _text(device / "uevent"), re.MULTILINE)
    return match[1] if match else ""


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _properties(path: Path) -> dict[str, int]:
    """The numbers of a file with lines such as "simd_count 304"."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names by the numbers in them: "2" before "10", "0.1" before "0.10"."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part)


def _natural_name(path: Path) -> tuple[tuple[int, int, str], ...]:
    return natural(path.name)


def run_bounded(
    argv: Sequence[str], timeout_s: float, environ: Mapping[str, str] | None = None
) -> str | None:
    """Standard output of a command; None if it is missing, fails, or does not end in time."""
    program = shutil.which(argv[0], path=None if environ is None else environ.get("PATH"))
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)  # one that hangs in a driver does not end by a signal: it is left behind
        return None
    return output.decode(errors="replace") if process.returncode == 0 else None
