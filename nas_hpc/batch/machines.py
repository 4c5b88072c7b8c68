"""The machines there are, one file each, and which of them this host belongs to.

A machine's file is looked for in the site (``SITE/machines``), in the user's configuration
(``~/.config/nas-hpc/machines``) and in the package; the first of a name hides the others. To choose one by
the host's name no file is read as TOML but the one that is chosen.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nas_hpc.batch.machine import Machine
from nas_hpc.batch.machine_file import read_machine
from nas_hpc.config import Setting
from nas_hpc.errors import WrongCall
from nas_hpc.site import Site

PACKAGED = Path(__file__).with_name("machines")
FOLDER = "machines"
"""Below a site, and below ``nas-hpc`` in the user's configuration."""
CONFIGURATION = "XDG_CONFIG_HOME"
OF_NODES = ("cores_per_node", "gpus_per_node", "interface")
"""Settings that are true of a machine's compute nodes, and not of the nodes where people log in."""
_BATCH_JOB = ("COBALT_JOBID", "PBS_JOBID", "SLURM_JOB_ID", "SLURM_JOBID")
_LISTS = re.compile(
    r"""^[ \t]*(hosts|variables)[ \t]*=[ \t]*\[((?:[\s,]|\#[^\n]*|"[^"\\\n]*"|'[^'\n]*')*)\]""", re.MULTILINE
)
_STRING = re.compile(r"""\#[^\n]*|"([^"\n]*)"|'([^'\n]*)'""")


@dataclass(frozen=True, slots=True)
class Choice:
    """A machine, and why it is this one."""

    machine: Machine
    why: str
    guessed: bool = False
    """No file names this host."""


def choose(
    setting: Setting[str], site: Path | None, environ: Mapping[str, str], host: str | None = None
) -> Choice:
    """The machine of ``setting`` for the site at ``site``; without a name, that of ``host`` (None: this one).

    Raises WrongCall for a name that is none, ConfigError for a file that is wrong.
    """
    files = machine_files(site, environ)
    if setting.value:
        if setting.value not in files:
            raise _unknown(setting, files, site)
        return Choice(read_machine(files[setting.value]), f"by {setting.origin}")
    names = _names(socket.gethostname() if host is None else host)
    for name, path in files.items():
        if _may_fit(path, names, environ):
            machine = read_machine(path, name)
            why = _fits(machine, names, environ)
            if why:
                return Choice(machine, why)
    why = f"{names[0] or 'this host'} is of no machine with a file"
    if shutil.which("sbatch", path=environ.get("PATH", os.defpath)):
        return Choice(read_machine(files["slurm"]), f"{why}, and has sbatch", guessed=True)
    return Choice(read_machine(files["local"]), why, guessed=True)


def in_batch_job(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a batch job."""
    return bool(batch_job_of(environ))


def batch_job_of(environ: Mapping[str, str]) -> str:
    """The id of the batch job that this process belongs to; "" of none."""
    return next((environ[name] for name in _BATCH_JOB if environ.get(name)), "")


def machines(site: Site | None, environ: Mapping[str, str]) -> list[Machine]:
    """All of them, by name. Raises ConfigError for a file that is wrong."""
    files = machine_files(site.path if site else None, environ)
    return [read_machine(path) for _, path in sorted(files.items())]


def machine_files(site: Path | None, environ: Mapping[str, str]) -> dict[str, Path]:
    """The file of each machine by its name: those of the site, of the user, of the package, in this order."""
    files: dict[str, Path] = {}
    for folder in folders(site, environ):
        for name, path in _toml_files(folder):
            files.setdefault(name, path)
    return files


def folders(site: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Where files of machines are looked for, the first before the others."""
    found = [] if site is None else [site / FOLDER]
    configuration = environ.get(CONFIGURATION, "")
    if not configuration.startswith("/"):  # so the specification of these variables has it
        home = environ.get("HOME", "")
        configuration = os.path.join(home, ".config") if home.startswith("/") else ""
    if configuration:
        found.append(Path(configuration, "nas-hpc", FOLDER))
    return [*found, PACKAGED]


def layer(machine: Machine, environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the machine gives to a process with ``environ``.

    What is true of its compute nodes alone holds inside batch jobs alone. Where scripts start on a node that
    is not one of them, the cores and GPUs of nodes are the file's.
    """
    if not any(environ.get(name) for name in _BATCH_JOB):
        return {name: value for name, value in machine.settings.items() if name not in OF_NODES}
    values = dict(machine.settings)
    if machine.starts_on == "head":
        for name, count in (("cores_per_node", machine.cores), ("gpus_per_node", machine.gpus)):
            if count:
                values.setdefault(name, count)
    return values


def _toml_files(folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # there is none, or it is not to be read: the user's and the site's are optional
        return
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending == ".toml" and not name.startswith("."):
            yield stem, folder / name


def _names(host: str) -> list[str]:
    """The host's name without its domain, and as it is."""
    host = host.lower()
    return [host.partition(".")[0], host]


def _may_fit(path: Path, names: list[str], environ: Mapping[str, str]) -> bool:
    """Whether the file's lists, found in its text, may fit: reading it as TOML takes a hundred times as long.

    Lists that are written in a way that is not understood may.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return False
    found = _LISTS.findall(text)
    if len({key for key, _ in found}) < sum(key in text for key in ("hosts", "variables")):
        return True
    patterns = [a or b for _, values in found for a, b in _STRING.findall(values)]
    return any(_host_fits(one, names) or _variable_fits(one, environ) for one in patterns)


def _fits(machine: Machine, names: list[str], environ: Mapping[str, str]) -> str:
    """Why this host is one of the machine's; empty: it is not."""
    for pattern in machine.hosts:
        if _host_fits(pattern, names):
            return f"{names[0]} is one of its hosts, {pattern}"
    for variable in machine.variables:
        if _variable_fits(variable, environ):
            return f"the environment has {variable.partition('=')[0]}={environ[variable.partition('=')[0]]}"
    return ""


def _host_fits(pattern: str, names: list[str]) -> bool:
    return any(name and fnmatchcase(name, pattern.lower()) for name in names)


def _variable_fits(variable: str, environ: Mapping[str, str]) -> bool:
    name, equals, pattern = variable.partition("=")
    return bool(equals) and bool(environ.get(name)) and fnmatchcase(environ[name], pattern)


def _unknown(setting: Setting[str], files: Mapping[str, Path], site: Path | None) -> WrongCall:
    near = get_close_matches(setting.value, files, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    where = f"{site / FOLDER}/{setting.value}.toml" if site else f"~/.config/nas-hpc/{FOLDER}/NAME.toml"
    return WrongCall(
        f"machine {setting.value!r} ({setting.origin}) has no file; {hint}there are "
        f"{', '.join(sorted(files))}; a new one is one file, {where}, as docs/machines.md shows"
    )
