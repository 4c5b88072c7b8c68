"""``nas-hpc launcher``: run the site's jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from nas_hpc.cli.batch_side import end_chain, recording
from nas_hpc.cli.context import Invocation, machine_option, site_options
from nas_hpc.cli.output import show_duration
from nas_hpc.cli.serving import serving
from nas_hpc.cli.types import Amount, Count
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.states import FINAL, State
from nas_hpc.store.base import JobFilter

if TYPE_CHECKING:
    from nas_hpc.config import Settings
    from nas_hpc.launcher.options import LauncherOptions, Progress
    from nas_hpc.site import Site
    from nas_hpc.store.base import Store


@site_options
@machine_option
@click.command()
@click.option("--job-mode", type=click.Choice(["mpi", "serial"]), default=None, help="[default: mpi]")
@click.option("--wf-filter", "--workflow", "workflow", default="", help="Only jobs of this workflow.")
@click.option("--consume-all", is_flag=True, help="All workflows; the default without --wf-filter.")
@click.option(
    "--time-limit-minutes",
    "time_limit_minutes",
    type=Amount("minutes", positive=True),
    default=None,
    help="End after so long; what runs then is interrupted and can go on later.",
)
@click.option(
    "--nodes",
    type=Count(1),
    default=None,
    help="So many of the batch job's nodes; without one, virtual nodes of this machine. [default: all, or 1]",
)
@click.option(
    "--cores-per-node", type=Count(0), default=None, help="Cores of a node. [default: the machine's]"
)
@click.option("--gpus-per-node", type=Count(0), default=None, help="GPUs of a node. [default: the machine's]")
@click.option(
    "--idle-timeout", type=Amount("seconds"), default=None, help="Wait so long for new work. [default: 0]"
)
@click.option("--persistent", is_flag=True, help="Wait for new work until the time limit.")
@click.option(
    "--agents", type=Count(0), default=None, help="Agent processes that share the virtual nodes. [default: 0]"
)
@click.option(
    "--agent-start",
    type=click.Choice(["auto", "ensemble", "per_node"]),
    default=None,
    help="One MPI start for all agents, or one for each node.",
)
@click.option("--use-master-node", is_flag=True, default=None, help="Run jobs on the launcher's node, too.")
@click.option("--mpi", default=None, metavar="PATH", help="The machine's MPI program (absolute), or none.")
@click.option(
    "--task-directories",
    type=click.Choice(["each", "failed", "packed"]),
    default=None,
    help="Which evaluations keep a directory. [default: each]",
)
@click.option("--fresh-interpreter", is_flag=True, default=None, help="A new Python for every evaluation.")
@click.option("--chained", is_flag=True, help="One of a chain of batch jobs: exit 0 although jobs failed.")
@click.option("--json", "as_json", is_flag=True, help="Print the last view as JSON at the end.")
@click.pass_obj
def launcher(
    call: Invocation,
    job_mode: str | None,
    workflow: str,
    consume_all: bool,
    time_limit_minutes: float | None,
    nodes: int | None,
    cores_per_node: int | None,
    gpus_per_node: int | None,
    idle_timeout: float | None,
    persistent: bool,
    agents: int | None,
    agent_start: str | None,
    use_master_node: bool | None,
    mpi: str | None,
    task_directories: str | None,
    fresh_interpreter: bool | None,
    chained: bool,
    as_json: bool,
) -> int:
    """Run the site's jobs until none is left that can run; exit 1 if one failed or cannot run here.

    \b
    Examples:
      nas-hpc launcher --job-mode serial --wf-filter TEST
      nas-hpc launcher --consume-all --time-limit-minutes 55 --nodes 4
      nas-hpc launcher --job-mode serial --nodes 4 --agents 2
      nas-hpc launcher --mpi /usr/bin/srun --persistent

    \b
    Settings that have no flag (interface, mpi_flags ...) stand in site.toml;
    nas-hpc doctor lists them all.
    """
    if consume_all and workflow:
        raise WrongCall(f"--consume-all and --wf-filter {workflow!r} do not go together; give one of them")
    from nas_hpc.launcher.ownership import free_database

    site = call.site()
    site.check_writable()
    settings = call.settings(
        site,
        {
            "job_mode": job_mode,
            "nodes": nodes,
            "cores_per_node": cores_per_node,
            "gpus_per_node": gpus_per_node,
            "idle_timeout_s": idle_timeout,
            "agents": agents,
            "agent_start": agent_start,
            "use_master_node": use_master_node,
            "mpi": mpi,
            "task_directories": task_directories,
            "fresh_interpreter": fresh_interpreter,
        },
    )
    if (agents or use_master_node) and settings.job_mode.value == "mpi":
        given = "--agents" if agents else "--use-master-node"
        raise WrongCall(f"{given} is about serial mode, and the job mode is mpi: add --job-mode serial")
    with recording(site, _say) as told, serving(site):
        free_database(site, settings.lease_s.value, _say)
        with call.store(write=False) as (_, store):
            if workflow:
                check_workflow(store, workflow)
            before = store.counts(JobFilter(workflow=workflow))
        if chained and not _left(before):
            _say("nothing is left to do: this batch job of a chain ends")
            told.left = 0
            end_chain(site, _say)
            return 0
        from nas_hpc.cli.progress import LauncherDisplay

        display = LauncherDisplay(sys.stderr if as_json else sys.stdout)
        limit_s = (time_limit_minutes or 0.0) * 60
        options = launcher_options(settings, workflow, limit_s, display, persistent=persistent)
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            _say(_begin(site, options, before))
            say_strange_variables()
            told.exit_code = start(site, options)
            with call.store(write=False) as (_, store):
                after = store.counts(JobFilter(workflow=workflow))
            told.left = _left(after)
            _say(_end(before, after, display.searches))
            if chained:  # the next ones are to start, whatever became of single jobs
                told.exit_code = 0 if told.exit_code == WorkFailed.exit_code else told.exit_code
                if not told.left:
                    end_chain(site, _say)
        if as_json:
            from nas_hpc.cli.output import print_json

            print_json({"exit_code": told.exit_code, **display.view})
        return told.exit_code


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _begin(site: Site, options: LauncherOptions, counts: Mapping[State, int]) -> str:
    """What the launcher is about to do."""
    what = f"workflow {options.workflow}" if options.workflow else "all workflows"
    waiting = _left(counts)
    jobs = "1 job" if waiting == 1 else f"{waiting} jobs"
    end = f", for {show_duration(options.time_limit_s)}" if options.time_limit_s else ""
    return f"launcher of {site.path} ({options.job_mode} mode{end}): {jobs} of {what} to run"


def _end(before: Mapping[State, int], after: Mapping[State, int], searches: int) -> str:
    """What became of the jobs, evaluations of ``searches`` searches among them."""
    ended = [(state, after.get(state, 0) - before.get(state, 0)) for state in sorted(FINAL)]
    parts = [f"{count} {state.value}" for state, count in ended if count > 0]
    among = ", evaluations among them" if parts and searches else ""
    left = _left(after)
    rest = f"; {left} not finished, see: nas-hpc ls jobs, nas-hpc why JOB" if left else ""
    return f"launcher ended: {', '.join(parts) or 'no job came to its end'}{among}{rest}"


def _left(counts: Mapping[State, int]) -> int:
    """So many jobs are not at their end."""
    return sum(count for state, count in counts.items() if state not in FINAL)


def say_strange_variables() -> None:
    """Say, at a launcher's start, what of the environment looks like a setting and is none."""
    from nas_hpc.config import strange_variables

    for line in strange_variables(os.environ):
        _say(f"note: {line}")


