"""Training chosen trials of a search again: which one this trial is, and what that one left.

Standard library only.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.trial.architecture import parse_architecture, read_saved_architecture
from nas_hpc.trial.jsonfiles import read_object, write_json
from nas_hpc.trial.place import trial_dir, trial_number

MAP_FILE = "retrain_map.json"
"""In the directory of the trials that train again: {"1": "27", "2": "16"}."""


def retrain_map(trials: str | Sequence[int | str]) -> dict[str, str]:
    """From the number of a trial that trains again to that of the chosen one: ``"27,16"`` gives
    {"1": "27", "2": "16"}. One may be chosen several times. Raises WrongCall."""
    words = trials.split(",") if isinstance(trials, str) else [str(one) for one in trials]
    numbers = [word.strip() for word in words]
    for number in numbers:
        if not number.isascii() or not number.isdigit() or int(number) < 1:
            raise WrongCall(f"{number!r} in {trials!r:.80} is no number of a trial: give them as in 27,16")
    return {str(place): str(int(number)) for place, number in enumerate(numbers, 1)}


def save_retrain_map(directory: str | os.PathLike[str], trials: str | Sequence[int | str]) -> None:
    """Put the map into the directory of the trials that train again. Raises WrongCall and OSError."""
    write_json(os.path.join(directory, MAP_FILE), retrain_map(trials))


def nas_trial_id(trials: str | Sequence[int | str] | None = None) -> str:
    """The number in the search of what this trial trains: of the chosen one when it trains again, else its
    own; "" outside of a trial. ``trials`` as in ``--retrain-search-job-trials``; without it the map counts
    that stands beside the trial's directory. Raises WrongCall if this trial is not in the map."""
    number = trial_number()
    if trials:
        return _chosen(retrain_map(trials), number)
    directory = trial_dir()
    content = None if directory is None else read_object(directory.parent / MAP_FILE)
    return str((content or {}).get(number, number))


def previous_trial_dir(
    search_job_dir: str | os.PathLike[str], trials: str | Sequence[int | str], number: str | int | None = None
) -> Path:
    """The directory of the chosen trial that this one (or the one with ``number``) trains again.

    ``search_job_dir`` is that of the search's trials, or of the search itself. Raises WrongCall if there is
    no such directory, or this is none of the trials.
    """
    if not search_job_dir or not trials:
        raise WrongCall(
            "which trial this one goes on with is not said: give --retrain-search-job-dir and "
            "--retrain-search-job-trials"
        )
    chosen = _chosen(retrain_map(trials), trial_number() if number is None else str(number))
    base = Path(search_job_dir)
    places = [base / chosen, base / "nas" / "search" / chosen, base / "nas" / "train" / chosen]
    for place in places:
        if place.is_dir():
            return place
    raise WrongCall(
        f"there is no trial {chosen} in {base}: neither {places[0]} nor {places[1]} is a directory"
    )


def read_architecture(flags: argparse.Namespace) -> dict[str, Any]:
    """The architecture that a trainer with the flags of ``add_arguments`` is to train: that of the chosen
    trial when it trains again, else what ``--nas-params-str`` gives. Raises WrongCall if there is none."""
    if flags.retrain_search_job_trials and flags.retrain_search_job_dir:
        previous = previous_trial_dir(flags.retrain_search_job_dir, flags.retrain_search_job_trials)
        return read_saved_architecture(previous)
    if not flags.nas_params_str:
        raise WrongCall("there is no architecture: give --nas-params-str, JSON or the path of a .json file")
    return parse_architecture(flags.nas_params_str)


def _chosen(numbers: dict[str, str], number: str) -> str:
    if number not in numbers:
        this = f"trial {number}" if number else "this process, which is no trial (NAS_HPC_TRIAL is not set),"
        raise WrongCall(
            f"{this} is none of the {len(numbers)} that train again {', '.join(numbers.values())}"
        )
    return numbers[number]
