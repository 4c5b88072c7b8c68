"""What was asked of a tool for proxy tasks, and how far it has come: two files of its directory.

``search_job_spec.json`` says the first, with the tool's own settings beside those of any job of trials. The
state file says the second: it is written whole at every step, and what comes next follows from it and from
the recorded trials alone.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nas_hpc.apps.trials.spec import SPEC_FILE, TrialsSpec, read_spec
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial.jsonfiles import read_json, write_json

VARIANCE, SELECTION, SEARCH_TASK = "variance", "selection", "proxy_search"
"""``TrialsSpec.kind`` of the three tools."""
PREFIXES: Final = {
    VARIANCE: "Variance_Measurement",
    SELECTION: "Model_Selection",
    SEARCH_TASK: "Search_controller",
}
"""Their directories are ``<root>/<prefix>_<job>_<YYYYmmdd_HHMMSS>``."""
STATE_FILES: Final = {
    VARIANCE: "measurement_state.json",
    SELECTION: "MODEL_SELECTION_STATE.json",
    SEARCH_TASK: "SEARCH_CONTROLLER_STATE.json",
}
CURRENT_FILE: Final = "current_nas_job_name.json"
"""What a tool works on, for those who follow it."""
CURRENT_KEY: Final = "current_nas_job_name"
RUNNING, SUCCEEDED, FAILED = "RUNNING", "SUCCEEDED", "FAILED"
"""``state`` in it; one that was interrupted stays RUNNING, for it goes on."""
SCHEMA_VERSION = 1
_TOOL, _VERSION = "tool", "schema_version"


def write_tool(spec: TrialsSpec, settings: Mapping[str, Any]) -> None:
    """Leave what was asked in the tool's directory. Raises OSError."""
    write_json(Path(spec.directory, SPEC_FILE), {**dataclasses.asdict(spec), _TOOL: dict(settings)})


def read_tool(directory: Path | str) -> tuple[TrialsSpec, dict[str, Any]]:
    """What was asked of the tool in ``directory``, and its own settings. Raises WrongCall if it is none."""
    spec = read_spec(directory)
    settings = read_json(Path(directory, SPEC_FILE)).get(_TOOL)
    if spec.kind not in PREFIXES or not isinstance(settings, dict):
        raise WrongCall(
            f"{str(directory)!r} is the directory of a {spec.kind}, and not of a tool for proxy tasks: give "
            f"one that is named {', '.join(PREFIXES.values())} and so on"
        )
    return spec, settings


class StateFile:
    """A tool's state: ``body`` is written whole by ``save``."""

    def __init__(self, directory: Path | str, kind: str, fresh: Mapping[str, Any]) -> None:
        """Read the state, or begin with ``fresh``. Raises WrongCall for a file of a later version or none."""
        self.path = Path(directory, STATE_FILES[kind])
        self.body: dict[str, Any] = {_VERSION: SCHEMA_VERSION, **fresh}
        if not self.path.exists():
            return
        found = read_json(self.path)
        if not isinstance(found, dict):
            raise WrongCall(f"{self.path} is no JSON: put back the file that the tool wrote, or begin anew")
        version = found.get(_VERSION, SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise WrongCall(f"{self.path} is of schema_version {version!r}, and this is {SCHEMA_VERSION}")
        self.body.update(found)

    def save(self) -> None:
        """Write it, all of it or nothing. Raises WorkFailed."""
        try:
            write_json(self.path, self.body)
        except OSError as error:
            raise WorkFailed(f"{self.path} cannot be written: {os.strerror(error.errno or 0)}") from error


def read_state_of(directory: Path | str, kind: str) -> dict[str, Any]:
    """What a tool's state file says now; {} if there is none yet."""
    found = read_json(Path(directory, STATE_FILES[kind]))
    return found if isinstance(found, dict) else {}


def follow(directory: Path | str, round_name: str | None = None, state: str = RUNNING) -> None:
    """Say that the tool in ``directory`` works on this round now (None: on the same one as before), or has
    ended in ``state``. Raises OSError."""
    path = Path(directory, CURRENT_FILE)
    before = read_json(path) if round_name is None else {}
    name = before.get(CURRENT_KEY, "") if isinstance(before, dict) else ""
    body = {CURRENT_KEY: name if round_name is None else round_name, "state": state, "updated": time.time()}
    write_json(path, body)


def followed(directory: Path | str) -> tuple[str, str]:
    """(the name of the round that the tool in ``directory`` works on, its state); ("", "RUNNING") before it
    has said any."""
    found = read_json(Path(directory, CURRENT_FILE))
    found = found if isinstance(found, dict) else {}
    return str(found.get(CURRENT_KEY) or ""), str(found.get("state") or RUNNING)
