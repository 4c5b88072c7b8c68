"""What training code imports: ``report`` and ``should_stop``. Loads nothing of the launcher's side."""

from __future__ import annotations

from nas_hpc.trial.reports import report
from nas_hpc.trial.stopping import should_stop

__all__ = ["report", "should_stop"]
