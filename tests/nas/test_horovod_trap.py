"""Why trainings exchange gradients by Horovod's tape: its wrapped optimizer does not, on Keras 3."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.peers.mpi import MpiPeer

SCRIPT = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
from mpi4py import MPI
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as wrapped
import keras
import numpy as np
import tensorflow as tf
from nas_hpc.errors import WrongCall
from nas_hpc.nas.parallel.wrapped import refuse_wrapped

hvd.init()
rank = hvd.rank()
x = np.random.default_rng(rank).normal(size=(64, 4)).astype("float32")
y = (rank + 1) * x.sum(axis=1, keepdims=True)

def model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])

def end(name, network):
    os.write(1, f"{name} {rank} {network.get_weights()[0].tobytes().hex()}\\n".encode())

by_tape = model()
optimizer = keras.optimizers.SGD(0.1)
for _ in range(3):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((by_tape(x) - y) ** 2)
    variables = by_tape.trainable_variables
    gradients = hvd.DistributedGradientTape(tape).gradient(loss, [one.value for one in variables])
    optimizer.apply(gradients, variables)
end("tape", by_tape)

by_optimizer = model()
optimizer = wrapped.DistributedOptimizer(keras.optimizers.SGD(0.1))
try:
    refuse_wrapped(optimizer)
except WrongCall as error:
    os.write(1, f"refused {rank} {error}\\n".encode())
by_optimizer.compile(optimizer=optimizer, loss="mse")
by_optimizer.fit(x, y, batch_size=64, epochs=3, verbose=0)
end("optimizer", by_optimizer)
"""


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
@pytest.mark.extra("horovod")
@pytest.mark.needs_mpich
def test_ranks_that_share_a_wrapped_optimizer_end_with_different_weights_and_by_the_tape_with_the_same(
    tmp_path: Path, checkout: Path, mpich: MpiPeer
) -> None:
    """Both begin with the same weights, each with data of its own. The optimizer is refused for that."""
    script = tmp_path / "trap.py"
    script.write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [str(mpich.mpiexec), "-n", "2", str(mpich.python), str(script)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done

    def weights(name: str) -> set[str]:
        found = re.findall(rf"^{name} \d (\w+)$", done.stdout, re.MULTILINE)
        assert len(found) == 2, done
        return set(found)

    assert len(weights("tape")) == 1
    assert len(weights("optimizer")) == 2
    assert done.stdout.count("does not average the gradients of the ranks") == 2
