"""``nas-hpc report``: the report of a workflow."""

from __future__ import annotations

from pathlib import Path

import click

from nas_hpc.cli.context import Invocation, site_options, working_directory
from nas_hpc.errors import SiteError, WrongCall


@site_options
@click.command()
@click.argument("word", metavar="WORKFLOW|PATH")
@click.option(
    "-o", "--output", default=None, metavar="FILE", help="Where to write it. [default: report.html there]"
)
@click.pass_obj
def report(call: Invocation, word: str, output: str | None) -> None:
    """Write the report of a workflow or of a directory of jobs; prints its path.

    \b
    Examples:
      nas-hpc report TEST
      nas-hpc report testdb/data/TEST -o test.html
    """
    path = find_directory(call, word)
    cwd = working_directory()
    target = cwd / output if output else path / "report.html"
    if target.is_dir():
        raise WrongCall(
            f"-o {output}: that is a directory; give the name of a file, such as {target}/report.html"
        )
    if not target.parent.is_dir():
        raise WrongCall(f"-o {output}: the directory {target.parent} does not exist; make it first")
    from nas_hpc.analytics import write_report

    try:
        print(write_report(path, target))
    except OSError as error:
        raise WrongCall(
            f"-o {target} cannot be written: {error.strerror or error}; give another with -o"
        ) from error


def find_directory(call: Invocation, word: str) -> Path:
    """The directory of a workflow of the site, or the one at a path. Raises WrongCall."""
    if "/" not in word and word not in (".", ".."):
        try:
            site = call.site()
        except SiteError:
            site = None
        if site is not None and word and site.workflow_directory(word).is_dir():
            return site.workflow_directory(word)
    path = working_directory() / word
    if word and path.is_dir():
        return path
    raise WrongCall(
        f"{word!r} is no workflow of the site and no directory; nas-hpc ls jobs shows the workflows"
    )
