"""A copy of a virtual environment on the node's own disk, made once by the first of its processes that asks.

Hundreds of interpreters that start at once read tens of thousands of small files, which is what a file system
of many nodes does worst. The source is a directory (``python -m venv``, conda), or an archive of one
(``.tar``, ``.tar.gz``, ``.tar.zst``, …), which is read in one go. In a copy the interpreter finds its own
packages, as it looks for them beside itself; what names the original path (the ``#!`` lines of scripts, the
variable PATH) goes on using the original.

Standard library only. Copies lie in ``scratch.node_directory``: ``env-KEY``, with ``env-KEY.lock``, which all
who use it hold shared, and ``env-KEY.copying``, which who makes it holds alone. A copy that nobody holds is
removed when another one is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from nas_hpc.processes import remains
from nas_hpc.processes.scratch import node_directory, take_lock

STAGED_VARIABLE = "NAS_HPC_STAGED"
"""LOCAL=ORIGINAL in the environment of who runs in a copy: what it records for others has to name the
original."""
_LOOK_S = 0.2
"""Between two looks whether another process has made the copy: seconds matter little beside its minutes."""
_TRIAL_S = 120.0
_COMPRESSED = {".zst": "zstd", ".zstd": "zstd"}
"""Archives that need a program of the system to be read."""
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.zstd")


class StagingFailed(Exception):
    """There is no copy; the message is a line for a person that says why."""


class Staged:
    """A copy that is in use until ``close``."""

    def __init__(self, mapping: Mapping[str, str], lock: int) -> None:
        self.mapping = dict(mapping)
        """Original prefixes and the local one that stands for them."""
        self._lock = lock

    def close(self) -> None:
        """It is not used here any more."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def relocate(path: str, mapping: Mapping[str, str]) -> str:
    """``path`` in the copy, if it lies below an original prefix; else as it is."""
    for original, local in mapping.items():
        if path == original or path.startswith(f"{original}/"):
            return local + path[len(original) :]
    return path


def original(path: str, environ: Mapping[str, str]) -> str:
    """``path`` as others may use it, if it lies in a copy in which this process runs."""
    local, _, prefix = environ.get(STAGED_VARIABLE, "").partition("=")
    return relocate(path, {local: prefix}) if local and prefix else path


def stage(source: str, environ: Mapping[str, str], stopped: Callable[[], bool] = lambda: False) -> Staged:
    """Blocking: find or make the copy of ``source`` (an absolute path), see that it works, and hold it.

    ``stopped`` is asked now and then; if it says yes nothing is left behind. Raises StagingFailed.
    """
    source = os.path.normpath(source)
    try:
        base = node_directory(environ)
        name = f"env-{_key(source)}"
        path = os.path.join(base, name)
        lock = _hold(f"{path}.lock")
        try:
            _make(source, base, name, stopped)
            root = _root(path)
            _try(root, source)
            _remove_unused(base, keep=name)
            return Staged(_mapping(source, root), lock)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StagingFailed(_failure(source, f"{error.strerror or error}{where}")) from None


def _failure(source: str, why: str) -> str:
    return f"the environment {source} is used where it is, as it cannot be copied to this node: {why}"


