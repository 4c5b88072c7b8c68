"""What came of a search, from its job directories or Balsam database: frames, figures, a report.

``summarize`` and ``write_report`` load pandas when they are called, so that importing this room is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas_hpc.analytics.rates import Throughput
    from nas_hpc.analytics.summary import Summary

__all__ = ["summarize", "throughput", "write_report"]


def summarize(path: str | Path, workflow: str | None = None) -> Summary:
    """The figures of the evaluations in ``path``: of a workflow or search, a site, or a Balsam database.

    ``workflow`` chooses one where there are several. Raises WrongCall if ``path`` is none of these.
    """
    from nas_hpc.analytics.frames import locate, read_evaluations
    from nas_hpc.analytics.summary import summarize_frames

    return summarize_frames(read_evaluations(locate(path, workflow)))


def throughput(path: str | Path, workflow: str | None = None) -> Throughput:
    """How many of the evaluations in ``path`` (as in ``summarize``) ended in each tenth of the time."""
    from nas_hpc.analytics.frames import locate, read_evaluations
    from nas_hpc.analytics.rates import throughput_of

    return throughput_of(read_evaluations(locate(path, workflow)))


def write_report(path: str | Path, out: str | Path, workflow: str | None = None) -> Path:
    """Write one self-contained HTML page about ``path`` (as in ``summarize``) to the file ``out``.

    Returns the page's absolute path. Raises WrongCall for a wrong ``path`` and for an ``out`` that cannot be
    written.
    """
    from nas_hpc.analytics.frames import locate, read_evaluations
    from nas_hpc.analytics.report import render, save

    return save(render(read_evaluations(locate(path, workflow))), out)
