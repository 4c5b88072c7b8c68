"""Flags of the commands about trials: both ways of writing them, ``k=v`` lists, what they ask for."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nas_hpc.cli.context import working_directory
from nas_hpc.cli.stages import check_command
from nas_hpc.cli.types import Count, Duration, parse_args, parse_environ
from nas_hpc.errors import WrongCall

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec

Function = TypeVar("Function", bound=Callable[..., Any])
LISTS = ("--search-flags", "--search-docker-flags", "--train-flags", "--train-docker-flags",
         "--latency-flags", "--latency-docker-flags")  # fmt: skip
"""Flags that are followed by any number of k=v."""
_OURS = ("nas-params-str", "job-dir", "retrain-search-job-dir", "retrain-search-job-trials",
         "retrain-use-search-job-checkpoint")  # fmt: skip
"""Flags of a trainer that a search gives itself."""
_EXAMPLES = {
    "--seed-flag": "seed", "--training-steps-flag": "steps", "--decay-steps-flag": "decay_steps",
    "--validations-flag": "validations",
}  # fmt: skip


class TrialsCommand(click.Command):
    """A command whose flags may be written with underscores, and whose lists take all words up to the next
    flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(words: Sequence[str]) -> list[str]:
    """``words`` with dashes in the names of flags, and a flag in front of each word of a list.

    A list without words stays as an empty one: ``--train-flags`` alone asks for stage 2.
    """
    made: list[str] = []
    inside = ""
    for place, word in enumerate(words):
        if not word.startswith("--"):
            made.append(f"{inside}={word}" if inside else word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        inside = name if name in LISTS and not equals else ""
        following = words[place + 1] if place + 1 < len(words) else "--"
        if not inside:
            made.append(f"{name}{equals}{value}")
        elif following.startswith("--"):
            made.append(f"{name}=")
    return made


def flag_map(flag: str, settings: Sequence[str]) -> dict[str, str]:
    """``k=v`` words as a dictionary; a value keeps its further ``=``. Raises WrongCall."""
    found: dict[str, str] = {}
    for text in settings:
        if not text:
            continue
        name, equals, value = text.partition("=")
        name = name.lstrip("-")
        if not equals or not name or any(one.isspace() for one in name):
            raise WrongCall(f"{flag} {text!r} is no k=v: give one such as num_epochs=2")
        if name.replace("_", "-") in _OURS:
            raise WrongCall(f"{flag} {text!r}: {name} is given to every trial by the search: leave it out")
        if name in found:
            raise WrongCall(f"{flag} gives {name} twice, as {found[name]!r} and as {value!r}: give it once")
        found[name] = value
    return found


SEARCH_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--search-space-module", "space", default="", metavar="WHERE",
                 help="Where the search space is, or a function that makes it: module.name or file.py:name."),
    click.option("--problem", "problem", default="", metavar="WHERE", help="The same, under its other name."),
    click.option("--algorithm", type=click.Choice(["random", "evo", "ppo", "ambs"]), default="random",
                 help="Random, regularized evolution, a learnt policy, model-based. [default: random]"),
    click.option("--seed", type=Count(0, 2**32 - 1), default=None, help="Seed of all that is random."),
    click.option("--search-flags", "--search-docker-flags", "search_flags", multiple=True, metavar="k=v ...",
                 help="For the trainer of every trial, as --k=v."),
)  # fmt: skip
TRAINER_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--nas-target-reward-metric", "metric", required=True, metavar="NAME",
                 help="The reported metric that is the reward; greater is better."),
    click.option("--trainer", required=True, metavar="COMMAND", help="The program that trains one trial."),
    click.option("--env", multiple=True, metavar="K=V", help="For the trainer's environment; repeatable."),
    click.option("--reward-scaling", default="", metavar="FACTOR,OFFSET",
                 help="The reward is FACTOR times the metric plus OFFSET."),
    click.option("--metric-format", type=click.Choice(["vertex"]), default=None,
                 help="Have reports written as Vertex AI NAS has them."),
    click.option("--flag-style", type=click.Choice(["dashes", "underscores"]), default="dashes",
                 help="How the trainer writes its flags: --nas-params-str or --nas_params_str."
                 " [default: dashes]"),
)  # fmt: skip
COUNT_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--max-nas-trial", "max_trials", type=Count(1), default=None, help="Trials in all."
                 " [default: 10]"),
    click.option("--max-parallel-nas-trial", "max_parallel", type=Count(1), default=None,
                 help="At most so many at once. [default: 2]"),
    click.option("--max-failed-nas-trial", "max_failed", type=Count(0), default=None,
                 help="At so many failed trials the search ends; 0: never. [default: a third of all]"),
    click.option("--time-limit", type=Duration(), default=None, help="End after so long, as in 11h30m."),
)  # fmt: skip
_STAGE_2_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--train-flags", "--train-docker-flags", "train_flags", multiple=True, metavar="k=v ...",
                 help="Have the best trials trained in full, with these flags for the trainer."),
    click.option("--train-frequency", type=Count(1), default=None,
                 help="That after every so many finished trials. [default: all]"),
    click.option("--train-max-parallel-trial", "train_max_parallel", type=Count(1), default=None,
                 help="So many each time, and at once. [default: 1]"),
)  # fmt: skip
RESOURCE_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--nodes-per-trial", type=Count(1), default=1, help="Nodes of each trial. [default: 1]"),
    click.option("--ranks-per-node", type=Count(1), default=1, help="MPI ranks on each node. [default: 1]"),
    click.option("--threads-per-rank", type=Count(1), default=1, help="Threads of each rank. [default: 1]"),
    click.option("--gpus-per-rank", type=Count(0), default=0, help="GPUs of each rank. [default: 0]"),
    click.option("--trials-per-node", type=Count(1), default=None,
                 help="So many trials share a node. [default: as many as run at once, at most its cores]"),
    click.option("--trial-timeout", type=Duration(), default=None,
                 help="End a trial after so long, as in 2h."),
)  # fmt: skip
_AS_THE_SEARCH = "[default: the search's]"
TRAIN_RESOURCE_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--nodes-per-trial", type=Count(1), default=None, help=f"Nodes of each. {_AS_THE_SEARCH}"),
    click.option("--ranks-per-node", type=Count(1), default=None,
                 help=f"MPI ranks on each node. {_AS_THE_SEARCH}"),
    click.option("--threads-per-rank", type=Count(1), default=None,
                 help=f"Threads of each rank. {_AS_THE_SEARCH}"),
    click.option("--gpus-per-rank", type=Count(0), default=None, help=f"GPUs of each rank. {_AS_THE_SEARCH}"),
    click.option("--trials-per-node", type=Count(1), default=None,
                 help=f"So many share a node. {_AS_THE_SEARCH}"),
    click.option("--trial-timeout", type=Duration(), default=None,
                 help=f"End a training after so long, as in 12h. {_AS_THE_SEARCH}"),
)  # fmt: skip
"""Of full trainings, which mostly need more than those of a search."""
LAUNCH_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--nodes", type=Count(1), default=None,
                 help="Virtual nodes of this machine, or so many of the batch job's."),
    click.option("--no-launch", is_flag=True,
                 help="Only make the job; run it by nas-hpc launcher or nas-hpc submit-launch."),
    click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON."),
)  # fmt: skip
_ROOT = click.option("--root-output-dir", "root", required=True, metavar="DIR",
                     help="The search's directory is made there; all nodes have to see it.")  # fmt: skip
