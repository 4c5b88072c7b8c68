"""``nas-hpc search-local``: one random trial in the foreground."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import click

from nas_hpc.cli.check_search import check_space
from nas_hpc.cli.context import note, site_options, working_directory
from nas_hpc.cli.trials_flags import (
    LOCAL_OPTIONS,
    TrialsCommand,
    checked_metric,
    flag_map,
    trainer_fields,
    trainer_words,
    where_space,
    whole_root,
)
from nas_hpc.errors import WrongCall
from nas_hpc.names import wrong_name


@site_options
@click.command(cls=TrialsCommand)
@LOCAL_OPTIONS
def local(**flags: Any) -> int:
    """Train one random sample of the space here, as a search would: no site, no launcher.

    \b
    Example:
      nas-hpc search-local --job-name try --search-space-module my.spaces.dense \\
        --trainer 'python -m my.trainer' --nas-target-reward-metric top_1_accuracy
    """
    from nas_hpc.apps.trials.spec import TrialsSpec, make_directory, write_spec

    wrong = wrong_name(flags["job_name"])
    if wrong:
        raise WrongCall(f"--job-name {flags['job_name']!r} {wrong}")
    spec = {
        "job_name": flags["job_name"],
        "space": where_space(flags),
        "trainer": trainer_words(flags["trainer"]),
        "metric": checked_metric(flags["metric"]),
        "max_trials": 1,
        "max_parallel": 1,
        "search_flags": flag_map("--search-flags", flags["search_flags"]),
        "seed": flags["seed"],
        **trainer_fields(flags),
    }
    root = whole_root(flags["root"])
    check_space(str(spec["space"]), "random", 1)
    directory = str(make_directory(root, flags["job_name"]))
    write_spec(TrialsSpec(**spec, directory=directory))
    note(f"one random trial in {directory}")
    path = os.pathsep.join([str(working_directory()), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "nas_hpc.apps.trials.local", directory],
        env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
