"""PPO learns: by itself and together with others, in worlds where the best sequence is known."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.nas_ppo import ENOUGH, WORLDS, learned
from nas_hpc.search.ppo import Settings
from tests.peers.mpi import MpiPeer
from tests.search.ppo_rank import QUICK

REPOSITORY = Path(__file__).resolve().parents[2]
DECISIONS = 50_000
"""The reference's limit."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("world", "network"), [("fixed", "ppo_lnlstm_64"), ("hidden", "ppo_lstm_64")])
def test_ppo_learns_within_half_of_the_references_decisions(world: str, network: str, seed: int) -> None:
    it = WORLDS[world](seed)
    most = DECISIONS // len(it.choices)
    found = learned(it, Settings(network=network), seed=seed, most=most)
    assert found.mean >= ENOUGH, f"{world}, seed {seed}: {found}"
    assert found.evaluations is not None
    assert found.evaluations <= most / 2, f"{world}, seed {seed}: {found}"


@pytest.mark.slow
@pytest.mark.needs_mpich
def test_two_agents_under_mpiexec_stay_the_same_and_need_fewer_updates_each(mpich: MpiPeer) -> None:
    """Each draws by a seed of its own; gradients are reduced to the first and broadcast."""
    alone = learned(WORLDS["fixed"](3), QUICK, seed=3, most=DECISIONS // 5)
    answer = subprocess.run(
        [str(mpich.mpiexec), "-n", "2", str(mpich.python), "-m", "tests.search.ppo_rank", "3"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert answer.returncode == 0, answer.stderr
    two = json.loads(answer.stdout)
    assert len(two["digests"]) == 2
    assert len(set(two["digests"])) == 1
    assert two["mean"] >= ENOUGH
    assert alone.evaluations is not None
    assert two["updates"] < alone.updates
