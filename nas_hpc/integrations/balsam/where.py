"""Where Balsam's interpreter is."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from nas_hpc.errors import ConfigError

VARIABLE = "NAS_HPC_BALSAM_PYTHON"
_HOW = (
    f"launch_scripts/setup_balsam.sh makes an environment of Balsam's, {VARIABLE} names another's interpreter"
)


def find_python(environ: Mapping[str, str] = os.environ) -> tuple[Path, str]:
    """The interpreter, and what it was found by: NAS_HPC_BALSAM_PYTHON, the program ``balsam`` on the path,
    or what setup_balsam.sh made last.

    Raises ConfigError if there is none, or the one that is named does not exist.
    """
    given = environ.get(VARIABLE, "").strip()
    if given:
        path = shutil.which(os.path.expanduser(given), path=environ.get("PATH", os.defpath))
        if path is None:
            raise ConfigError(f"{VARIABLE}={given!r} is no program: {_HOW}")
        return Path(path), VARIABLE
    program = shutil.which("balsam", path=environ.get("PATH", os.defpath))
    if program is not None:
        interpreter = _interpreter(Path(program))
        if interpreter is not None:
            return interpreter, program
    cached = _cache(environ) / "balsam" / "bin" / "python"
    if cached.exists():
        return cached, str(cached.parent.parent)
    if program is not None:
        raise ConfigError(f"the interpreter of {program} cannot be told: {_HOW}")
    raise ConfigError(f"no Balsam: no program balsam on the path; {_HOW}")


def _cache(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".cache"
    )
    return Path(base) / "nas-hpc"


def _interpreter(program: Path) -> Path | None:
    """That of the first line, or of the second where pip found the path too long for the first."""
    try:
        with program.open("rb") as file:
            lines = file.read(4096).decode("utf-8", "replace").splitlines()[:3]
    except OSError:
        return None
    words = lines[0][2:].split() if lines and lines[0].startswith("#!") else []
    if words and Path(words[0]).name == "sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        try:
            words = shlex.split(lines[1].removeprefix("'''exec'"))
        except ValueError:
            return None
    if words and Path(words[0]).name == "env" and len(words) > 1:
        words = [shutil.which(words[1]) or ""]
    found = Path(words[0]) if words and "python" in Path(words[0]).name else None
    return found if found is not None and os.access(found, os.X_OK) else None
