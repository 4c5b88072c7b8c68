"""Which directory the user means: a workflow's, a search's inside it, a site, or a Balsam database."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.processes.packed import PACKED

ATTEMPTS = "attempts.jsonl"
LAUNCHERS = "launchers.jsonl"
JOB = "job.json"
RESULT = "result.json"


BALSAM = ("server-info", "balsamdb")
"""A file and a directory that a Balsam database has."""


@dataclass(frozen=True, slots=True)
class Location:
    """A workflow's directory, and the search to look at; ``search`` empty means all of them."""

    directory: Path
    search: str = ""
    """The search's id, or its first eight digits."""
    database: Path | None = None
    """The Balsam database in which the workflow is."""

    def is_of(self, creator: str) -> bool:
        """Whether the evaluations of the search ``creator`` are to be looked at."""
        return creator.startswith(self.search)

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self.directory.name


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it is missing, torn or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def locate(path: str | Path, workflow: str | None = None) -> Location:
    """Find out what ``path`` is. Raises WrongCall, naming it, if it holds no evaluations."""
    directory = Path(os.path.abspath(path))
    try:
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise WrongCall(f"{path} {what}; give the directory of a workflow or of a search, or a site")
        database = next((one for one in (directory, *directory.parents[:3]) if _is_balsam(one)), None)
        if database is not None:
            return _in_balsam(str(path), directory, database, workflow)
        return _locate(str(path), directory, workflow)
    except OSError as error:
        raise WrongCall(f"{path} cannot be read: {error.strerror or error}") from None


def _locate(named: str, directory: Path, workflow: str | None) -> Location:
    site_data = directory / "data"
    if (directory / "site.toml").is_file() or (site_data.is_dir() and not _is_workflow(directory)):
        return Location(_choose(named, site_data, workflow))
    if (directory / JOB).is_file():
        return _search(named, directory, workflow)
    if _is_workflow(directory):
        _check_name(named, directory, workflow)
        return Location(directory)
    raise WrongCall(
        f"{named} is neither a workflow's directory (data/WORKFLOW of a site, with {ATTEMPTS} or job "
        "directories) nor a search's, nor a site or a Balsam database"
    )


def _is_workflow(directory: Path) -> bool:
    """Whether it has what launchers write there; directories are looked into until one is a job's."""
    if any((directory / name).exists() for name in (ATTEMPTS, LAUNCHERS, PACKED)):
        return True
    return any(
        entry.is_dir() and os.path.isfile(os.path.join(entry.path, JOB)) for entry in os.scandir(directory)
    )


def _is_balsam(directory: Path) -> bool:
    return (directory / BALSAM[0]).is_file() and (directory / BALSAM[1]).is_dir()


def _in_balsam(named: str, directory: Path, database: Path, workflow: str | None) -> Location:
    """In a Balsam database, DB/data/WORKFLOW/NAME_ID."""
    parts = directory.relative_to(database).parts
    if parts[:1] in ((), ("data",)) and len(parts) < 2:
        return Location(_choose(named, database / "data", workflow, lambda _: True), database=database)
    if parts[0] != "data":
        raise WrongCall(f"{named} is inside a Balsam database; give the database: {database}")
    chosen = database / "data" / parts[1]
    _check_name(named, chosen, workflow)
    if len(parts) == 2:
        return Location(chosen, database=database)
    job = read_object(directory / JOB) or {}
    if job.get("creator"):
        raise WrongCall(f"{named} is the directory of one evaluation; give its workflow: {chosen}")
    return Location(chosen, parts[2][-8:], database)


def _choose(
    named: str, data: Path, workflow: str | None, is_one: Callable[[Path], bool] = _is_workflow
) -> Path:
    if not data.is_dir():
        raise WrongCall(f"{named} is a site without its directory data")
    found = sorted(entry.name for entry in os.scandir(data) if entry.is_dir() and is_one(Path(entry.path)))
    if workflow is not None:
        if workflow not in found:
            raise WrongCall(f"{named} has no workflow {workflow!r}; it has {', '.join(found) or 'none yet'}")
        return data / workflow
    if len(found) == 1:
        return data / found[0]
    if not found:
        raise WrongCall(f"{named} holds no evaluations yet: none of its workflows has been run")
    raise WrongCall(f"{named} has {len(found)} workflows, choose one with --workflow: {', '.join(found)}")


def _search(named: str, directory: Path, workflow: str | None) -> Location:
    job = read_object(directory / JOB)
    if job is None or not isinstance(job.get("id"), str):
        raise WrongCall(
            f"{named} is a job's directory with a damaged {JOB}; give its workflow: {directory.parent}"
        )
    if job.get("creator"):
        raise WrongCall(f"{named} is the directory of one evaluation; give its workflow: {directory.parent}")
    _check_name(named, directory.parent, workflow)
    return Location(directory.parent, job["id"])


def _check_name(named: str, directory: Path, workflow: str | None) -> None:
    if workflow is not None and workflow != directory.name:
        raise WrongCall(
            f"{named} belongs to workflow {directory.name!r}, not {workflow!r}; leave --workflow out"
        )
