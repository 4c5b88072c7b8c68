"""What the tests of data-parallel trainings run on two ranks: ``python -m tests.nas.parallel.together CASES
DIRECTORY``, started by an MPI program. Rank r leaves what its cases gave in ``DIRECTORY/rank{r}.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem, alpha
from nas_hpc.nas.checkpoints import Checkpoints
from nas_hpc.nas.failures import NotFinite, RanksDiffer
from nas_hpc.nas.parallel import Alone, Ranks, ranks_here
from nas_hpc.nas.parallel.base import agreed, broadcast_bytes, differing, gathered
from tests.nas import small

PLACE = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()


class Ended(Exception):
    """Stands for the end of the process."""


# -- what they train ---------------------------------------------------------------------------------------
def trainer_of(
    problem: NaProblem,
    ranks: Ranks,
    *,
    seed: int = 11,
    sequence: Sequence[int] = small.FULL,
    directory: Path | None = None,
) -> Any:
    from nas_hpc.nas.model import build_model
    from nas_hpc.nas.parallel.shards import seed_of
    from nas_hpc.nas.training import Trainer

    space, data = small.loaded(problem)
    model = build_model(space.architecture(sequence), seed_of(seed, ranks.rank))
    return Trainer(problem, model, data, seed, Checkpoints(directory, "key"), ranks=ranks)


def weights(trainer: Any) -> list[Any]:
    return [np.array(one) for one in trainer._steps.model.weights]


def hash_of(arrays: Sequence[Any]) -> str:
    return hashlib.sha256(b"".join(one.tobytes() for one in arrays)).hexdigest()


class NoMean:
    """Ranks as Horovod's wrapped optimizer leaves them: each trains with its own gradients."""

    def __init__(self, ranks: Ranks) -> None:
        self.way, self.rank, self.size = ranks.way, ranks.rank, ranks.size
        self.sum, self.broadcast = ranks.sum, ranks.broadcast

    def gradients(self, tape: Any, loss: Any, variables: Sequence[Any], beside: Any) -> tuple[list[Any], Any]:
        return tape.gradient(loss, variables), beside


# -- cases -------------------------------------------------------------------------------------------------
def exchange(ranks: Ranks) -> dict[str, Any]:
    """All calls of the interface but the gradients."""
    mine = np.array([[ranks.rank + 1.5, 2.0]])
    return {
        "place": [ranks.way, ranks.rank, ranks.size],
        "sum": ranks.sum(mine).tolist(),
        "scalar": ranks.sum(np.array(ranks.rank + 1)).tolist(),
        "types": [str(ranks.sum(np.ones(2, kind)).dtype) for kind in ("f4", "f8", "i4", "i8", "u1")],
        "broadcast": [
            [str(one.dtype), one.tolist()]
            for one in map(
                ranks.broadcast, [mine, np.array(ranks.rank == 0), np.array([ranks.rank + 7], "u4")]
            )
        ],
        "bytes": broadcast_bytes(ranks, b"abc" if ranks.rank == 0 else b"").decode(),
        "no bytes": broadcast_bytes(ranks, b"").decode(),
        "gathered": [one.decode() for one in gathered(ranks, f"of {ranks.rank}".encode())],
        "agreed": agreed(ranks, ranks.rank == 1, False),
        "same": differing(ranks, [np.ones(3)]),
        "differing": differing(ranks, [np.ones(3) * ranks.rank]),
    }


def gradients(ranks: Ranks) -> dict[str, Any]:
    """Of a loss that each rank has multiplied by its number, one of whose variables it does not depend on."""
    import keras
    import tensorflow as tf

    table, other = keras.Variable(np.ones((3, 2), "float32")), keras.Variable(np.ones(4, "float32"))
    line = keras.Variable(np.array([1.0, 2.0], "float32"))

    def step() -> Any:
        with tf.GradientTape() as tape:
            rows = tf.gather(table.value, [ranks.rank])  # its gradient is a sparse one
            loss = (ranks.rank + 1.0) * (tf.reduce_sum(rows) + tf.reduce_sum(line.value**2))
        return ranks.gradients(tape, loss, [table, other, line], tf.constant([ranks.rank, 3.0], tf.float32))

    found, beside = tf.function(step, autograph=False)()
    return {
        "found": [None if one is None else np.array(one).tolist() for one in found],
        "beside": np.array(beside).tolist(),
    }


LIMITED = small.regression(schedule="cosine", checkpoint_s=1000.0, time_limit_s=600.0)


def train(ranks: Ranks) -> dict[str, Any]:
    """The network with normalisation and dropout, from another seed on each rank, of which the second has a
    clock that says that the time is over."""
    trainer = trainer_of(LIMITED, ranks)
    if ranks.rank == 1:
        trainer._began -= 1000.0
    before = hash_of(weights(trainer))
    trained = trainer.run()
    return {
        "before": before,
        "after": hash_of(weights(trainer)),
        "optimizer": hash_of([np.array(one) for one in trainer._steps.optimizer.variables]),
        "history": trained.history,
        "test": trained.test,
        "ended": [trained.epochs, trained.stopped],
    }


