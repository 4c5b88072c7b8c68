"""Finding PostgreSQL's programs: PATH, then where distributions and modules put them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas_hpc.errors import WorkFailed

NEEDED = ("initdb", "postgres")
OLDEST = 12
"""Versions before it are refused."""
USUAL = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
)

_HOW = (
    "install the distribution's package (postgresql, postgresql-server), load a module (module avail "
    "postgresql), or: conda install -c conda-forge postgresql; then have its bin directory on PATH"
)
_ASK_S = 20.0


@dataclass(frozen=True, slots=True)
class Programs:
    """One installation of PostgreSQL."""

    directory: Path
    version: str
    """As in "15.4"."""

    @property
    def major(self) -> int:
        """The part of the version that a data directory depends on."""
        return int(re.match(r"\d+", self.version).group())  # type: ignore[union-attr]

    def path(self, name: str) -> str:
        """Of one of its programs."""
        return str(self.directory / name)


def find_postgres(major: int = 0) -> Programs:
    """The first installation of PATH, else the newest of the usual places; of version ``major`` if that is
    given, as an existing data directory needs. Raises WorkFailed that says what is missing and how to get it.
    """
    found, half = [], []
    for directory in dict.fromkeys(_directories()):
        missing = [name for name in NEEDED if not os.access(directory / name, os.X_OK)]
        if not missing:
            version = _version(directory)
            if version is not None:
                found.append(Programs(directory, version))
        elif len(missing) < len(NEEDED):
            half.append(f"{directory} lacks {missing[0]}")
    right = [one for one in found if one.major == major or (not major and one.major >= OLDEST)]
    if right:
        return right[0]
    wanted = f"PostgreSQL {major}, which made the data directory," if major else "PostgreSQL"
    seen = [f"found {one.version} in {one.directory}" for one in found] + half
    what = f" ({'; '.join(seen)})" if seen else ""
    least = "" if major else f"of version {OLDEST} or later "
    raise WorkFailed(
        f"{wanted} is not here: no {' and '.join(NEEDED)} "
        f"{least}on PATH or in {', '.join(USUAL[:3])}{what}; {_HOW}"
    )


def _directories() -> Iterator[Path]:
    for entry in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if entry and any(os.access(os.path.join(entry, name), os.X_OK) for name in NEEDED):
            yield Path(os.path.realpath(Path(entry, "postgres"))).parent  # not a directory of links
    config = shutil.which("pg_config")
    if config is not None:
        told = _output([config, "--bindir"])
        if told:
            yield Path(told)
    for pattern in USUAL:
        where = Path("/").glob(pattern.lstrip("/"))
        yield from sorted(where, key=_numbers, reverse=True)


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(path)))


def _version(directory: Path) -> str | None:
    """Of the server in ``directory``; None if it does not run here."""
    found = re.search(r"\d+(\.\d+)*", _output([str(directory / "postgres"), "--version"]))
    return found.group() if found else None


def _output(argv: list[str]) -> str:
    """What a program prints; nothing if it fails."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_S, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
