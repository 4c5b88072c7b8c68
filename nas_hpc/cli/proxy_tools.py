"""``nas-hpc measure-proxy-task-variance`` and ``nas-hpc select-proxy-task-models``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, note, site_options
from nas_hpc.cli.latency_flags import LATENCY_FLAGS, LATENCY_NAMES, latency_values
from nas_hpc.cli.proxy_jobs import TOOL_FLAGS, Tool, begin, go_on
from nas_hpc.cli.trials_flags import TrialsCommand, checked_metric, flag_name
from nas_hpc.cli.types import Amount, Count
from nas_hpc.errors import WrongCall

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec


@site_options
@click.command(cls=TrialsCommand)
@TOOL_FLAGS
@click.option(
    "--nas-target-reward-metric", "metric", default="", metavar="NAME", help="The reward, if it has a name."
)
@click.option("--copies", type=Count(2, 99), default=5, help="Trainings of the model. [default: 5]")
@click.option("--max-tries", type=Count(1, 99), default=10, help="Models that are tried. [default: 10]")
@click.option(
    "--seed-flag",
    default="",
    metavar="NAME",
    help="The trainer's flag that takes a seed, as --NAME=N; it is also in NAS_HPC_TRIAL_SEED.",
)
@click.option("--previous-variance-dir", "previous", default="", metavar="DIR", help="Go on with this one.")
@click.pass_obj
def measure(call: Invocation, /, previous: str, **flags: Any) -> int:
    """Measure how much the score of one model varies when it is trained again, and how smooth its curves are.

    A random model that can be trained is found; copies of it are trained. Train for about an hour, with a
    learning rate that decays to zero within that.

    \b
    Example:
      nas-hpc measure-proxy-task-variance --job-name first \\
        --search-space-module my.spaces.dense --trainer 'python -m my.trainer' \\
        --root-output-dir ~/searches --max-parallel-nas-trial 5 \\
        --search-flags num_epochs=5 --seed-flag seed
    """
    settings = {name: flags[name] for name in ("copies", "max_tries", "seed_flag")}
    settings["seed_flag"] = flag_name("--seed-flag", flags["seed_flag"])
    if previous:
        return go_on(call, _MEASURE, previous, flags, settings)
    if flags["metric"]:
        checked_metric(flags["metric"])
    return begin(call, _MEASURE, flags, settings, flags["copies"])


@site_options
@click.command(cls=TrialsCommand)
@TOOL_FLAGS
@click.option(
    "--accuracy-metric-id", default="", metavar="NAME", help="The reported metric that is the accuracy alone."
)
@click.option(
    "--latency-metric-id", default="", metavar="NAME", help="The one that is the latency, if it matters."
)
@click.option(
    "--nas-target-reward-metric", "metric", default="", metavar="NAME", help="[default: the accuracy]"
)
@click.option("--start-num-models", type=Count(2, 999), default=30, help="Models at first. [default: 30]")
@click.option("--final-num-models", type=Count(2, 999), default=10, help="Models at last. [default: 10]")
@click.option(
    "--num-models-to-remove-per-iter", type=Count(1), default=5, help="So many leave a round. [default: 5]"
)
@click.option(
    "--max-failure-pct",
    type=Amount("percent", most=100.0),
    default=20.0,
    help="It stops if more of a round's models are invalid. [default: 20]",
)
@LATENCY_FLAGS
@click.option("--pin-extremes", is_flag=True, help="Keep the least and greatest accuracy and latency.")
@click.option(
    "--previous-model-selection-dir", "previous", default="", metavar="DIR", help="Go on with this one."
)
@click.pass_obj
def select(call: Invocation, /, previous: str, **flags: Any) -> int:
    """Choose models whose scores are spread well, and train them to the end: the reference of proxy tasks.

    Thirty random models are trained a little; the five that add least to the spread leave; the others are
    trained on, and so on until ten are left. That costs about twelve full trainings.

    \b
    Example:
      nas-hpc select-proxy-task-models --job-name first \\
        --search-space-module my.spaces.dense --trainer 'python -m my.trainer' \\
        --root-output-dir ~/searches --max-parallel-nas-trial 10 \\
        --accuracy-metric-id top_1_accuracy --latency-metric-id latency_ms \\
        --search-flags num_epochs=30
    """
    names = ("accuracy_metric_id", "latency_metric_id", "start_num_models", "final_num_models",
             "num_models_to_remove_per_iter", "max_failure_pct", "pin_extremes")  # fmt: skip
    settings = {**{name: flags[name] for name in names}, **latency_values(flags)}
    if previous:
        return go_on(call, _SELECT, previous, flags, settings)
    if not flags["accuracy_metric_id"]:
        raise WrongCall("give --accuracy-metric-id: the name under which the trainer reports the accuracy")
    from nas_hpc.analytics.proxy.correlation import LEAST_MODELS
    from nas_hpc.apps.proxy.selection import check_counts

    check_counts(*(flags[name] for name in names[2:5]))
    if flags["final_num_models"] < LEAST_MODELS:
        note(
            f"note: --final-num-models {flags['final_num_models']}: a search for a proxy task needs "
            f"{LEAST_MODELS} or more"
        )
    for name, flag in (
        ("accuracy_metric_id", "--accuracy-metric-id"),
        ("latency_metric_id", "--latency-metric-id"),
    ):
        if flags[name]:
            checked_metric(flags[name], flag)
    if flags["latency_metric_id"] == flags["accuracy_metric_id"]:
        raise WrongCall(
            f"--latency-metric-id {flags['latency_metric_id']!r} is the accuracy: give the name under which "
            "the trainer reports the latency, or leave it out"
        )
    flags["metric"] = checked_metric(flags["metric"] or flags["accuracy_metric_id"])
    return begin(call, _SELECT, flags, settings, flags["start_num_models"])


# -- what they say ---------------------------------------------------------------------------------
def _of_variance(directory: str) -> list[str]:
    from nas_hpc.apps.proxy.variance import FIGURE_FILE, RESULT_FILE
    from nas_hpc.trial.jsonfiles import read_json

    found = read_json(Path(directory, RESULT_FILE))
    if not isinstance(found, dict):
        return []
    lines = []
    for name in ("variance", "smoothness"):
        value = found[f"{name}_value"]
        shown = "unknown" if value is None else f"{value:.6g}"
        lines.append(f"{name:<15} {shown}  {found[f'{name}_info']}")
    lines += [f"{'note':<15} {one}" for one in found["notes"]]
    lines += [f"{'advice':<15} {one}" for one in found["advice"]]
    return lines + _there(directory, result=RESULT_FILE, figure=FIGURE_FILE)


def _of_selection(directory: str) -> list[str]:
    from nas_hpc.apps.proxy.selection import FIGURE_FILE
    from nas_hpc.apps.proxy.tool import SELECTION, STATE_FILES, read_state_of

    state = read_state_of(directory, SELECTION)
    lines = []
    for one in state.get("iterations", []):
        pct = min(100.0, one["desired_training_step_pct"])
        what = f"{one['num_trials']} models to {pct:.4g} %"
        left = len(one["trials_to_retrain"]) or len(state.get("selected_models", []))
        lost = f"{len(one['removed'])} removed, {len(one['invalid'])} invalid"
        ended = f"{left} stay, {lost}" if one["trials"] else "not finished"
        lines.append(f"{one['search_job_name']:<15} {what}: {ended}")
    for name, one in state.get("spread", {}).items():
        groups = f"{one['groups']} group{'s' if one['groups'] > 1 else ''}"
        span = f"{one['least']:.4g} to {one['greatest']:.4g}"
        lines.append(f"{name:<15} {span} in {groups}, widest gap {one['widest_gap']:.4g}")
    lines += [f"{'note':<15} {one}" for one in state.get("notes", [])]
    last = state["iterations"][-1]["search_job_name"] if state.get("iterations") else ""
    return lines + _there(directory, state=STATE_FILES[SELECTION], figure=os.path.join(last, FIGURE_FILE))


def _there(directory: str, **files: str) -> list[str]:
    paths = {title: os.path.join(directory, name) for title, name in files.items()}
    return [f"{title:<15} {path}" for title, path in paths.items() if os.path.isfile(path)]


# -- the tools -------------------------------------------------------------------------------------
def _trainings_of_selection(spec: TrialsSpec, settings: Mapping[str, Any]) -> int:
    from nas_hpc.analytics.proxy.thinning import desired_pcts

    names = ("start_num_models", "final_num_models", "num_models_to_remove_per_iter")
    return sum(count for count, _ in desired_pcts(*(settings[name] for name in names)))


def _rounds_of_variance(state: Mapping[str, Any]) -> range:
    tries = int(state.get("max_tries", 0))
    return range(tries, tries + 1) if state.get("workable_model_dir") else range(tries + 1)


def _rounds_of_selection(state: Mapping[str, Any]) -> range:
    count = len(state.get("iterations", []))
    return range(max(0, count - 1), max(1, count))


_MEASURE = Tool(
    kind="variance",
    command="measure-proxy-task-variance",
    previous="--previous-variance-dir",
    lines=_of_variance,
    total=lambda spec, settings: 1 + settings["copies"],
    unfinished=_rounds_of_variance,
)
_SELECT = Tool(
    kind="selection",
    command="select-proxy-task-models",
    previous="--previous-model-selection-dir",
    lines=_of_selection,
    total=_trainings_of_selection,
    unfinished=_rounds_of_selection,
    anew=frozenset({"max_failure_pct"}) | LATENCY_NAMES,
    distinct=True,
)
