"""Settings: built-in < machine < site.toml < environment (NAS_HPC_…) < flag; each value knows where it comes
from.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from nas_hpc.errors import ConfigError
from nas_hpc.names import wrong_name

T = TypeVar("T", str, int, float, bool)
PREFIX = "NAS_HPC_"
BUILT_IN = "built-in"


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One value and its origin: "built-in", the file of a machine, the path of a site.toml, "environment
    NAS_HPC_…", or "flag --…".
    """

    value: T
    origin: str = BUILT_IN


def _setting(value: T) -> Setting[T]:
    return Setting(value)


@dataclass(frozen=True)
class Settings:
    """All settings. Their meaning stands in ``HELP``, what is allowed in ``_CHECKS``."""

    machine: Setting[str] = _setting("")
    job_mode: Setting[str] = _setting("mpi")
    nodes: Setting[int] = _setting(0)
    cores_per_node: Setting[int] = _setting(0)
    gpus_per_node: Setting[int] = _setting(0)
    lease_s: Setting[float] = _setting(60.0)
    heartbeat_s: Setting[float] = _setting(10.0)
    grace_s: Setting[float] = _setting(10.0)
    stop_margin_s: Setting[float] = _setting(15.0)
    idle_timeout_s: Setting[float] = _setting(0.0)
    lost_limit: Setting[int] = _setting(3)
    fresh_interpreter: Setting[bool] = _setting(False)
    agents: Setting[int] = _setting(0)
    agent_start: Setting[str] = _setting("auto")
    agent_deadline_s: Setting[float] = _setting(300.0)
    use_master_node: Setting[bool] = _setting(False)
    interface: Setting[str] = _setting("")
    mpi: Setting[str] = _setting("")
    mpi_flags: Setting[str] = _setting("")
    mpi_mode_packing: Setting[int] = _setting(1)
    starts_per_s: Setting[float] = _setting(0.0)
    concurrent_starts: Setting[int] = _setting(0)
    result_grace_s: Setting[float] = _setting(10.0)
    task_directories: Setting[str] = _setting("each")
    stage_environment: Setting[str] = _setting("")
    shared_filesystem: Setting[str] = _setting("auto")
    balsam_python: Setting[str] = _setting("")

    def items(self) -> list[tuple[str, Setting[Any]]]:
        """Name and setting, in the order of this class."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


HELP: Mapping[str, str] = {
    "machine": "the machine whose file tells of batch system, queues and nodes; empty: that of this host",
    "job_mode": "mpi: a job has whole nodes; serial: several one-node jobs share a node",
    "nodes": "so many of the batch job's nodes; without one virtual nodes of this machine; 0: all, or 1",
    "cores_per_node": "physical cores of a node; 0: as many as the batch system or the machine says",
    "gpus_per_node": "GPUs of a node; 0: those that are found",
    "lease_s": "seconds after which a launcher that fell silent has lost its jobs",
    "heartbeat_s": "seconds between two renewals of a launcher's lease",
    "grace_s": "seconds between asking a process to end (TERM) and ending it (KILL)",
    "stop_margin_s": "seconds before the allocation's end at which running jobs are interrupted",
    "idle_timeout_s": "seconds that a launcher waits without any work before it ends; 0: it ends at once",
    "lost_limit": "a job that was lost with its node or agent, or ended by SIGTERM, so many times fails",
    "fresh_interpreter": "start a new Python for each evaluation instead of forking a warm one",
    "agents": "agent processes for the virtual nodes of one machine; 0: the launcher does their work",
    "agent_start": "ensemble: one MPI start for the agents of all nodes; per_node: one each; auto: ensemble",
    "agent_deadline_s": "seconds that agents and launcher wait for each other before they give up",
    "use_master_node": "serial mode: let jobs run on the launcher's own node, too, when there are several",
    "interface": "network interface on which agents and searches reach the launcher; empty: all of them",
    "mpi": "absolute path of the machine's mpiexec, mpirun, srun or aprun; empty: looked for; none: without",
    "mpi_flags": "more flags for the MPI program, for every start",
    "mpi_mode_packing": "so many one-node jobs may share a node in mpi mode if their packing count says so",
    "starts_per_s": "MPI starts per second at most; 0: no limit",
    "concurrent_starts": "MPI programs running at a time at most; 0: no limit (aprun: 1000)",
    "result_grace_s": "seconds to wait for a result that a file system shows late, after a program's success",
    "task_directories": "each: a directory per evaluation; failed: for failures only; packed: none",
    "stage_environment": "a virtual environment copied once to the local disk of each node; empty: none",
    "shared_filesystem": "whether several hosts use the site's file system; auto: as its mount says",
    "balsam_python": "interpreter of Balsam classic; empty: that of the program balsam, or setup_balsam.sh's",
}

_Check = tuple[Callable[[Any], bool], str]
_POSITIVE: _Check = (lambda v: 0 < v < math.inf, "a number above 0")
_NOT_NEGATIVE: _Check = (lambda v: 0 <= v < math.inf, "a number, 0 or more")
_CHECKS: Mapping[str, _Check] = {
    "machine": (lambda v: wrong_name(v) == "" if v else True, "a name, such as theta"),
    "job_mode": (lambda v: v in ("mpi", "serial"), '"mpi" or "serial"'),
    "nodes": (lambda v: v >= 0, "a whole number, 0 (all there are) or more"),
    "cores_per_node": (lambda v: v >= 0, "a whole number, 0 (the machine's) or more"),
    "gpus_per_node": (lambda v: v >= 0, "a whole number, 0 (the machine's) or more"),
    "lease_s": _POSITIVE,
    "heartbeat_s": _POSITIVE,
    "grace_s": _NOT_NEGATIVE,
    "stop_margin_s": _NOT_NEGATIVE,
    "idle_timeout_s": _NOT_NEGATIVE,
    "lost_limit": (lambda v: v >= 1, "a whole number, 1 or more"),
    "fresh_interpreter": (lambda _: True, "true or false"),
    "agents": (lambda v: v >= 0, "a whole number, 0 (none of their own) or more"),
    "agent_start": (lambda v: v in ("auto", "ensemble", "per_node"), '"auto", "ensemble" or "per_node"'),
    "agent_deadline_s": _POSITIVE,
    "use_master_node": (lambda _: True, "true or false"),
    "interface": (lambda _: True, "the name of an interface, such as hsn0"),
    "mpi": (lambda v: v in ("", "none") or v.startswith("/"), 'an absolute path, "none", or ""'),
    "mpi_flags": (lambda _: True, "flags as on a command line"),
    "mpi_mode_packing": (lambda v: v >= 1, "a whole number, 1 or more"),
    "starts_per_s": _NOT_NEGATIVE,
    "concurrent_starts": (lambda v: v >= 0, "a whole number, 0 (no limit) or more"),
    "result_grace_s": _NOT_NEGATIVE,
    "task_directories": (lambda v: v in ("each", "failed", "packed"), '"each", "failed" or "packed"'),
    "stage_environment": (lambda v: v == "" or v.startswith("/"), 'an absolute path, or ""'),
    "shared_filesystem": (lambda v: v in ("auto", "yes", "no"), '"auto", "yes" or "no"'),
    "balsam_python": (lambda v: v == "" or v.startswith("/"), 'an absolute path, or ""'),
}
_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


NO_SETTINGS = frozenset(
    {
        "SITE", "ENDPOINT", "BATCH_JOB", "BATCH_START", "BATCH_WALLTIME", "RECONNECT_S", "OLD_PS",
        "LAUNCHER_ID", "JOB_ID", "JOB_DIR", "ATTEMPT", "WORKFLOW", "STAGED",
        "RANK", "RANKS", "LOCAL_RANK", "RANKS_PER_NODE", "PROBLEM", "DATA_PARALLEL",
        "TRIAL", "TRIAL_DIR", "TRIAL_LATENCY", "TRIAL_SEED", "TRIAL_STAGE", "TARGET_METRIC",
        "REQUIRED_METRICS", "METRIC_FORMAT", "REWARD_SCALING",
    }
)  # fmt: skip
"""What may stand behind ``PREFIX`` and is no setting: what users, batch scripts and launchers set besides."""
_OF_TESTS = PREFIX + "TEST_"


def strange_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like a setting and is none: most likely a slip of the pen."""
    names = {_variable(name) for name in (*HELP, *NO_SETTINGS)}
    given = {name for name, value in environ.items() if name.startswith(PREFIX) and value}
    lines = []
    for name in sorted(given - names):
        if not name.startswith(_OF_TESTS):
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else "nas-hpc doctor lists the settings"
            lines.append(f"{name} is no setting; {hint}")
    return lines


