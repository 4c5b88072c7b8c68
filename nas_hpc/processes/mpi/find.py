"""Finding the machine's MPI program, and which one it is."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nas_hpc.processes.mpi.bounded import run_bounded
from nas_hpc.processes.mpi.program import FLAVOURS, MpiProgram

VERSION_S = 10.0
"""Deadline of ``--version``: even a cold parallel file system gives a program in that time."""

_VERSIONS = (
    ("mpich", re.compile(r"HYDRA build details:\s+Version:\s+(\S+)")),
    ("mpich", re.compile(r"Intel\(R\) MPI Library.*?Version (\S+)")),
    ("openmpi", re.compile(r"\((?:Open MPI|OpenRTE|PRRTE)\) v?(\d\S*)")),
    ("pals", re.compile(r"^mpiexec version (\d\S*)", re.MULTILINE)),
    ("slurm", re.compile(r"^slurm\S* (\d\S*)", re.MULTILINE)),
    ("aprun", re.compile(r"^aprun\b.*?(\d+\.\d\S*)", re.MULTILINE)),
)
_KNOWN = ", ".join(FLAVOURS.values())


class NotUsable(Exception):
    """Why a program is none of the known MPI programs; one line."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found."""

    program: MpiProgram | None
    problem: str = ""
    """Why there is none, in one line with what would be right."""
    notes: tuple[str, ...] = ()
    """What a person should know of the choice."""


async def find_program(setting: str, flags: str, environ: Mapping[str, str]) -> Found:
    """The program of the setting ``mpi`` (an absolute path, "none", or "": automatic) with more ``flags``.

    Automatic is srun inside a Slurm allocation, else aprun where it is, else the first mpiexec or mpirun of
    PATH; one that belongs to the Python environment that runs this, or to an activated one, comes last, for
    it knows nothing of the machine's network.
    """
    if setting == "none":
        return Found(None, "the setting mpi is none")
    try:
        more = tuple(shlex.split(flags))
    except ValueError as error:
        return Found(None, f"mpi_flags {flags!r} cannot be split into words: {error}")
    if setting:
        try:
            program = await identify(setting, environ)
        except NotUsable as why:
            return Found(None, f"{why} (setting mpi)")
        return Found(replace(program, flags=more))
    problems: list[str] = []
    for path, own in _candidates(environ):
        try:
            program = await identify(path, environ)
        except NotUsable as why:
            problems.append(str(why))
            continue
        notes = list(problems)
        if own:
            notes.append(
                f"{path} belongs to a Python environment, and no other MPI program is on PATH: it is used, "
                "but the machine's own would know its network (setting mpi)"
            )
        return Found(replace(program, flags=more), notes=tuple(notes))
    looked = "; ".join(problems) or "no srun of an allocation, aprun, mpiexec or mpirun is on PATH"
    return Found(None, f"{looked}; name the machine's with --mpi or the setting mpi")


async def identify(path: str, environ: Mapping[str, str]) -> MpiProgram:
    """Which MPI program ``path`` is, by its ``--version``. Raises NotUsable."""
    try:
        output = await run_bounded([path, "--version"], environ, VERSION_S)
    except OSError as error:
        raise NotUsable(f"{path} cannot be started: {error.strerror}") from None
    if output.code is None:
        raise NotUsable(f"{path} --version did not end within {VERSION_S:g} s")
    for flavour, pattern in _VERSIONS:
        match = pattern.search(output.text)
        if match and output.code == 0:
            return MpiProgram(path, flavour, match.group(1).rstrip(",;"))
    said = " ".join(output.text.split())[:120]
    what = f"said {said!r}" if said else "said nothing"
    end = f" and ended with {output.code}" if output.code else ""
    raise NotUsable(
        f"{path} is no MPI program that is known: to --version it {what}{end}; known are {_KNOWN}"
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """(path, belongs to a Python environment) of what to try, in this order."""
    folders = [
        folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder.startswith("/")
    ]
    owned = _owned(environ)
    if "SLURM_JOB_ID" in environ:
        yield from ((path, False) for path in _programs(folders, ("srun",)))
    yield from ((path, False) for path in _programs(folders, ("aprun",)))
    names = ("mpiexec", "mpirun")
    yield from ((path, False) for path in _programs([f for f in folders if not _within(f, owned)], names))
    yield from ((path, True) for path in _programs([f for f in folders if _within(f, owned)] + owned, names))


def _owned(environ: Mapping[str, str]) -> list[str]:
    """Program directories of Python environments: the running one's, if it is one, and activated ones."""
    roots = [environ.get("VIRTUAL_ENV", ""), environ.get("CONDA_PREFIX", "")]
    if sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir():
        roots.insert(0, sys.prefix)
    return [os.path.join(root, "bin") for root in roots if root]


def _within(folder: str, owned: list[str]) -> bool:
    real = os.path.realpath(folder)
    return any(real == os.path.realpath(one) for one in owned)


def _programs(folders: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """Existing files of these names, each once; one that cannot be executed is somebody's mistake to name."""
    seen = set()
    for folder in folders:
        for name in names:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real not in seen and os.path.isfile(path):
                seen.add(real)
                yield path