def as_one(ranks: Ranks) -> dict[str, Any]:
    """61 examples in batches of 30 on each rank, and of 60 on one: the last step has a single example."""
    settings = {"optimizer": "momentum", "scaling": "none", "warmup_epochs": 1, "learning_rate": 0.05}

    def problem(batch_size: int) -> NaProblem:
        made = small.regression(batch_size=batch_size, clip_norm=1.0, **settings)
        made.load_data(lambda: small.parts(61))
        return made

    both = trainer_of(problem(30), ranks, sequence=small.PLAIN)
    one = trainer_of(problem(60), Alone(), sequence=small.PLAIN)
    of_both, of_one = both.run(), one.run()
    return {
        "weights": [[a.ravel().tolist() for a in weights(trainer)] for trainer in (both, one)],
        "history": [of_both.history, of_one.history],
        "test": [of_both.test, of_one.test],
    }


def stopped(ranks: Ranks) -> dict[str, Any]:
    """As ``train``, asked to end on rank 1 alone, in the second epoch; then on to the end."""
    import nas_hpc.nas.training as module

    def end() -> None:
        raise Ended

    looks = iter(range(1, 10_000))
    module.should_stop = lambda: ranks.rank == 1 and next(looks) == 4  # type: ignore[assignment]
    module._end_as_asked = end
    with contextlib.suppress(Ended):
        trainer_of(LIMITED, ranks, directory=PLACE / "checkpoint").run()
    left = sorted(path.name for path in (PLACE / "checkpoint").iterdir())
    module.should_stop = lambda: False  # type: ignore[assignment]
    rest = trainer_of(LIMITED, ranks, directory=PLACE / "checkpoint")
    done = rest.run()
    return {
        "left": left,
        "resumed": [done.resumed_from, done.resumed_step],
        "after": hash_of(weights(rest)),
        "history": done.history,
        "test": done.test,
    }


def failures(ranks: Ranks) -> dict[str, Any]:
    """A loss that is not finite on rank 1 alone, and gradients that are not averaged."""

    def parts() -> Any:
        training, *others = small.parts()
        return ((training[0], training[1] * (1e30 if ranks.rank == 1 else 1.0)), *others)

    problem = small.regression()
    problem.load_data(parts)
    said = []
    for case, trained_by in ((problem, ranks), (small.regression(), NoMean(ranks))):
        try:
            trainer_of(case, trained_by, sequence=small.PLAIN).run()
        except (NotFinite, RanksDiffer) as error:
            said.append(f"{type(error).__name__}: {error}")
    return {"said": said}


def evaluation(ranks: Ranks) -> dict[str, Any]:
    """The run function, as an evaluation's ranks call it: without a seed of its own."""
    os.environ["NAS_HPC_JOB_DIR"] = str(PLACE / "job")
    (PLACE / "job").mkdir(exist_ok=True)
    answer = alpha.run({"arch_seq": small.FULL, "problem": "tests.nas.small.Unseeded"})
    return {"answer": answer, "left": sorted(path.name for path in (PLACE / "job").iterdir())}


def digits(ranks: Ranks) -> dict[str, Any]:
    """digits_conv on both ranks, and on each of them alone from a seed of its own."""
    from nas_hpc.nas.problem import load_na_problem

    problem = load_na_problem("nas_hpc.problems.nas.digits_conv.Problem")
    sequence = [3, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0]  # two convolutions
    problem.hyperparameters(num_epochs=10, batch_size=32)
    both = trainer_of(problem, ranks, sequence=sequence)
    before, trained = hash_of(weights(both)), both.run()
    alone = trainer_of(problem, Alone(), seed=20 + ranks.rank, sequence=sequence).run()
    return {
        "before": before,
        "after": hash_of(weights(both)),
        "both": max(trained.history["val_accuracy"]),
        "alone": max(alone.history["val_accuracy"]),
    }


def wrapped(ranks: Ranks) -> dict[str, Any]:
    """An optimizer of Horovod's own making, given to the trainer where its optimizer goes in."""
    import horovod.tensorflow.keras as hvd
    import keras

    from nas_hpc.nas.steps import Updates

    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    said = []
    for give in (lambda: Updates(optimizer, []), lambda: small.regression(optimizer=optimizer)):
        try:
            give()
        except WrongCall as error:
            said.append(str(error))
    return {"said": said}


def killed(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 is killed while the other waits for it."""
    agreed(ranks, True)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    agreed(ranks, True)
    return {}


def raised(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 raises what the others do not."""
    if ranks.rank == 1:
        raise WrongCall("only here")
    agreed(ranks, True)
    return {}


CASES: dict[str, Callable[[Ranks], dict[str, Any]]] = {
    one.__name__: one
    for one in (
        exchange, gradients, train, as_one, stopped, failures, evaluation, digits, wrapped, killed, raised,
    )
}  # fmt: skip


def main() -> None:
    """Entry."""
    alpha._surroundings()
    ranks = ranks_here()
    gave: dict[str, Any] = {}
    for name in sys.argv[1].split(","):
        began = time.monotonic()
        gave[name] = CASES[name](ranks)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    (PLACE / f"rank{ranks.rank}.json").write_text(json.dumps(gave))


if __name__ == "__main__":
    main()
