"""An MPI rank that is an agent: ``mpiexec -n 2 python -m tests.search.ppo_rank SEED``; the first prints."""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks.nas_ppo import ENOUGH, LATEST, fixed_sequence
from nas_hpc.search.ppo import Ppo, Settings

QUICK = Settings(network="ppo_lstm_64", learning_rate=2e-3, noptepochs=4)
"""Learns with few messages: ranks that wait for each other burn their processors."""


def main(seed: int, most: int = 10_000, batch: int = 10) -> None:
    """Learn with the other ranks as ``benchmarks.nas_ppo.learned`` does with copies in one process."""
    from mpi4py import MPI  # here: the tests themselves are no ranks

    ranks = MPI.COMM_WORLD
    world = fixed_sequence(seed)
    ppo = Ppo(world.choices, QUICK, total=most, seed=seed)
    rng = np.random.default_rng([seed, 7, ranks.rank])
    objectives: list[float] = []
    updates = 0
    while len(objectives) < most and (len(objectives) < LATEST or np.mean(objectives[-LATEST:]) < ENOUGH):
        mine = ppo.sample(batch, rng)
        rewards = [world.value(one) for one in mine.actions.tolist()]
        everyones = [one for theirs in ranks.allgather(rewards) for one in theirs]
        ppo.observe(everyones)
        update = ppo.begin(mine, rewards, rng, ranks.allreduce(ppo.moments(mine, rewards)))
        for number in range(len(update)):
            gradient, weight, _ = ppo.gradient(update, number)
            mine_weighted = np.append(np.float32(weight) * gradient, np.float32(weight))
            total = np.empty_like(mine_weighted)
            ranks.Reduce(mine_weighted, total, root=0)
            ranks.Bcast(total, root=0)
            ppo.apply(total[:-1] / total[-1], len(objectives))
        objectives += everyones
        updates += 1
    digests = ranks.gather(ppo.digest())
    if ranks.rank == 0:
        print(json.dumps({"digests": digests, "updates": updates, "mean": np.mean(objectives[-LATEST:])}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