def _key(source: str) -> str:
    """Changes with the source's packages, and at a boot: a crash leaves files of which nobody knows."""
    marks = [source, _boot_id()]
    top = Path(source)
    looked = [top]
    if top.is_dir():
        looked = [top / "pyvenv.cfg", top / "bin", *sorted(top.glob("lib/python*/site-packages"))]
    for path in looked:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            marks.append(f"{path.name} {status.st_mtime_ns} {status.st_size}")
    if len(marks) == 2:
        raise FileNotFoundError(2, "there is no such environment or archive")
    return hashlib.sha256("\n".join(marks).encode(errors="surrogateescape")).hexdigest()[:16]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _hold(path: str) -> int:
    """Hold a lock file shared. Who removes it holds it alone, and only for a moment."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def _make(source: str, base: str, name: str, stopped: Callable[[], bool]) -> None:
    """Make ``base/name`` unless it is there, or another process makes it meanwhile."""
    path = os.path.join(base, name)
    copying = f"{path}.copying"
    lock = -1
    while lock < 0 and not os.path.isdir(path):
        _check(stopped)
        try:
            lock = take_lock(copying, wait=False)
        except BlockingIOError:
            time.sleep(_LOOK_S)
    if lock < 0:
        return
    try:
        if os.path.isdir(path):
            return
        _remove_unfinished(base, name)
        draft = os.path.join(base, f".{name}.{os.getpid()}")
        try:
            _copy(source, draft, stopped)
            os.rename(draft, path)
        except BaseException:
            remains.remove(draft)
            raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(copying)
        os.close(lock)


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise StagingFailed("the copying of an environment was stopped")


def _copy(source: str, draft: str, stopped: Callable[[], bool]) -> None:
    if os.path.isdir(source):
        if not os.path.lexists(os.path.join(source, "bin", "python")):
            raise StagingFailed(_failure(source, "it has no bin/python"))
        _copy_tree(source, draft, stopped)
    elif source.endswith(_ARCHIVES):
        os.mkdir(draft, 0o700)
        _unpack(source, draft, stopped)
    else:
        raise StagingFailed(_failure(source, f"it is neither a directory nor one of {', '.join(_ARCHIVES)}"))


def _copy_tree(source: str, target: str, stopped: Callable[[], bool]) -> None:
    """Copy a tree with its times, by which compiled modules are found to be current. Ends at the first
    error.
    """
    os.mkdir(target, 0o700)
    for entry in list(os.scandir(source)):
        _check(stopped)
        into = os.path.join(target, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), into)
        elif entry.is_dir():
            _copy_tree(entry.path, into, stopped)
        elif entry.is_file():
            shutil.copyfile(entry.path, into)
            shutil.copystat(entry.path, into)
    shutil.copystat(source, target)
    os.chmod(target, os.stat(target).st_mode | stat.S_IRWXU)  # or nobody could remove it


def _unpack(source: str, target: str, stopped: Callable[[], bool]) -> None:
    program = _COMPRESSED.get(os.path.splitext(source)[1])
    try:
        if program is None:
            with tarfile.open(source) as archive:
                _extract(archive, target, stopped)
            return
        with _decompressed(program, source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            _extract(archive, target, stopped)
    except (tarfile.TarError, EOFError) as error:
        raise StagingFailed(_failure(source, f"the archive cannot be read: {error}")) from None


@contextlib.contextmanager
def _decompressed(program: str, source: str) -> Any:
    """The output of a decompressing program."""
    found = shutil.which(program)
    if found is None:
        raise StagingFailed(_failure(source, f"the program {program}, which reads it, is not installed"))
    process = subprocess.Popen([found, "-dc", source], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        stream: IO[bytes] = process.stdout
        yield stream
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


def _extract(archive: tarfile.TarFile, target: str, stopped: Callable[[], bool]) -> None:
    """Unpack, member by member; nothing is written outside of ``target``."""
    safe: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    for member in archive:
        _check(stopped)
        if not safe and (member.name.startswith("/") or ".." in member.name.split("/")):
            raise tarfile.TarError(f"{member.name} lies outside of it")
        archive.extract(member, target, set_attrs=not member.isdir(), **safe)


def _root(path: str) -> str:
    """Where in the copy the environment is: an archive may have packed its directory or what is in it."""
    if os.path.lexists(os.path.join(path, "bin", "python")):
        return path
    below = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    if len(below) == 1 and os.path.lexists(os.path.join(below[0], "bin", "python")):
        return below[0]
    return path


def _try(root: str, source: str) -> None:
    """See that the interpreter of the copy runs, and takes the copy for its environment."""
    python = os.path.join(root, "bin", "python")
    command = [python, "-I", "-c", "import sys; print(sys.prefix)"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TRIAL_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StagingFailed(_failure(source, f"the copy's bin/python does not run: {error}")) from None
    if done.returncode or os.path.realpath(done.stdout.strip()) != os.path.realpath(root):
        said = (done.stderr.strip().splitlines() or [f"its prefix is {done.stdout.strip()!r}"])[-1]
        raise StagingFailed(_failure(source, f"the copy's bin/python does not work: {said}"))


_ACTIVATE = re.compile(r"""^\s*(?:export )?VIRTUAL_ENV=["']?(/[^"'\n]+?)["']?\s*$""", re.MULTILINE)


def _mapping(source: str, root: str) -> dict[str, str]:
    """The prefixes under which jobs may name the environment."""
    originals = [source, os.path.realpath(source)]
    if not os.path.isdir(source):
        suffix = max((one for one in _ARCHIVES if source.endswith(one)), key=len)
        originals = [source[: -len(suffix)]]
        with contextlib.suppress(OSError, UnicodeDecodeError):
            originals += _ACTIVATE.findall(Path(root, "bin", "activate").read_text())
    return dict.fromkeys((original.rstrip("/") for original in originals), root)


def _remove_unfinished(base: str, name: str) -> None:
    """Drafts of a copy, which was being made when its maker was killed."""
    for entry in os.scandir(base):
        if entry.name.startswith(f".{name}."):
            remains.remove(entry.path)


def _remove_unused(base: str, keep: str) -> None:
    """Remove the copies of other environments, or of an older state of this one, that nobody holds."""
    for name in _names(os.scandir(base)):
        if name == keep:
            continue
        path = os.path.join(base, name)
        with contextlib.suppress(OSError):  # somebody uses it, or makes it
            lock = take_lock(f"{path}.lock", wait=False)
            _remove_unfinished(base, name)
            remains.remove(path)
            for file in (f"{path}.copying", f"{path}.lock"):
                with contextlib.suppress(OSError):
                    os.unlink(file)
            os.close(lock)


def _names(entries: Iterable[os.DirEntry[str]]) -> list[str]:
    suffix = ".lock"
    found = (entry.name for entry in entries if entry.name.startswith("env-"))
    return [name[: -len(suffix)] for name in found if name.endswith(suffix)]
