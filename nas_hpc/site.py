"""A site: the directory that holds a user's job database, job directories and what belongs to running
launchers.

``site.toml`` makes a directory a site: the number of its layout, when it was made, and settings. It is
written last, so that a site which could not be made completely is none.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import SiteError
from nas_hpc.files import replace_file, sync_directory

SITE_SCHEMA = 1
"""Number of the layout below; another number is refused."""
SITE_VARIABLE = "NAS_HPC_SITE"
SITE_FILE = "site.toml"
DEFAULT_SITE = "nas_hpc_site"
"""Made in the working directory by a command that needs a site where none is named or found."""
DIRECTORIES = ("data", "log", "qsubmit", "run", "inbox")

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "panfs", "pvfs2", "orangefs",
     "afs", "9p",
     "dvs", "glusterfs", "wekafs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs"}
)  # fmt: skip
"""Other hosts may write to these, and what they wrote may be seen late; shared memory does not reach them."""

_TEMPLATE = """\
# A site of nas-hpc. Do not change these two.
schema = {schema}
created = {created}

# Settings, for instance:  job_mode = "serial"
# `nas-hpc doctor` shows every setting, its value and where that comes from.
[settings]
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Paths of one site; ``path`` is absolute (symbolic links in it are kept)."""

    path: Path

    @property
    def file(self) -> Path:
        """The site's mark and settings."""
        return self.path / SITE_FILE

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.path / "db.sqlite3"

    @property
    def data(self) -> Path:
        """Job directories, by workflow."""
        return self.path / "data"

    @property
    def log(self) -> Path:
        """Logs of launchers."""
        return self.path / "log"

    @property
    def qsubmit(self) -> Path:
        """Scripts given to the batch system, and their output."""
        return self.path / "qsubmit"

    @property
    def run(self) -> Path:
        """Files of running launchers."""
        return self.path / "run"

    @property
    def inbox(self) -> Path:
        """Requests left for an owner on a host that cannot be reached."""
        return self.path / "inbox"

    @property
    def endpoint(self) -> Path:
        """Where the running launcher listens."""
        return self.run / "endpoint.json"

    @property
    def postgres(self) -> Path:
        """The data of the site's own PostgreSQL server."""
        return self.path / "postgres"

    @property
    def server(self) -> Path:
        """Where that server listens, or listened last."""
        return self.run / "postgres.json"

    @property
    def owner(self) -> Path:
        """Which process owns the database."""
        return self.run / "owner.json"

    def workflow_directory(self, workflow: str) -> Path:
        """Directory of the jobs of ``workflow``."""
        return self.data / workflow

    def job_directory(self, workflow: str, directory_name: str) -> Path:
        """Directory of a job, its output, result and metrics; ``directory_name`` is
        ``Job.directory_name``.
        """
        return self.data / workflow / directory_name

    def check_writable(self) -> None:
        """Raise SiteError if files cannot be made here."""
        if not os.access(self.path, os.W_OK | os.X_OK):
            why = (
                "is on a file system mounted read-only"
                if _mounted_read_only(self.path)
                else "is not writable for you"
            )
            raise SiteError(
                f"the site {self.path} {why}; copy it to where you may write, or use another with --site"
            )


def create_site(
    path: str | Path,
    fill: Callable[[Site], str | None] | None = None,
    undo: Callable[[Site], None] | None = None,
) -> Site:
    """Make a site at ``path``, which does not exist or is an empty directory; mode 0700.

    ``fill`` makes the database; the site's mark is written after it, with the text that it returns. ``undo``
    removes what it, or a part of it, has made, but for db.sqlite3. Raises SiteError, leaving nothing
    behind, for a site that is there already, a file, a directory with other things in it, a missing parent,
    no permission, a full disk.
    """
    if not str(path).strip():
        raise SiteError(
            "the site's path is empty; name the directory to be made, for instance: nas-hpc init testdb"
        )
    site = Site(_absolute(path))
    _check_free(site)
    made: list[Path] = []
    begun = False
    try:
        with _plain_errors(f"the site {site.path} cannot be made"):
            if not site.path.exists():
                site.path.mkdir(mode=0o700)
                made.append(site.path)
            site.path.chmod(0o700)
            for name in DIRECTORIES:
                (site.path / name).mkdir(mode=0o700)
                made.append(site.path / name)
        begun = True
        more = (fill(site) if fill is not None else None) or ""
        with _plain_errors(f"the site {site.path} cannot be made"):
            _write_mark(site, more)
    except BaseException:
        if undo is not None and begun:
            undo(site)
        _undo(site, made)
        raise
    return site


