"""Fixtures for all tests, and the rule that continuous integration skips nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.peers.balsam import Balsam, missing_balsam, shared_balsam
from tests.peers.mpi import MpiPeer, find_mpich, find_openmpi
from tests.peers.slurm import Slurm, missing_slurm
from tests.support import HOSTILE, TEST_ID, assert_no_processes, directory_of_tests, running

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes tells of what else runs on the machine
settings.register_profile(
    "quick", settings.get_profile("busy"), max_examples=25
)  # see tests.support.examples
OF_THE_CHECKS = ("tensorflow", "horovod")
"""Modules beyond the requirements that run_tests.sh gets: in continuous integration they have to be there."""
LEFT_OUT = pytest.StashKey[list[str]]()
"""Lines for the summary."""


@pytest.fixture(autouse=True)
def test_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A marker in the environment of all that the test starts; nothing of it may be left at the end.

    The user's own settings (his site, an allocation's endpoint) and his batch job are out of the test's
    sight.
    """
    for name in list(os.environ):
        if name.startswith(("NAS_HPC_", "BALSAM_", "DEEPHYPER_", "COBALT_", "PBS_", "SLURM")):
            monkeypatch.delenv(name)
    identifier = uuid.uuid4().hex
    monkeypatch.setenv(TEST_ID, identifier)
    others = running()
    yield identifier
    assert_no_processes(identifier, others=others)


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
    for name, find in (("needs_mpich", find_mpich), ("needs_openmpi", find_openmpi)):
        if request.node.get_closest_marker(name) is not None:
            _present(find())
    for marker in request.node.iter_markers("extra"):
        if importlib.util.find_spec(marker.args[0]) is None:
            pytest.skip(f"needs the module {marker.args[0]}")
    if request.node.get_closest_marker("needs_slurm") and missing_slurm():
        pytest.skip(missing_slurm())
    if request.node.get_closest_marker("needs_balsam") and missing_balsam():
        pytest.skip(missing_balsam())


def _present(found: MpiPeer | str) -> MpiPeer:
    """Skip if ``found`` is what is missing."""
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def mpich() -> MpiPeer:
    """The MPICH of the test environment, for ``--mpi``: the automatic choice prefers any other."""
    return _present(find_mpich())


@pytest.fixture
def openmpi() -> MpiPeer:
    """The OpenMPI of an environment of its own, whose mpi4py is ``python``'s."""
    return _present(find_openmpi())


@pytest.fixture
def slurm(tmp_path: Path, test_id: str) -> Iterator[Slurm]:
    """A Slurm of four idle nodes with four processors each, there after a second; it ends with the test."""
    if missing_slurm():
        pytest.skip(missing_slurm())
    with Slurm(tmp_path / "slurm") as cluster:
        yield cluster


@pytest.fixture
def balsam(test_id: str) -> Iterator[Balsam]:
    """A real Balsam classic with an empty job database: see tests.peers.balsam."""
    if missing_balsam():
        pytest.skip(missing_balsam())
    peer = shared_balsam()
    peer.begin()
    yield peer
    peer.clear()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of extras that are not installed, and in the hostile run the gentle ones."""
    missing: dict[str, int] = {}
    lines = []
    kept = []
    for item in items:
        modules = [marker.args[0] for marker in item.iter_markers("extra")]
        absent = [
            module
            for module in modules
            if importlib.util.find_spec(module) is None and not (IN_CI and module in OF_THE_CHECKS)
        ]
        gentle = item.get_closest_marker("gentle") if HOSTILE else None
        if absent:
            missing[absent[0]] = missing.get(absent[0], 0) + 1
        elif gentle is not None:
            lines.append(f"{item.nodeid}: {gentle.args[0]}")
        else:
            kept.append(item)
    lines += [f"{count} tests of an extra, {module} is not installed" for module, count in missing.items()]
    if lines:
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    config.stash[LEFT_OUT] = lines


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several tells the one that prints the summary what it left out."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["left out"] = session.config.stash.get(LEFT_OUT, [])


class Workers:
    """Registered where tests run in several processes."""

    @staticmethod
    def pytest_testnodedown(node: Any) -> None:
        """Each has collected the same tests."""
        node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", [])


def pytest_configure(config: pytest.Config) -> None:
    """Files in memory; fewer examples where hurry is asked for; tell what was left out, where a plugin makes
    processes.

    What nohup, or a shell for its background jobs, has ignored the programs of tests would ignore, too.
    """
    if "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = directory_of_tests()
        tempfile.tempdir = None
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.option.markexpr == "not slow":
        settings.load_profile("quick")
    if config.pluginmanager.hasplugin("dsession"):
        config.pluginmanager.register(Workers())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out."""
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(f"left out: {line}")


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
