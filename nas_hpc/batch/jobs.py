"""The records of batch jobs: files in SITE/qsubmit, used also where no database can be reached.

``KEY.sh`` is the script, ``KEY.json`` the record, ``KEY.launcher.json`` what the job's launcher says.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from nas_hpc import __version__
from nas_hpc.errors import SiteError, WrongCall
from nas_hpc.files import keep_file
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BatchState

JOB_VARIABLE = "NAS_HPC_BATCH_JOB"
"""Set by the script: the key of the batch job that a launcher runs in."""
UNKNOWN_AFTER_S = 60.0
"""A record that is so old and has no id: whoever submitted it did not come to write the answer down."""
UNKNOWN = "it is not known whether it was submitted"
_RECORD, _LAUNCH, LOCAL = ".json", ".launcher.json", ".local.json"
"""The last is what the local batch system says of a batch job."""

Record = TypeVar("Record", "BatchJob", "Launch")


@dataclass(frozen=True, slots=True)
class Launch:
    """What the launcher of a batch job says of itself."""

    key: str
    host: str
    pid: int
    boot_id: str
    started: float
    version: str = __version__
    ended: float = 0.0
    """0: it has not said that it ended."""
    exit_code: int | None = None
    left: int | None = None
    """So many of its jobs were not at their end when it ended."""


def script_of(site: Site, key: str) -> Path:
    """The script of a batch job."""
    return site.qsubmit / f"{key}.sh"


def record_of(site: Site, key: str) -> Path:
    """The record of a batch job."""
    return site.qsubmit / f"{key}{_RECORD}"


def new_keys(site: Site, workflow: str, links: int = 1, *, reserve: bool = True) -> list[str]:
    """Free keys of a batch job, or of a chain of ``links``, for ``workflow`` ("": all).

    ``reserve``: their scripts are there then, empty and for nobody else. Raises SiteError if that fails.
    """
    stem = f"{workflow or 'all'}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 10_000):
        base = stem if number == 1 else f"{stem}-{number}"
        keys = [base] if links == 1 else [f"{base}-link{link}" for link in range(1, links + 1)]
        if reserve:
            if _reserve(site, keys):
                return keys
        elif not any(os.path.lexists(script_of(site, key)) for key in keys):
            return keys
    raise SiteError(
        f"{site.qsubmit} has thousands of scripts called {stem}; remove those that are not needed"
    )


def _reserve(site: Site, keys: list[str]) -> bool:
    made: list[str] = []
    try:
        for key in keys:
            os.close(os.open(script_of(site, key), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700))
            made.append(key)
        return True
    except FileExistsError:
        drop_scripts(site, made)
        return False
    except OSError as error:
        drop_scripts(site, made)
        raise SiteError(
            f"scripts cannot be written to {site.qsubmit}: {error.strerror or error}; nothing was submitted"
        ) from None


def drop_scripts(site: Site, keys: list[str]) -> None:
    """Remove the scripts of batch jobs that were not submitted and have no record."""
    for key in keys:
        with suppress(OSError):
            if not record_of(site, key).exists():
                script_of(site, key).unlink()


def new_job(site: Site, **values: Any) -> BatchJob:
    """A batch job with a key of its own and the fields ``values``; its script is there, empty, its record is
    not. ``values`` lack key, script and (where it is the usual place) output. Raises SiteError.
    """
    return make_job(site, new_keys(site, values.get("workflow", ""))[0], **values)


def make_job(site: Site, key: str, **values: Any) -> BatchJob:
    """The batch job ``key`` with the usual places for its files."""
    values.setdefault("output", str(site.qsubmit / f"{key}.output"))  # as all systems name it
    return BatchJob(key=key, script=str(script_of(site, key)), **values)


def write_job(site: Site, job: BatchJob) -> None:
    """Put the record in the place of the one before it, also on a disk that is full. Raises OSError."""
    keep_file(record_of(site, job.key), json.dumps(asdict(job), indent=1) + "\n")


def read_job(site: Site, key: str) -> BatchJob | None:
    """The record of that key; None if there is none that can be read."""
    try:
        return _parse(BatchJob, record_of(site, key).read_bytes(), key)
    except (OSError, ValueError):
        return None


def read_jobs(site: Site, note: Callable[[str], None] | None = None) -> list[BatchJob]:
    """All records, oldest first. A file that is none is passed over, with a line to ``note``."""
    found: list[BatchJob] = []
    try:
        names = sorted(os.listdir(site.qsubmit))
    except OSError:
        return found
    for name in names:
        if name.startswith(".") or not name.endswith(_RECORD) or name.endswith((_LAUNCH, LOCAL)):
            continue
        path = site.qsubmit / name
        try:
            found.append(_parse(BatchJob, path.read_bytes(), name.removesuffix(_RECORD)))
        except FileNotFoundError:  # removed just now
            continue
        except (OSError, ValueError) as error:
            if note is not None:
                note(f"note: {path} is no record of a batch job, it is passed over: {error}")
    return sorted(found, key=lambda job: (job.submitted, job.key))


def find_job(site: Site, word: str) -> BatchJob | None:
    """The batch job that ``word`` names: its id (12345, also for 12345.server), its key, or batch:ID. Of
    several with that id, from several batch systems or after a new start of one, the youngest.
    """
    word = word.removeprefix("batch:")
    if not word:
        return None
    jobs = read_jobs(site)
    tiers = (
        [job for job in jobs if job.key == word],
        [job for job in jobs if job.id == word],
        [job for job in jobs if word.isdigit() and job.id.partition(".")[0] == word],
    )
    return next((found[-1] for found in tiers if found), None)


def is_unknown(job: BatchJob, now: float) -> bool:
    """Whether nobody knows if the batch job was submitted: its submitter did not live to tell."""
    return job.state is BatchState.SUBMITTING and now - job.submitted > UNKNOWN_AFTER_S


def write_launch(site: Site, key: str, **values: Any) -> None:
    """Write what the launcher of the batch job ``key`` says of itself; ``values`` are fields of Launch that
    change what is there. Raises OSError, and WrongCall for a key that is none.
    """
    if not key or "/" in key or key.startswith("."):
        raise WrongCall(f"{JOB_VARIABLE}={key!r} is no key of a batch job; a batch script sets it")
    before = read_launch(site, key)
    launch = asdict(before) | values if before is not None else {"key": key, **values}
    keep_file(site.qsubmit / f"{key}{_LAUNCH}", json.dumps(asdict(Launch(**launch)), indent=1) + "\n")


def read_launch(site: Site, key: str) -> Launch | None:
    """What the launcher of that batch job says of itself; None if it says nothing (yet)."""
    try:
        return _parse(Launch, (site.qsubmit / f"{key}{_LAUNCH}").read_bytes(), key)
    except (OSError, ValueError):
        return None


def _parse(kind: type[Record], body: bytes, key: str) -> Record:
    """The record in ``body``. Raises ValueError; fields of a later version are passed over."""
    values = json.loads(body)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    if values.get("key") != key:
        raise ValueError(f"its key is {values.get('key')!r}, its name says {key!r}")
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    try:
        return kind(**_typed(known))
    except TypeError as error:
        raise ValueError(str(error)) from None


_TEXTS = (
    "system", "machine", "script", "output", "job_mode", "workflow", "queue", "project", "id", "chain",
    "reason", "host", "boot_id", "version",
)  # fmt: skip
_NUMBERS = ("nodes", "walltime_minutes", "submitted", "asked", "pid", "started", "ended")


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    for name in _TEXTS:
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name} is {values[name]!r}")
    for name in _NUMBERS:
        value = values.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}")
    changed = dict(values)
    if "state" in values:
        changed["state"] = BatchState(values["state"])
    if "dependencies" in values:
        changed["dependencies"] = tuple(str(one) for one in values["dependencies"])
    return changed
