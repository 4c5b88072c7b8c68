"""``nas-hpc plan``: what trials and the proxy-task tools will cost, from numbers alone."""

from __future__ import annotations

from typing import Any

import click

from nas_hpc.cli.context import site_options
from nas_hpc.cli.output import print_json, print_table
from nas_hpc.cli.trials_flags import TrialsCommand
from nas_hpc.cli.types import Amount, Count
from nas_hpc.errors import WrongCall


@site_options
@click.command(cls=TrialsCommand)
@click.option("--max-nas-trial", "trials", type=Count(1), required=True, help="Trials in all.")
@click.option("--max-parallel-nas-trial", "parallel", type=Count(1), required=True, help="So many at once.")
@click.option(
    "--hours-per-trial",
    "hours",
    type=Amount("hours", positive=True),
    required=True,
    help="How long one takes.",
)
@click.option("--nodes-per-trial", type=Count(1), default=1, help="Nodes of each. [default: 1]")
@click.option("--trials-per-node", type=Count(1), default=1, help="So many share a node. [default: 1]")
@click.option(
    "--hours-per-training",
    "full",
    type=Amount("hours", positive=True),
    default=None,
    help="How long a full training takes; with it the proxy-task tools are planned, too.",
)
@click.option(
    "--train-frequency",
    type=Count(1),
    default=None,
    help="After so many trials each the best are trained in full.",
)
@click.option(
    "--train-max-parallel-trial",
    "train_parallel",
    type=Count(1),
    default=1,
    help="So many each time. [default: 1]",
)
@click.option("--proxy-tasks", type=Count(1), default=4, help="Proxy tasks that are tried. [default: 4]")
@click.option(
    "--proxy-hours",
    type=Amount("hours", positive=True),
    default=None,
    help="How long a training of one takes at most. [default: as --hours-per-trial]",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def plan(as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Say how long a search will take and what it costs, before anything runs.

    \b
    Example:
      nas-hpc plan --max-nas-trial 2000 --max-parallel-nas-trial 50 --hours-per-trial 1 \\
        --hours-per-training 12
    """
    from nas_hpc.apps.trials.plan import Machine, stages

    if flags["nodes_per_trial"] > 1 and flags["trials_per_node"] > 1:
        shared = flags["trials_per_node"]
        raise WrongCall(
            f"--nodes-per-trial {flags['nodes_per_trial']} and --trials-per-node {shared}: a trial of "
            "several nodes has them for itself: leave one of them out"
        )
    machine = Machine(flags["parallel"], flags["nodes_per_trial"], flags["trials_per_node"])
    made = stages(
        machine,
        trials=flags["trials"],
        hours=flags["hours"],
        full_hours=flags["full"],
        train_frequency=flags["train_frequency"],
        train_parallel=flags["train_parallel"],
        proxy_tasks=flags["proxy_tasks"],
        proxy_hours=flags["proxy_hours"] or flags["hours"],
    )
    if as_json:
        print_json([{name: getattr(one, name) for name in one.__slots__} for one in made])
        return
    rows = [(one.name, one.trials, one.parallel, one.batches, f"{one.hours:g}", f"{one.node_hours:g}",
             one.said) for one in made]  # fmt: skip
    print_table(("what", "trials", "at once", "batches", "hours", "node-hours", ""), rows)
