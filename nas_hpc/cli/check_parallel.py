"""What ``nas-hpc doctor`` says of data-parallel training: which ways this environment has, and whether two
ranks average their gradients by each of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.errors import NasHpcError

if TYPE_CHECKING:
    from nas_hpc.processes.mpi import MpiProgram

NAME = "data-parallel"
LIMIT_S = 180.0
"""Both ranks load TensorFlow; from a cold parallel file system that takes a minute."""
_GET = {
    "horovod": "launch_scripts/build_horovod.sh builds and installs it",
    "mpi4py": "install nas-hpc[mpi]",
}


def check_parallel(program: MpiProgram, hosts: Sequence[str], *, local: bool) -> Iterator[Finding]:
    """A line for each way; what is installed is tried with two ranks that ``program`` starts."""
    there = _installed()
    yield from _missing(there)
    if there:
        yield from _tried(program, hosts, there, local=local)


def list_ways(why: str) -> Iterator[Finding]:
    """A line for each way, none of which is tried, because of ``why``."""
    there = _installed()
    yield from _missing(there)
    for way in there:
        yield Finding(NAME, OK, f"{way}: installed, not tried: {why}")


def _installed() -> list[str]:
    """The ways, in the order in which they are tried; none without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        return []
    return [way for way in ("mpi4py", "horovod") if importlib.util.find_spec(way) is not None]


def _missing(there: Sequence[str]) -> Iterator[Finding]:
    if importlib.util.find_spec("tensorflow") is None:
        yield Finding(NAME, OK, "none: TensorFlow is not installed")
        return
    for way in [way for way in _GET if way not in there]:
        yield Finding(NAME, OK if there else WARN, f"{way}: not installed", _GET[way])


def _tried(program: MpiProgram, hosts: Sequence[str], ways: list[str], *, local: bool) -> Iterator[Finding]:
    from nas_hpc.nas.parallel import prove
    from nas_hpc.processes import boot
    from nas_hpc.processes.mpi import start_two
    from nas_hpc.processes.start_failures import main_line

    argv = boot.command(sys.executable, "prove", *ways, room="nas.parallel")
    began = time.monotonic()
    try:
        output = asyncio.run(start_two(program, argv, hosts, local=local, timeout_s=LIMIT_S))
    except (OSError, NasHpcError) as error:
        yield Finding(NAME, BAD, f"{' and '.join(ways)}: two ranks cannot be started: {error}")
        return
    took = f"{time.monotonic() - began:.0f} s"
    last = main_line(output.text) or "they say nothing"
    ended = f"no answer within {LIMIT_S:g} s" if output.code is None else f"the ranks ended: {last}"
    said = prove.said(output.text)
    for way in ways:
        yield judge(way, said.get(way, []), ended, took, others=len(ways) > 1)


def judge(way: str, told: Sequence[Mapping[str, Any]], ended: str, took: str, *, others: bool) -> Finding:
    """What became of ``way``, of which two ranks ``told``; ``ended``: how they ended; ``others``: it is not
    the only one."""
    wrong = [one for one in told if one["problem"]]
    if len(told) == 2 and not wrong:
        return Finding(NAME, OK, f"{told[0]['text']}: two ranks average their gradients (tried in {took})")
    if not wrong:
        return Finding(NAME, BAD, f"{way}: {ended}", _other(way))
    if wrong[0]["passed_over"] and others:
        return Finding(NAME, WARN, f"{way}: {wrong[0]['problem']}")
    return Finding(NAME, BAD, f"{way}: {wrong[0]['problem']}", _other(way))


def _other(way: str) -> str:
    other = "mpi4py" if way == "horovod" else "horovod"
    return f"until it works give searches --data-parallel {other}"
