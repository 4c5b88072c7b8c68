"""A job's preprocess or postprocess script: one process in a session of its own, waited for by a thread.

Started like every program of the launcher: argv without a shell, stdin from /dev/null, the launcher's marker
in the environment and a line in the log of sessions, so that the guardian or the next launcher ends it if
this one dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from nas_hpc.processes import results, sessions

_OUTPUT = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Script:
    """One run of a script. ``run`` belongs to a thread; ``stop`` and ``kill`` to any other."""

    def __init__(
        self,
        name: str,
        argv: tuple[str, ...],
        environ: Mapping[str, str],
        directory: Path,
        sessions_log: Path,
    ) -> None:
        self.name = name
        self._argv, self._environ, self._directory = argv, environ, directory
        self._log = sessions_log
        self._output = str(directory / f"{name}.out")
        self._lock = threading.Lock()
        self._pid = 0
        """0 unless there is a process that was not waited for: a signal then reaches nobody else."""
        self._stopped = ""

    def run(self, on_start: Callable[[], object]) -> str:
        """Run it to its end and end what it leaves behind. Why it failed, in one line; empty for success.

        ``on_start`` is called when its process exists. The output is appended to ``{name}.out``.
        """
        try:
            output = os.open(self._output, _OUTPUT, 0o666)
        except OSError as error:
            return f"{self.name}: cannot open {self._output}: {error.strerror}"
        try:
            begin = os.fstat(output).st_size
            with self._lock:
                if self._stopped:
                    return self._told(self._stopped, begin)
                process = self._spawn(output)
        except (OSError, ValueError) as error:
            return f"{self.name}: cannot start {self._argv[0]}: {getattr(error, 'strerror', None) or error}"
        finally:
            os.close(output)
        on_start()
        self._record(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        sessions.end_session(process.pid)  # a zombie still: the session is certainly this one
        self._end_others()
        with self._lock:
            self._pid = 0
            code = process.wait()
        results.remove_if_empty(self._output)
        reason = self._stopped or results.describe_end(code << 8 if code >= 0 else -code)
        return self._told(reason, begin) if reason else ""

    def stop(self, reason: str) -> None:
        """Ask it to end, or keep it from starting: it fails with ``reason``. A second call does nothing."""
        with self._lock:
            if not self._stopped:
                self._stopped = reason
                self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        with self._lock:
            self._stopped = self._stopped or "it was killed"
            self._signal(signal.SIGKILL)

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self._environ,
            cwd=self._directory,
            start_new_session=True,
        )
        self._pid = process.pid
        return process

    def _signal(self, number: signal.Signals) -> None:
        if self._pid:
            os.killpg(self._pid, number)

    def _record(self, pid: int) -> None:
        line = sessions.line(pid, "script", f"{self._environ['NAS_HPC_JOB_ID']}:{self.name}")
        with contextlib.suppress(OSError):  # a full disk: the marker in its environment tells it, too
            descriptor = os.open(self._log, _OUTPUT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def _end_others(self) -> None:
        """What left the session is told by its environment."""
        marks = self._environ
        key = (marks["NAS_HPC_JOB_ID"], int(marks["NAS_HPC_ATTEMPT"]))
        sessions.end_attempts(self._log, marks[sessions.MARKER_VARIABLE], [key])

    def _told(self, reason: str, begin: int) -> str:
        last = results.tail(self._output, begin).strip().splitlines()[-1:]
        return results.one_line(f"{self.name}: {': '.join([reason, *last])}")
