"""Evaluations read out of a real Balsam database, and out of its directories while it is down."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.analytics.cli import main
from nas_hpc.integrations.balsam import frames
from tests.peers.balsam import Balsam

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]

RECORDED = json.loads((Path(__file__).parent / "histories.json").read_text())["workflows"]
SEARCH = "5e0000aa-1111-4222-8333-444444444444"


def fill(balsam: Balsam, workflow: str) -> None:
    """Put a recorded workflow into the database, its histories as Balsam wrote them, as evaluations of ours,
    with results that tell their own times."""
    for seq, row in enumerate(RECORDED[workflow], start=1):
        own = {"creator": SEARCH, "seq": seq}
        balsam.add_job(
            row["name"], row["workflow"], "T", row["state"], job_id=row["id"],
            node_packing_count=row["node_packing_count"], data=json.dumps({"nas_hpc": own}),
            state_history="".join(history_line(*line) for line in row["history"]),
        )  # fmt: skip
        leave(balsam.database / "data" / row["workflow"] / row["directory"], row, own)


def history_line(seconds: float, state: str, message: str) -> str:
    """As balsam.core.models.history_line has it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"\n[{moment:%m-%d-%Y %H:%M:%S.%f} {state}] ".rjust(46) + message


def leave(directory: Path, row: dict[str, Any], own: dict[str, Any]) -> None:
    """The evaluation's files."""
    directory.mkdir(parents=True)
    job = {"id": row["id"], "name": row["name"], "config": {"x": own["seq"]}, "created": 1.0, **own}
    (directory / "job.json").write_text(json.dumps(job))
    if "true" in row:
        ok = row["state"] == "JOB_FINISHED"
        outcome = {"outcome": "ok" if ok else "error", "objective": float(own["seq"]) if ok else None}
        result = {"job": row["id"], "attempt": 1, "reason": "", "metadata": {}, **outcome, **row["true"]}
        (directory / "result.json").write_text(json.dumps(result))


def test_analytics_asks_the_database_and_does_with_directories_while_it_is_down(
    balsam: Balsam, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAS_HPC_BALSAM_PYTHON", str(balsam.python))
    for workflow in ("serial", "lost"):
        fill(balsam, workflow)

    def figures(*words: str) -> dict[str, Any]:
        assert main(["utilization", str(balsam.database), *words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    monkeypatch.setattr(frames, "PAGE", 3)
    asked = figures("--workflow", "SERIAL")
    counts = ("n_ok", "n_failed", "n_cancelled", "n_interrupted", "n_unfinished", "n_attempts")
    assert [asked[name] for name in counts] == [6, 2, 1, 1, 0, 10]
    assert asked["best"]["config"] == {"x": 8}
    assert asked["notes"][0].startswith("killed while they ran: 1, counted until the kill, 1 of them until")
    assert "by their programs' own: 9" in asked["notes"][1]
    lost = figures("--workflow", "LOST")
    assert (lost["n_ok"], lost["n_attempts"]) == (3, 4)
    assert lost["notes"][0].startswith("attempts lost with their launcher: 1; ")
    assert main(["throughput", str(balsam.database), "--workflow", "LOST"]) == 0
    assert capsys.readouterr().out.startswith("LOST: 3 evaluations in ")
    balsam.stop_server()
    down = figures("--workflow", "SERIAL")
    assert [down[name] for name in counts] == [6, 3, 0, 0, 1, 9], "a killed one has left a failure"
    assert down["notes"][0].startswith("the Balsam database cannot be asked (")
    assert str(balsam.database) in down["notes"][0]


def test_a_balsam_that_cannot_be_started_is_named_and_directories_are_read(
    balsam: Balsam, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(balsam, "lost")
    monkeypatch.setenv("NAS_HPC_BALSAM_PYTHON", "/nowhere/python")
    assert main(["utilization", str(balsam.database / "data" / "LOST")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("LOST: 3 evaluations: 3 ok")
    assert (
        "note: the Balsam database cannot be asked (NAS_HPC_BALSAM_PYTHON='/nowhere/python' is no program"
        in said
    )
