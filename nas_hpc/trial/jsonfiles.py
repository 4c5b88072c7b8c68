"""Small files of JSON between a trial and those who look after it: replaced at once, read meanwhile.

Standard library only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nas_hpc.files import replace_file


def read_json(path: str | os.PathLike[str]) -> Any:
    """What stands in a file of JSON; None: it is missing, torn, or none."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON object in the file; None: it is missing, torn, or none."""
    content = read_json(path)
    return content if isinstance(content, dict) else None


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Put ``content`` into the file: a reader sees all of it, or what was there before. Raises OSError."""
    replace_file(os.fspath(path), json.dumps(content, indent=2) + "\n", mode=0o644)
