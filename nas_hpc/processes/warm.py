"""What makes an interpreter warm: the run function's module imported once, and found safe to fork from.

A run function that has much to make ready, data for instance, may have an attribute ``prepare``, a function
without arguments (``run.prepare = prepare``): it is called once after the import, and the evaluations, forks
of this process, share what it leaves in memory. It is a saving and no promise: interpreters that evaluate
once do not call it, so the run function does its work itself where it finds it undone.

Standard library only, Python 3.8 or later: it runs in the user's interpreters.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import sys
import time

from nas_hpc.processes import call, memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

_DEVICES = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel", "/dev/habanalabs", "/dev/neuron")
_POOLS = re.compile(rb"(mkl|blas|blis|flame|omp)[^/\n]*\.so")
"""Libraries that threadpoolctl knows. Without one it is not loaded, with all that it loads itself: a child
pays for every module that has to hear of its fork."""
_MANY_FILES = 64
_PAUSE_S, _PAUSE_OF_MANY_S = 0.05, 1.0
"""While evaluations run the files are looked at no more often: one that starts next to others just before
may as well have started just before the change."""
_limits: list[Any] = []  # threadpoolctl's limits hold as long as the objects live


def restore_path(sys_path: list[str]) -> None:
    """Put the submitter's module search path first. His '' was his directory and is not ours: left out."""
    first = [entry for entry in sys_path if entry]
    sys.path[:] = first + [entry for entry in sys.path if entry not in first]
    importlib.invalidate_caches()


def line_buffered() -> None:
    """Let a reader of the output see each line when it is printed, whatever bytes are in it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def import_module(name: str) -> Any:
    """Import ``name``. Raises call.Failed with the original error as its cause."""
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise _cannot("import", name, error) from error


def prepare_function(run: str, function: Any) -> bool:
    """Call the ``prepare`` of a run function that has one; whether it has. Raises call.Failed like an import.

    A plain function's own attribute counts, and nothing else: a class's method, a descriptor, a stand-in that
    has any attribute mean something of their own by that name.
    """
    prepare = vars(function).get("prepare") if isinstance(function, _FUNCTION) else None
    if not isinstance(prepare, _FUNCTION):
        return False
    try:
        prepare()
    except BaseException as error:
        raise _cannot("prepare", run, error) from error
    return True


_FUNCTION: Any = type(restore_path)


def _cannot(do: str, what: str, error: BaseException) -> call.Failed:
    return call.Failed(f"cannot {do} {what}: {call.exception_line(error)}")


def limit_threads(width: int) -> None:
    """Set the loaded thread pools to ``width``, where a library changed what the environment says."""
    with open("/proc/self/maps", "rb") as stream:
        if not _POOLS.search(stream.read()):
            return
    try:
        import threadpoolctl
    except ImportError:
        return  # the environment's variables have to do
    controller = threadpoolctl.ThreadpoolController()
    if any(library.num_threads != width for library in controller.lib_controllers):
        _limits.append(controller.limit(limits=width))


def unsafe_reason(when: str = "it was imported") -> str:
    """Why children forked from this process could hang, or ""; ``when`` says what has just been done.

    Device files and initialised runtimes do not survive a fork, nor do threads: OpenMP's pool waits for ever
    in the child for threads that are not there. OpenBLAS ends its own threads before a fork; so one fork is
    made, and threads that are then still there belong to somebody else.
    """
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(_DEVICES):
            return f"it opened {target} when {when}"
    eager = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(eager, "_context", None)
    if context is not None and getattr(context, "_initialized", False):
        return f"it ran a TensorFlow operation when {when}"
    cuda = sys.modules.get("torch.cuda")
    if cuda is not None and cuda.is_initialized():
        return f"it initialised CUDA by torch when {when}"
    threading = sys.modules.get("threading")
    others = [t.name for t in threading.enumerate() if t is not threading.main_thread()] if threading else []
    if others:
        return f"it started the thread {others[0]} when {when}"
    return _native_threads(when)


def _native_threads(when: str) -> str:
    if len(os.listdir("/proc/self/task")) == 1:
        return ""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 0.1
    while True:
        others = len(os.listdir("/proc/self/task")) - 1
        if others == 0:
            return ""
        if time.monotonic() > deadline:  # an ended thread is listed for some microseconds more
            return f"{others} native threads, started when {when}, would be missing in its children"
        time.sleep(0.001)


class Watch:
    """The files of the user's own modules: when one changes, a new interpreter has to import it again."""

    def __init__(self, sys_path: list[str], module: str, prepared: Collection[str] = ()) -> None:
        """``prepared``: names of the modules that the run function's ``prepare`` loaded, from anywhere."""
        folders = tuple(os.path.join(entry, "") for entry in sys_path if entry)
        files = set()
        for name, loaded in list(sys.modules.items()):
            path = getattr(loaded, "__file__", None)
            if not isinstance(path, str) or "/site-packages/" in path or "/dist-packages/" in path:
                continue
            if name == module or (
                not path.startswith(_STANDARD)
                and (path.startswith(folders) or (name in prepared and name.partition(".")[0] != "nas_hpc"))
            ):
                files.add(path)
        self._seen = {path: _stamp(path) for path in files}
        self._next = 0.0

    def changed(self, busy: bool) -> str:
        """The path of a file that changed since the import, or ""; ``busy``: evaluations are running."""
        many = len(self._seen) > _MANY_FILES
        if many or busy:
            if time.monotonic() < self._next:
                return ""
            self._next = time.monotonic() + (_PAUSE_OF_MANY_S if many else _PAUSE_S)
        for path, stamp in self._seen.items():
            if _stamp(path) != stamp:
                return path
        return ""


_STANDARD = os.path.join(os.path.dirname(os.__file__), "")


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


class WarmModule:
    """The run function of a warm interpreter, or the reason why there is none."""

    def __init__(self, run: str, sys_path: list[str], threads: int) -> None:
        self.call = call
        self.function: Callable[[Any], Any] | None = None
        self.error: BaseException | None = None
        self.unsafe = ""
        self.prepared: frozenset[str] = frozenset()
        restore_path(sys_path)
        try:
            self.function = call.find(run, import_module)
            call.load_generators()
            self.unsafe = unsafe_reason()
            if not self.unsafe:
                self._prepare(run)
        except call.Failed as error:
            self.error = error
        line_buffered()
        if self.error is None and not self.unsafe:
            limit_threads(threads)
        self.watch = Watch(sys_path, run.rpartition(".")[0], self.prepared)
        self.collects = gc.isenabled()
        gc.collect()
        gc.freeze()  # a collection in a child must not touch, and so copy, what it shares with the others
        gc.disable()
        if self.error is None and not self.unsafe:
            memory.gather()

    def _prepare(self, run: str) -> None:
        """Call its ``prepare``, if it has one, and judge the process anew. Raises call.Failed."""
        before = frozenset(sys.modules)
        if not prepare_function(run, self.function):
            return
        self.prepared = frozenset(sys.modules) - before
        call.load_generators()
        problem = os.environ.get("NAS_HPC_PROBLEM", "")
        self.unsafe = unsafe_reason(f"it prepared {problem}" if problem else "it was prepared")

    def load(self) -> Callable[[Any], Any]:
        """The run function; raises what its import, or its ``prepare``, raised."""
        if self.collects:
            gc.enable()
        if self.error is not None:
            raise self.error
        assert self.function is not None
        return self.function
