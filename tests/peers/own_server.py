"""Sites with a PostgreSQL server of their own, as ``nas-hpc init --postgres`` makes them.

initdb takes seconds: it is called once per process of pytest, and each test gets a copy with a server that
does not run.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from nas_hpc.cli.sites import new_site
from nas_hpc.errors import NasHpcError
from nas_hpc.site import Site
from nas_hpc.store import server
from nas_hpc.store.making import OwnServer
from nas_hpc.store.starting import destroy
from tests.support import directory_of_tests, new_directory, wait_until

LEFT_S = 4 * 3600.0
STRANGER = 54321
"""A user id that owns nothing here."""


def server_user() -> str:
    """Who runs servers: the user himself, or an ordinary one where the tests run as root."""
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that the server's user can pass through, which those of pytest do not allow to others."""
    path = new_directory("nhps")
    path.chmod(0o711)
    try:
        yield path
    finally:
        for found in path.glob("*/run/postgres.json"):
            end(Site(found.parent.parent))
        shutil.rmtree(path)


def end(site: Site) -> None:
    """Kill the site's server, if it runs, and remove it."""
    with suppress(NasHpcError):
        server.stop(site, at_once=True)
    destroy(site)


@cache
def _template() -> Path:
    import atexit

    for left in Path(directory_of_tests()).glob("nhps*"):  # of tests that were killed
        with suppress(OSError):
            if left.stat().st_uid == os.geteuid() and time.time() - left.stat().st_mtime > LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
    directory = new_directory("nhps")
    directory.chmod(0o711)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    site = new_site(str(directory / "site"), OwnServer("", server_user()))
    server.stop(site)
    with (site.postgres / "postgresql.conf").open("a") as conf:  # no test pulls the plug
        conf.write("fsync = off\nfull_page_writes = off\n")
    return site.path


def copy_of_site(directory: Path) -> Site:
    """A site in ``directory`` with a server of its own, which does not run."""
    subprocess.run(["cp", "-a", str(_template()), str(directory / "site")], check=True, timeout=60)
    return Site(directory / "site")


def as_stranger(function: Callable[[], object]) -> str:
    """What ``function`` raises, or returns, when another user calls it; for tests that run as root."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            try:
                said = f"returned {function()!r}"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def processes_in(site: Site) -> list[int]:
    """Processes of the site's server."""
    from nas_hpc.store.who import working_in

    return working_in(site.postgres)


def wait_for_end(site: Site) -> None:
    """Until no process of the server is left."""
    wait_until(lambda: not processes_in(site), 30, "the server's processes to end")