_NAME = click.option("--job-name", required=True, help="Of the job, its workflow and its directory.")


def options(*several: Sequence[Callable[[Any], Any]]) -> Callable[[Function], Function]:
    """Give a command all of these, in their order."""

    def decorate(command: Function) -> Function:
        for flag in reversed([one for part in several for one in part]):
            command = flag(command)
        return command

    return decorate


SEARCH_OPTIONS = options(
    (_NAME, *SEARCH_FLAGS[:2], TRAINER_FLAGS[0],
     click.option("--trainer", default="", metavar="COMMAND", help="The program that trains one trial."),
     click.option("--proxy-task", default="", metavar="FILE",
                  help="Train as best_proxy_task.yaml says: its --search-flags, but for those that are given,"
                  " and its --trainer, if none is."),
     _ROOT),
    COUNT_FLAGS, SEARCH_FLAGS[2:], _STAGE_2_FLAGS, RESOURCE_FLAGS, TRAINER_FLAGS[2:], LAUNCH_FLAGS,
)  # fmt: skip
LOCAL_OPTIONS = options(
    (_NAME, *SEARCH_FLAGS[:2], *TRAINER_FLAGS[:2]),
    (click.option("--root-output-dir", "root", default=".", metavar="DIR",
                  help="Its directory is made there. [default: here]"),),
    SEARCH_FLAGS[3:], TRAINER_FLAGS[2:],
)  # fmt: skip


