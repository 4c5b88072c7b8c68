"""Programs that run as applications of a site: searches with their flags, their loop and their resume."""

from __future__ import annotations

from typing import Final

STANDARD_APPS: Final[dict[str, tuple[str, str]]] = {
    "AMBS": ("nas_hpc.apps.ambs", "asynchronous model-based search"),
    "EVO": ("nas_hpc.apps.regevo", "regularized evolution"),
    "PPO": ("nas_hpc.apps.ppo", "agents that learn a policy (architectures, mpi mode)"),
    "RAN": ("nas_hpc.apps.random_search", "random search"),
}
"""The ready-made applications, for hyperparameters and (PPO: only) for architectures: name -> (module
to run with ``python -m``, description). All go on after a restart."""
CONTROLLERS: Final[dict[str, tuple[str, str]]] = {
    "PROXY_TASKS": ("nas_hpc.apps.proxy", "tools that design a proxy task (nas-hpc search-proxy-task, ...)"),
    "TRIALS": ("nas_hpc.apps.trials", "trials of a user's own trainer (nas-hpc search, nas-hpc train)"),
}
"""Applications whose jobs are made by commands of their own, not by ``nas-hpc job``; the same fields."""
BY_AGENTS: Final = "PPO"
"""The one whose job has several ranks: its agents."""
