"""From a configuration to what a job specification says of it. Its failures are values, not errors."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nas_hpc import specification, wire
from nas_hpc.errors import WrongCall
from nas_hpc.loading import one_line
from nas_hpc.plain import check_text
from nas_hpc.specification import JobSpec, specify

Specify = Callable[[dict[str, Any]], Any]
"""A job specification: from a configuration to its JobSpec."""
_log = logging.getLogger("nas_hpc.evaluator")
_told: set[str] = set()
"""What failures were shown with their traceback: the next one of a kind is a line."""


def specified(ask: wire.Ask, function: Specify) -> wire.Ask:
    """``ask`` with what ``function`` says of its configuration; with ``failure`` set if that fails.

    The evaluation then fails with the class and the message of what was raised, and the search goes on.
    """
    try:
        spec = specify(function, copy.deepcopy(dict(ask.config)))
        return _filled(ask, spec)
    except (Exception, SystemExit) as error:
        reason = _reason(error)
        _tell(ask, reason, error)
        return replace(ask, failure=reason)


def _filled(ask: wire.Ask, spec: JobSpec) -> wire.Ask:
    return replace(
        ask,
        shape=shape_of(spec, ask.shape),
        timeout_s=ask.timeout_s if spec.timeout_s is None else spec.timeout_s,
        retries=ask.retries if spec.retries is None else spec.retries,
        wall_time_minutes=spec.wall_time_minutes or 0.0,
        environ={**ask.environ, **spec.environ},
        application=spec.application,
        args=str(spec.args),
        argv=tuple(map(str, spec.argv)),
        job_data=spec.data,
    )


def shape_of(spec: JobSpec, default: wire.Shape) -> wire.Shape:
    """What the evaluation occupies: what ``spec`` leaves open is as ``default`` has it. Several nodes or
    ranks get their nodes for themselves unless the specification says otherwise."""
    given = {name: getattr(spec, name) for name in default.__slots__ if getattr(spec, name) is not None}
    shape = replace(default, **given)
    if spec.node_packing_count is None and (shape.num_nodes > 1 or shape.ranks_per_node > 1):
        shape = replace(shape, node_packing_count=1)
    if shape.num_nodes > 1 and shape.node_packing_count > 1:
        raise WrongCall(
            f"node_packing_count is {shape.node_packing_count} and num_nodes {shape.num_nodes}: several "
            "evaluations can share one node only"
        )
    return shape


def _reason(error: BaseException) -> str:
    try:
        text = one_line(error)
        check_text(text, "")
    except Exception:
        text = "(its message cannot be shown)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _tell(ask: wire.Ask, reason: str, error: BaseException) -> None:
    kind = reason.partition(":")[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, specification.__file__):
        trace = trace.tb_next  # our own frames tell the user nothing
    shown = None if kind in _told else (type(error), error, trace)
    _log.warning("evaluation %d cannot be specified by %s: %s", ask.seq, ask.run, reason, exc_info=shown)
    _told.add(kind)
