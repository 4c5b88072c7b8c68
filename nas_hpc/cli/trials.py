"""``nas-hpc search``, ``search-resume``, ``train`` and ``rerun``: jobs of trials."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.check_search import check_space
from nas_hpc.cli.context import Invocation, note, open_database, site_options
from nas_hpc.cli.latency_flags import SEARCH_LATENCY_FLAGS, latency_values
from nas_hpc.cli.output import short
from nas_hpc.cli.quota import check_quota
from nas_hpc.cli.trials_flags import (
    COUNT_FLAGS,
    LAUNCH_FLAGS,
    SEARCH_OPTIONS,
    TRAIN_RESOURCE_FLAGS,
    TrialsCommand,
    advice,
    check_share,
    checked_metric,
    flag_map,
    options,
    spec_of,
    trainer_words,
    whole_root,
    with_proxy_task,
)
from nas_hpc.cli.trials_jobs import (
    add,
    again,
    check_name,
    check_nobody_runs,
    find,
    found_in,
    launch,
    mode_flags,
    new_job,
    run_again,
    say_made,
    the_site,
)
from nas_hpc.cli.types import Count, Name
from nas_hpc.errors import WrongCall
from nas_hpc.names import wrong_name
from nas_hpc.states import State

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec
    from nas_hpc.records import Job

_JOB = click.argument("word", metavar="JOB")


@site_options
@click.command(cls=TrialsCommand)
@SEARCH_OPTIONS
@SEARCH_LATENCY_FLAGS
@click.pass_obj
def search(call: Invocation, /, **flags: Any) -> int:
    """Search by trials: trainings by one's own program, each with parameters that the search suggests.

    \b
    Example:
      nas-hpc search --job-name first --search-space-module my.spaces.dense \\
        --trainer 'python -m my.trainer' --nas-target-reward-metric top_1_accuracy \\
        --root-output-dir ~/searches --max-nas-trial 10 --max-parallel-nas-trial 2 \\
        --max-failed-nas-trial 3 --search-flags num_epochs=2

    \b
    With the two best of every ten trained in full:
      nas-hpc search ... --train-flags num_epochs=30 --train-frequency 10 \\
        --train-max-parallel-trial 2

    \b
    By the best proxy task of nas-hpc search-proxy-task:
      nas-hpc search ... --proxy-task DIR/best_proxy_task.yaml
    """
    wrong = wrong_name(flags["job_name"])
    if wrong:
        raise WrongCall(f"--job-name {flags['job_name']!r} {wrong}")
    root = whole_root(flags["root"])
    spec = replace(spec_of(with_proxy_task(flags), ""), **latency_values(flags))
    if advised := advice(spec.max_trials, spec.max_failed):
        note(f"note: {advised}")
    check_space(spec.space, spec.algorithm, spec.max_trials)
    return _begin(call, spec, root, flags)


def _begin(call: Invocation, spec: TrialsSpec, root: str, flags: dict[str, Any]) -> int:
    """Make the job of a new ``spec``, and run it unless --no-launch is given."""
    from nas_hpc.apps.trials.spec import make_directory, write_spec

    launched = not flags["no_launch"]
    site = the_site(call, launch=launched)
    settings = call.settings(site, mode_flags(spec, flags["nodes"]) if launched else {})
    if site is not None:
        with open_database(site, read_only=True) as store:
            check_name(store, site, spec.job_name)
    check_quota(site, spec, settings, launched=launched)
    spec = replace(spec, directory=str(make_directory(root, spec.job_name)))
    write_spec(spec)
    job = new_job(spec, settings, launched=launched)
    site = add(call, site, settings, job)
    say_made(job, spec, as_json=flags["as_json"], site=site, launched=launched)
    if not launched:
        return 0
    return launch(call, site, job, spec, settings, _total(spec), as_json=flags["as_json"])


def _total(spec: TrialsSpec) -> int:
    from nas_hpc.apps.trials.loop import total_of

    return total_of(spec)


# -- going on --------------------------------------------------------------------------------------
@site_options
@click.command(cls=TrialsCommand)
@_JOB
@options(COUNT_FLAGS, LAUNCH_FLAGS)
@click.pass_obj
def resume(call: Invocation, /, word: str, **flags: Any) -> int:
    """Go on with a search of trials, or a training of chosen ones; new limits take the place of the old ones.

    Nothing that is finished runs again. Trials that were ended with the search run again.

    \b
    Examples:
      nas-hpc search-resume first
      nas-hpc search-resume first --max-nas-trial 20 --max-failed-nas-trial 7
    """
    return _go_on(call, word, flags, State.USER_KILLED, "goes on by nas-hpc search-resume")


@site_options
@click.command(cls=TrialsCommand)
@_JOB
@click.option("--failed", is_flag=True, help="All failed trials.")
@click.option("--trials", "numbers", default="", metavar="1,9", help="Only these failed trials.")
@options(LAUNCH_FLAGS)
@click.pass_obj
def rerun(call: Invocation, /, word: str, failed: bool, numbers: str, **flags: Any) -> int:
    """Run failed trials of a search again, after what made them fail was corrected; then the search goes on,
    also with those trials that were ended with it.

    \b
    Example:
      nas-hpc rerun first --failed
    """
    if failed == bool(numbers):
        raise WrongCall("rerun: say which: --failed, or --trials with numbers of failed trials, as in 3,5")
    only = frozenset(trial_numbers("--trials", numbers)) if numbers else None
    flags |= dict.fromkeys(("max_trials", "max_parallel", "max_failed", "time_limit"))
    return _go_on(call, word, flags, State.FAILED, "run again by nas-hpc rerun", only)


def _go_on(
    call: Invocation,
    word: str,
    flags: dict[str, Any],
    state: State,
    what: str,
    only: frozenset[int] | None = None,
) -> int:
    from nas_hpc.apps.trials.spec import TRAIN
    from nas_hpc.launcher.endings import ended_with

    launched = not flags["no_launch"]
    site = call.site()
    check_nobody_runs(site, launch=launched)
    with call.store(write=True) as (_, store):
        found = found_in(store, word)
        assert found.job is not None
        spec = _with_limits(found.directory, flags)
        finished = found.job.state is State.JOB_FINISHED
        if only is not None:
            _check_failed(found.directory, only)
        before = sum(spec.again.values())
        spec = again(site, store, found.job, spec, State.USER_KILLED)
        ended = sum(spec.again.values())
        if state is State.FAILED:
            spec = again(site, store, found.job, spec, state, only)
        count = sum(spec.again.values())
        if state is State.FAILED and count == ended:
            raise WrongCall(f"rerun: no trial of {spec.job_name} has failed; see: nas-hpc list-trials {word}")
        if finished and count == before and not _is_more(found.directory, spec):
            more = "" if spec.kind == TRAIN else ": give more --max-nas-trial to go on"
            note(f"{spec.job_name} is finished{more}")
            return 0
        count += len(ended_with(store, found.job)) - before
        _keep(spec)
        run_again(store, found.job, new_job(spec, call.settings(site), launched=launched), what)
    if count:
        note(f"{count} of its trials run again")
    say_made(found.job, spec, as_json=flags["as_json"], site=site, launched=launched)
    if not launched:
        return 0
    settings = call.settings(site, mode_flags(spec, flags["nodes"]))
    return launch(call, site, found.job, spec, settings, _total(spec), as_json=flags["as_json"])


def _with_limits(directory: str, flags: dict[str, Any]) -> TrialsSpec:
    """The job's specification with the limits that were given anew. Raises WrongCall."""
    from nas_hpc.apps.trials.records import read_trials
    from nas_hpc.apps.trials.spec import SEARCH, TRAIN, read_spec

    old = read_spec(directory)
    limits = ("max_trials", "max_parallel", "max_failed")
    new = {name: flags[name] for name in limits if flags[name] is not None}
    if old.kind == TRAIN and "max_trials" in new:
        raise WrongCall(
            f"--max-nas-trial: {old.job_name} trains {len(old.chosen)} chosen trials: leave it out"
        )
    if old.kind == TRAIN and "max_parallel" in new:
        new["train_max_parallel"] = new["max_parallel"]
    if flags["time_limit"] is not None:
        new["time_limit_s"] = flags["time_limit"]
    begun = sum(row["stage"] == SEARCH for row in read_trials(directory))
    if new.get("max_trials", begun) < begun:
        raise WrongCall(
            f"--max-nas-trial {new['max_trials']}: {old.job_name} has {begun} trials: give that or more"
        )
    return replace(old, **new)


