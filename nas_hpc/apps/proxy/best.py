"""``best_proxy_task.yaml``: the best proxy task as a trainer's configuration that a search can use."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.errors import WorkFailed
from nas_hpc.files import replace_file

if TYPE_CHECKING:
    from nas_hpc.apps.proxy.search import ProxySettings

BEST_FILE: Final = "best_proxy_task.yaml"


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
    words = [f"{name}={value}" for name, value in flags.items()]
    head = (
        "# The best proxy task: train for so many steps, let the learning rate decay to nearly zero over as\n"
        "# many, and validate once, at the end.\n"
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
        "trainer": list(spec.trainer),
        "search_flags": dict(flags),
        "command_line": f"nas-hpc search --search-flags {shlex.join(words)}",
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