def find_site(explicit: str | Path | None, environ: Mapping[str, str], cwd: Path) -> Site:
    """The site of a flag, else of NAS_HPC_SITE, else the first one found upward from ``cwd``.

    Upward: each directory from ``cwd`` to the root, and the ``nas_hpc_site`` in it. Raises SiteError.
    """
    if explicit is not None and str(explicit):
        return load_site(explicit, f"--site {explicit}", cwd)
    named = environ.get(SITE_VARIABLE, "")
    if named:
        return load_site(named, f"{SITE_VARIABLE}={named}", cwd)
    found = next(_upward(cwd), None)
    if found is not None:
        return load_site(found, str(found), cwd)
    raise SiteError(
        f"no site: --site is not given, {SITE_VARIABLE} is not set, and neither {cwd} nor a directory "
        "above it is one; make one with: nas-hpc init NAME"
    )


def is_in_site(cwd: Path) -> bool:
    """Whether a search upward from ``cwd`` finds a site."""
    return next(_upward(cwd), None) is not None


def _upward(cwd: Path) -> Iterator[Path]:
    for directory in (cwd, *cwd.parents):
        for candidate in (directory, directory / DEFAULT_SITE):
            if (candidate / SITE_FILE).is_file():
                yield candidate


def load_site(path: str | Path, named: str = "", cwd: Path | None = None) -> Site:
    """The site at ``path``. Raises SiteError if it is none or of another version; ``named`` is how the user
    named it.
    """
    site = Site(_absolute(path, cwd))
    named = named or str(site.path)
    with _plain_errors(f"{named}: {site.path} cannot be read"):
        if not site.path.exists():
            raise SiteError(
                f"{named}: {site.path} does not exist; make a site there with: nas-hpc init {site.path}"
            )
        if not site.path.is_dir():
            raise SiteError(f"{named}: {site.path} is a file; a site is a directory made by nas-hpc init")
        if not site.file.is_file():
            raise SiteError(
                f"{named}: {site.path} is no site (it has no {SITE_FILE}); make one with: nas-hpc init NAME"
            )
    schema = read_site_file(site).get("schema")
    if schema != SITE_SCHEMA or isinstance(schema, bool):
        raise SiteError(
            f"{named}: {site.file} has schema {schema!r}, this version of nas-hpc reads schema "
            f"{SITE_SCHEMA}; use the "
            "version that made it, or make a new site with: nas-hpc init NAME"
        )
    missing = [name for name in DIRECTORIES if not (site.path / name).is_dir()]
    if missing:
        raise SiteError(
            f"{named}: the site {site.path} has lost {', '.join(missing)}; bring it back with: "
            f"mkdir -m 700 {' '.join(str(site.path / name) for name in missing)}"
        )
    return site


