"""Which interpreter is Balsam's, and what is said of one that is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nas_hpc.errors import ConfigError, NasHpcError
from nas_hpc.integrations.balsam.process import Bridge
from nas_hpc.integrations.balsam.protocol import BridgeError
from nas_hpc.integrations.balsam.where import find_python


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of a user without any Balsam."""
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "BALSAM_DB_PATH": str(tmp_path)}


def test_what_is_named_goes_before_the_program_on_the_path_and_that_before_what_was_made(
    environ: dict[str, str], tmp_path: Path
) -> None:
    made = program(tmp_path / ".cache/nas-hpc/balsam/bin/python", "")
    assert find_python(environ)[0] == made
    of_balsam = program(tmp_path / "env/bin/python3.9", "")
    program(tmp_path / "bin/balsam", f"#!{of_balsam}\nimport sys\n")
    assert find_python(environ) == (of_balsam, str(tmp_path / "bin/balsam"))
    named = program(tmp_path / "other/python", "")
    assert find_python({**environ, "NAS_HPC_BALSAM_PYTHON": str(named)}) == (named, "NAS_HPC_BALSAM_PYTHON")


def test_an_interpreter_with_a_long_path_is_found_where_pip_puts_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    python = program(tmp_path / "a b/bin/python", "")
    program(tmp_path / "bin/balsam", f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n")
    assert find_python(environ)[0] == python


def test_without_balsam_one_line_says_how_to_get_it(environ: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"no program balsam on the path; launch_scripts/setup_balsam.sh makes"
    ):
        find_python(environ)
    with pytest.raises(ConfigError, match="NAS_HPC_BALSAM_PYTHON='/no/python' is no program"):
        find_python({**environ, "NAS_HPC_BALSAM_PYTHON": "/no/python"})
    with pytest.raises(
        ConfigError, match="BALSAM_DB_PATH is not set; source balsamactivate DATABASE sets it"
    ):
        Bridge(environ={"PATH": environ["PATH"]})


def test_an_interpreter_without_balsam_is_named(environ: dict[str, str]) -> None:
    without = {**environ, "NAS_HPC_BALSAM_PYTHON": sys.executable, "PATH": os.environ["PATH"]}
    with Bridge(environ=without) as bridge, pytest.raises(BridgeError) as caught:
        bridge.call("hello")
    assert caught.value.kind == "missing"
    assert f"{sys.executable} is no interpreter of Balsam's" in caught.value.message


def test_a_program_that_is_no_interpreter_is_given_up_with_its_last_words(
    environ: dict[str, str], tmp_path: Path
) -> None:
    named = {**environ, "NAS_HPC_BALSAM_PYTHON": str(tmp_path / "python")}
    program(tmp_path / "python", "#!/bin/sh\necho 'libpython3.9.so: cannot open' >&2\nexit 127\n")
    with (
        Bridge(environ=named) as bridge,
        pytest.raises(NasHpcError, match=r"exit code 127: libpython3.9.so: cannot open; given up after 2"),
    ):
        bridge.call("hello")
    program(tmp_path / "python", "no program")
    cannot = "cannot be started: Exec format error; launch_scripts/setup"
    with Bridge(environ=named) as bridge, pytest.raises(ConfigError, match=cannot):
        bridge.call("hello")
