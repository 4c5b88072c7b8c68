"""Values of flags (names, numbers within bounds, environment settings, lists of ids), and flags of others."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import click

from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.names import wrong_name
from nas_hpc.states import State

if TYPE_CHECKING:  # generic since click 8.2 only
    TextType = click.ParamType[str]
    IntType = click.ParamType[int]
    FloatType = click.ParamType[float]
    StateType = click.ParamType[State]
else:
    TextType = IntType = FloatType = StateType = click.ParamType

MAX_COUNT = 1_000_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NEXT_SETTING = re.compile(r":(?=[^:=]*=)")


class Name(TextType):
    """A name that becomes a directory."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or the reason why it is none."""
        wrong = wrong_name(str(value))
        if wrong:
            self.fail(f"{value!r} {wrong}", param, ctx)
        return str(value)


class Count(IntType):
    """A whole number from ``least`` to ``most``."""

    name = "integer"

    def __init__(self, least: int, most: int = MAX_COUNT) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or the reason why it is none."""
        try:
            number = int(str(value))
        except ValueError:
            self.fail(f"{value!r} is no whole number; give {self.least} or more", param, ctx)
        if number < self.least or number > self.most:
            self.fail(
                f"{value} is not allowed; give a whole number from {self.least} to {self.most}", param, ctx
            )
        return number


class Amount(FloatType):
    """A number, 0 or more (``positive``: above 0), ``most`` at most."""

    name = "number"

    def __init__(self, unit: str, *, positive: bool = False, most: float = math.inf) -> None:
        self.unit, self.positive, self.most = unit, positive, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or the reason why it is none."""
        wanted = f"a number of {self.unit}{' above 0' if self.positive else ', 0 or more'}"
        if math.isfinite(self.most):
            wanted += f", {self.most:g} at most"
        try:
            number = float(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number; give {wanted}", param, ctx)
        low = number < 0 or (self.positive and number == 0)
        if not math.isfinite(number) or low or number > self.most:
            self.fail(f"{value} is not allowed; give {wanted}", param, ctx)
        return number


class Duration(FloatType):
    """A length of time above 0, such as 90, 90s, 15m, 1h30m; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, or the reason why it is none."""
        from nas_hpc.units import parse_duration

        if isinstance(value, float):
            return value
        try:
            seconds = float(parse_duration(str(value)))
        except NasHpcError as error:
            self.fail(error.message, param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is no length of time; give one above 0, such as 90s or 15m", param, ctx)
        return seconds


class StateName(StateType):
    """The name of a state, in any case."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> State:
        """The state, or the states there are."""
        try:
            return State(str(value).upper())
        except ValueError:
            self.fail(
                f"{value!r} is no state; the states are {', '.join(s.value for s in State)}", param, ctx
            )


def parse_environ(settings: Iterable[str]) -> dict[str, str]:
    """``K=V`` or ``K=V:K2=V2``, as Balsam writes it, several times. Raises WrongCall.

    A colon parts two settings only where a ``name=`` follows, so that a value may be a search path.
    """
    found: dict[str, str] = {}
    for text in settings:
        for part in _NEXT_SETTING.split(text):
            key, equals, value = part.partition("=")
            if not equals:
                raise WrongCall(
                    f"--env {text!r}: {part!r} has no '='; write --env NAME=VALUE or NAME=VALUE:NAME2=VALUE2"
                )
            if not _VARIABLE.match(key):
                raise WrongCall(
                    f"--env {text!r}: {key!r} is no name of a variable; use letters, digits and _, as in "
                    "OMP_NUM_THREADS=4"
                )
            if key.startswith(
                ("NAS_HPC_JOB", "NAS_HPC_ENDPOINT", "NAS_HPC_ATTEMPT", "BALSAM_JOB", "BALSAM_LAUNCHER")
            ):
                raise WrongCall(
                    f"--env {text!r}: {key} is set by the launcher for every job; choose another name"
                )
            if key in found and found[key] != value:
                raise WrongCall(f"--env gives {key} twice, as {found[key]!r} and as {value!r}; give it once")
            found[key] = value
    return found


class WithSearchFlags(click.Command):
    """A command that hands flags on to the search; where one stands in the wrong place it says the right
    one."""

    right: ClassVar[str]
    """Where flags of the search stand; ``{flag}`` is the one that was given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            right = self.right.format(flag=error.option_name)
            raise click.UsageError(f"{error.format_message().rstrip('.')} ({right})", ctx) from None


def parse_args(text: str, flag: str = "--args") -> list[str]:
    """The words of a command line. Raises WrongCall if its quotes do not match."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise WrongCall(
            f"{flag} {text!r} cannot be split into words: {str(error).lower()}; every quote needs its partner"
        ) from error


def parse_list(text: str) -> tuple[str, ...]:
    """The parts of ``a,b``, without empty ones and duplicates."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
