"""Programs that run as applications of a site: searches with their flags, their loop and their resume."""

from __future__ import annotations

from typing import Final

STANDARD_APPS: Final[dict[str, tuple[str, str]]] = {
    "AMBS": ("nas_hpc.apps.ambs", "asynchronous model-based search"),
    "EVO": ("nas_hpc.apps.regevo", "regularized evolution"),
    "RAN": ("nas_hpc.apps.random_search", "random search"),
}
"""The ready-made applications, for hyperparameters and for architectures: name -> (module to run with
``python -m``, description). All go on after a restart."""
