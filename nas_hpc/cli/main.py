"""The program ``nas-hpc``: its commands, loaded when they are called, and how errors become lines and exit
codes.

Only click is imported here, so that ``nas-hpc --help`` is quick: the help's lines stand in ``COMMANDS``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import sys
from collections.abc import Sequence

import click

from nas_hpc import __version__
from nas_hpc.cli.context import Invocation, debug_option, site_option
from nas_hpc.errors import INTERRUPTED, NasHpcError

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("sites:init", "Make a site: the directory of a job database and its jobs."),
    "app": ("apps:app", "Register, replace or remove an application."),
    "job": ("jobs:job", "Add a job."),
    "ls": ("ls:ls", "List jobs, applications, nodes, queues."),
    "launcher": ("launcher:launcher", "Run the site's jobs on this machine or allocation."),
    "submit-launch": ("submit_launch:submit_launch", "Have the batch system run a launcher."),
    "balsam-submit": ("balsam_submit:balsam_submit", "Make a search and have the batch system run it."),
    "run": ("run:run", "Run a whole search in the foreground."),
    "search": ("trials:search", "Search by trials of one's own trainer."),
    "search-resume": ("trials:resume", "Go on with a search of trials, or give it more of them."),
    "search-local": ("trials_local:local", "Run one random trial here, without a site."),
    "train": ("trials:train", "Train chosen trials of a search in full."),
    "list-trials": (
        "trials_list:list_trials",
        "List the trials of a search, failed ones with their reasons.",
    ),
    "rerun": ("trials:rerun", "Run failed trials of a search again."),
    "measure-proxy-task-variance": (
        "proxy_tools:measure",
        "Measure how a trainer's score varies, and how smooth it is.",
    ),
    "select-proxy-task-models": (
        "proxy_tools:select",
        "Choose and train reference models for proxy tasks.",
    ),
    "search-proxy-task": (
        "proxy_search:search",
        "Find the cheapest training that ranks models as the full one does.",
    ),
    "run-latency-calculator-local": (
        "latency_worker:run",
        "Measure exported models here, for a search or tool elsewhere.",
    ),
    "plan": ("trials_plan:plan", "Say what trials and proxy-task tools will cost."),
    "log": ("log:log", "Show the output of a job; -f follows it."),
    "why": ("why:why", "Say why a job or batch job does not run, or how it ended."),
    "watch": ("watch:watch", "Watch a running launcher."),
    "kill": ("control:kill", "End jobs, running or waiting, or batch jobs."),
    "retry": ("control:retry", "Let failed or killed jobs run again."),
    "rm": ("control:rm", "Remove jobs from the database, and their directories."),
    "modify": ("modify:modify", "Change a job that does not run."),
    "space": ("space:space", "Show or draw a search space of architectures."),
    "report": ("report:report", "Write the report of a workflow."),
    "db": ("db:db", "Start, stop, look at, move the job database."),
    "balsam": ("balsam:balsam", "Searches in a database of Balsam classic."),
    "doctor": ("doctor:doctor", "Check this machine and the site, and say what to do."),
}
"""Name -> (module:attribute below nas_hpc.cli, line of the help), in the order of the help."""
_DIGITS = "nas_hpc.problems.hps.digits"
EPILOG = f"First steps: nas-hpc run hps digits -p {_DIGITS}.Problem -r {_DIGITS}.run"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(f"nas_hpc.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with the nearest name, or all names, for a command that is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            right = f"did you mean {near[0]}" if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}; {right}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    params=[site_option(), debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="nas-hpc", message="%(prog)s %(version)s")
def nas_hpc() -> None:
    """Hyperparameter and neural-architecture searches on batch machines and on one's own.

    The site is that of --site, of NAS_HPC_SITE, or the one found upward from the working directory.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``argv`` (default: the process's arguments); returns the exit code.

    0 done, 1 the work failed, 2 the call was wrong, 130 interrupted. An error is one line on stderr.
    """
    invocation = Invocation()
    _find_home()
    try:
        code = nas_hpc.main(
            None if argv is None else list(argv), prog_name="nas-hpc", obj=invocation, standalone_mode=False
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return _pipe_closed()
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except SystemExit as stop:  # click meets a closed pipe with it
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if invocation.debug:
            raise
        return _report(error, argv)


def _find_home() -> None:
    """Open MPI, for one, starts nothing without HOME, which a batch system may not give."""
    if "HOME" not in os.environ:
        with contextlib.suppress(KeyError):  # a user without an entry
            os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir


def _report(error: Exception, argv: Sequence[str] | None) -> int:
    """Say what went wrong in one line; returns the exit code."""
    if isinstance(error, NasHpcError):
        _say(f"{'error' if error.exit_code else 'note'}: {_one_line(error.message)}")
        return error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else _command_path(argv)
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            click.echo(error.format_message(), err=True)
        else:
            _say(f"error: {_one_line(error.format_message()).rstrip('.?')}; see {path} --help")
        return 2
    if isinstance(error, click.ClickException):
        _say(f"error: {_one_line(error.format_message())}")
        return 2
    _say(f"error: {type(error).__name__}: {_one_line(str(error))}; run again with --debug for the traceback")
    return 1


def _command_path(argv: Sequence[str] | None) -> str:
    """The program and the command that ``argv`` calls, as far as it can be told."""
    return " ".join(
        ["nas-hpc", *[word for word in (sys.argv[1:] if argv is None else argv) if word in COMMANDS][:1]]
    )


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"nas-hpc: {line}", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pipe_closed() -> int:
    """The reader of our output has gone (``| head``): be quiet, also when Python flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