def whole_root(root: str) -> str:
    """The root directory made absolute. Raises WrongCall if nothing could be made there."""
    if not root.strip():
        raise WrongCall("--root-output-dir is empty: give a directory that all nodes see")
    path = Path(os.path.normpath(working_directory() / Path(root).expanduser()))
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise WrongCall(f"--root-output-dir {root!r}: {there} is no directory: give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WrongCall(f"--root-output-dir {root!r}: you may not write to {there}: give another")
    return str(path)


def with_proxy_task(flags: Mapping[str, Any]) -> dict[str, Any]:
    """``flags`` of a search with what its --proxy-task says where they say nothing. Raises WrongCall."""
    if not flags["proxy_task"]:
        if not flags["trainer"]:
            raise WrongCall("give --trainer, the program that trains one trial, or --proxy-task")
        return dict(flags)
    from nas_hpc.apps.proxy.best import read_best

    trainer, found = read_best(working_directory() / Path(flags["proxy_task"]).expanduser())
    if not flags["trainer"] and not trainer:
        raise WrongCall(f"--proxy-task {flags['proxy_task']} names no trainer: give --trainer, too")
    given = flag_map("--search-flags", flags["search_flags"])
    same = {name.replace("_", "-") for name in given}
    kept = {name: value for name, value in found.items() if name.replace("_", "-") not in same}
    words = tuple(f"{name}={value}" for name, value in {**kept, **given}.items())
    return {**flags, "trainer": flags["trainer"] or shlex.join(trainer), "search_flags": words}


def trainer_words(command: str, flag: str = "--trainer") -> tuple[str, ...]:
    """The command that ``flag`` gives, its program and its files by absolute paths: trials run in directories
    of their own. Raises WrongCall if there is no such program."""
    here = working_directory()
    program, *words = parse_args(check_command(command, here, flag), flag)
    files = [
        str(here / word) if not word.startswith("-") and (here / word).is_file() else word for word in words
    ]
    for word, whole in zip(words, files, strict=True):
        if word.endswith(".py") and not os.path.isfile(whole):
            raise WrongCall(f"{flag} {command!r}: there is no file {word} in {here}: give the path of one")
    return (program, *files)


def where_space(flags: Mapping[str, Any]) -> str:
    """The one of --search-space-module and --problem. Raises WrongCall."""
    from nas_hpc.cli.run import whole_path

    given = [flags[name] for name in ("space", "problem") if flags[name]]
    if len(given) != 1:
        raise WrongCall(
            "give one of --search-space-module and --problem: module.name or file.py:name"
            if not given
            else f"--search-space-module {given[0]} and --problem {given[1]} say the same: give one of them"
        )
    return whole_path(str(given[0]))


def spec_of(flags: Mapping[str, Any], directory: str, *, needs_space: bool = True) -> TrialsSpec:
    """What the flags of ``nas-hpc search`` ask for; a tool that draws no models needs no space. Raises
    WrongCall."""
    from nas_hpc.apps.trials.environment import environment_of
    from nas_hpc.apps.trials.spec import TrialsSpec

    total = flags["max_trials"] or 10
    failed = flags["max_failed"]
    train = flag_map("--train-flags", flags["train_flags"]) if flags["train_flags"] else None
    for name in ("train_frequency", "train_max_parallel"):
        if train is None and flags[name] is not None:
            given = f"--{name.replace('_', '-')} {flags[name]}".replace("max-parallel", "max-parallel-trial")
            raise WrongCall(f"{given} goes with --train-flags: without them nothing is trained in full")
    check_share(flags)
    trainer = trainer_words(flags["trainer"])
    return TrialsSpec(
        job_name=flags["job_name"],
        directory=directory,
        space=where_space(flags) if needs_space or flags["space"] or flags["problem"] else "",
        trainer=trainer,
        made_in=environment_of(trainer, os.environ),
        metric=checked_metric(flags["metric"]),
        max_trials=total,
        max_parallel=min(flags["max_parallel"] or 2, total),
        max_failed=math.ceil(total / 3) if failed is None else failed,
        search_flags=flag_map("--search-flags", flags["search_flags"]),
        train_flags=train,
        train_frequency=flags["train_frequency"] or total,
        train_max_parallel=flags["train_max_parallel"] or 1,
        algorithm=flags["algorithm"],
        seed=flags["seed"],
        nodes_per_trial=flags["nodes_per_trial"],
        ranks_per_node=flags["ranks_per_node"],
        threads_per_rank=flags["threads_per_rank"],
        gpus_per_rank=flags["gpus_per_rank"],
        trials_per_node=flags["trials_per_node"] or 0,
        trial_timeout_s=flags["trial_timeout"] or 0.0,
        time_limit_s=flags["time_limit"] or 0.0,
        **trainer_fields(flags),
    )


def check_share(flags: Mapping[str, Any]) -> None:
    """Raise WrongCall if a trial of several nodes or ranks is to share its nodes."""
    for name in ("nodes_per_trial", "ranks_per_node"):
        shared = flags["trials_per_node"] or 1
        if shared > 1 and flags[name] > 1:
            raise WrongCall(
                f"--{name.replace('_', '-')} {flags[name]} and --trials-per-node {shared}: a trial of "
                "several nodes or ranks has its nodes for itself: leave one of them out"
            )


def trainer_fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the specification that say how to speak with a trainer. Raises WrongCall."""
    return {
        "reward_scaling": _scaling(flags["reward_scaling"]),
        "metric_format": flags["metric_format"] or "",
        "flag_style": flags["flag_style"],
        "environ": parse_environ(flags["env"]),
    }


def _scaling(text: str) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        factor, offset = (float(word) for word in text.split(","))
    except ValueError:
        factor = offset = math.nan
    if not (math.isfinite(factor) and math.isfinite(offset)) or factor <= 0:
        raise WrongCall(f"--reward-scaling {text!r}: give a factor above 0 and an offset, as in 0.01,0.5")
    return factor, offset


def checked_metric(name: str, flag: str = "--nas-target-reward-metric") -> str:
    """A metric's name. Raises WrongCall for none."""
    if not name.strip() or len(name.split()) != 1:
        raise WrongCall(f"{flag} {name!r} is no name: give the one that trials report")
    return name


def flag_name(flag: str, name: str) -> str:
    """The name of a trainer's flag, without dashes in front; "" for none. Raises WrongCall."""
    bare = name.lstrip("-")
    if name and (not bare or "=" in bare or any(one.isspace() for one in bare)):
        raise WrongCall(
            f"{flag} {name!r} is no name of a flag: give the trainer's, such as {_EXAMPLES[flag]}"
        )
    if bare.replace("_", "-") in _OURS:
        raise WrongCall(f"{flag} {name!r}: that one is given to every trial by the search: give another")
    return bare


def advice(total: int, failed: int) -> str:
    """What to say of a cap on failures that is no quarter to third of all trials; "" of one that is."""
    low, high = max(1, total // 4), math.ceil(total / 3)
    if low <= failed <= high:
        return ""
    given = f"--max-failed-nas-trial {failed} of {total} trials"
    right = str(low) if low == high else f"{low} to {high}"
    why = "a few failures end the search" if 0 < failed < low else "many failures are paid for before it ends"
    return f"{given}: {why}; a quarter to a third of all, {right}, is a good cap"
