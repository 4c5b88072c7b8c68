"""A site for tests of the launcher: commands in this process, launchers as real processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.cli.main import main
from tests.support import TEST_ID

REPOSITORY = Path(__file__).resolve().parents[2]
_POLYNOME = "nas_hpc.problems.hps.polynome2"
POLYNOME = f"--problem {_POLYNOME}.Problem --run {_POLYNOME}.run --evaluator balsam"


@dataclass(frozen=True, slots=True)
class Bench:
    """One site, in a directory of its own, which is also the submitter's."""

    directory: Path
    test_id: str

    @property
    def site(self) -> Path:
        return self.directory / "site"

    def nas(self, *arguments: str, code: int = 0) -> str:
        """Run a command of nas-hpc in this process; its output, both streams."""
        out = io.StringIO()
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                got = main([*(["--site", str(self.site)] if arguments[0] != "init" else []), *arguments])
        finally:
            os.chdir(before)
        assert got == code, f"nas-hpc {' '.join(arguments)} ended with {got}: {out.getvalue()}"
        return out.getvalue()

    def job(self, name: str, app: str, *flags: str, args: str = "", workflow: str = "W") -> str:
        """Add a job; its id."""
        mark = f"{TEST_ID}={self.test_id}"
        return self.nas(
            "job", "--name", name, "--workflow", workflow, "--app", app, "--args", args, "--env", mark, *flags
        ).strip()

    def script(self, name: str, text: str) -> str:
        """Register a Python program as an application called ``name``."""
        path = self.directory / f"{name.lower()}.py"
        path.write_text(text)
        self.nas("app", "--name", name, "--exec", f"{sys.executable} {path}")
        return name

    def searches(self) -> None:
        """Register AMBS and RAN."""
        for name, module in (("AMBS", "ambs"), ("RAN", "random_search")):
            self.nas("app", "--name", name, "--exec", f"{sys.executable} -m nas_hpc.apps.{module}")

    def start(self, *flags: str, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a launcher."""
        base = {**os.environ, "PYTHONPATH": str(REPOSITORY)} if environ is None else environ
        return subprocess.Popen(
            [sys.executable, "-m", "nas_hpc.cli", "--site", str(self.site), "launcher", *flags],
            cwd=REPOSITORY, env={**base, TEST_ID: self.test_id}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def launch(self, *flags: str, code: int = 0, timeout_s: float = 150) -> str:
        """Run a launcher to its end; its output."""
        launcher = self.start(*flags)
        output, _ = launcher.communicate(timeout=timeout_s)
        assert launcher.returncode == code, output
        return output

    def state(self, name: str) -> str:
        """State of a job."""
        return str(self.listing(name)["state"])

    def listing(self, name: str) -> dict[str, Any]:
        """What ``ls jobs --json`` says of a job."""
        found: list[dict[str, Any]] = json.loads(self.nas("ls", "jobs", "--name", name, "--json"))
        return found[0]

    def states(self, name: str) -> list[str]:
        """The recorded states of a job, in order."""
        history = json.loads(self.nas("ls", "jobs", "--name", name, "--history", "--json"))[0]["history"]
        return [history[0]["old"], *(event["new"] for event in history)]

    def attempts(self, workflow: str = "W") -> list[dict[str, Any]]:
        """The lines of attempts.jsonl."""
        text = (self.site / "data" / workflow / "attempts.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def directory_of(self, name: str, workflow: str = "W") -> Path:
        """A job's directory."""
        return next((self.site / "data" / workflow).glob(f"{name}_*"))

    def output(self, name: str, workflow: str = "W") -> str:
        """What a job printed."""
        return (self.directory_of(name, workflow) / f"{name}.out").read_text()