def load_settings(
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
    *,
    site_values: Mapping[str, Any] | None = None,
    site_file: str = "site.toml",
    machine_values: Mapping[str, Any] | None = None,
    machine_file: str = "machine",
) -> Settings:
    """The settings that hold. Raises ConfigError naming value and origin.

    ``machine_values`` are those of the machine, from ``machine_file``; ``site_values`` is the content of the
    site's file (``nas_hpc.site.read_site_file``), ``site_file`` its path. A flag whose value is None was not
    given.
    """
    settings = _take(Settings(), machine_values or {}, lambda _name: machine_file, parse=False)
    settings = _take(settings, _table(site_values or {}, site_file), lambda _name: site_file, parse=False)
    given = {name: environ[_variable(name)] for name, _ in settings.items() if environ.get(_variable(name))}
    settings = _take(settings, given, lambda name: f"environment {_variable(name)}", parse=True)
    typed = {name: value for name, value in (flags or {}).items() if value is not None}
    settings = _take(settings, typed, lambda name: f"flag {_flag(name)}", parse=False)
    if settings.heartbeat_s.value * 2 > settings.lease_s.value:
        raise ConfigError(
            f"heartbeat_s {settings.heartbeat_s.value:g} ({settings.heartbeat_s.origin}) must be at most "
            "half of "
            f"lease_s {settings.lease_s.value:g} ({settings.lease_s.origin}), or a healthy launcher could "
            "lose its lease"
        )
    return settings


