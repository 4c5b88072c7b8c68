"""Between records and rows. Written for speed: a launcher passes thousands of these per second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.records import (
    Attempt,
    Evaluation,
    Job,
    Json,
    Lease,
    Origin,
    ParentFailure,
    Resources,
    Result,
    Stages,
)
from nas_hpc.states import Outcome, State
from nas_hpc.store.fast_json import read_json, write_json

_PLAIN = Job("", "", "")
_NO_ORIGIN = _PLAIN.origin  # the very object that most jobs have: compared without a look inside
_NO_RESOURCES = _PLAIN.resources
_NO_STAGES = _PLAIN.stages
_RESOURCES = Resources.__slots__
_STATES = {state.value: state for state in State}
_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


JobRow = Sequence[Any]
"""Values of ``schema.jobs`` in the order of its columns."""


def dump_json(value: object, what: str) -> str:
    """``value`` as JSON text. Raises WrongCall, naming ``what``, if it is none."""
    try:
        return write_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongCall(
            f"{what} cannot be stored: {error}; use JSON's types: dict, list, str, numbers, bool, None"
        ) from None


@lru_cache(maxsize=4096)
def place_text(part: tuple[str, ...] | tuple[int, ...]) -> str:
    """The JSON text of nodes, cores or GPUs. There are few, and each is used again and again."""
    return dump_json(part, "a place")


@lru_cache(maxsize=4096)
def _place_of(text: str) -> tuple[Any, ...]:
    return tuple(read_json(text))


def clean(text: str) -> str:
    """``text`` as every database takes it: output of a program may hold bytes that are no text."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return mapping if type(mapping) is dict else dict(mapping)


@lru_cache(maxsize=256)
def _resources_body(resources: Resources) -> dict[str, Any]:
    return _changed(resources, _NO_RESOURCES, _RESOURCES)


def _changed(record: object, plain: object, names: Iterable[str]) -> dict[str, Any]:
    """The fields of ``record`` that differ from ``plain``'s."""
    return {name: value for name in names if (value := getattr(record, name)) != getattr(plain, name)}


def _stages_of(body: dict[str, Any]) -> Stages:
    policy = ParentFailure(body.pop("on_parent_failure", ParentFailure.FAIL))
    return Stages(**body, on_parent_failure=policy)


def job_body(job: Job) -> str:
    """The JSON text of all that has no column; defaults are left out."""
    body: dict[str, Any] = {}
    if job.args:
        body["args"] = job.args
    if job.environ:
        body["environ"] = _plain(job.environ)
    if job.origin is not _NO_ORIGIN and job.origin != _NO_ORIGIN:
        origin = job.origin
        body["origin"] = [origin.directory, origin.sys_path, origin.interpreter, _plain(origin.environ)]
    if job.resources is not _NO_RESOURCES:
        body["resources"] = _resources_body(job.resources)
    if job.evaluation is not None:
        evaluation = job.evaluation
        body["run"] = evaluation.run
        body["config"] = _plain(evaluation.config)
        body["seed"] = evaluation.seed
        if evaluation.argv:
            body["argv"] = evaluation.argv
        if evaluation.notes:
            body["notes"] = _plain(evaluation.notes)
    if job.parents:
        body["parents"] = job.parents
    if job.retries:
        body["retries"] = job.retries
    if job.data:
        body["data"] = _plain(job.data)
    if job.made_by:
        body["made_by"] = job.made_by
    if job.stages is not _NO_STAGES and (stages := _changed(job.stages, _NO_STAGES, Stages.__slots__)):
        body["stages"] = stages
    return dump_json(body, f"job {job.name!r}")


_given = attrgetter(*Job.__slots__[: Job.__slots__.index("state")])


def stored_job(job: Job, state: State, created: float) -> Job:
    """``job`` as it stands in the database right after its insertion."""
    values: tuple[Any, ...] = (*_given(job), state, created, 0, "")
    return Job(*values)


def job_of(row: JobRow) -> Job:
    """The job of a row of ``schema.jobs``."""
    _, id_, name, workflow, application, creator, seq, state, lease, attempt, _, created, _, text = row[:14]
    get = read_json(text).get
    origin = get("origin")
    resources = get("resources")
    run = get("run")
    stages = get("stages")
    return Job(
        id_, name, workflow, application or "", get("args", ""), get("environ") or {},
        Origin(origin[0], tuple(origin[1]), origin[2], origin[3]) if origin else _NO_ORIGIN,
        Resources(**resources) if resources else _NO_RESOURCES,
        _evaluation(run, get) if run is not None else None,
        tuple(get("parents", ())), creator or "", seq or 0, get("retries", 0), get("data") or {},
        get("made_by", ""), _stages_of(stages) if stages else _NO_STAGES,
        _STATES[state], created, attempt, lease or "",
    )  # fmt: skip


def _evaluation(run: str, get: Callable[..., Any]) -> Evaluation:
    return Evaluation(run, get("config"), get("seed"), tuple(get("argv", ())), get("notes") or {})


def made_by_pattern(job: str) -> str:
    """What stands in the body of every job that the program of ``job`` added; perhaps in others', too."""
    return f'"made_by":"{job}"'


def result_values(result: Result, tail: str) -> tuple[Any, ...]:
    """Values of outcome, objective, metadata, reason, return_code, start, end, tail of an attempt."""
    metadata = dump_json(_plain(result.metadata), "the metadata of a result") if result.metadata else "{}"
    objective = result.objective
    if objective != objective:  # NaN, which is NULL in SQLite
        objective = None
    return (
        result.outcome.value, objective, metadata, clean(result.reason), result.return_code,
        result.start, result.end, clean(tail),
    )  # fmt: skip


def attempt_of(job: str, row: Sequence[Any]) -> Attempt:
    """The attempt of a row of ``schema.attempts``, of the job with id ``job``."""
    (
        _,
        number,
        lease,
        nodes,
        cores,
        gpus,
        claimed,
        outcome,
        objective,
        metadata,
        reason,
        code,
        start,
        end,
        tail,
    ) = row
    result = None
    if outcome is not None:
        mapping: Json = {} if metadata == "{}" else read_json(metadata)
        result = Result(_OUTCOMES[outcome], objective, mapping, reason, code, start, end)
    return Attempt(
        job,
        number,
        lease,
        _place_of(nodes),
        _place_of(cores),
        _place_of(gpus),
        claimed,
        result,
        tail or "",
    )


def lease_of(row: Sequence[Any]) -> Lease:
    """The lease of a row of ``schema.leases``."""
    return Lease(*row[1:])
