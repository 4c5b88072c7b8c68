"""The architecture of a trial: from the command line, and kept in the trial's directory.

File names are those of Vertex AI NAS. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.plain import plain_object
from nas_hpc.trial.jsonfiles import write_json
from nas_hpc.trial.place import trial_dir

PARAMETERS_FILE = "nas_params_str.json"
EXPANDED_FILE = "serialized_tunable_object.json"


def parse_architecture(text: str | os.PathLike[str]) -> dict[str, Any]:
    """The architecture that ``--nas-params-str`` gives: a JSON object, or the path of a file with one, which
    ends in ``.json``. Raises WrongCall for anything else."""
    given = os.fspath(text).strip()
    where = f"the architecture {given!r:.120}"
    if given.endswith(".json"):
        try:
            given = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WrongCall(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise WrongCall(
            f'{where} is no JSON ({error}): give an object, as {{"units": 16}}, or the path of a .json file'
        ) from None
    if not isinstance(content, dict):
        raise WrongCall(f'{where} is a {type(content).__name__}: give an object, as {{"units": 16}}')
    return content


def save_architecture(
    model_dir: str | os.PathLike[str] | None, params: dict[str, Any], expanded: object = None
) -> None:
    """Put the architecture into the trial's directory (None: the one that the environment says), and beside
    it what it was expanded to, as far as that is given: the layers, say. Each file is replaced at once.

    Raises WrongCall for what is no JSON, and OSError.
    """
    directory = trial_dir(model_dir)
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, object]] = [(PARAMETERS_FILE, plain_object(params, "the architecture"))]
    if expanded is not None:
        found.append((EXPANDED_FILE, plain_object({"object": expanded}, "what it expands to")["object"]))
    for name, content in found:
        write_json(directory / name, content)


def read_saved_architecture(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The architecture of the trial in ``directory``. Raises WrongCall if there is none."""
    return parse_architecture(os.path.join(directory, PARAMETERS_FILE))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every trial's trainer is started with, in both spellings (``--job-dir``,
    ``--job_dir``); see ``nas_hpc.trial.retrain`` for those of a retraining."""
    for name, default, text in (
        ("nas-params-str", "", "the architecture: JSON, or the path of a .json file"),
        ("job-dir", os.fspath(trial_dir() or ""), "the trial's directory"),
        ("retrain-search-job-dir", "", "directory of the search whose trials are trained again"),
        ("retrain-search-job-trials", "", "their numbers: trial k trains the k-th of them"),
    ):
        parser.add_argument(*_spellings(name), default=default, help=text)
    parser.add_argument(
        *_spellings("retrain-use-search-job-checkpoint"),
        type=_truth,
        nargs="?",
        const=True,
        default=False,
        help="go on from the checkpoint of that trial",
    )


def _spellings(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")))


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return word in ("true", "1", "yes")
