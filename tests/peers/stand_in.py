"""What the stand-ins for Cobalt and PBS share: commands on PATH, a file of state, a daemon in a thread."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("qsub", "qstat", "qdel")
COMMAND = """\
#!{python}
import sys
sys.path.insert(0, {repository!r})
from {module} import main
sys.exit(main({program!r}, {directory!r}, sys.argv[1:]))
"""
LOOK_S = 0.03
"""Between two looks of the daemon at its batch jobs."""


class Failed(Exception):
    """Ends the command: what goes to stderr, to stdout, and the exit code."""

    def __init__(self, stderr: str, code: int = 1, stdout: str = "") -> None:
        super().__init__(stderr)
        self.stderr, self.code, self.stdout = stderr, code, stdout


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[dict[str, Any]]:
    """The state, for this process alone; what becomes of it is written back."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = directory / "state.json"
        before = path.read_text()
        state = json.loads(before)
        yield state
        after = json.dumps(state)
        if after != before:
            new = directory / "state.new"
            new.write_text(after)
            new.replace(path)


@dataclass(slots=True)
class StandIn:
    """A batch system: ``with ...(directory) as system:``; ``system.bin`` goes on PATH."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict, init=False)
    """Of the last script that was started."""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    @property
    def bin(self) -> Path:
        """The directory of the commands."""
        return self.directory / "bin"

    @property
    def path(self) -> str:
        """PATH with its commands before all others."""
        return f"{self.bin}:{os.environ.get('PATH', os.defpath)}"

    def run(self, *argv: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands to the end."""
        return subprocess.run(
            argv, env={**os.environ, "PATH": self.path, **environ}, cwd=cwd or self.directory, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def trouble(
        self, program: str, *, stdout: str = "", stderr: str = "", code: int = 1, hang: bool = False
    ) -> None:
        """From now on the command says this and ends so, or does not end."""
        new = self.directory / "trouble.new"
        new.write_text(json.dumps({"stdout": stdout, "stderr": stderr, "code": code, "hang": hang}))
        new.replace(self.directory / f"trouble-{program}.json")

    def mend(self, program: str) -> None:
        """It works again."""
        (self.directory / f"trouble-{program}.json").unlink()

    def _begin(self, module: str, state: Mapping[str, Any]) -> None:
        """Make the commands, which are functions of ``module``, and start the daemon."""
        self.bin.mkdir(parents=True, exist_ok=True)
        (self.directory / "state.json").write_text(json.dumps(state))
        words = {"python": sys.executable, "repository": str(REPOSITORY), "directory": str(self.directory)}
        for program in PROGRAMS:
            (self.bin / program).write_text(COMMAND.format(module=module, program=program, **words))
            (self.bin / program).chmod(0o755)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            with opened(self.directory) as state:
                self._look(state)

    def _look(self, state: dict[str, Any]) -> None:
        """What the daemon does with all batch jobs."""
        raise NotImplementedError

    def _end(self) -> None:
        """End the daemon, and what still runs."""
        self._over.set()
        assert self._thread is not None
        self._thread.join(30)
        for process in self._processes.values():
            send_signal(process.pid, signal.SIGKILL)
            process.wait(10)


def send_signal(pid: int, number: signal.Signals) -> None:
    """To all of the script's session; qsub -I has the shell in its own process group."""
    with contextlib.suppress(ProcessLookupError):
        if pid > 0 and os.getpgid(pid) == pid:
            os.killpg(pid, number)
        elif pid > 0:
            os.kill(pid, number)


def answer(
    program: str,
    directory: Path,
    argv: Sequence[str],
    commands: Mapping[str, Callable[[Path, list[str]], int]],
) -> int:
    """Run a command, or do what ``StandIn.trouble`` says of it; its exit code. Raises Failed."""
    trouble = directory / f"trouble-{program}.json"
    if not trouble.exists():
        return commands[program](directory, list(argv))
    told = json.loads(trouble.read_text())
    sys.stdout.write(told["stdout"])
    sys.stderr.write(told["stderr"])
    sys.stdout.flush()
    while told["hang"]:
        signal.pause()
    return int(told["code"])
