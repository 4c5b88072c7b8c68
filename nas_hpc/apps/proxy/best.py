"""``best_proxy_task.yaml``: the best proxy task as a trainer's configuration that a search can use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.files import replace_file

if TYPE_CHECKING:
    from nas_hpc.apps.proxy.search import ProxySettings

BEST_FILE: Final = "best_proxy_task.yaml"
_TRAINER, _FLAGS = "trainer", "search_flags"


def best_flags(record: Mapping[str, Any], settings: ProxySettings) -> dict[str, str]:
    """The flags of a search's trainers: those of the task, and, where the trainer's flags for it are known,
    so many steps, over which the learning rate decays, and one validation, at the end."""
    steps = str(record["proxy_task_stats"]["final_training_steps"] + 1)
    own = {settings.steps_flag: steps, settings.decay_steps_flag: steps, settings.validations_flag: "1"}
    own = {name: value for name, value in own.items() if name}
    same = {name.replace("_", "-") for name in own}
    kept = {
        name: str(value)
        for name, value in record["docker_args_map"].items()
        if name.replace("_", "-") not in same
    }
    return {**kept, **own}


def write_best(
    spec: TrialsSpec, settings: ProxySettings, record: Mapping[str, Any], flags: Mapping[str, str]
) -> None:
    """Write the file. Raises WorkFailed."""
    stats = record["proxy_task_stats"]
    known = [one for one in stats["accuracy_correlation_over_step"] if one >= -1.0]
    latency = stats["latency_correlation"]
    steps = stats["final_training_steps"] + 1
    head = (
        "# The best proxy task: train for so many steps, let the learning rate decay to nearly zero over as\n"
        "# many, and validate once, at the end. nas-hpc search --proxy-task FILE has its trials trained so.\n"
    )
    if not settings.steps_flag:
        head += "# search_flags lack the steps: add the trainer's flag for them.\n"
    body: dict[str, Any] = {
        "proxy_task": record["proxy_task_name"],
        "stopping_state": stats["stopping_state"],
        "final_training_steps": stats["final_training_steps"],
        "training_steps": steps,
        "learning_rate_decay_steps": steps,
        "validations": 1,
        "training_hours": stats["final_training_time_in_hours"],
        "node_hours_of_all_models": stats.get("final_node_hours", -1.0),
        "accuracy_correlation": known[-1] if known else None,
        "latency_correlation": latency if latency >= -1.0 else None,
        _TRAINER: list(spec.trainer),
        _FLAGS: dict(flags),
    }
    path = Path(spec.directory, BEST_FILE)
    try:
        replace_file(path, head + _yaml(body), mode=0o644)
    except OSError as error:
        raise WorkFailed(f"{path} cannot be written: {error.strerror}") from error


def _yaml(body: Mapping[str, Any]) -> str:
    """YAML of one or two levels; all values as JSON has them, which YAML has, too."""
    lines = []
    for name, value in body.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{name}:")
            lines += [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


# -- reading it again ------------------------------------------------------------------------------
def read_best(path: Path | str) -> tuple[tuple[str, ...], dict[str, str]]:
    """(the trainer's command, its flags) of a file as ``write_best`` leaves it, also if values were changed
    or flags added by hand. Raises WrongCall."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise WrongCall(f"--proxy-task {str(path)!r} cannot be read: {why}") from None
    trainer: Any = []
    flags: dict[str, str] = {}
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = _entry(line)
        if not colon:
            raise WrongCall(f"--proxy-task {path}: line {number} is {line.strip()!r}: give name: value")
        if line.startswith(" "):
            flags |= {name: _text(value)} if inside == _FLAGS else {}
            continue
        inside = name
        trainer = _value(value) if name == _TRAINER else trainer
    if inside == "" or not flags:
        raise WrongCall(
            f"--proxy-task {path} has no search_flags: give the {BEST_FILE} of a search for a proxy task"
        )
    if not isinstance(trainer, list) or not all(isinstance(word, str) for word in trainer):
        raise WrongCall(
            f'--proxy-task {path}: trainer is {trainer!r}: give words, as in ["python", "train.py"]'
        )
    return tuple(trainer), flags


def _entry(line: str) -> tuple[str, str, str]:
    """The name of a line, a colon if it has one, and the value as it stands there."""
    text = line.strip()
    if text.startswith('"'):
        try:
            name, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return text, "", ""
        rest = text[end:].lstrip()
        return str(name), rest[:1] if rest.startswith(":") else "", rest[1:].strip()
    name, colon, value = text.partition(":")
    return name.strip().strip("'"), colon, value.strip()


def _value(text: str) -> Any:
    """As JSON; what is none is the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip("'")


def _text(value: str) -> str:
    found = _value(value)
    return found if isinstance(found, str) else value
