"""What importing the searches costs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("nas_hpc.search.base", ("sklearn", "ConfigSpace", "numpy")),
        ("nas_hpc.search.random", ("sklearn",)),
        ("nas_hpc.search.ppo", ("sklearn", "ConfigSpace", "scipy", "tensorflow", "mpi4py")),
        ("nas_hpc.loading", ("ConfigSpace", "numpy")),
    ],
)
def test_importing_a_light_module_loads_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
