"""The job that this process belongs to, from its environment and its directory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.plain import plain_object
from nas_hpc.processes import jobdata, ranks, results

_writing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Parent:
    """A job that had to end before this one began."""

    id: str
    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Current:
    """The job whose program this process is."""

    id: str
    name: str
    workflow: str
    attempt: int
    """1 for its first start."""
    directory: Path
    """Also the working directory in which its program was started."""
    data: Mapping[str, Any]
    """What it was submitted with and what ``update_data`` has added since, in earlier attempts, too."""
    parent_ids: tuple[str, ...]

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Its parents that have a directory, in their order."""
        found = {
            identifier: parent for identifier in self.parent_ids if (parent := _parent(identifier, self))
        }
        return tuple(found.values())


def current() -> Current | None:
    """The job that this process belongs to; None outside of any."""
    place = os.environ.get("NAS_HPC_JOB_DIR", "")
    job = os.environ.get("NAS_HPC_JOB_ID", "")
    if not place or not job:
        return None
    directory = Path(place)
    record = _record(directory, job)
    data = record.get("data")
    _, since = jobdata.read(place, job)
    return Current(
        id=job,
        name=str(record.get("name") or directory.name.removesuffix(f"_{job[:8]}")),
        workflow=os.environ.get("NAS_HPC_WORKFLOW", "") or str(record.get("workflow") or ""),
        attempt=this_attempt(),
        directory=directory,
        data={**(data if isinstance(data, dict) else {}), **since},
        parent_ids=tuple(str(parent) for parent in record.get("parents") or ()),
    )


def update_data(**values: Any) -> None:
    """Add ``values`` (JSON) to the job's data: each is there as soon as this returns, whatever comes after.

    ``dh_objective`` or else ``objective`` is the job's objective, the rest its metadata, if it ends well and
    wrote no result of its own. A restarted job finds the rest again in ``current().data``, but has to give
    its objective anew. Of the ranks of an MPI program the first writes, the others' calls do nothing; nor do
    calls outside of a job. One process at a time may write.

    Raises WrongCall for a value that is no JSON, or an objective that is no finite number.
    """
    given = plain_object(values, "update_data")
    _, wrong = jobdata.objective_of(given)
    if wrong:
        raise WrongCall(f"update_data: {wrong}")
    place, job = os.environ.get("NAS_HPC_JOB_DIR", ""), os.environ.get("NAS_HPC_JOB_ID", "")
    if not place or not job or ranks.rank() not in (None, 0):
        return
    attempt = this_attempt()
    with _writing:
        before, known = jobdata.read(place, job)
        if before != attempt:  # what an earlier attempt found is not what this one found
            known = jobdata.without_objective(known)
        content = jobdata.text(job, attempt, {**known, **given})
        results.replace_file(place, jobdata.DATA_FILE, content, sync=True)


def this_attempt() -> int:
    """The number of the attempt that this process belongs to; 0 outside of a job."""
    text = os.environ.get("NAS_HPC_ATTEMPT", "")
    return int(text) if text.isdigit() else 0


def directories(identifier: str, workflow: str) -> Iterator[Path]:
    """Directories that may be the job's: first those of its likely workflow, then all others'."""
    site = os.environ.get("NAS_HPC_SITE", "")
    if not site:
        return
    data = Path(site) / "data"
    ending = f"_{identifier[:8]}"
    others = sorted(path.name for path in data.iterdir() if path.name != workflow) if data.is_dir() else []
    for name in (workflow, *others):
        try:
            entries = os.listdir(data / name)
        except OSError:
            continue
        yield from (data / name / entry for entry in entries if entry.endswith(ending))


def _parent(identifier: str, of: Current) -> Parent | None:
    for directory in directories(identifier, of.workflow):
        if _record(directory, identifier):
            return Parent(identifier, directory.name.removesuffix(f"_{identifier[:8]}"), directory)
    return None


def _record(directory: Path, job: str) -> dict[str, Any]:
    """The job.json of that job; empty if there is none."""
    try:
        record = json.loads((directory / "job.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and record.get("id") == job else {}
