"""Flags about latencies that trainers do not give themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nas_hpc.cli.trials_flags import flag_map, options, trainer_words
from nas_hpc.cli.types import Count, Duration
from nas_hpc.errors import WrongCall

_WHAT = "The program that measures the latency of one exported model."
CALCULATOR_FLAGS = (
    click.option("--latency-calculator", default="", metavar="COMMAND", help=_WHAT),
    click.option("--latency-flags", "--latency-docker-flags", "latency_flags", multiple=True,
                 metavar="k=v ...", help="For that program, as --k=v."),
)  # fmt: skip
LATENCY_FLAGS = options(
    CALCULATOR_FLAGS,
    (
        click.option("--num-latency-workers", type=Count(1), default=1,
                     help="So many models are measured at once. [default: 1]"),
        click.option("--on-premises-latency", is_flag=True,
                     help="Wait for workers: nas-hpc run-latency-calculator-local."),
        click.option("--latency-wait", "latency_wait_s", type=Duration(), default=600.0,
                     help="So long for each next model. [default: 10m]"),
    ),
)  # fmt: skip


def latency_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """These flags as settings of a tool. Raises WrongCall."""
    if flags["latency_calculator"] and flags["on_premises_latency"]:
        raise WrongCall(
            "--latency-calculator and --on-premises-latency: either the tool measures latencies, or workers "
            "beside it do: give one of them"
        )
    command = trainer_words(flags["latency_calculator"]) if flags["latency_calculator"] else ()
    return {
        "latency_calculator": list(command),
        "latency_flags": flag_map("--latency-flags", flags["latency_flags"]),
        "num_latency_workers": flags["num_latency_workers"],
        "on_premises_latency": flags["on_premises_latency"],
        "latency_wait_s": flags["latency_wait_s"],
    }
