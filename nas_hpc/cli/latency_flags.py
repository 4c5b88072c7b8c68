"""Flags about latencies that trainers do not give themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nas_hpc.cli.trials_flags import flag_map, options, trainer_words
from nas_hpc.cli.types import Count, Duration
from nas_hpc.errors import WrongCall
from nas_hpc.trial.latency import LIMIT_S

_CALCULATOR = click.option(
    "--latency-calculator", default="", metavar="COMMAND",
    help="The program that measures the latency of one exported model.",
)  # fmt: skip
_FLAGS = click.option(
    "--latency-flags", "--latency-docker-flags", "latency_flags", multiple=True, metavar="k=v ...",
    help="For that program, as --k=v.",
)  # fmt: skip
_TIMEOUT = click.option(
    "--latency-timeout", "latency_timeout_s", type=Duration(), default=LIMIT_S,
    help="It is given up after so long. [default: 30m]",
)  # fmt: skip
CALCULATOR_FLAGS = (_CALCULATOR, _FLAGS, _TIMEOUT)
_WORKERS_FLAGS = (
    click.option("--on-premises-latency", is_flag=True,
                 help="Wait for workers: nas-hpc run-latency-calculator-local."),
    click.option("--latency-wait", "latency_wait_s", type=Duration(), default=600.0,
                 help="So long for each next model. [default: 10m]"),
)  # fmt: skip
SEARCH_LATENCY_FLAGS = options(CALCULATOR_FLAGS, _WORKERS_FLAGS)
"""Of a search, whose trials measure their models themselves."""
LATENCY_FLAGS = options(
    CALCULATOR_FLAGS,
    (
        click.option("--num-latency-workers", type=Count(1), default=1,
                     help="So many models are measured at once. [default: 1]"),
        click.option("--latency-gpus", type=Count(0), default=None,
                     help="GPUs of a measurement. [default: as --gpus-per-rank]"),
        click.option("--latency-node-alone", is_flag=True, help="Give a measurement a node for itself."),
    ),
    _WORKERS_FLAGS,
)  # fmt: skip
"""Of a tool, whose measurements are evaluations of their own."""
LATENCY_NAMES = frozenset({
    "latency_calculator", "latency_flags", "latency_timeout_s", "num_latency_workers", "latency_gpus",
    "latency_node_alone", "on_premises_latency", "latency_wait_s",
})  # fmt: skip


def latency_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """These flags as settings of a tool, or fields of a search's specification. Raises WrongCall."""
    if flags["latency_calculator"] and flags["on_premises_latency"]:
        raise WrongCall(
            "--latency-calculator and --on-premises-latency: either latencies are measured here, or workers "
            "measure them: give one of them"
        )
    given = {name: flags[name] for name in LATENCY_NAMES & set(flags)}
    command = calculator_words(flags["latency_calculator"]) if flags["latency_calculator"] else ()
    return {
        **given,
        "latency_calculator": command,
        "latency_flags": flag_map("--latency-flags", flags["latency_flags"]),
    }


def calculator_words(command: str) -> tuple[str, ...]:
    """The command of a calculator, by absolute paths. Raises WrongCall if there is no such program."""
    return trainer_words(command, "--latency-calculator")