def machine_setting(
    environ: Mapping[str, str],
    flag: str = "",
    *,
    site_values: Mapping[str, Any] | None = None,
    site_file: str = "site.toml",
) -> Setting[str]:
    """The setting ``machine`` alone: the file that it names has a part in all others. Raises ConfigError."""
    table = _table(site_values or {}, site_file)
    return load_settings(
        {name: value for name, value in environ.items() if name == _variable("machine")},
        {"machine": flag or None},
        site_values={"settings": {name: value for name, value in table.items() if name == "machine"}},
        site_file=site_file,
    ).machine


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


def _table(body: Mapping[str, Any], file: str) -> Mapping[str, object]:
    known = ("schema", "created", "settings", "database")
    for key in body:
        if key not in known:
            hint = " (settings stand below [settings])" if key in HELP else _nearest(key, known)
            raise ConfigError(f"{file}: unknown key {key!r}{hint}; known are {', '.join(known)}")
    table = body.get("settings", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: settings is {table!r}; it has to be a table: [settings]")
    return table


def _take(
    settings: Settings, values: Mapping[str, object], origin: Callable[[str], str], *, parse: bool
) -> Settings:
    for name, value in values.items():
        if name not in HELP:
            raise ConfigError(
                f"{origin(name)}: unknown setting {name!r}{_nearest(name, HELP)}; known are {', '.join(HELP)}"
            )
        kind = type(getattr(Settings, name).value)
        typed: Any = _parse(kind, value) if parse else _convert(kind, value)
        allowed, wanted = _CHECKS[name]
        if typed is None or not allowed(typed):
            raise ConfigError(f"{origin(name)}: {name} is {value!r}; it has to be {wanted}")
        changed: dict[str, Any] = {name: Setting(typed, origin(name))}
        settings = replace(settings, **changed)
    return settings


def _parse(kind: type, value: object) -> object:
    """The value of a string of the environment, or None."""
    text = str(value).strip()
    try:
        return _WORDS.get(text.lower()) if kind is bool else kind(text)
    except ValueError:
        return None


def _convert(kind: type, value: object) -> object:
    """The value as ``kind``, or None: whole numbers are also floats, nothing else is converted."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else None


def _nearest(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
