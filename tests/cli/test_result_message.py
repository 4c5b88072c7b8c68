"""What ``nas-hpc run`` says at the end of a search."""

from __future__ import annotations

from typing import Any

import pytest

from nas_hpc.cli.foreground import _print_result

BODY: dict[str, Any] = {
    "objective": 0.983,
    "evaluations": 120,
    "failed": 2,
    "elapsed_s": 100.0,
    "utilization": 0.95,
    "best_directory": "/site/data/W/task7_00000007",
    "results": "",
    "report": "/site/data/W/report.html",
}


def test_of_an_architecture_the_tests_stand_beside_the_objective(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"parameters": 18714, "flops": 37274, "epochs": 20, "stopped": "early", "seed": 3}
    metadata |= {"test_loss": 0.1, "test_accuracy": 0.97}
    body = {**BODY, "metadata": metadata, "config": {"arch_seq": [3, 0, 1]}}
    _print_result(body, "val_accuracy__max")
    assert capsys.readouterr().out.splitlines()[:7] == [
        "best objective  0.983 (val_accuracy__max)",
        "test accuracy   0.97",
        "test loss       0.1",
        "parameters      18714",
        "epochs          20",
        "architecture    3, 0, 1",
        "evaluations     120, 2 failed",
    ]


def test_a_hyperparameter_of_that_name_is_a_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    body = {**BODY, "metadata": {"test_accuracy": 0.97, "seed": 3}, "config": {"arch_seq": "wide", "lr": 0.1}}
    _print_result(body, "")
    assert capsys.readouterr().out.splitlines()[:4] == [
        "best objective  0.983",
        "test accuracy   0.97",
        "seed            3",
        "configuration   arch_seq=wide, lr=0.1",
    ]
