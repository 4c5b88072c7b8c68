"""``nas-hpc submit-launch``: have the batch system start a launcher."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, machine_option, note, open_database, site_options
from nas_hpc.cli.types import Count, Name, parse_args
from nas_hpc.errors import LauncherGone, StoreError, WrongCall

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine
    from nas_hpc.batch.submitting import Planned, Wanted
    from nas_hpc.records import BatchJob
    from nas_hpc.site import Site

    MinutesType = click.ParamType[int]
    WordType = click.ParamType[str]
else:
    MinutesType = WordType = click.ParamType

_MANY = 40_000
_TIMES = "180 (minutes), 03:00:00, 1-00:00:00 or 3h"


class Minutes(MinutesType):
    """A walltime: minutes, or a clock or duration of whole minutes or more."""

    name = "minutes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or the reason why it is none."""
        text = str(value).strip()
        if re.fullmatch(r"[0-9]+", text):
            minutes = int(text)
        elif re.fullmatch(r"[0-9]+:[0-9]+", text):
            self.fail(
                f"{text!r} may be hours and minutes, or minutes and seconds; write {_TIMES}", param, ctx
            )
        else:
            minutes = self._clock(text, param, ctx)
        if not 1 <= minutes <= 60 * 24 * 366:
            self.fail(f"{text} is below a minute or above a year; write {_TIMES}", param, ctx)
        return minutes

    def _clock(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from nas_hpc.units import parse_duration

        try:
            seconds = parse_duration(text)
        except WrongCall:
            self.fail(f"{text!r} is no walltime; write {_TIMES}", param, ctx)
        return 0 if seconds < 60 else math.ceil(seconds / 60)


class Word(WordType):
    """The name of a queue or project; what begins like a flag is the next flag, and the name was empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or the reason why it is none."""
        text = str(value)
        if text.startswith("-"):
            self.fail(f"{text!r} is a flag: the name was left out, or a variable is not set", param, ctx)
        return text


@site_options
@machine_option
@click.command("submit-launch")
@click.option("-n", "--nodes", type=Count(1, _MANY), default=None, help="So many nodes.  [required]")
@click.option(
    "-t",
    "--time",
    "minutes",
    type=Minutes(),
    default=None,
    help="Walltime: minutes, HH:MM:SS, 3h.  [required]",
)
@click.option(
    "-q", "--queue", type=Word(), default="", help="Queue, partition or QOS.  [default: the machine's]"
)
@click.option("-A", "--project", type=Word(), default="", help="Project (account) that pays for it.")
@click.option(
    "--job-mode", type=click.Choice(["mpi", "serial"]), default=None, help="[default: the setting's, mpi]"
)
@click.option("--wf-filter", "--workflow", "workflow", default="", help="Only jobs of this workflow.")
@click.option(
    "--dependencies", multiple=True, metavar="IDS", help="Start after these batch jobs (a,b or a:b)."
)
@click.option("--attrs", multiple=True, metavar="K=V", help="Attributes: k=v or k=v:k2=v2; several times.")
@click.option("--sched-flags", default="", metavar="WORDS", help="More words for the submitting command.")
@click.option("--chain", type=Count(1, 100), default=1, help="So many allocations, one after the other.")
@click.option("--name", type=Name(), default=None, help="Of the batch job.  [default: the workflow]")
@click.option("--no-check", is_flag=True, help="Do not look at the limits of the machine's queues.")
@click.option("--dry-run", is_flag=True, help="Print script and command; submit and record nothing.")
@click.option("--interactive", is_flag=True, help="Open a shell in an allocation instead.")
@click.option("--show-template", is_flag=True, help="Print the script's template, for a copy of your own.")
@click.option("--yes", is_flag=True, help="Accepted, for scripts that give it; nothing is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print what was submitted as JSON.")
@click.pass_obj
def submit_launch(
    call: Invocation,
    nodes: int | None,
    minutes: int | None,
    queue: str,
    project: str,
    job_mode: str | None,
    workflow: str,
    dependencies: Sequence[str],
    attrs: Sequence[str],
    sched_flags: str,
    chain: int,
    name: str | None,
    no_check: bool,
    dry_run: bool,
    interactive: bool,
    show_template: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Have the batch system run a launcher of the site on nodes of the machine.

    \b
    Examples:
      nas-hpc submit-launch -n 128 -q default -t 180 -A $PROJECT_NAME --job-mode serial --wf-filter TEST
      nas-hpc submit-launch -n 4 -t 60 --workflow TEST --chain 3
      nas-hpc submit-launch -n 4 -t 60 -q debug --workflow TEST --dry-run
      nas-hpc submit-launch -n 2 -t 30 -q debug --interactive
      nas-hpc submit-launch --machine local -n 2 -t 5 --job-mode serial --wf-filter TEST

    \b
    What was submitted: nas-hpc ls queues. To end it: nas-hpc kill ID.
    On a machine without a batch system a process in the background runs the script.
    """
    from nas_hpc.batch import submitting

    site = call.site()
    settings = call.settings(site, {"job_mode": job_mode})
    machine = call.machine(site, settings)
    if show_template:
        from nas_hpc.batch.script import template_text

        print(template_text(machine.system, submitting.templates_of(site)), end="")
        return 0
    wanted = submitting.Wanted(
        nodes=_required("-n/--nodes", nodes, "4"),
        walltime_minutes=_required("-t/--time", minutes, "60"),
        queue=queue,
        project=project,
        job_mode=settings.job_mode.value,
        workflow=workflow,
        dependencies=parse_ids(dependencies),
        attrs=parse_attrs(attrs),
        flags=tuple(parse_args(sched_flags, "--sched-flags")),
        name=name or "",
        chain=chain,
        check=not no_check,
    )
    if interactive:
        _check_interactive(dry_run=dry_run, as_json=as_json, chain=chain)
        return _open_shell(site, machine, wanted)
    _check_workflow(site, workflow)
    planned = submitting.plan(site, machine, settings, wanted, note=note, reserve=not dry_run)
    if dry_run:
        show(machine, planned, as_json)
        return 0
    done = submitting.submit(site, machine, planned, note)
    tell(done, as_json)
    return 0


def _required(flag: str, value: int | None, example: str) -> int:
    if value is None:
        short = flag.partition("/")[0]
        raise WrongCall(f"{flag} is missing: say it, for instance {short} {example}")
    return value


def parse_ids(texts: Iterable[str]) -> tuple[str, ...]:
    """The ids in ``a,b`` and ``a:b``, several times."""
    parts = [part for text in texts for part in re.split(r"[,:\s]", text)]
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_attrs(texts: Iterable[str]) -> tuple[str, ...]:
    """The ``k=v`` in ``k=v:k2=v2``, several times. Raises WrongCall.

    A colon parts two only where ``key=`` follows: a value may have colons, as in filesystems=home:eagle.
    """
    found: dict[str, str] = {}
    for text in texts:
        for part in re.split(r":(?=[^:=]*=)", text):
            key, equals, _ = part.partition("=")
            if not equals or not key:
                raise WrongCall(f"--attrs {text!r}: {part!r} is no KEY=VALUE; write k=v or k=v:k2=v2")
            if key in found and found[key] != part:
                raise WrongCall(f"--attrs gives {key} twice, as {found[key]} and as {part}; give it once")
            found[key] = part
    return tuple(found.values())


def _check_workflow(site: Site, workflow: str) -> None:
    """Raise WrongCall for a workflow without any job. A database that cannot be reached is no reason not to
    submit: the launcher will look."""
    if not workflow:
        return
    from nas_hpc.cli.launcher import check_workflow

    try:
        with open_database(site, read_only=True) as store:
            check_workflow(store, workflow)
    except (LauncherGone, StoreError) as error:
        note(f"note: whether workflow {workflow} has jobs was not looked at: {error}")


def show(machine: Machine, planned: Sequence[Planned], as_json: bool) -> None:
    """Print what would be submitted."""
    from nas_hpc.batch.submitting import command_of

    first = planned[0]
    argv = command_of(machine, first)
    if as_json:
        from nas_hpc.cli.output import print_json

        print_json({"script": first.text, "command": argv, "links": [link.job.key for link in planned]})
        return
    print(first.text, end="")
    note(f"nothing was submitted; the script would be {first.job.script}, the command: {shlex.join(argv)}")
    if len(planned) > 1:
        note(f"and {len(planned) - 1} more of its kind, each dependent on the one before it")


def tell(done: Sequence[BatchJob], as_json: bool) -> None:
    """Print what was submitted."""
    if as_json:
        from nas_hpc.cli.output import print_json

        print_json([asdict(job) | {"state": job.state.value} for job in done])
        return
    for job in done:
        print(f"submitted {job.id}")
        print(f"  script {job.script}")
        print(f"  log    {job.output}")


def _check_interactive(*, dry_run: bool, as_json: bool, chain: int) -> None:
    for flag, given in (("--dry-run", dry_run), ("--json", as_json), ("--chain", chain > 1)):
        if given:
            raise WrongCall(f"--interactive and {flag} do not go together; leave one of them out")


def _open_shell(site: Site, machine: Machine, wanted: Wanted) -> int:
    """Hand the terminal to the batch system's command; returns only where there is none to be called."""
    from dataclasses import replace

    from nas_hpc.batch import submitting
    from nas_hpc.batch.script import carried
    from nas_hpc.batch.systems import system_of

    words = ["nas-hpc", "launcher", "--job-mode", wanted.job_mode]
    words += ["--wf-filter", wanted.workflow] if wanted.workflow else []
    if machine.system == "local":
        words += ["--nodes", str(wanted.nodes), "--time-limit-minutes", str(wanted.walltime_minutes)]
        print(f"this shell is the allocation (machine {machine.name}); type: {shlex.join(words)}")
        return 0
    request = submitting.request_of(site, machine, wanted, note)
    environ = carried(os.environ) | {"NAS_HPC_SITE": str(site.path), "NAS_HPC_MACHINE": machine.name}
    argv = system_of(machine.system).interactive_argv(replace(request, environ=environ))
    note(f"in the shell that opens when the nodes are there, type: {shlex.join(words)}")
    note(f"if it does not know the site: export NAS_HPC_SITE={shlex.quote(str(site.path))}")
    note(f"calling: {shlex.join(argv)}")
    sys.stdout.flush()
    os.environ.update(environ)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise WrongCall(f"{argv[0]} cannot be started: {error.strerror or error}") from None
