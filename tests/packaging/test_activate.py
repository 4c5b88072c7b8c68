"""``source nas-hpc-activate SITE`` in the shells that it promises to work in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SHELLS = ["bash", pytest.param("zsh", marks=pytest.mark.needs_program("zsh"))]


def run(shell: str, script: str, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` under ``set -u``, with the folder of nas-hpc-activate on the path."""
    norc = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[shell]
    environ = {"PATH": f"{checkout / 'launch_scripts'}:/usr/bin:/bin", "CDPATH": "/usr", "HOME": "/"}
    command = [shell, *norc, "-c", f"set -u\n{script}", shell, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("shell", SHELLS)
def test_activation_exports_the_absolute_path_and_deactivation_takes_it_back(
    shell: str, site_dir: Path, checkout: Path
) -> None:
    (site_dir / "site.toml").touch()
    script = """
        cd "$1"; PS1='prompt> '
        source nas-hpc-activate site; source nas-hpc-activate ./site
        sh -c 'echo "$NAS_HPC_SITE"'; echo "$PS1"
        nas-hpc-deactivate
        echo "${NAS_HPC_SITE-gone} $PS1"; command -v nas-hpc-deactivate || echo "no function left"
    """
    done = run(shell, script, checkout, str(site_dir.parent))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [str(site_dir), "(site) prompt> ", "gone prompt> ", "no function left"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("case", ["nothing", "", "missing", "no_site"])
def test_a_wrong_site_gives_one_line_and_leaves_the_shell_alive(
    shell: str, case: str, tmp_path: Path, checkout: Path
) -> None:
    (tmp_path / "no_site").mkdir()
    argument = {"nothing": "", "": "''"}.get(case, f'"{tmp_path / case}"')
    script = f"""
        set --; source nas-hpc-activate {argument}; echo "status $? ${{NAS_HPC_SITE-unset}}"
        command -v nas-hpc-deactivate || echo "no function"
    """
    done = run(shell, script, checkout)
    assert done.stdout.splitlines() == ["status 1 unset", "no function"]
    assert len(done.stderr.splitlines()) == 1
    if case in {"missing", "no_site"}:
        assert f"'nas-hpc init {tmp_path / case}' makes a site" in done.stderr


def test_running_it_instead_of_sourcing_it_is_refused(checkout: Path, site_dir: Path) -> None:
    (site_dir / "site.toml").touch()
    command = ["bash", str(checkout / "launch_scripts" / "nas-hpc-activate"), str(site_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "source nas-hpc-activate SITE" in done.stderr
