"""Seeds of the failure tests."""

from __future__ import annotations

import pytest

CI_SEEDS = {
    "kill_seed": range(1, 6),
    "crew_seed": range(1, 2),
    "several_seed": range(2, 4),
    "mpi_seed": range(1, 2),
}
"""The runs of a crew of agents, and of MPI programs, take half a minute each."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """By hand, more seeds than continuous integration has."""
    parser.addoption(
        "--kill-seeds", metavar="FIRST:END", help="seeds from FIRST to END - 1 instead of the usual"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per seed."""
    for name, usual in CI_SEEDS.items():
        if name in metafunc.fixturenames:
            wanted = metafunc.config.getoption("--kill-seeds", None)
            seeds = range(*map(int, wanted.split(":"))) if wanted else usual
            metafunc.parametrize(name, seeds)
