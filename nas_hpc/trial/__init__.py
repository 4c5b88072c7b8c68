"""What training code imports: ``report``, ``should_stop``, ``job_specification``. Loads nothing of the
launcher's side."""

from __future__ import annotations

from nas_hpc.specification import JobSpec, balsamjob_spec, job_specification
from nas_hpc.trial.reports import report
from nas_hpc.trial.stopping import should_stop

__all__ = ["JobSpec", "balsamjob_spec", "job_specification", "report", "should_stop"]
