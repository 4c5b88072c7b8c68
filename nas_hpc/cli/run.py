"""``nas-hpc run``: a whole search in the foreground."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nas_hpc.apps import BY_AGENTS, STANDARD_APPS
from nas_hpc.cli.client import live_endpoint
from nas_hpc.cli.context import Invocation, note, open_database, site_options, working_directory
from nas_hpc.cli.launcher import launcher_options, say_strange_variables, start
from nas_hpc.cli.serving import serving
from nas_hpc.cli.sites import new_site
from nas_hpc.cli.types import Count, Duration, Name, WithSearchFlags, parse_args
from nas_hpc.errors import SiteError, WrongCall
from nas_hpc.site import DEFAULT_SITE, is_in_site

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine
    from nas_hpc.site import Site

Function = TypeVar("Function", bound=Callable[..., Any])
_SHAPE = (
    ("nodes-per-eval", Count(1), "Nodes of each evaluation; here always 1."),
    ("ranks-per-node", Count(1), "MPI ranks of each evaluation; here always 1."),
    ("threads-per-rank", Count(1), "Threads of each evaluation at least."),
    ("gpus-per-rank", Count(0), "GPUs that each evaluation has for itself."),
)


class _Handing(WithSearchFlags):
    right = "flags of the search itself stand in --args, as in --args '{flag} ...'"


def _shape_options(command: Function) -> Function:
    """The search's flags that say what each evaluation occupies; their values are None where not given."""
    for flag, kind, text in reversed(_SHAPE):
        command = click.option(f"--{flag}", type=kind, default=None, help=text)(command)
    return command


def _shape_words(given: Mapping[str, Any]) -> tuple[str, ...]:
    values = [(flag, given[flag.replace("-", "_")]) for flag, _, _ in _SHAPE]
    return tuple(word for flag, value in values if value is not None for word in (f"--{flag}", str(value)))


_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.argument("name", type=Name()),
    click.option("-p", "--problem", required=True, metavar="WHERE", help="module.Problem or file.py:Problem"),
    click.option("--max-evals", type=Count(1), required=True, help="Evaluations in all; failed ones count."),
    click.option("--args", default="", help="More flags of the search, one string."),
    click.option("--seed", type=Count(0, 2**32 - 1), default=None, help="Seed of all that is random."),
    click.option("--workers", type=Count(1), default=None,
                 help="Evaluations at once on a node. [default: its cores]"),
    _shape_options,
    click.option("--nodes", type=Count(1), default=None,
                 help="Virtual nodes of this machine, or so many of the batch job's. [default: 1, or all]"),
    click.option("--time-limit", type=Duration(), default=None,
                 help="End the search after so long, as in 15m."),
    click.option("--fresh-interpreter", is_flag=True, default=None,
                 help="A new Python for every evaluation."),
    click.option("--report/--no-report", default=True, help="Write report.html at the end. [default: yes]"),
    click.option("--yes", is_flag=True, help="Accepted; nothing is asked."),
    click.option("--json", "as_json", is_flag=True,
                 help="Print the result as JSON; progress goes to stderr."),
)  # fmt: skip


def _search_options(application: str, function: str | None) -> Callable[[Function], Function]:
    """The flags of a search in the foreground; ``application`` and ``function`` are what is taken where
    nothing is said."""

    def decorate(command: Function) -> Function:
        where = "module.run or file.py:run"
        run_option = click.option(
            "-r", "--run", "function", required=function is None, default=function, metavar="WHERE",
            help=where if function is None else f"{where} [default: {function}]",
        )  # fmt: skip
        app_option = click.option(
            "--app", "--application", "application", default=application,
            help=f"{', '.join(STANDARD_APPS)}. [default: {application}]",
        )  # fmt: skip
        for flag in reversed((*_FLAGS[:2], run_option, *_FLAGS[2:3], app_option, *_FLAGS[3:])):
            command = flag(command)
        return command

    return decorate


