"""How a launcher is to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nas_hpc.errors import WrongCall

Progress = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """All that a command or a batch script decides about a launcher. Seconds throughout."""

    workflow: str = ""
    """Only jobs of this workflow; empty: all."""
    job_mode: str = "mpi"
    nodes: int = 0
    """So many of the batch job's; without one so many virtual nodes on this machine. 0: all; without: 1."""
    cores_per_node: int = 0
    """0: the machine's."""
    gpus_per_node: int = 0
    """0: those that are found."""
    time_limit_s: float = 0.0
    """The allocation's length from the launcher's start; 0: no end."""
    idle_timeout_s: float = 0.0
    """End after so long with nothing running and nothing to run."""
    fresh_interpreter: bool = False
    """Never fork evaluations from a warm interpreter."""
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL."""
    lease_s: float = 60.0
    heartbeat_s: float = 10.0
    stop_margin_s: float = 15.0
    """So long before the end of the allocation running jobs are told to stop."""
    lost_limit: int = 3
    persistent: bool = False
    """Wait for new work until the allocation ends, whatever ``idle_timeout_s`` is."""
    agents: int = 0
    agent_start: str = "auto"
    agent_deadline_s: float = 300.0
    use_master_node: bool = False
    interface: str = ""
    mpi: str = ""
    mpi_flags: str = ""
    mpi_mode_packing: int = 1
    starts_per_s: float = 0.0
    concurrent_starts: int = 0
    result_grace_s: float = 10.0
    task_directories: str = "each"
    stage_environment: str = ""
    shared_filesystem: str = "auto"
    """What these mean stands in ``nas_hpc.config.HELP``."""
    progress: Progress | None = None
    """Called with the launcher's view at most every ``progress_s`` seconds, and at the end."""
    progress_s: float = 0.25

    def __post_init__(self) -> None:
        if self.job_mode not in ("mpi", "serial"):
            raise WrongCall(f"job mode {self.job_mode!r} is unknown; it is mpi or serial")
        for name in ("time_limit_s", "idle_timeout_s", "grace_s", "stop_margin_s"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise WrongCall(f"{name.removesuffix('_s')} is {value:g} s; it must not be negative")
        if 0 < self.time_limit_s <= self.stop_margin_s:
            raise WrongCall(
                f"the time limit of {self.time_limit_s:g} s leaves nothing for jobs, which are told to stop "
                f"{self.stop_margin_s:g} s before its end (stop_margin_s): give more time or a shorter margin"
            )
        if not 0 < self.heartbeat_s < self.lease_s:
            raise WrongCall(
                f"heartbeat {self.heartbeat_s:g} s, lease {self.lease_s:g} s: "
                "the lease must outlast a heartbeat, which is longer than 0"
            )