def _is_more(directory: str, spec: TrialsSpec) -> bool:
    from nas_hpc.apps.trials.spec import read_spec

    return spec.max_trials > read_spec(directory).max_trials


def _keep(spec: TrialsSpec) -> None:
    from nas_hpc.apps.trials.spec import write_spec

    try:
        write_spec(spec)
    except OSError as error:
        raise WrongCall(f"{spec.directory} cannot be written: {error.strerror}") from error


def _check_failed(directory: str, numbers: frozenset[int]) -> None:
    from nas_hpc.apps.trials.records import FAILED, read_trials
    from nas_hpc.apps.trials.spec import own_stage, read_spec

    stage, rows = own_stage(read_spec(directory)), read_trials(directory)
    failed = {row["trial"] for row in rows if (row["stage"], row["state"]) == (stage, FAILED)}
    for number in sorted(numbers - failed):
        there = ", ".join(map(str, sorted(failed))) or "none"
        raise WrongCall(f"--trials: trial {number} has not failed; failed trials are: {there}")


# -- stage 2 ---------------------------------------------------------------------------------------
@site_options
@click.command(cls=TrialsCommand)
@click.option("--search-job", required=True, metavar="JOB", help="The search, or its directory.")
@click.option(
    "--train-nas-trial-numbers", "numbers", required=True, metavar="1,9", help="Its trials that are trained."
)
@click.option(
    "--train-job-suffix", "suffix", type=Name(), required=True, help="The job's name is search_ID_SUFFIX."
)
@click.option(
    "--train-flags",
    "--train-docker-flags",
    "train_flags",
    multiple=True,
    metavar="k=v ...",
    help="For the trainer. [default: the search's --train-flags]",
)
@click.option("--trainer", default="", metavar="COMMAND", help="[default: the search's]")
@click.option(
    "--nas-target-reward-metric", "metric", default="", metavar="NAME", help="[default: the search's]"
)
@click.option("--root-output-dir", "root", default="", metavar="DIR", help="[default: the search's]")
@click.option(
    "--train-max-parallel-trial",
    "at_once",
    type=Count(1),
    default=None,
    help="At most so many at once. [default: all]",
)
@click.option("--use-checkpoint", is_flag=True, help="Go on from the checkpoints of those trials.")
@options(TRAIN_RESOURCE_FLAGS, LAUNCH_FLAGS)
@click.pass_obj
def train(call: Invocation, /, search_job: str, numbers: str, suffix: str, **flags: Any) -> int:  # fmt: skip
    """Train chosen trials of a search in full: a job of its own, whose trial k is the k-th of them.

    \b
    Example:
      nas-hpc train --search-job first --train-nas-trial-numbers 1,9 \\
        --train-job-suffix full --train-flags num_epochs=30
    """
    from nas_hpc.apps.trials.environment import environment_of

    found = find(call, search_job)
    spec = _train_spec(
        found.directory, found.job, trial_numbers("--train-nas-trial-numbers", numbers), suffix
    )
    spec = replace(spec, **_given(flags))
    check_share(dataclasses.asdict(spec))
    spec = replace(spec, made_in=environment_of(spec.trainer, os.environ))
    root = whole_root(flags["root"]) if flags["root"] else str(Path(found.directory).parent)
    return _begin(call, spec, root, flags)


