"""Files that others read while they are replaced. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(
    path: Path | str, content: str | bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Put ``content`` in the place of the file, at once: a reader sees all of the old or all of the new.

    After the return it is on the disk. ``owner``: user and group whose it is to be. Raises OSError, having
    changed nothing and left nothing.
    """
    path = os.fspath(path)
    directory, name = os.path.split(path)
    # Of another thread, and of a process with this number on another host, it is another one.
    temporary = os.path.join(directory, f".{name}.{os.getpid()}-{os.urandom(4).hex()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # the umask is not asked
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            if owner is not None:
                os.fchown(descriptor, *owner)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory or ".")


def keep_file(path: Path | str, content: str, *, room: int = 2048) -> None:
    """As ``replace_file``, for a short text that has to be kept up to date on a disk that may be full: blanks
    up to a multiple of ``room`` bytes follow it, into which a later, longer one is written if need be.

    Raises OSError if neither goes.
    """
    data = content.encode()
    data += b" " * (-(len(data) + 1) % room) + b"\n"
    try:
        replace_file(path, data)
    except OSError as error:
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except OSError:
            raise error from None
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            if os.fstat(descriptor).st_size != len(data):
                raise
            file.write(data)
            os.fsync(descriptor)


def sync_directory(path: Path | str) -> None:
    """Have the names in a directory on the disk. A file system that cannot do it has them all the same."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