@site_options
@click.group(invoke_without_command=True, no_args_is_help=False)
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run a whole search in the foreground.

    \b
    Examples:
      nas-hpc run hps digits -p nas_hpc.problems.hps.digits.Problem \\
        -r nas_hpc.problems.hps.digits.run --max-evals 40
      nas-hpc run nas dense -p nas_hpc.problems.nas.digits_dense.Problem --max-evals 100
    """
    if ctx.invoked_subcommand is None:
        raise WrongCall(
            "run: nothing to run; say what: nas-hpc run hps NAME -p PROBLEM -r RUN --max-evals N, or "
            "nas-hpc run nas NAME -p PROBLEM --max-evals N"
        )


@site_options
@run.command(cls=_Handing, short_help="Search hyperparameters; interrupted, the same command goes on.")
@_search_options("AMBS", None)
@click.pass_obj
def hps(call: Invocation, /, **flags: Any) -> int:
    """Search hyperparameters in the foreground; interrupted, the same command goes on.

    \b
    Example:
      nas-hpc run hps digits -p nas_hpc.problems.hps.digits.Problem \\
        -r nas_hpc.problems.hps.digits.run --max-evals 40
    """
    return _run(call, flags, architectures=False)


@site_options
@run.command(cls=_Handing, short_help="Search architectures; interrupted, the same command goes on.")
@_search_options("EVO", "nas_hpc.nas.alpha.run")
@click.option(
    "--agents",
    type=Count(1),
    default=None,
    help="PPO: so many agents, each on a node of its own; mpi mode. [default: 1]",
)
@click.pass_obj
def nas(call: Invocation, /, **flags: Any) -> int:
    """Search architectures in the foreground; interrupted, the same command goes on.

    \b
    Examples:
      nas-hpc run nas dense -p nas_hpc.problems.nas.digits_dense.Problem --max-evals 100
      nas-hpc run nas mine -p mine.py:Problem --app AMBS --max-evals 500 --workers 4
      nas-hpc run nas learnt -p mine.py:Problem --app PPO --agents 2 --nodes 6 --max-evals 500
    """
    return _run(call, flags, architectures=True)


def _run(call: Invocation, flags: Mapping[str, Any], *, architectures: bool) -> int:
    from nas_hpc.cli.foreground import Wish, check, finish, nodes_for, prepare
    from nas_hpc.cli.progress import display

    name, max_evals, as_json = flags["name"], flags["max_evals"], flags["as_json"]
    agents = flags.get("agents") or (1 if flags["application"] == BY_AGENTS else 0)
    if agents and flags["application"] != BY_AGENTS:
        raise WrongCall(f"--agents {agents} is about --app {BY_AGENTS}; leave it out, or give that")
    wish = Wish(
        name=name,
        architectures=architectures,
        application=flags["application"],
        problem=whole_path(flags["problem"]),
        function=whole_path(flags["function"]),
        max_evals=max_evals,
        seed=flags["seed"],
        more=(*_shape_words(flags), *parse_args(flags["args"])),
        time_limit_s=flags["time_limit"] or 0.0,
        workers=flags["workers"] or 0,
        agents=agents,
    )
    known = known_site(call)
    chosen = {name: flags[name] for name in ("nodes", "fresh_interpreter")}
    settings = call.settings(known, {"job_mode": "mpi" if agents else "serial", **chosen})
    if agents:
        settings = call.settings(known, {"job_mode": "mpi", **chosen, "nodes": nodes_for(wish, settings)})
    if known is not None:
        check_free(known)
    begin = f"search {name}: {max_evals} evaluations by {wish.application}; loading its problem and run"
    print(f"{begin} function …", file=sys.stderr if as_json else sys.stdout, flush=True)
    check(wish)
    site = known or make_site(call.machine(None, settings))
    with serving(site):
        with open_database(site) as store:
            job, wanted = prepare(store, wish, settings)
        code = 0
        if wanted:
            with _resumable(name), display(name, max_evals, as_json=as_json) as progress, own_lines(as_json):
                say_strange_variables()
                code = start(site, launcher_options(settings, name, 0.0, progress))
        else:
            note(f"search {name} is finished already; its {max_evals} evaluations are done")
        return finish(site, job, code, write=flags["report"], as_json=as_json)


@contextlib.contextmanager
def _resumable(name: str) -> Iterator[None]:
    """Say how to go on to who interrupts the search before its launcher has begun."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"search {name} was stopped; the same command goes on with it")
        raise


def whole_path(path: str) -> str:
    """A file's path made absolute: the search runs in a directory of its own."""
    file, colon, attribute = path.partition(":")
    if not file.endswith(".py"):
        return path
    return f"{os.path.normpath(working_directory() / Path(file).expanduser())}{colon}{attribute}"


def known_site(call: Invocation) -> Site | None:
    """The site that is named or found; None where none is and a new one is to be made."""
    from nas_hpc.site import SITE_VARIABLE

    if call.site_flag or os.environ.get(SITE_VARIABLE) or is_in_site(working_directory()):
        return call.site()
    return None


def make_site(machine: Machine) -> Site:
    site = new_site(str(working_directory() / DEFAULT_SITE), machine=machine)
    note(f"made the site {site.path}")
    return site


def check_free(site: Site, instead: str = "add the search to it with nas-hpc job") -> None:
    """Raise SiteError if a launcher runs the site; ``instead``: what to do then, if not to wait."""
    site.check_writable()
    endpoint = live_endpoint(site)
    if endpoint is not None:
        raise SiteError(
            f"the site {site.path} is already run by a launcher (process {endpoint.pid} on {endpoint.host}); "
            f"{instead}, wait for its end, or use another site with --site"
        )


@contextlib.contextmanager
def own_lines(as_json: bool) -> Iterator[None]:
    """Keep the launcher's own lines off a stdout that is for JSON."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield
