"""Seeds of the failure tests."""

from __future__ import annotations

import random

import pytest

CI_SEEDS = (1, 2, 3, 4, 5)


def pytest_addoption(parser: pytest.Parser) -> None:
    """By hand, more seeds than continuous integration has."""
    parser.addoption("--kill-seeds", type=int, default=0, help="so many random seeds, not the fixed ones")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per seed."""
    if "kill_seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--kill-seeds", 0)
        seeds = [random.randrange(10**6) for _ in range(count)] if count else CI_SEEDS
        metafunc.parametrize("kill_seed", seeds)
