"""``nas-hpc search-proxy-task``."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.check_search import check_tasks
from nas_hpc.cli.context import Invocation, note, site_options
from nas_hpc.cli.latency_flags import LATENCY_FLAGS, LATENCY_NAMES, latency_values
from nas_hpc.cli.proxy_jobs import TOOL_FLAGS, Tool, begin, check_kind, go_on
from nas_hpc.cli.run import whole_path
from nas_hpc.cli.submission import find_job
from nas_hpc.cli.trials_flags import TrialsCommand, checked_metric, flag_map, flag_name
from nas_hpc.cli.types import Amount, Duration
from nas_hpc.errors import WrongCall
from nas_hpc.store.base import JobFilter

if TYPE_CHECKING:
    from nas_hpc.apps.proxy.reference import Reference
    from nas_hpc.apps.trials.spec import TrialsSpec

_FROM_SELECTION = "[default: the selection's]"
_OF_TASKS = frozenset({
    "generator", "desired_accuracy_correlation", "desired_accuracy", "training_time_hrs_limit",
    "desired_latency_correlation", "early_stop_proxy_task_if_not_best", "look_every_s", "steps_flag",
    "decay_steps_flag", "validations_flag",
    "max_p_value", "node_hours_limit", "cost",
}) | LATENCY_NAMES  # fmt: skip
"""Settings that may be others for the tasks that are still to be tried."""
_STEP_FLAGS = {
    "steps_flag": "--training-steps-flag",
    "decay_steps_flag": "--decay-steps-flag",
    "validations_flag": "--validations-flag",
}


@site_options
@click.command(cls=TrialsCommand)
@TOOL_FLAGS
@click.option(
    "--proxy-task-config-generator-module",
    "generator",
    default="",
    metavar="WHERE",
    help="The function that makes the proxy tasks: module.function or file.py:function.",
)
@click.option(
    "--proxy-task-model-selection-job-id",
    "selection",
    default="",
    metavar="JOB",
    help="The model selection, or a directory of it or of other full trainings.",
)
@click.option(
    "--accuracy-metric-id", default="", metavar="NAME", help=f"Of full trainings. {_FROM_SELECTION}"
)
@click.option("--latency-metric-id", default="", metavar="NAME", help=f"Of full trainings. {_FROM_SELECTION}")
@click.option(
    "--nas-target-reward-metric", "metric", default="", metavar="NAME", help="[default: the accuracy]"
)
@click.option(
    "--desired-accuracy-correlation",
    type=float,
    default=0.65,
    help="A task that ranks the models so well has met its aim. [default: 0.65]",
)
@click.option(
    "--max-p-value",
    type=Amount("p", positive=True, most=1.0),
    default=None,
    help="And whose correlation has a p-value of at most so much. [default: any]",
)
@click.option("--desired-accuracy", type=float, default=None, help="Or one whose median score is so high.")
@click.option(
    "--training-time-hrs-limit",
    type=Amount("hours", positive=True),
    default=3.0,
    help="Each training ends after so long. [default: 3]",
)
@click.option(
    "--node-hours-limit",
    type=Amount("node-hours", positive=True),
    default=None,
    help="A task ends after its trainings took so much together.",
)
@click.option(
    "--cost",
    type=click.Choice(["hours", "node-hours"]),
    default="hours",
    help="By which the best task is the cheapest: of one training, or of all. [default: hours]",
)
@click.option(
    "--desired-latency-correlation",
    type=float,
    default=0.65,
    help="Latencies, if there are any, have to rank so well, too. [default: 0.65]",
)
@click.option(
    "--early-stop-proxy-task-if-not-best",
    type=bool,
    default=True,
    metavar="BOOL",
    help="End a task that takes longer than the best so far. [default: True]",
)
@click.option("--interpolate", is_flag=True, help="The trainer validates at different steps.")
@click.option(
    "--look-every",
    "look_every_s",
    type=Duration(),
    default=10.0,
    help="Look at the scores of running trainings so often. [default: 10s]",
)
@click.option(
    "--training-steps-flag",
    "steps_flag",
    default="",
    metavar="NAME",
    help="The trainer's flag for how many steps it trains, for best_proxy_task.yaml.",
)
@click.option(
    "--decay-steps-flag", default="", metavar="NAME", help="Over how many the learning rate decays."
)
@click.option("--validations-flag", default="", metavar="NAME", help="How often it validates.")
@LATENCY_FLAGS
@click.option(
    "--previous-proxy-task-search-dir",
    "previous",
    default="",
    metavar="DIR",
    help="Go on with this one, with the tasks that are new in its generator, too.",
)
@click.pass_obj
def search(call: Invocation, /, previous: str, **flags: Any) -> int:
    """Search the cheapest training that ranks models as the full training does.

    The models of a selection are trained with the flags of each proxy task, one task after the other, until
    their scores rank them as their full trainings did, or a limit is met. The best task is the cheapest one
    that does: best_proxy_task.yaml is its configuration.

    \b
    Example:
      nas-hpc search-proxy-task --job-name first \\
        --proxy-task-config-generator-module my.tasks.generate \\
        --proxy-task-model-selection-job-id Model_Selection_first \\
        --training-time-hrs-limit 4 --training-steps-flag steps
    """  # fmt: skip
    from nas_hpc.apps.proxy.latencies import check_latencies, latency_settings

    settings = _settings(flags)
    if previous:
        from nas_hpc.apps.proxy.tool import read_tool

        spec, old = read_tool(previous)
        check_kind(_SEARCH, spec, previous)
        baseline = flag_map("--search-flags", flags["search_flags"]) or spec.search_flags
        check_tasks(settings["generator"] or str(old.get("generator", "")), baseline, spec.directory)
        settings = {**settings, **{name: old[name] for name in ("selection",) if name in old}}
        return go_on(call, _SEARCH, previous, flags, settings)
    for name, flag in (("generator", "config-generator-module"), ("selection", "model-selection-job-id")):
        if not flags[name]:
            raise WrongCall(f"give --proxy-task-{flag}, or {_SEARCH.previous} to go on with what was begun")
    settings["selection"] = _directory_of(call, flags["selection"])
    reference = _reference(settings)
    check_latencies(latency_settings(settings), reference)
    flags = {**flags, **_defaults(flags, settings["selection"], reference)}
    check_tasks(settings["generator"], flag_map("--search-flags", flags["search_flags"]), "")
    return begin(call, _SEARCH, flags, settings, len(reference.models))


def _settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    names = ("accuracy_metric_id", "latency_metric_id", "desired_accuracy_correlation", "desired_accuracy",
             "training_time_hrs_limit", "desired_latency_correlation", "early_stop_proxy_task_if_not_best",
             "interpolate", "look_every_s", "max_p_value", "node_hours_limit", "cost")  # fmt: skip
    for name in ("desired_accuracy_correlation", "desired_latency_correlation"):
        if not -1.0 <= flags[name] <= 1.0:
            flag = f"--{name.replace('_', '-')}"
            raise WrongCall(f"{flag} {flags[name]:g}: a rank correlation is from -1 to 1, such as 0.65")
    if flags["desired_accuracy"] is not None and not math.isfinite(flags["desired_accuracy"]):
        raise WrongCall(f"--desired-accuracy {flags['desired_accuracy']:g}: give a score, such as 0.7")
    settings = {name: flags[name] for name in names}
    for name, flag in _STEP_FLAGS.items():
        settings[name] = flag_name(flag, flags[name])
    generator = whole_path(flags["generator"]) if flags["generator"] else ""
    return {
        **settings,
        **latency_values(flags),
        "generator": generator,
        "selection": flags["selection"],
    }


def _directory_of(call: Invocation, word: str) -> str:
    """The directory of the job that ``word`` is, or names."""
    from nas_hpc.apps.proxy.tool import PREFIXES, SELECTION
    from nas_hpc.apps.trials.spec import SPEC_FILE

    if os.path.isdir(word) and ("/" in word or os.path.isfile(os.path.join(word, SPEC_FILE))):
        return os.path.abspath(word)
    with call.store(write=False) as (_, store):
        workflow = f"{PREFIXES[SELECTION]}_{word}"
        named = [one for one in store.jobs(JobFilter(workflow=workflow)) if not one.creator]
        job = named[0] if len(named) == 1 else find_job(store, word, "--proxy-task-model-selection-job-id")
    words = shlex.split(job.args)
    if job.application not in ("PROXY_TASKS", "TRIALS") or len(words) < 2:
        raise WrongCall(f"--proxy-task-model-selection-job-id {word!r} is a job of {job.application}")
    return words[1]


def _reference(settings: Mapping[str, Any]) -> Reference:
    from nas_hpc.analytics.proxy.correlation import least_p_value
    from nas_hpc.apps.proxy.reference import read_reference

    names = ("selection", "accuracy_metric_id", "latency_metric_id")
    found = read_reference(*(settings[name] for name in names))
    for one in found.notes:
        note(f"note: {one}")
    least, most = least_p_value(len(found.models)), settings["max_p_value"]
    if most is not None and least > most:
        raise WrongCall(
            f"--max-p-value {most:g}: {len(found.models)} models that are ranked alike have a p-value of "
            f"{least:.2g}: give that or more, or select more models"
        )
    return found


def _defaults(flags: Mapping[str, Any], selection: str, reference: Reference) -> dict[str, Any]:
    """What was not given, as it was with the full trainings."""
    from nas_hpc.apps.trials.spec import read_spec

    spec = read_spec(selection)
    context = click.get_current_context()
    style = context.get_parameter_source("flag_style")
    found = {
        "trainer": flags["trainer"] or shlex.join(spec.trainer),
        "search_flags": flags["search_flags"] or tuple(f"{k}={v}" for k, v in spec.search_flags.items()),
        "root": flags["root"] or os.path.dirname(selection),
        "max_parallel": flags["max_parallel"] or len(reference.models),
        "metric": checked_metric(flags["metric"]) if flags["metric"] else spec.metric,
    }
    if style is click.core.ParameterSource.DEFAULT:
        found["flag_style"] = spec.flag_style
    return found


# -- what it says ----------------------------------------------------------------------------------
def _lines(directory: str) -> list[str]:
    from nas_hpc.apps.proxy.best import BEST_FILE
    from nas_hpc.apps.proxy.search import last_line, line_of
    from nas_hpc.apps.proxy.tool import SEARCH_TASK, STATE_FILES, read_state_of
    from nas_hpc.apps.trials.spec import read_spec

    state = read_state_of(directory, SEARCH_TASK)
    tasks = state.get("proxy_tasks_map", {}).values()
    lines = [line_of(one) if one["finished"] else f"{one['proxy_task_name']}: not finished" for one in tasks]
    if state:
        lines.append(last_line(read_spec(directory).job_name, state))
    for title, name in (("state", STATE_FILES[SEARCH_TASK]), ("best", BEST_FILE)):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            lines.append(f"{title:<15} {path}")
    return lines


def _unfinished(state: Mapping[str, Any]) -> range:
    tasks = state.get("proxy_tasks_map", {}).values()
    numbers = [one["number"] for one in tasks if not one["finished"]]
    return range(min(numbers), max(numbers) + 1) if numbers else range(0)


def _total(spec: TrialsSpec, settings: Mapping[str, Any]) -> int:
    return spec.max_trials


_SEARCH = Tool(
    kind="proxy_search",
    command="search-proxy-task",
    previous="--previous-proxy-task-search-dir",
    lines=_lines,
    total=_total,
    unfinished=_unfinished,
    anew=_OF_TASKS,
    goes_on=True,
    space=False,
)