def read_site_file(site: Site) -> dict[str, Any]:
    """The content of site.toml. Raises SiteError if it cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    with _plain_errors(f"{site.file} cannot be read"):
        body = site.file.read_bytes()
    try:
        return tomllib.loads(body.decode())
    except ValueError as error:  # not UTF-8, or not TOML
        raise SiteError(f"{site.file} is not valid TOML: {' '.join(str(error).split())}") from error


def filesystem_type(path: Path) -> str:
    """Type of the filesystem that holds ``path``, as in /proc/self/mountinfo; empty if it cannot be told."""
    return mount_of(path)[0]


def mount_of(path: Path) -> tuple[str, frozenset[str]]:
    """Type and options of the filesystem that holds ``path``; empty if they cannot be told."""
    best, kind, options = "", "", frozenset[str]()
    real = os.path.realpath(path)
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return "", frozenset()
    for line in lines:
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the last of several mounts on one point is the one on top
            best, kind = point, right.split(" ")[0]
            options = frozenset(f"{left.split(' ')[5]},{right.split(' ')[-1]}".split(","))
    return kind, options


def locks_reach_others(path: Path) -> bool:
    """Whether a lock that can be had at ``path`` is surely held by no process of another host."""
    kind, options = mount_of(path)
    if kind in ("nfs", "nfs4"):
        return not options & {"nolock", "local_lock=all", "local_lock=flock"}
    if kind == "lustre":
        return "flock" in options and "localflock" not in options
    return kind == "gpfs" or is_local(path)


def is_local(path: Path, shared: str = "auto") -> bool:
    """Whether only this host writes to the file system of ``path``, so that what is not there now was never
    written. What FUSE shows may come from anywhere. ``shared`` is the setting ``shared_filesystem``: yes and
    no go before what the mount says.
    """
    if shared != "auto":
        return shared == "no"
    kind = filesystem_type(path)
    return kind not in NETWORK_FILESYSTEMS and kind.partition(".")[0] != "fuse"


def _absolute(path: str | Path, cwd: Path | None = None) -> Path:
    """Absolute without resolving symbolic links: a job's directory is named as its user names it."""
    return Path(os.path.normpath((cwd or Path.cwd()) / Path(path).expanduser()))


def _check_free(site: Site) -> None:
    path = site.path
    with _plain_errors(f"the site {path} cannot be made"):
        if not path.parent.exists():
            raise SiteError(
                f"the site {path} cannot be made: {path.parent} does not exist; mkdir -p {path.parent} first"
            )
        if not path.parent.is_dir():
            raise SiteError(f"the site {path} cannot be made: {path.parent} is a file, not a directory")
        if not path.exists():
            if path.is_symlink():
                raise SiteError(
                    f"{path} is a link to {os.readlink(path)}, which does not exist; name another path"
                )
            return
        if not path.is_dir():
            raise SiteError(f"{path} is a file; name a directory that does not exist yet")
        if site.file.exists():
            raise SiteError(
                f"{path} is a site already, nothing was changed; use it with --site, or name another path"
            )
        found = sorted(entry.name for entry in os.scandir(path))
    if found:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise SiteError(f"{path} has other things in it ({some}); name a directory that is new or empty")


def _write_mark(site: Site, more: str) -> None:
    replace_file(site.file, _TEMPLATE.format(schema=SITE_SCHEMA, created=round(time.time(), 3)) + more)
    sync_directory(site.path.parent)


def _undo(site: Site, made: list[Path]) -> None:
    """Remove what a failed ``create_site`` has made: only directories it made, and the database's files."""
    try:
        for entry in site.path.glob(site.database.name + "*"):
            entry.unlink()
        for directory in reversed(made):
            directory.rmdir()
    except OSError:
        return  # the first error is the one to be told


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Make an OSError a SiteError that says what to do about it."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.EACCES: "no permission; name a directory in which you may write",
            errno.EPERM: "no permission; name a directory in which you may write",
            errno.EROFS: "the file system is mounted read-only; name a directory in which you may write",
            errno.ENOSPC: "the disk is full; free some space or name a directory on another disk",
            errno.EDQUOT: "your disk quota is used up; free some space or name a directory on another disk",
            errno.ENAMETOOLONG: "the name is too long; use a shorter one",
            errno.ENOTDIR: "a part of the path is a file, not a directory",
            errno.ELOOP: "its symbolic links lead in a circle",
        }.get(error.errno or 0, f"{error.strerror or error}")
        raise SiteError(f"{what}: {advice}") from error


def _mounted_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