def _train_spec(directory: str, job: Job | None, chosen: list[int], suffix: str) -> TrialsSpec:
    from nas_hpc.apps.trials.spec import SEARCH, TRAIN, read_spec
    from nas_hpc.apps.trials.stage2 import parameters_of

    old = read_spec(directory)
    if old.kind != SEARCH:
        raise WrongCall(
            f"--search-job: {old.job_name} trained chosen trials itself: give the search that found them"
        )
    for number in chosen:
        parameters_of(directory, number)
    name = f"search_{short(job.id) if job is not None else old.job_name}_{suffix}"
    return replace(
        old, job_name=name, directory="", kind=TRAIN, search_directory=directory, chosen=tuple(chosen),
        max_trials=len(chosen), max_parallel=len(chosen), train_max_parallel=len(chosen), max_failed=0,
        train_flags=old.train_flags if old.train_flags is not None else old.search_flags, time_limit_s=0.0,
    )  # fmt: skip


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Fields of the specification that are not as the search had them."""
    new: dict[str, Any] = {"use_checkpoint": flags["use_checkpoint"]}
    if flags["train_flags"]:
        new["train_flags"] = flag_map("--train-flags", flags["train_flags"])
    if flags["trainer"]:
        new["trainer"] = trainer_words(flags["trainer"])
    if flags["metric"]:
        new["metric"] = checked_metric(flags["metric"])
    resources = ("nodes_per_trial", "ranks_per_node", "threads_per_rank", "gpus_per_rank", "trials_per_node")
    new |= {name: flags[name] for name in resources if flags[name] is not None}
    if flags["trials_per_node"] is None and any((flags[name] or 1) > 1 for name in resources[:2]):
        new["trials_per_node"] = 0
    if flags["trial_timeout"] is not None:
        new["trial_timeout_s"] = flags["trial_timeout"]
    if flags["at_once"] is not None:
        new |= {"train_max_parallel": flags["at_once"], "max_parallel": flags["at_once"]}
    return new


def trial_numbers(flag: str, text: str) -> list[int]:
    """``1,9`` as numbers, in their order; one may stand there several times. Raises WrongCall."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isascii() or not word.isdigit() or int(word) < 1:
            raise WrongCall(f"{flag} {text!r}: {word!r} is no trial's number: give some such as 1,9")
    if not words:
        raise WrongCall(f"{flag} is empty: give numbers of trials, such as 1,9")
    return [int(word) for word in words]
