"""Seeds of the failure tests."""

from __future__ import annotations

import pytest

CI_SEEDS = range(1, 6)


def pytest_addoption(parser: pytest.Parser) -> None:
    """By hand, more seeds than continuous integration has."""
    parser.addoption("--kill-seeds", metavar="FIRST:END", help="seeds from FIRST to END - 1 instead of 1:6")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per seed."""
    if "kill_seed" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--kill-seeds", None)
        seeds = range(*map(int, wanted.split(":"))) if wanted else CI_SEEDS
        metafunc.parametrize("kill_seed", seeds)
