"""Which trainings are of the same models, and which directory of a tool has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall

SPEC_FILE = "search_job_spec.json"
MAP_FILE = "retrain_map.json"
PARAMETERS_FILE = "nas_params_str.json"
_SELECTION, _SEARCH, _VARIANCE = (
    "MODEL_SELECTION_STATE.json", "SEARCH_CONTROLLER_STATE.json", "measurement_state.json",
)  # fmt: skip
_MOST = 100
"""Retrainings of retrainings that are followed."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two trainings of one model, by the names of their directories."""

    model: str
    """The name of the trial that both go back to."""
    proxy: str
    full: str


@dataclass(frozen=True, slots=True)
class _Again:
    """What the trials of a directory train again."""

    source: str
    """The directory of those trials; "": not known."""
    trials: dict[str, str]


def pairs(proxy: Path, proxies: Iterable[str], full: Path, fulls: Iterable[str]) -> list[Pair]:
    """The trainings ``proxies`` and ``fulls``, names of directories in ``proxy`` and ``full``, that are of
    the same models, in the order of ``fulls``.

    A training belongs to the trial that it trains again, and that one to the trial that it trained again, as
    search_job_spec.json and retrain_map.json say. Where nothing leads to a trial of both, equal names belong
    together, and have to have equal parameters. Raises WrongCall if they have not.
    """
    known: dict[str, _Again | None] = {}
    cheap = {name: _chain(proxy, name, known) for name in proxies}
    whole = {name: _chain(full, name, known) for name in fulls}
    by_trial = {one: name for name, chain in reversed(cheap.items()) for one in chain if one[0]}
    found = []
    for name, chain in whole.items():
        other = next((by_trial[one] for one in chain if one in by_trial), None)
        if other is not None:
            found.append(Pair(chain[-1][1], other, name))
    if found:
        return found
    by_name = {chain[-1][1]: name for name, chain in reversed(cheap.items())}
    for name, chain in whole.items():
        model = chain[-1][1]
        if model in by_name:
            _check_same(proxy / by_name[model], full / name)
            found.append(Pair(model, by_name[model], name))
    return found


def place_of(path: Path) -> Path:
    """Where the trainings are: of a model selection the full ones, of a measurement of the variance the
    copies; else ``path`` itself. Raises WrongCall for a search of proxy tasks, which has several."""
    if (path / _SEARCH).is_file():
        tasks = sorted(str(one.parent) for one in path.glob(f"*/{SPEC_FILE}"))
        there = f"give one of them: {', '.join(tasks)}" if tasks else "it has none yet"
        raise WrongCall(f"{path} is a search of proxy tasks: {there}")
    rounds = _json(path / _SELECTION).get("iterations")
    copies = _json(path / _VARIANCE).get("finished_model_dirs")
    if isinstance(rounds, list) and rounds and isinstance(rounds[-1], dict):
        return _moved(path, str(rounds[-1].get("search_job_link", "")))
    if isinstance(copies, list) and copies:
        return _moved(path, str(Path(str(copies[0])).parents[2]))
    return path


def _moved(path: Path, recorded: str) -> Path:
    """A directory within ``path`` that was recorded where that may have been before."""
    here = path / Path(recorded).name
    return here if recorded and here.is_dir() else path


def _chain(directory: Path, name: str, known: dict[str, _Again | None]) -> Sequence[tuple[str, str]]:
    """(directory, name) of a trial, of the one that it trains again, and so on."""
    found = [(str(directory.resolve()), name)]
    while len(found) < _MOST and found[-1][0]:
        place, number = found[-1]
        if place not in known:
            known[place] = _retrained(Path(place))
        again = known[place]
        if again is None or number not in again.trials:
            break
        found.append((again.source, again.trials[number]))
    return found


def _retrained(directory: Path) -> _Again | None:
    """What the trials of ``directory`` train again; None: nothing."""
    at = next((one for one in (directory, *directory.parents[:2]) if (one / SPEC_FILE).is_file()), None)
    spec = _json(at / SPEC_FILE) if at is not None else {}
    numbers = _json(directory / MAP_FILE)
    if numbers:
        source = str(spec.get("search_directory") or at or "")
        return _Again(_trials_of(source), {str(name): str(one) for name, one in numbers.items()})
    flags = spec.get("search_flags")
    flags = {**flags, **spec} if isinstance(flags, dict) else spec
    named = {name.replace("-", "_"): value for name, value in flags.items()}
    trials, source = named.get("retrain_search_job_trials"), str(named.get("retrain_search_job_dir") or "")
    if not trials and spec.get("chosen"):
        trials, source = ",".join(map(str, spec["chosen"])), str(spec.get("search_directory") or "")
    if not trials:
        return None
    words = [word.strip() for word in str(trials).split(",")]
    return _Again(_trials_of(source), {str(k): word for k, word in enumerate(words, 1)})


def _trials_of(source: str) -> str:
    """The directory of the trials of a search, given that or the search's own."""
    if not source:
        return ""
    below = Path(source, "nas", "search")
    return str((below if below.is_dir() else Path(source)).resolve())


def _check_same(proxy: Path, full: Path) -> None:
    one, other = _json(proxy / PARAMETERS_FILE), _json(full / PARAMETERS_FILE)
    if one and other and one != other:
        raise WrongCall(
            f"{proxy} and {full} are not of the same model: their {PARAMETERS_FILE} differ, and nothing says "
            "which trials were trained again; give trainings of the same models"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
