"""Which directory the user means: a workflow's, a search's inside it, or a site."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.processes.packed import PACKED

ATTEMPTS = "attempts.jsonl"
LAUNCHERS = "launchers.jsonl"
JOB = "job.json"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Location:
    """A workflow's directory, and the search to look at; ``search`` empty means all of them."""

    directory: Path
    search: str = ""

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
        "directories) nor a search's, nor a site"
    )


def _is_workflow(directory: Path) -> bool:
    """Whether it has what launchers write there; directories are looked into until one is a job's."""
    if any((directory / name).exists() for name in (ATTEMPTS, LAUNCHERS, PACKED)):
        return True
    return any(
        entry.is_dir() and os.path.isfile(os.path.join(entry.path, JOB)) for entry in os.scandir(directory)
    )


def _choose(named: str, data: Path, workflow: str | None) -> Path:
    if not data.is_dir():
        raise WrongCall(f"{named} is a site without its directory data")
    found = sorted(
        entry.name for entry in os.scandir(data) if entry.is_dir() and _is_workflow(Path(entry.path))
    )
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
