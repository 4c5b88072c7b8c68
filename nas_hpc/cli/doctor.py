"""``nas-hpc doctor``: is this machine and this site fit for work?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from nas_hpc.cli.check_allocation import allocation_json, check_allocation, find_allocation
from nas_hpc.cli.check_balsam import check_balsam
from nas_hpc.cli.check_batch import check_batch
from nas_hpc.cli.check_batch_jobs import check_batch_jobs
from nas_hpc.cli.check_database import check_database
from nas_hpc.cli.check_filesystem import check_filesystem
from nas_hpc.cli.check_mpi import check_mpi
from nas_hpc.cli.checks import (
    BAD,
    WARN,
    Finding,
    check_launcher,
    check_machine,
    check_python,
    check_site,
)
from nas_hpc.cli.context import Invocation, machine_option, site_options
from nas_hpc.cli.output import print_json
from nas_hpc.config import Settings, strange_variables
from nas_hpc.errors import NasHpcError, SiteError

if TYPE_CHECKING:
    from nas_hpc.site import Site


@site_options
@machine_option
@click.command()
@click.option("--quick", is_flag=True, help="Leave out the trials that load TensorFlow, which takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(call: Invocation, quick: bool, as_json: bool) -> int:
    """Check this machine and the site; each line says ok, warn or bad, and what to do. Exit 1 if one is bad.

    \b
    Example:
      nas-hpc doctor --site testdb
    """
    findings = [*_safely("python", check_python), *_safely("machine", check_machine)]
    site, settings = None, Settings()
    try:
        site = call.site()
    except SiteError as error:
        given = bool(call.site_flag)
        findings.append(Finding("site", BAD if given else WARN, error.message))
    try:
        settings = call.settings(site)
    except NasHpcError as error:
        findings.append(Finding("settings", BAD, error.message, "correct it there"))
    if site is not None:
        findings += _site_findings(site, settings)
    findings += [Finding("environment", WARN, line, "unset it") for line in strange_variables(os.environ)]
    found = find_allocation(settings)
    findings += _safely("machine", partial(check_batch, settings, site, found))
    findings += _safely("allocation", partial(check_allocation, found, settings))
    findings += _safely("mpi", partial(check_mpi, found, settings, quick=quick))
    findings += _safely("balsam", partial(check_balsam, settings))
    if as_json:
        shown = {name: {"value": one.value, "origin": one.origin} for name, one in settings.items()}
        checks = [asdict(finding) for finding in findings]
        print_json({"checks": checks, "allocation": allocation_json(found), "settings": shown})
    else:
        for finding in findings:
            advice = f"  -> {finding.advice}" if finding.advice else ""
            print(f"{finding.level:<4}  {finding.name:<16} {finding.text}{advice}")
        print("settings")
        for name, one in settings.items():
            print(f"      {name:<18} {one.value!s:<8} {one.origin}")
    return 1 if any(finding.level == BAD for finding in findings) else 0


def _site_findings(site: Site, settings: Settings) -> list[Finding]:
    checks = (
        ("site", partial(check_site, site)),
        ("file system", partial(check_filesystem, site, settings)),
        ("database", partial(check_database, site)),
        ("launcher", partial(check_launcher, site)),
        ("batch jobs", partial(check_batch_jobs, site)),
    )
    return [finding for name, check in checks for finding in _safely(name, check)]


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of ``check``; one that fails is a finding itself."""
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)
    except (OSError, NasHpcError) as error:
        found.append(Finding(name, BAD, f"cannot be checked: {error}"))
    return found
