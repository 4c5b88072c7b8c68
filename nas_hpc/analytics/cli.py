"""The program ``deephyper-analytics``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nas_hpc import __version__
from nas_hpc.analytics.proxy.cli import correlation, variance
from nas_hpc.analytics.text import duration, number, shown
from nas_hpc.errors import INTERRUPTED, NasHpcError

if TYPE_CHECKING:
    from nas_hpc.analytics.summary import Evaluated, Summary

PROGRAM = "deephyper-analytics"
Command = TypeVar("Command", bound=Callable[..., Any])


def common(command: Command) -> Command:
    """PATH, --workflow and --debug."""
    command = click.option("--debug", is_flag=True, help="Show tracebacks.")(command)
    command = click.option("-w", "--workflow", metavar="NAME", help="The workflow, where PATH has several.")(
        command
    )
    return click.argument("path", metavar="PATH")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def analytics() -> None:
    """What came of a search, from its job directories alone, or from its Balsam database.

    PATH is the directory of a workflow (data/WORKFLOW of a site), of a search in it, a site, or the directory
    of a Balsam database.

    Example: deephyper-analytics utilization testdb/data/TEST
    """


@analytics.command(short_help="Count evaluations, name the best, measure the utilization.")
@common
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def utilization(path: str, workflow: str | None, debug: bool, as_json: bool) -> None:
    """Count the evaluations of PATH, name the best and say how busy the evaluators were.

    Example: deephyper-analytics utilization testdb --workflow TEST --json
    """
    from nas_hpc.analytics import summarize

    summary = summarize(path, workflow)
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2, default=str))
    else:
        click.echo("\n".join(lines(summary)))


@analytics.command(short_help="Evaluations per hour, over time.")
@common
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def throughput(path: str, workflow: str | None, debug: bool, as_json: bool) -> None:
    """Say how many evaluations of PATH ended in an hour, and in each tenth of the time.

    Example: deephyper-analytics throughput testdb --workflow TEST
    """
    from nas_hpc.analytics import throughput

    found = throughput(path, workflow)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    click.echo(
        f"{found.workflow}: {found.n} evaluations in {duration(found.elapsed_s)}, "
        f"{found.per_hour:.1f} per hour"
    )
    for part in found.parts:
        click.echo(f"  until {duration(part.to_s):>12}  {part.n:>6}  {part.per_hour:>10.1f} per hour")
    for note in found.notes:
        click.echo(f"note: {note}")


@analytics.command()
@common
@click.option(
    "-o", "--output", metavar="FILE", default="report.html", show_default=True, help="The page to write."
)
def report(path: str, workflow: str | None, debug: bool, output: str) -> None:
    """Write a page about PATH that needs nothing beside itself.

    Example: deephyper-analytics report testdb/data/TEST -o report.html
    """
    from nas_hpc.analytics import write_report

    click.echo(str(write_report(path, Path(output), workflow)))


analytics.add_command(variance)
analytics.add_command(correlation)


def lines(summary: Summary) -> list[str]:
    """The summary as people read it."""
    said = [f"{summary.workflow}: {counts(summary)}"]
    best = summary.best
    if best is not None:
        said.append(
            f"best objective {number(best.objective)}: {_name(best)}, after {duration(best.elapsed_s)}"
        )
        for values in (best.config, best.metadata):
            if values:
                said.append("  " + ", ".join(f"{name}={shown(value)}" for name, value in values.items()))
        if best.directory:
            said.append(f"  {best.directory}")
    if summary.utilization is None:
        said.append("utilization: no evaluation has run")
    else:
        said.append(f"throughput {summary.per_hour:.1f} evaluations per hour")
        said.append(
            f"utilization {100 * summary.utilization:.1f} %: {summary.busy_s:.1f} busy of "
            f"{summary.available_s:.1f} available evaluator-seconds, in {duration(summary.elapsed_s)} "
            f"with up to {summary.slots} evaluators"
        )
    said.append(summary.definition)
    return said + [f"note: {note}" for note in summary.notes]


def _name(best: Evaluated) -> str:
    return f"{best.name} of {best.search}" if best.search else best.name


def counts(summary: Summary) -> str:
    """``50 evaluations: 48 ok (2 from the cache), 2 failed``."""
    cached = f" ({summary.n_cached} from the cache)" if summary.n_cached else ""
    parts = [f"{summary.n_ok} ok{cached}", f"{summary.n_failed} failed"]
    rest = {
        "cancelled": summary.n_cancelled,
        "interrupted": summary.n_interrupted,
        "open": summary.n_unfinished,
    }
    parts += [f"{n} {name}" for name, n in rest.items() if n]
    return f"{summary.n_evaluations} evaluations: {', '.join(parts)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, 1 if the work failed, 2 if the call was wrong, with one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        analytics.main(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader has gone (``| head``); Python's own flush at the end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.Abort:
        return _fail("interrupted", INTERRUPTED)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            click.echo(error.format_message(), err=True)
            return 2
        path = error.ctx.command_path if error.ctx is not None else PROGRAM
        return _fail(f"{error.format_message().rstrip('.?')}; see {path} --help", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except NasHpcError as error:
        return _fail(error.message, error.exit_code)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _fail(f"{type(error).__name__}: {error}; --debug shows the traceback", 1)


def _fail(message: str, code: int) -> int:
    click.echo(f"{PROGRAM}: error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
