"""What ``nas-hpc doctor`` looks at: each check gives one or several findings and never raises."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas_hpc import __version__
from nas_hpc.cli.client import live_endpoints, query
from nas_hpc.errors import LauncherGone, NasHpcError
from nas_hpc.site import Site
from nas_hpc.store.owner import is_shared, read_owner
from nas_hpc.wire import endpoint_files

OK, WARN, BAD = "ok", "warn", "bad"
LIBRARIES = ("click", "msgpack", "pyzmq", "sqlalchemy", "numpy", "scikit-learn", "ConfigSpace", "pandas")
SPACE_WARN_BYTES, SPACE_BAD_BYTES = 1 << 30, 64 << 20
FILES_WARN, FILES_BAD = 10_000, 1_000
OPEN_FILES_WARN, OPEN_FILES_BAD = 1024, 256
PROCESSES_WARN = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    level: str
    text: str
    advice: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter and the libraries."""
    from importlib.metadata import PackageNotFoundError, version

    number = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", OK, f"{number} at {sys.executable}, nas-hpc {__version__}")
    found, missing = [], []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    if missing:
        yield Finding(
            "libraries",
            BAD,
            f"missing: {', '.join(missing)}",
            "install the package again: pip install nas-hpc",
        )
    else:
        yield Finding("libraries", OK, ", ".join(found))


def check_machine() -> Iterator[Finding]:
    """Cores and limits of this process."""
    mine, all_of_it = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _cpu_quota()
    if quota is not None and quota < mine:
        advice = f"give the launcher --cores-per-node {max(1, int(quota))}"
        yield Finding(
            "cores", WARN, f"{mine} of {all_of_it} usable, but the container may use only {quota:g}", advice
        )
    else:
        yield Finding("cores", OK, f"{mine} of {all_of_it} usable")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = BAD if 0 <= soft < OPEN_FILES_BAD else WARN if 0 <= soft < OPEN_FILES_WARN else OK
    yield Finding(
        "open files", level, f"limit {_limit(soft)}", "" if level == OK else f"ulimit -n {_limit(hard)}"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    level = WARN if 0 <= soft < PROCESSES_WARN else OK
    yield Finding(
        "processes", level, f"limit {_limit(soft)}", "" if level == OK else f"ulimit -u {_limit(hard)}"
    )
    if shutil.disk_usage(tempfile.gettempdir()).free < SPACE_BAD_BYTES:
        yield Finding(
            "temporary files", WARN, f"{tempfile.gettempdir()} is nearly full", "set TMPDIR to another disk"
        )


def check_site(site: Site) -> Iterator[Finding]:
    """The directory and the space in it."""
    mode = stat.S_IMODE(site.path.stat().st_mode)
    if mode & 0o066:  # to pass through is allowed: another user may run its database server
        yield Finding(
            "site", WARN, f"{site.path} is open to others (mode {mode:04o})", f"chmod 700 {site.path}"
        )
    else:
        yield Finding("site", OK, str(site.path))
    space = os.statvfs(site.path)
    free = space.f_bavail * space.f_frsize
    level = BAD if free < SPACE_BAD_BYTES else WARN if free < SPACE_WARN_BYTES else OK
    text = f"{free / (1 << 30):.1f} GiB free"
    yield Finding(
        "space", level, text, "" if level == OK else "free some space, or make a site on another disk"
    )
    if space.f_files and space.f_favail < FILES_WARN:
        level = BAD if space.f_favail < FILES_BAD else WARN
        yield Finding(
            "files", level, f"{space.f_favail} more files possible", "remove files: nas-hpc rm, or by hand"
        )


def check_launcher(site: Site) -> Iterator[Finding]:
    """Whether one runs, and answers."""
    try:
        if not live_endpoints(site):
            if endpoint_files(site.run):
                text = "none; the last one did not end in order"
                yield Finding("launcher", WARN, text, "the next one goes on with its jobs: nas-hpc launcher")
            else:
                yield Finding("launcher", OK, "none is running")
            return
        views = query(site)
    except LauncherGone as error:
        yield _unreachable(site, error)
    except NasHpcError as error:
        files = ", ".join(map(str, endpoint_files(site.run)))
        yield Finding("launcher", BAD, error.message, f"remove {files} if no launcher runs")
    else:
        for view in views:
            who = f"process {view.get('pid')} on {view.get('host')}"
            said = f"{who}: {view.get('running')} running, {view.get('waiting')} waiting"
            yield Finding("launcher", OK, said)


def _unreachable(site: Site, error: LauncherGone) -> Finding:
    """A launcher on another host may be well, with no network that leads there."""
    owner = read_owner(site) if is_shared(site) else None
    if owner is None or owner.here:
        advice = "if it is stuck, kill it and start another: nothing is lost"
        return Finding("launcher", BAD, error.message, advice)
    text = f"{owner} renews its word, but no way leads there: commands leave their calls in the inbox"
    return Finding("launcher", WARN, text, "setting interface: one that both hosts have")


def _cpu_quota() -> float | None:
    """Cores that the control group allows; None: no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
