"""Searches of a real Balsam database, whose evaluations a real or a played launcher runs."""

from __future__ import annotations

import functools
import json
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_hpc.evaluator import LauncherEvaluator, Settings, create
from nas_hpc.integrations.balsam.bridge_jobs import line, new_row
from nas_hpc.integrations.balsam.engine import TRIAL, command_of
from nas_hpc.wire import Shape
from tests.balsam.trial_functions import HOLD
from tests.peers.balsam import Balsam

ROOT = Path(__file__).resolve().parents[2]
RUN = "tests.balsam.trial_functions.double"
Connect = Callable[..., LauncherEvaluator]


class Played:
    """Balsam's launcher on a real database, without its waiting: it starts what is runnable at once, as the
    real one does in serial mode, and writes the states that it writes."""

    def __init__(self, balsam: Balsam, workers: int, search: str) -> None:
        self._balsam, self._search = balsam, search
        self._slots = threading.Semaphore(workers)
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environ: dict[str, str] = {}
        self.ran: list[str] = []
        self._loop = threading.Thread(target=self._work, daemon=True)
        self._loop.start()

    def stop(self) -> None:
        """End, and what runs with it."""
        self._end.set()
        self._loop.join(60)
        for process in list(self.processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join(60)

    def _work(self) -> None:
        while not self._end.wait(0.02):
            rows = self._balsam.do(
                "SELECT job_id, name, workflow FROM core_balsamjob"
                f" WHERE state IN ('PREPROCESSED', 'RESTART_READY') AND job_id <> '{self._search}'"
                " ORDER BY length(name), name"
            )
            for row in rows:
                if not self._slots.acquire(timeout=0.02):
                    break
                if not self.enter(str(row[0]), "RUNNING", within="'PREPROCESSED', 'RESTART_READY'"):
                    self._slots.release()
                    continue
                thread = threading.Thread(target=functools.partial(self._run, str(row[0]), row[1], row[2]))
                self._threads.append(thread)
                thread.start()

    def _run(self, job: str, name: str, workflow: str) -> None:
        place = self._balsam.database / "data" / workflow / f"{name}_{job[:8]}"
        environ = self._balsam.environ(
            BALSAM_JOB_ID=job, BALSAM_JOB_MODE="serial", PYTHONPATH=str(ROOT), **self.environ
        )
        self.ran.append(name)
        with (place / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                command_of(TRIAL[0]).split(), cwd=place, env=environ,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
            self.processes[name] = process
            code = process.wait()
        del self.processes[name]
        self._slots.release()
        if self._end.is_set():
            return
        running = "'RUNNING'"
        if code:
            self.enter(job, "RUN_ERROR", f"nonzero return {code}: ", within=running)
            self.enter(job, "FAILED", within="'RUN_ERROR'")
        else:
            for before, state in (("RUNNING", "RUN_DONE"), ("RUN_DONE", "JOB_FINISHED")):
                self.enter(job, state, within=f"'{before}'")

    def enter(self, job: str, state: str, message: str = "", *, within: str) -> bool:
        """Write a state as Balsam does, if the job is ``within`` others; whether it was."""
        text = line(state, message).replace("'", "''")
        rows = self._balsam.do(
            f"UPDATE core_balsamjob SET state = '{state}', state_history = state_history || '{text}'"
            f" WHERE job_id = '{job}' AND state IN ({within}) RETURNING 1"
        )
        return bool(rows)


class Scene:
    """A search's job in a real database, connections of it, and a launcher for its evaluations."""

    def __init__(self, balsam: Balsam, place: Path) -> None:
        self.balsam = balsam
        self.search = str(uuid.uuid4())
        self.place, self.held = place, place / "held"
        self.given: dict[str, str] = {}
        self.launcher: Any = None
        self._made: list[LauncherEvaluator] = []
        self.played: Played | None = None
        self._add_search()

    def _add_search(self) -> None:
        import psycopg

        row = new_row(
            {
                "id": self.search,
                "workflow": "WF",
                "name": "search",
                "node_packing_count": 3,
                "state": "RUNNING",
                "lock": "test",
            },
            {"queued_launch_id": None},
            True,
        )
        with psycopg.connect(self.balsam.url, autocommit=True) as connection:
            names = [*row, "tick"]
            values = [json.dumps(row["data"]) if name == "data" else row[name] for name in row]
            places = ", ".join(["%s"] * len(row) + ["now() + interval '1 day'"])
            connection.execute(
                f"INSERT INTO core_balsamjob ({', '.join(names)}) VALUES ({places})",  # type: ignore[arg-type]
                values,
            )
        (self.balsam.database / "data" / "WF").mkdir(parents=True)

    def environ(self, **added: str) -> dict[str, str]:
        """What Balsam gives the search: one node in serial mode, three to a node."""
        given = {
            "BALSAM_JOB_ID": self.search,
            "BALSAM_JOB_MODE": "serial",
            "BALSAM_LAUNCHER_NODES": "1",
            "DEEPHYPER_WORKERS_PER_NODE": "3",
        }
        return self.balsam.environ(**{**given, **self.given, **added})

    def connect(self, run: str = RUN, reconnect_s: float = 60.0, **settings: Any) -> LauncherEvaluator:
        common = replace(Settings(run=run, seed=7, shape=Shape(node_packing_count=3)), **settings)
        evaluator = create("balsam", common, environ=self.environ(), reconnect_s=reconnect_s)
        self._made.append(evaluator)
        return evaluator

    def play(self) -> Played:
        """A launcher with two free slots."""
        self.played = Played(self.balsam, 2, self.search)
        self.played.environ[HOLD] = str(self.held)
        return self.played

    def end(self) -> None:
        for evaluator in self._made:
            evaluator.close()
        if self.played is not None:
            self.played.stop()

    def states(self) -> dict[str, str]:
        """The evaluations' states by name."""
        return {row["name"]: row["state"] for row in self.balsam.jobs("WF") if row["name"] != "search"}


class Hold(threading.Event):
    """Set while evaluations may finish: a file that their run function waits for the end of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        super().set()

    def set(self) -> None:
        self._path.unlink(missing_ok=True)
        super().set()

    def clear(self) -> None:
        self._path.touch()
        super().clear()
