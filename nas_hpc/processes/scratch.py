"""Directories on a node's own disk that several processes of one user share and that outlive none of them.

Standard library only. A directory belongs to whom its lock file is locked by; one that nobody holds was left
by a process that was killed, and is removed by the next that comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping

from nas_hpc.processes import remains

_PREFIX = "scratch-"


def node_directory(environ: Mapping[str, str]) -> str:
    """The user's directory of this program on the node's own disk (TMPDIR, else /tmp), mode 0700, made if
    missing. Raises OSError, naming it, if it cannot be, or is not the user's own.
    """
    path = os.path.join(environ.get("TMPDIR") or tempfile.gettempdir(), f"nas-hpc-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{path} is not a directory of yours; remove it or set TMPDIR")
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o700)
    return path


def take_lock(path: str, *, wait: bool) -> int:
    """The descriptor of a locked lock file, made if missing. Raises BlockingIOError if it is held and
    ``wait`` is not set.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever held it has removed it


class Scratch:
    """A directory of this process, ``path``, that nobody else has."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Make it, and remove those that were left behind. Raises OSError."""
        base = node_directory(environ)
        _remove_abandoned(base)
        number = 0
        while True:
            self.path = os.path.join(base, f"{_PREFIX}{os.getpid()}-{number}")
            try:
                self._lock = take_lock(f"{self.path}.lock", wait=False)
            except BlockingIOError:  # of a process with this number in another container
                number += 1
                continue
            break
        try:
            remains.remove(self.path)
            os.mkdir(self.path, 0o700)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Remove it."""
        remains.remove(self.path)
        _drop(f"{self.path}.lock", self._lock)


def _remove_abandoned(base: str) -> None:
    for entry in os.scandir(base):
        if not (entry.name.startswith(_PREFIX) and entry.name.endswith(".lock")):
            continue
        with contextlib.suppress(OSError):  # it is in use
            lock = take_lock(entry.path, wait=False)
            remains.remove(entry.path[: -len(".lock")])
            _drop(entry.path, lock)


def _drop(path: str, lock: int) -> None:
    """Remove a lock file that is held, then let it go: nobody else can have taken it in between."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(lock)
