"""What the sdist and the wheel hold, and that nothing but nas_hpc becomes importable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

LINKS = ("apps", "problems", "analytics")
NOT_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "nas_hpc_site")


def call(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A folder with the sdist of a copy of the source tree, and the wheel made from that sdist."""
    base = tmp_path_factory.mktemp("built")
    shutil.copytree(checkout, base / "source", symlinks=True, ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(base / "out"), "."]
    call(*command, cwd=base / "source")
    return base / "out"


@pytest.mark.parametrize("link", LINKS)
def test_the_top_level_links_lead_into_the_package(checkout: Path, link: str) -> None:
    assert os.readlink(checkout / link) == f"nas_hpc/{link}"


def test_nothing_is_imported_through_the_links_from_outside_the_checkout(tmp_path: Path) -> None:
    """A user's own folder ``problems``, without ``__init__``, must be the one that he gets."""
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "mine.py").write_text("x = 1\n")
    code = "import importlib.util as u, problems.mine; print(u.find_spec('apps'), u.find_spec('analytics'))"
    assert call(sys.executable, "-c", code, cwd=tmp_path).split() == ["None", "None"]


@pytest.mark.slow
def test_the_wheel_holds_nas_hpc_and_its_scripts_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    version = wheel.name.split("-")[1]
    prefix = f"nas_hpc-{version}"
    assert tops == {"nas_hpc", f"{prefix}.dist-info", f"{prefix}.data"}
    assert {"nas_hpc/py.typed", "nas_hpc/analytics/report.html.j2"} <= set(names)
    assert {"nas_hpc/batch/machines/theta.toml", "nas_hpc/batch/templates/launcher.sh.j2"} <= set(names)
    assert [name for name in names if ".data/" in name] == [f"{prefix}.data/scripts/nas-hpc-activate"]


@pytest.mark.slow
def test_the_sdist_holds_sources_tests_and_scripts_but_no_links(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {
        "LICENSE",
        "tests/conftest.py",
        "constraints/tensorflow.txt",
        "launch_scripts/quickstart.sh",
        "docs/files.md",
    } <= names
    assert not [name for name in names if name.split("/")[0] in LINKS]


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_puts_only_nas_hpc_into_site_packages(
    built: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site_packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    assert list(site_packages.iterdir()) == []
    python = tmp_path / "env" / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path)
    version = wheel.name.split("-")[1]
    installed = {path.name for path in site_packages.iterdir()}
    assert installed == {"nas_hpc", f"nas_hpc-{version}.dist-info"}
    commands = {path.name for path in (tmp_path / "env" / "bin").iterdir()}
    assert {"nas-hpc", "deephyper-analytics", "nas-hpc-activate"} <= commands
    code = "import nas_hpc; print(nas_hpc.__version__)"
    assert call(python, "-c", code, cwd=tmp_path).strip() == version
