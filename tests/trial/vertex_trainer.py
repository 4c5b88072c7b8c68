"""A trainer as those of Vertex AI NAS are, with the conventions of its libraries and nothing of this package:
flags, variables of the environment, names and keys of files, and a reporter that replaces its file."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any

CYCLE, STEPS = 25, 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nas_params_str", default="")
    parser.add_argument("--job-dir", default="tmp")
    parser.add_argument("--retrain_search_job_dir", default="")
    parser.add_argument("--retrain_search_job_trials", default="")
    flags, _ = parser.parse_known_args()
    found = re.match(r".*nas/(search|train)/\d+", os.environ.get("AIP_MODEL_DIR", ""))
    place = Path(found[0] if found else flags.job_dir)
    place.mkdir(parents=True, exist_ok=True)
    trial, others = int(os.environ.get("CLOUD_ML_TRIAL_ID", "0")), {"model_latency": "3.5"}
    text = flags.nas_params_str
    if flags.retrain_search_job_trials:
        numbers = flags.retrain_search_job_trials.split(",")
        others["nas_trial_id"] = dict(enumerate(numbers, 1))[trial]
        text = str(Path(flags.retrain_search_job_dir, others["nas_trial_id"], "nas_params_str.json"))
    params = json.loads(Path(text).read_text() if text.endswith(".json") else text)
    write(place / "nas_params_str.json", params)
    write(place / "serialized_tunable_object.json", {"layers": [params]})
    try:
        train(place, params, others)
    except Exception as error:
        nan = "NaN" in str(error)
        write(place / "job_status.json", {"job_status": "failed_with_nan_error" if nan else "failed"})
        raise
    write(place / "job_status.json", {"job_status": "success"})


def train(place: Path, params: dict[str, Any], others: dict[str, Any]) -> None:
    """Cycles of a training that may be told to stop; the score grows up to that of the parameters."""
    score, step = 0.0, 0
    while step < STEPS and not stops(place, step - 1):
        score = params["score"] * (step + CYCLE) / STEPS
        update(place, score, step, step + CYCLE - 1)
        step += CYCLE
    if math.isnan(score):
        raise ValueError("NaN loss during training.")
    more = {f"metric_{at}": at for at in range(6)}
    write(place / "model_analysis.json", {**others, **more})
    report(score, step, {**others, **more})


def stops(place: Path, end: int) -> bool:
    path = place / "DESIRED_TRAINING_PCT.json"
    if not path.exists():
        return False
    desired: float = json.loads(path.read_text())["desired_training_pct"]
    return 100.0 * (end + 1) / STEPS >= desired


def update(place: Path, score: float, begin: int, end: int) -> None:
    path = place / "TRIAL_TRAINING_METRICS.json"
    empty = {
        "training_time": {"total_training_steps": 0, "total_training_time_in_secs": 0.0},
        "latency": -1.0,
        "training_accuracy_over_steps": [],
    }
    record: Any = json.loads(path.read_text()) if path.exists() else empty
    pct = 100.0 * (end + 1) / STEPS
    record["training_accuracy_over_steps"].append(
        {"training_step_pct": pct, "training_step": end, "accuracy": score}
    )
    record["training_time"]["total_training_steps"] += end - begin + 1
    record["training_time"]["total_training_time_in_secs"] += 36.0
    write(path, record)


def report(score: float, step: int, others: dict[str, Any]) -> None:
    """The reporter: all values are text, 0 is a little more, five other metrics, the last hundred reports."""
    path = Path(os.environ["CLOUD_ML_HP_METRIC_FILE"])
    line = {
        "timestamp": "1700000000.5",
        "trial": os.environ["CLOUD_ML_TRIAL_ID"],
        os.environ["CLOUD_ML_HP_METRIC_TAG"]: str(score or 1e-08),
        "global_step": str(step),
        "checkpoint_path": "",
        "model_flops": "0.0",
    }
    for at, (name, value) in enumerate(list(others.items())[:5]):
        line |= {f"key_{at}": name, f"value_{at}": str(value)}
    before = path.read_text().splitlines() if path.exists() else []
    path.write_text("\n".join([*before[-99:], json.dumps(line, sort_keys=True)]) + "\n")


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
