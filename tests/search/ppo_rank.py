"""An MPI rank that is an agent: ``mpiexec -n 2 python -m tests.search.ppo_rank SEED``; the first prints."""

from __future__ import annotations

import json
import sys

import numpy as np
from mpi4py import MPI

from benchmarks.nas_ppo import ENOUGH, LATEST, fixed_sequence
from nas_hpc.search.ppo import Ppo, Settings


def main(seed: int, most: int = 10_000, batch: int = 10) -> None:
    """Learn with the other ranks as ``benchmarks.nas_ppo.learned`` does with copies in one process."""
    ranks = MPI.COMM_WORLD
    world = fixed_sequence(seed)
    ppo = Ppo(world.choices, Settings(network="ppo_lnlstm_64"), total=most, seed=seed)
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
            total = np.empty_like(gradient)
            ranks.Reduce(np.float32(weight) * gradient, total, root=0)
            ranks.Bcast(total, root=0)
            ppo.apply(total / np.float32(ranks.allreduce(weight)), len(objectives))
        objectives += everyones
        updates += 1
    digests = ranks.gather(ppo.digest())
    if ranks.rank == 0:
        print(json.dumps({"digests": digests, "updates": updates, "mean": np.mean(objectives[-LATEST:])}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
