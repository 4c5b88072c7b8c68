"""The figures of a search in one frozen record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from nas_hpc.analytics.frames import Damage, Frames, directory_of, finals
from nas_hpc.analytics.locate import JOB, RESULT, Location, read_object
from nas_hpc.analytics.rates import rate
from nas_hpc.analytics.utilization import DEFINITION, Utilization, measure
from nas_hpc.processes import packed


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A finished evaluation with its configuration and what its run function said beside the objective."""

    name: str
    objective: float
    elapsed_s: float
    """From the first dispatch to its end."""
    duration_s: float
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    directory: str
    search: str = ""
    """Name of the search that asked for it, where several have evaluations here."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of the evaluations in a place. Objectives are maximized; shares are from 0 to 1."""

    path: str
    workflow: str
    n_evaluations: int
    """Those that are done: ok and failed, cached ones among them."""
    n_ok: int
    n_failed: int
    n_cached: int
    n_cancelled: int
    """Killed by a person or because their search ended."""
    n_interrupted: int
    """Interrupted by the launcher's end or death, and not run again so far."""
    n_unfinished: int
    """Waiting or running, as far as the directories tell."""
    n_attempts: int
    best: Evaluated | None
    utilization: float | None
    """None if no evaluation has run."""
    busy_s: float
    available_s: float
    capacity_known: bool
    start: float | None
    """First dispatch, seconds since the epoch."""
    end: float | None
    """Last end."""
    slots: int
    """The most evaluations that launchers offered to run at once."""
    failures: Mapping[str, int]
    """Reason -> number of failed evaluations, the most frequent first."""
    damage: Damage
    notes: tuple[str, ...]
    definition: str = DEFINITION

    @property
    def elapsed_s(self) -> float:
        """From the first dispatch to the last end."""
        return 0.0 if self.start is None or self.end is None else self.end - self.start

    @property
    def per_hour(self) -> float:
        """Evaluations that ran and are done, in an hour of this time."""
        return rate(self.n_evaluations - self.n_cached, self.elapsed_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON objects."""
        more = {"elapsed_s": self.elapsed_s, "per_hour": self.per_hour}
        return {**asdict(self), "notes": list(self.notes), **more}


def summarize_frames(frames: Frames) -> Summary:
    """Count and measure. The order of ``top`` decides which of equal objectives is the best."""
    last = finals(frames.attempts)
    used = measure(frames.attempts, frames.launchers, frames.others)
    count = last["status"].value_counts()
    ok, failed = int(count.get("ok", 0)), int(count.get("failed", 0))
    best = top(frames.location, last, 1, used)
    return Summary(
        path=str(frames.location.directory),
        workflow=frames.location.workflow,
        n_evaluations=ok + failed,
        n_ok=ok,
        n_failed=failed,
        n_cached=int(last["cached"].sum()),
        n_cancelled=int(count.get("cancelled", 0)),
        n_interrupted=int(count.get("interrupted", 0)),
        n_unfinished=frames.unfinished,
        n_attempts=int((~frames.attempts["cached"]).sum()),
        best=best[0] if best else None,
        utilization=used.share if used else None,
        busy_s=used.busy_s if used else 0.0,
        available_s=used.available_s if used else 0.0,
        capacity_known=used.capacity_known if used else False,
        start=used.start if used else None,
        end=used.end if used else None,
        slots=round(float(used.capacity.values.max(initial=0.0))) if used else 0,
        failures=failures(last),
        damage=frames.damage,
        notes=tuple(_notes(frames, used)),
    )


def ranked(last: pd.DataFrame) -> pd.DataFrame:
    """Successful evaluations, best first; of equal ones the first to end, which no cached one can be."""
    done = last[(last["status"] == "ok") & last["objective"].notna()]
    return done.sort_values(["objective", "cached", "end"], ascending=[False, True, True], kind="stable")


def top(location: Location, last: pd.DataFrame, n: int, used: Utilization | None) -> list[Evaluated]:
    """The ``n`` best evaluations with what their directories, or their lines in packed files, say of them."""
    chosen = []
    searches = _search_names(location, last)
    rows = ranked(last).head(n).to_dict("records")
    directories = {row["job"]: directory_of(location, row["name"], row["job"]) for row in rows}
    bare = {(row["job"], row["number"]) for row in rows if not (directories[row["job"]] / JOB).is_file()}
    lines = (
        {one["id"]: one for one in packed.read(location.directory, lambda *key: key in bare)} if bare else {}
    )
    for row in rows:
        start, end = float(row["start"]), float(row["end"])
        directory, line = directories[row["job"]], lines.get(row["job"], {})
        job = line.get("job") or read_object(directory / JOB) or {}
        result = line.get("result") or read_object(directory / RESULT) or {}
        config, metadata = job.get("config"), result.get("metadata")
        chosen.append(
            Evaluated(
                name=row["name"],
                objective=float(row["objective"]),
                elapsed_s=end - used.start if used else 0.0,
                duration_s=0.0 if math.isnan(start) else end - start,
                config=config if isinstance(config, dict) else {},
                metadata=metadata if isinstance(metadata, dict) else {},
                directory=str(directory) if directory.is_dir() else "",
                search=searches.get(row["creator"], ""),
            )
        )
    return chosen


def _search_names(location: Location, last: pd.DataFrame) -> dict[str, str]:
    """Names of the searches by their ids; empty if all evaluations are of one."""
    creators = last["creator"].unique()
    if len(creators) < 2:
        return {}
    named = {path.name[-8:]: path.name[:-9] for path in location.directory.glob("*_????????")}
    return {creator: named.get(creator[:8], creator[:8]) for creator in creators}


def failures(last: pd.DataFrame) -> dict[str, int]:
    """Number of failed evaluations by reason, one line each, the most frequent first."""
    failed = last[last["status"] == "failed"]
    reasons = failed["reason"].map(lambda text: " ".join(str(text).split())[:200])
    named = reasons.where(reasons != "", failed["outcome"])
    return {str(reason): int(n) for reason, n in named.value_counts().items()}


def _notes(frames: Frames, used: Utilization | None) -> list[str]:
    notes = list(frames.notes)
    damage = frames.damage
    if used is not None and not used.capacity_known:
        notes.append(
            "launchers.jsonl is missing or empty: the most evaluations at once stand for the evaluator "
            "slots, so the utilization is an upper bound"
        )
    if used is not None and used.notable_excess:
        notes.append(
            f"more attempts ran than there were slots for {used.excess_s:.1f} evaluator-seconds, which are "
            "not counted as busy: the recorded slots or clocks were wrong"
        )
    if not frames.others.empty:
        notes.append("other searches of this workflow used the same slots; their time does not count as busy")
    if frames.unfinished:
        notes.append(f"{frames.unfinished} evaluations have no end yet; they are not counted")
    if damage.lines:
        notes.append(f"{damage.lines} lines of attempts.jsonl and launchers.jsonl were torn or incomplete")
    if damage.directories:
        notes.append(
            f"{damage.directories} job directories have a damaged or foreign job.json or result.json"
        )
    if damage.foreign:
        notes.append(f"{damage.foreign} directories are no job's and were left out")
    return notes
