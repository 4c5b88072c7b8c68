"""In which environment a job of trials was asked for: what one has to have again to repeat it."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas_hpc import __version__

_IMAGES = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "SHIFTER_IMAGE", "CONDA_PREFIX", "LOADEDMODULES")
"""Variables that name a container's image, an environment, loaded modules."""
_MOST_BYTES = 10_000_000
"""Of a file of the trainer that is read."""


def environment_of(trainer: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Python and its packages, as a hash of their names and versions; what container, environment and modules
    the variables name; a hash of the trainer's files, which stand in its command line by absolute paths."""
    found = {
        "nas_hpc": __version__,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "packages_sha256": _hash("\n".join(packages()).encode()),
        **{name: environ[name] for name in _IMAGES if environ.get(name)},
    }
    files = [word for word in trainer if os.path.isabs(word) and os.path.isfile(word)]
    for word in files:
        if os.path.getsize(word) <= _MOST_BYTES and os.access(word, os.R_OK):
            found[f"sha256 of {word}"] = _hash(Path(word).read_bytes())
    return found


def packages() -> list[str]:
    """``numpy-2.0.2`` and so on, of what this Python can import, by the names of their directories."""
    names = set()
    for place in sys.path:
        if os.path.isdir(place):
            names |= {one.stem for one in Path(place).glob("*.dist-info")}
    return sorted(names)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
