"""Which trials of a search are trained in full, and by what orders. Pure but for reading their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_hpc.apps.trials.records import Trial
from nas_hpc.apps.trials.runner import Order
from nas_hpc.apps.trials.spec import SEARCH, TRAIN, TrialsSpec, id_of
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial.architecture import EXPANDED_FILE, PARAMETERS_FILE
from nas_hpc.trial.jsonfiles import read_json
from nas_hpc.trial.retrain import save_retrain_map


def chosen_by(
    finished: Sequence[Trial], frequency: int, count: int, already: Mapping[int, int] | None = None
) -> list[int]:
    """Numbers of the search's trials that are to be trained in full, in the order of the stage-2 trials.

    After every ``frequency`` finished trials of stage 1 (``finished``, in the order in which they were) the
    ``count`` best of those so far that were not chosen yet; fewer if there are no more successes.
    ``already``: what the stage-2 trials 1, 2, … that were started train, whatever would be chosen now.
    """
    kept = already or {}
    chosen: list[int] = []
    for first in range(frequency, len(finished) + 1, frequency) if frequency else ():
        good = [one for one in finished[:first] if one.reward is not None]
        ranked = sorted(good, key=lambda one: (-(one.reward or 0.0), one.number))
        for _ in range(count):
            recorded = kept.get(len(chosen) + 1)
            best = next((one.number for one in ranked if one.number not in chosen), None)
            number = best if recorded is None else recorded
            if number is None:
                break
            chosen.append(number)
    return chosen


def order_of(spec: TrialsSpec, number: int, of: int, all_chosen: Sequence[int], source: str) -> Order:
    """The order of the stage-2 trial ``number`` that trains trial ``of`` of the search in ``source``.

    Raises WrongCall if that trial has no parameters there.
    """
    parameters, expanded = parameters_of(source, of)
    flags = {
        **(spec.train_flags or {}),
        "retrain-search-job-dir": str(Path(source, "nas", SEARCH)),
        "retrain-search-job-trials": ",".join(map(str, all_chosen)),
    }
    if spec.use_checkpoint:
        flags["retrain-use-search-job-checkpoint"] = "True"
    return Order(
        id=id_of(spec, TRAIN, number),
        number=number,
        stage=TRAIN,
        nas_trial_id=of,
        parameters=parameters,
        expanded=expanded,
        directory=str(spec.trial_directory(TRAIN, number)),
        flags=flags,
    )


def keep_map(spec: TrialsSpec, chosen: Sequence[int]) -> None:
    """Leave, beside the directories of the stage-2 trials, which trial each of them trains.

    Raises WorkFailed where that cannot be."""
    directory = Path(spec.directory, "nas", TRAIN)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_retrain_map(directory, chosen)
    except OSError as error:
        raise WorkFailed(f"{directory} cannot be written: {error.strerror}") from error


def parameters_of(source: str, number: int) -> tuple[dict[str, Any], Any]:
    """Parameters of trial ``number`` of the search in ``source``, and their object. Raises WrongCall."""
    place = Path(source, "nas", SEARCH, str(number))
    parameters = read_json(place / PARAMETERS_FILE)
    if not isinstance(parameters, dict):
        there = sorted(int(one.name) for one in place.parent.glob("*") if one.name.isdigit())
        right = f"there are trials {_ranges(there)}" if there else "it has no trials yet"
        raise WrongCall(f"trial {number} does not exist in {place.parent}: {right}")
    return parameters, read_json(place / EXPANDED_FILE)


def _ranges(numbers: Sequence[int]) -> str:
    """1-4, 6, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
