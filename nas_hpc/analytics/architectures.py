"""The best architecture of a search, from what its evaluation and its search have left in their directories.

Nothing of a user's is imported: a drawing needs no more than what the files say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.analytics.locate import Location, read_object
from nas_hpc.analytics.summary import Evaluated

ARCHITECTURE, HISTORY, SPACE = "architecture.json", "history.json", "space.json"
SEQUENCE = "arch_seq"
SIZES = ("parameters", "flops")
_TEST = "test_"


@dataclass(frozen=True, slots=True)
class Best:
    """What is shown of the best architecture."""

    sequence: str
    sizes: Mapping[str, int]
    """Parameters, and floating-point operations of one example."""
    objective: str
    """What the problem maximises; empty if that is not known."""
    test: tuple[str, float] | None
    """Name and value of the test metric to look at first."""
    svg: str
    """The drawing; empty if there is none."""
    missing: str
    """Why there is no drawing."""
    training_svg: str
    """Its training, epoch by epoch; empty if that is not known."""


def is_architecture(evaluated: Evaluated) -> bool:
    """Whether it was of an architecture."""
    return isinstance(evaluated.config.get(SEQUENCE), list)


def objective_of(evaluated: Evaluated) -> str:
    """What its problem maximises, as val_accuracy__max; empty if that is not known."""
    body = read_object(Path(evaluated.directory) / ARCHITECTURE) if evaluated.directory else None
    return str((body or {}).get("objective") or "")


def best_architecture(location: Location, best: Evaluated) -> Best:
    """What the files say of ``best``, an evaluation of an architecture."""
    directory = Path(best.directory) if best.directory else None
    body = read_object(directory / ARCHITECTURE) if directory else None
    if body is None:
        body = _from_space(location, best)
    svg, missing = _drawn(body)
    known = {**(body or {}), **best.metadata}
    objective = objective_of(best)
    return Best(
        sequence=", ".join(map(str, best.config[SEQUENCE])),
        sizes={name: known[name] for name in SIZES if _is_whole(known.get(name))},
        objective=objective,
        test=next(iter(test_metrics(best.metadata, objective).items()), None),
        svg=svg,
        missing=missing,
        training_svg=_trained(read_object(directory / HISTORY) if directory else None),
    )


def test_metrics(metadata: Mapping[str, Any], objective: str) -> dict[str, float]:
    """What the test data gave, first what belongs to the objective: of val_accuracy__max test_accuracy."""
    found = {
        name: value
        for name, value in metadata.items()
        if name.startswith(_TEST) and isinstance(value, int | float) and not isinstance(value, bool)
    }
    beside = _TEST + objective.removeprefix("-").partition("__")[0].removeprefix("val_")
    return dict(sorted(found.items(), key=lambda item: (item[0] != beside, item[0] == f"{_TEST}loss")))


def results(evaluated: Evaluated) -> dict[str, Any]:
    """Its metadata without the sizes, tests first: they stand beside the objective."""
    tests = test_metrics(evaluated.metadata, objective_of(evaluated))
    return tests | {name: value for name, value in evaluated.metadata.items() if name not in SIZES}


def columns(rows: Sequence[Evaluated], objective: str) -> list[str]:
    """The metadata that tell architectures apart, of all ``rows``."""
    names = {name: value for row in rows for name, value in row.metadata.items()}
    return [*test_metrics(names, objective), *(name for name in SIZES if name in names)]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _from_space(location: Location, best: Evaluated) -> dict[str, Any] | None:
    """The architecture by its sequence, where its evaluation has left no directory."""
    begin = f"{best.search}_" if best.search else ""
    end = location.search[:8]
    found = [
        path
        for path in location.directory.glob(f"*_????????/{SPACE}")
        if path.parent.name.startswith(begin) and path.parent.name.endswith(end)
    ]
    space = read_object(found[0]) if len(found) == 1 else None
    if space is None or _has_foreign_operations(space):
        return None
    from nas_hpc.nas import SearchSpace

    try:
        return SearchSpace.from_json(space).architecture(best.config[SEQUENCE]).to_json()
    except Exception:  # a file that is damaged or of another version
        return None


def _has_foreign_operations(space: Mapping[str, Any]) -> bool:
    """Whether operations would have to be imported from modules that the file names."""
    nodes = space.get("nodes")
    ops = [
        op
        for node in (nodes if isinstance(nodes, list) else [])
        if isinstance(node, dict)
        for op in [*(node.get("ops") or []), node.get("op") or {}]
    ]
    return any("." in str(op.get("op", "") if isinstance(op, dict) else op) for op in ops)


def _drawn(body: Mapping[str, Any] | None) -> tuple[str, str]:
    """The drawing, or why there is none."""
    if body is None:
        return "", f"its evaluation has left no {ARCHITECTURE}"
    from nas_hpc.nas.drawing import draw_architecture, to_svg

    try:
        return to_svg(draw_architecture(body)), ""
    except Exception as error:  # whatever is in a damaged file: the report is written all the same
        return "", f"its {ARCHITECTURE} cannot be drawn: {type(error).__name__}: {error}"


def _trained(history: Mapping[str, Any] | None) -> str:
    lists = {
        name: values
        for name, values in (history or {}).items()
        if isinstance(values, list)
        and len(values) > 1
        and all(isinstance(value, int | float) for value in values)
    }
    if not lists:
        return ""
    from nas_hpc.analytics.figures import training_figure

    return training_figure(lists)
