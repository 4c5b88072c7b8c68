"""Programs that run as applications of a site: searches with their flags, their loop and their resume."""

from __future__ import annotations

from typing import Final

STANDARD_APPS: Final[dict[str, tuple[str, str]]] = {
    "AMBS": ("nas_hpc.apps.ambs", "asynchronous model-based search of hyperparameters"),
    "RAN": ("nas_hpc.apps.random_search", "random search of hyperparameters"),
}
"""The ready-made applications: name -> (module to run with ``python -m``, description). All go on after a
restart."""
