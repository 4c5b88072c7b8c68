"""Parts that are found by entry points."""

from __future__ import annotations

from nas_hpc import plugins
from nas_hpc.cli.main import main


def test_an_entry_point_of_the_sources_is_found_where_nothing_is_installed() -> None:
    assert plugins.load("console_scripts", "nas-hpc") is main


def test_what_no_entry_point_names_is_none() -> None:
    assert plugins.load("nas_hpc.no_such_group", "nothing") is None
    assert plugins.load("console_scripts", "no-such-program-of-ours") is None
