"""The flags that all searches share, with their types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nas_hpc.errors import NasHpcError
from nas_hpc.evaluator import KINDS
from nas_hpc.units import parse_duration

WAYS = ("auto", "horovod", "mpi4py")
"""How the ranks of a training work together."""
WAY_VARIABLE = "NAS_HPC_DATA_PARALLEL"
"""One of ``WAYS``, in the environment of evaluations."""

F = TypeVar("F", bound=Callable[..., Any])
if TYPE_CHECKING:  # generic since click 8.2 only
    FloatType = click.ParamType[float]
    IntType = click.ParamType[int]
    TextType = click.ParamType[str]
else:
    FloatType = IntType = TextType = click.ParamType


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What a user says of a search."""

    problem: str
    run: str
    evaluator: str = "auto"
    max_evals: int = 1_000_000
    seed: int | None = None
    """None: derived from the job, so that a restart has the same."""
    cache_key: str = "uuid"
    eval_timeout_s: float = 0.0
    eval_retries: int = 0
    eval_environ: Mapping[str, str] | None = None
    nodes_per_eval: int | None = None
    """None, here and below: as the problem says, else 1 (GPUs: 0)."""
    ranks_per_node: int | None = None
    threads_per_rank: int | None = None
    gpus_per_rank: int | None = None
    time_limit_s: float = 0.0


class Duration(FloatType):
    """A length of time, such as 90, 90s, 15m, 1h30m; seconds as a float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except NasHpcError as error:
            self.fail(error.message, param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is no time: give one above 0, such as 90s or 15m", param, ctx)
        return float(seconds)


class Whole(IntType):
    """A whole number from ``low`` to ``high``."""

    name = "number"

    def __init__(self, low: int, high: int | None = None) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < self._low or (self._high is not None and number > self._high):
            end = "on" if self._high is None else f"to {self._high}"
            self.fail(f"{value!r}: give a whole number from {self._low} {end}", param, ctx)
        return number


class Named(TextType):
    """One of ``known``; those of ``later`` are refused by name."""

    name = "choice"

    def __init__(self, known: tuple[str, ...], later: tuple[str, ...] = ()) -> None:
        self._known, self._later = known, later

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._known)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self._known:
            return str(value)
        why = "is not there yet" if value in self._later else "is unknown"
        self.fail(f"{value!r} {why}: give one of {', '.join(self._known)}", param, ctx)


def _environ(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name or any(c.isspace() or c == "\0" for c in name):
            raise click.BadParameter(
                f"{value!r} is not NAME=VALUE: give one such as OMP_NUM_THREADS=4", ctx, param
            )
        result[name] = content
    return result


_FLAGS = (
    click.option("--problem", required=True, help="Where the problem is: module.Problem or file.py:Problem."),
    click.option("--run", required=True, help="Where the run function is: module.run or file.py:run."),
    click.option("--evaluator", type=Named(KINDS), default="auto", show_default=True,
                 help="What runs the evaluations: under nas-hpc launcher all mean that launcher; where a "
                 "real Balsam started the search, auto and balsam mean Balsam."),
    click.option("--max-evals", type=Whole(1), default=1_000_000, show_default=True,
                 help="Stop after exactly so many evaluations; failed ones count, retries do not."),
    click.option("--seed", type=Whole(0, 2**32 - 1),
                 help="Seed of all that is random; default: derived from the job."),
    click.option("--cache-key", default="uuid", show_default=True,
                 help="What makes configurations the same: uuid (nothing does), to_dict (all values), "
                 "or a function, module.name. The same ones run once."),
    click.option("--eval-timeout", type=Duration(), help="End an evaluation after that.  [default: never]"),
    click.option("--eval-retries", type=Whole(0), default=0, show_default=True,
                 help="Run a failed evaluation again so often before it counts as failed."),
    click.option("--eval-env", multiple=True, metavar="NAME=VALUE", callback=_environ,
                 help="Set in the environment of every evaluation; may be given several times."),
    click.option("--nodes-per-eval", type=Whole(1),
                 help="Nodes of each evaluation; more than one needs a launcher in mpi mode."
                 "  [default: as the problem says, else 1]"),
    click.option("--ranks-per-node", type=Whole(1),
                 help="MPI ranks of each evaluation on each of its nodes; more than one needs mpi mode."
                 "  [default: as the problem says, else 1]"),
    click.option("--threads-per-rank", type=Whole(1),
                 help="Threads of each rank at least.  [default: as the problem says, else 1]"),
    click.option("--gpus-per-rank", type=Whole(0),
                 help="GPUs that each rank has for itself.  [default: as the problem says, else 0]"),
    click.option("--data-parallel", type=Named(WAYS),
                 help="How the ranks of a training average their gradients; auto: by Horovod where it is "
                 "installed, else by mpi4py.  [default: auto]"),
    click.option("--time-limit", type=Duration(),
                 help="End the search after so long, counted from this start.  [default: never]"),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)  # fmt: skip


def _with_way(environ: dict[str, str], way: str | None) -> dict[str, str]:
    return environ if way is None else {**environ, WAY_VARIABLE: way}


def search_flags(function: F) -> F:
    """Give a click command the flags of all searches."""
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


def take_options(flags: dict[str, Any]) -> SearchOptions:
    """The options of all searches, taken out of a command's keyword arguments."""
    flags.pop("debug", None)
    return SearchOptions(
        problem=flags.pop("problem"),
        run=flags.pop("run"),
        evaluator=flags.pop("evaluator"),
        max_evals=flags.pop("max_evals"),
        seed=flags.pop("seed"),
        cache_key=flags.pop("cache_key"),
        eval_timeout_s=flags.pop("eval_timeout") or 0.0,
        eval_retries=flags.pop("eval_retries"),
        eval_environ=_with_way(flags.pop("eval_env"), flags.pop("data_parallel")),
        nodes_per_eval=flags.pop("nodes_per_eval"),
        ranks_per_node=flags.pop("ranks_per_node"),
        threads_per_rank=flags.pop("threads_per_rank"),
        gpus_per_rank=flags.pop("gpus_per_rank"),
        time_limit_s=flags.pop("time_limit") or 0.0,
    )
