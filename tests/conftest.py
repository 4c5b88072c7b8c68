"""Fixtures for all tests, and the rule that continuous integration skips nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import TEST_ID, assert_no_processes

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
MISSING_EXTRAS = pytest.StashKey[dict[str, int]]()


@pytest.fixture(autouse=True)
def test_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A marker in the environment of all that the test starts; nothing of it may be left at the end.

    The user's own settings (his site, an allocation's endpoint) are out of the test's sight.
    """
    for name in list(os.environ):
        if name.startswith(("NAS_HPC_", "BALSAM_", "DEEPHYPER_")):
            monkeypatch.delenv(name)
    identifier = uuid.uuid4().hex
    monkeypatch.setenv(TEST_ID, identifier)
    yield identifier
    assert_no_processes(identifier)


@pytest.fixture
def site_dir(tmp_path: Path) -> Path:
    """An empty directory with mode 0700, to become a site."""
    path = tmp_path / "site"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree under test."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Skip, with the name of what is missing, what cannot run here; in continuous integration that fails."""
    if request.node.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.skip("needs root")
    for marker in request.node.iter_markers("needs_program"):
        if shutil.which(marker.args[0]) is None:
            pytest.skip(f"needs the program {marker.args[0]}; launch_scripts/run_tests.sh --install gets it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of extras that are not installed; the summary names them."""
    missing: dict[str, int] = {}
    kept = []
    for item in items:
        modules = [marker.args[0] for marker in item.iter_markers("extra")]
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            missing[absent[0]] = missing.get(absent[0], 0) + 1
        else:
            kept.append(item)
    if missing:
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    config.stash[MISSING_EXTRAS] = missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out because an extra is not installed."""
    for module, count in config.stash.get(MISSING_EXTRAS, {}).items():
        terminalreporter.write_line(f"left out: {count} tests of an extra, {module} is not installed")


def _fail_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which continuous integration does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails in continuous integration."""
    report = yield
    _fail_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself fails in continuous integration."""
    report = yield
    _fail_skip(report)
    return report
