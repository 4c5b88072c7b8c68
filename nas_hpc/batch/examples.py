"""Scripts for each machine that a person can read, change and submit: ``launch_scripts/MACHINE``.

``python -m nas_hpc.batch.examples DIRECTORY [MACHINE ...]`` writes them, for a machine of your own, too. They
are made from the templates and the machines' files; a test holds those of the project against them.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nas_hpc
from nas_hpc.batch import limits, script
from nas_hpc.batch.machine import Machine
from nas_hpc.batch.machines import machines
from nas_hpc.batch.system import Answer, Request
from nas_hpc.batch.systems import system_of
from nas_hpc.errors import NasHpcError
from nas_hpc.site import SITE_VARIABLE, Site

PROJECT, SITE, ENVIRONMENT, HOME = "PROJECT", "/path/to/site", "/path/to/venv", "/home/ME"
"""What has to be edited."""
WORKFLOW = "TEST"
NAMES = ("debug.sh", "batch.sh")


@dataclass(frozen=True, slots=True)
class Size:
    """An allocation that makes a good example."""

    nodes: int
    minutes: int
    queue: str = ""


_DEBUG = {
    "theta": Size(2, 60, "debug-cache-quad"),
    "aurora": Size(2, 60, "debug"),
    "polaris": Size(2, 60, "debug"),
    "perlmutter": Size(2, 60, "interactive"),
    "perlmutter-cpu": Size(2, 60, "interactive"),
    "local": Size(1, 10),
}
_BATCH = {
    "theta": Size(128, 180, "default"),
    "aurora": Size(8, 180, "prod"),
    "polaris": Size(10, 180, "prod"),
    "perlmutter": Size(4, 180, "regular"),
    "perlmutter-cpu": Size(4, 180, "regular"),
    "local": Size(1, 60),
}


def write_examples(directory: Path, chosen: Sequence[Machine]) -> list[Path]:
    """Write the scripts of the machines into folders of their names; returns the files."""
    written = []
    for machine in chosen:
        folder = directory / machine.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in examples(machine).items():
            path = folder / name
            path.write_text(text)
            path.chmod(0o755)
            written.append(path)
    return written


def examples(machine: Machine) -> dict[str, str]:
    """The scripts of a machine by their names."""
    debug, batch = _size(machine, _DEBUG), _size(machine, _BATCH)
    return dict(zip(NAMES, (_debug(machine, debug), _batch(machine, batch)), strict=True))


def _size(machine: Machine, known: dict[str, Size]) -> Size:
    if machine.name in known:
        return known[machine.name]
    queue = machine.find_queue(machine.queue) or (machine.queues[0] if machine.queues else None)
    if queue is None:
        return Size(2, 60, machine.queue or "QUEUE")
    nodes = max(queue.min_nodes, min(2, queue.max_nodes or 2))
    step = limits.step_of(queue, nodes)
    longest = min(filter(None, (60, queue.max_minutes, step.max_minutes if step else 0)))
    return Size(nodes, longest, queue.name)


def _request(machine: Machine, size: Size, name: str) -> Request:
    folder = Path(SITE) / "qsubmit"
    return Request(
        name=name,
        nodes=size.nodes,
        walltime_minutes=size.minutes,
        directory=folder,
        output=folder / name,
        queue=size.queue,
        project=PROJECT if machine.system != "local" else "",
        attrs=machine.attrs,
        flags=machine.flags,
        queue_flag=machine.queue_flag,
    )


def _debug(machine: Machine, size: Size) -> str:
    request = _request(machine, size, WORKFLOW)
    return script.render_file(
        "debug.sh.j2",
        machine=machine,
        local=machine.system == "local",
        nodes=size.nodes,
        minutes=size.minutes,
        queue=size.queue,
        place=_place(machine, size),
        project=PROJECT,
        site=SITE,
        environment=ENVIRONMENT,
        version=nas_hpc.__version__,
        by_hand=shlex.join(system_of(machine.system).interactive_argv(request)),
    )


def _batch(machine: Machine, size: Size) -> str:
    request = _request(machine, size, WORKFLOW)
    launcher = ["launcher", "--job-mode", "serial", "--wf-filter", WORKFLOW]
    if machine.system == "local":
        launcher += ["--nodes", str(size.nodes), "--time-limit-minutes", str(size.minutes)]
    body = script.Body(
        what="The environment first, then the launcher.",
        program=("nas-hpc",),
        path=f"{ENVIRONMENT}/bin",
        launcher=tuple(launcher),
        home=HOME,
        exports={"NAS_HPC_SITE": SITE, "NAS_HPC_MACHINE": machine.name},
    )
    lines = script.render(machine, request, body).splitlines(keepends=True)
    first = 1
    if machine.system == "cobalt":  # its directives end at the first line that is none
        while lines[first].startswith("#COBALT "):
            first += 1
    head = [f"# {line}".rstrip() + "\n" for line in _head(machine, size, request)]
    return "".join([*lines[:first], *head, *lines[first:]])


def _head(machine: Machine, size: Size, request: Request) -> list[str]:
    """What the script does, and what is to be edited."""
    same = ["nas-hpc", "submit-launch", "--machine", machine.name, "-n", str(size.nodes)]
    same += ["-t", str(size.minutes), "--job-mode", "serial", "--wf-filter", WORKFLOW]
    edit = f"{SITE} (made by nas-hpc init), {ENVIRONMENT} (bin/nas-hpc is in it), {HOME}, "
    edit += f"the workflow {WORKFLOW}"
    if machine.system == "local":
        what = f"Runs the jobs of the workflow {WORKFLOW} on this host for {size.minutes} minutes at most."
        edit += " and the numbers in the last line."
        submit = "Run it: nohup ./batch.sh >output 2>&1 &"
    else:
        what = f"Runs the jobs of the workflow {WORKFLOW} on {size.nodes} nodes of {_place(machine, size)}"
        what += f" for {size.minutes} minutes at most."
        where = "lines above" if machine.system == "cobalt" else "directives"
        edit = f"{PROJECT} (that pays for it), {edit}; queue, nodes and time in the {where}"
        edit += " (the time again in NAS_HPC_BATCH_WALLTIME)." if machine.system == "pbs" else "."
        submit = f"Submit it: {_submit_line(machine, request)}"
        same += ["-q", size.queue, "-A", PROJECT]
    words = textwrap.wrap(f"Edit: {edit}", 100, break_on_hyphens=False)
    return [what, "", *words, "", submit, f"The same without a script: {shlex.join(same)}"]


def _submit_line(machine: Machine, request: Request) -> str:
    """The command that submits the script, from the adapter itself."""
    argv: list[str] = []

    def show(words: Sequence[str]) -> Answer:
        argv.extend(words)
        raise _Shown

    with suppress(_Shown):
        system_of(machine.system).submit(request, Path("batch.sh"), show)
    return shlex.join(argv)


class _Shown(Exception):
    """Enough was seen."""


def _place(machine: Machine, size: Size) -> str:
    name = machine.title.partition(",")[0] or machine.name
    return f"{name} (queue {size.queue})" if size.queue else name


def main(argv: Sequence[str]) -> int:
    """``DIRECTORY [MACHINE ...]``: write their scripts (none named: those of all) below the directory."""
    if not argv or argv[0].startswith("-"):
        print((__doc__ or "").partition("\n\n")[2].strip(), file=sys.stderr)
        return 2
    try:
        site = os.environ.get(SITE_VARIABLE, "")
        known = {one.name: one for one in machines(Site(Path(site)) if site else None, os.environ)}
        wrong = [name for name in argv[1:] if name not in known]
        if wrong:
            print(f"there is no machine {wrong[0]!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        for path in write_examples(Path(argv[0]), [known[name] for name in argv[1:] or known]):
            print(path)
    except (NasHpcError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
