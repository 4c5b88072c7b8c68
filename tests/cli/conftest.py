"""The program called in this process, and a site to call it on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas_hpc.cli.context import open_database
from nas_hpc.cli.main import main
from nas_hpc.cli.sites import new_site
from nas_hpc.cli.submission import find_job
from nas_hpc.site import Site


@dataclass(frozen=True)
class Called:
    """What a call gave."""

    code: int
    out: str
    err: str


Run = Callable[..., Called]
ECHO = f"{sys.executable} -c 'import sys; print(sys.argv[1:])'"
"""The program of the application echo."""


@pytest.fixture
def nas_hpc(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the program in this process, in a directory that belongs to no site."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", root)  # for the processes that the program starts

    def run(*argv: str) -> Called:
        capfd.readouterr()
        code = main(argv)
        out, err = capfd.readouterr()
        return Called(code, out, err)

    return run


def copy(template: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A copy of a closed site, the one of NAS_HPC_SITE."""
    shutil.copytree(template.path, tmp_path / "site")
    monkeypatch.setenv("NAS_HPC_SITE", str(tmp_path / "site"))
    return Site(tmp_path / "site")


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    """An empty site, and one with applications and jobs: ready, its child, and two of one name."""
    directory = tmp_path_factory.mktemp("templates")
    empty, full = new_site(str(directory / "empty")), new_site(str(directory / "full"))
    where = ("--site", str(full.path))
    calls = [("app", "--sync"), ("app", "--name", "echo", "--exec", ECHO)]
    calls += [
        ("job", "--name", name, "--workflow", workflow, "--app", "echo")
        for name, workflow in (("ready", "W"), ("twin", "V"), ("twin", "W"))
    ]
    for call in calls:
        assert main((*call, *where)) == 0
    with open_database(full) as store:
        ready = find_job(store, "ready").id
    child = ("job", "--name", "child", "--workflow", "W", "--app", "echo", "--parents", ready)
    assert main((*child, *where)) == 0
    return {"empty": empty, "full": full}


@pytest.fixture
def site(templates: dict[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty site, the one of NAS_HPC_SITE."""
    return copy(templates["empty"], tmp_path, monkeypatch)


@pytest.fixture
def full_site(templates: dict[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with the applications echo, AMBS, RAN and four jobs, the one of NAS_HPC_SITE."""
    return copy(templates["full"], tmp_path, monkeypatch)
