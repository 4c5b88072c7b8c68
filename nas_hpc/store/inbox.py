"""Calls that are left as files for an owner that cannot be reached: ``inbox/TIME-ID.call``, ``ID.answer``.

A call's file is one StoreCall, an answer's one StoreAnswer, as messages are sent; mode 0600, written under a
temporary name. The owner takes them in by the order of their names. The answer is there before the call's
file goes, so whoever sees neither looks again. Directories are listed and no single name is looked for: what
a network file system remembers of names that were not there may be old.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nas_hpc.errors import ProtocolError, SiteError, StoreError
from nas_hpc.files import replace_file
from nas_hpc.site import Site
from nas_hpc.store import calls
from nas_hpc.wire import StoreAnswer, StoreCall, pack, unpack

if TYPE_CHECKING:
    from nas_hpc.store.sql import SqlStore

CALL, ANSWER = ".call", ".answer"
KEPT_S = 86_400.0
"""An answer that nobody has fetched for so long goes."""
REPEATED_S = 30 * 86400.0
"""Nobody repeats a call that was carried out so long ago, unless its file lies there still."""
_HEX = frozenset("0123456789abcdef")


def leave(site: Site, call: StoreCall) -> Path:
    """Leave ``call`` for the owner; its file. Raises SiteError."""
    path = site.inbox / f"{time.time_ns():020d}-{call.id}{CALL}"
    try:
        replace_file(path, pack(call))
    except OSError as error:
        raise SiteError(f"nothing can be left in {site.inbox}: {error.strerror or error}") from error
    return path


def withdraw(path: Path) -> None:
    """Take the file of a call back."""
    with contextlib.suppress(OSError):
        path.unlink()


def answered(site: Site, call: StoreCall) -> StoreAnswer | None:
    """The answer, which is taken away; None while there is none. Raises ProtocolError."""
    name = f"{call.id}{ANSWER}"
    if name not in os.listdir(site.inbox):
        return None
    path = site.inbox / name
    message = unpack(path.read_bytes())
    with contextlib.suppress(OSError):
        path.unlink()
    if not isinstance(message, StoreAnswer):
        raise ProtocolError(f"{path} is a {type(message).__name__} and no answer")
    return message


# -- the owner's side --------------------------------------------------------------------------------
def waiting(site: Site) -> list[Path]:
    """The files of calls, oldest first; blocking."""
    try:
        names = os.listdir(site.inbox)
    except OSError:
        return []
    _clear(site, names)
    return [site.inbox / name for name in sorted(names) if name.endswith(CALL) and not name.startswith(".")]


def _clear(site: Site, names: list[str]) -> None:
    """Remove answers that nobody fetched, and what was never given its name."""
    before = time.time() - KEPT_S
    for name in names:
        if name.endswith(ANSWER) or name.startswith("."):
            with contextlib.suppress(OSError):
                if (site.inbox / name).stat().st_mtime < before:
                    (site.inbox / name).unlink()


def read_call(path: Path) -> StoreCall | None:
    """The call of a file; None if it was withdrawn. Raises ProtocolError for anything that is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProtocolError(f"{path} cannot be read: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise ProtocolError(f"{path} is no file of this user")
        message = unpack(file.read())
    if not isinstance(message, StoreCall):
        raise ProtocolError(f"{path} is a {type(message).__name__} and no call")
    if len(message.id) != 32 or set(message.id) - _HEX:
        raise ProtocolError(f"{path} names its call {message.id!r:.40}, which is no id")
    return message


def reject(site: Site, path: Path, error: ProtocolError) -> None:
    """Keep a file that is no call out of the way, for a person to look at."""
    _record(site, f"{path.name}: {error}")
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(f"{path.name}.refused"))


def settle(site: Site, path: Path, call: StoreCall, answer: calls.Answer) -> None:
    """Leave the answer to the call of ``path``, which was committed, and remove that."""
    if answer.error is not None and calls.writes(call):
        _record(site, f"{call.call} {call.id}: {answer.error}")
    parts = list(calls.messages(call.request, answer))
    whole = parts[-1]
    if len(parts) > 1:
        whole = StoreAnswer(call.request, [row for part in parts for row in part.rows])
    with contextlib.suppress(OSError):
        replace_file(site.inbox / f"{call.id}{ANSWER}", pack(whole))
    with contextlib.suppress(OSError):
        path.unlink()


def _record(site: Site, line: str) -> None:
    """Who left a change that is refused may not wait for its answer any more."""
    with contextlib.suppress(OSError), (site.log / "inbox.log").open("a") as file:
        file.write(f"{time.time():.3f} refused: {line}\n")


def take_in(store: SqlStore, site: Site) -> int:
    """Carry out what is there; how many changes were among it. In the thread of ``store``."""
    changes = 0
    for path in waiting(site):
        try:
            call = read_call(path)
        except ProtocolError as error:
            reject(site, path, error)
            continue
        if call is None:
            continue
        answer = calls.execute(store, call)
        changes += calls.writes(call)
        settle(site, path, call, answer)
    _forget(store, site)
    return changes


def _forget(store: SqlStore, site: Site) -> None:
    """A call is repeated while its file lies there, or who sent it lives."""
    with contextlib.suppress(OSError, StoreError):  # the next one will
        there = [name.removesuffix(CALL).rpartition("-")[2] for name in os.listdir(site.inbox)]
        store.forget_requests(time.time() - REPEATED_S, there)