class _ToldToStop(BaseException):
    """SIGTERM or SIGHUP came."""


def start(site: Site, options: LauncherOptions) -> int:
    """Run a launcher in this process; returns the exit code.

    130 after Ctrl-C. SIGTERM and SIGHUP stop it in order: 0, unless a job has failed; also before it is at
    work, when there is nothing to stop.
    """
    from nas_hpc.launcher.start import run_launcher

    def stop(number: int, frame: object) -> None:
        raise _ToldToStop(signal.Signals(number).name)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            before[number] = signal.signal(number, stop)
    try:
        return run_launcher(site, options)
    except _ToldToStop as told:
        _say(f"stopping: {told} received")
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launcher_options(
    settings: Settings,
    workflow: str,
    time_limit_s: float,
    progress: Progress | None = None,
    *,
    persistent: bool = False,
) -> LauncherOptions:
    """The options of a launcher under ``settings``."""
    from nas_hpc.launcher.options import LauncherOptions

    return LauncherOptions(
        workflow=workflow,
        job_mode=settings.job_mode.value,
        nodes=settings.nodes.value,
        cores_per_node=settings.cores_per_node.value,
        gpus_per_node=settings.gpus_per_node.value,
        time_limit_s=time_limit_s,
        idle_timeout_s=settings.idle_timeout_s.value,
        fresh_interpreter=settings.fresh_interpreter.value,
        grace_s=settings.grace_s.value,
        lease_s=settings.lease_s.value,
        heartbeat_s=settings.heartbeat_s.value,
        stop_margin_s=settings.stop_margin_s.value,
        lost_limit=settings.lost_limit.value,
        agents=settings.agents.value,
        agent_start=settings.agent_start.value,
        agent_deadline_s=settings.agent_deadline_s.value,
        use_master_node=settings.use_master_node.value,
        interface=settings.interface.value,
        mpi=settings.mpi.value,
        mpi_flags=settings.mpi_flags.value,
        mpi_mode_packing=settings.mpi_mode_packing.value,
        starts_per_s=settings.starts_per_s.value,
        concurrent_starts=settings.concurrent_starts.value,
        result_grace_s=settings.result_grace_s.value,
        task_directories=settings.task_directories.value,
        stage_environment=settings.stage_environment.value,
        shared_filesystem=settings.shared_filesystem.value,
        progress=progress,
        persistent=persistent,
    )


def check_workflow(store: Store, workflow: str) -> None:
    """Raise WrongCall for a workflow without any job: most likely a slip of the pen."""
    if not store.counts(JobFilter(workflow=workflow)):
        known = sorted({job.workflow for job in store.jobs(JobFilter())})
        there_are = (
            f"there are {', '.join(known[:8])}"
            if known
            else "there are no jobs yet; add one with: nas-hpc job"
        )
        raise WrongCall(f"--wf-filter {workflow!r}: no job belongs to that workflow; {there_are}")
