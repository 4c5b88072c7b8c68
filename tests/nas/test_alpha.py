"""The run function of architecture searches, called as an evaluation calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.nas import alpha


def test_without_a_problem_both_places_for_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(alpha.PROBLEM_VARIABLE, raising=False)
    with pytest.raises(WrongCall, match=r'config\["problem"\].*NAS_HPC_PROBLEM'):
        alpha.run({"arch_seq": [0]})


def test_a_search_can_look_at_it_without_loading_tensorflow() -> None:
    code = "import sys, nas_hpc.nas.alpha as a; print(callable(a.run.prepare), 'keras' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
