"""Whether ranks average their gradients, and which versions do it: a step of a variable on two ranks.

``mpiexec -n 2 python -m nas_hpc.nas.parallel.prove WAY…`` tries the ways one after the other. Of each a rank
prints a line ``MARK {"way": …, "text": …, "problem": …, "passed_over": …}``: ``problem`` is empty where it
works; one that is ``passed_over`` hinders nobody who names no way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from nas_hpc.errors import NasHpcError
from nas_hpc.loading import one_line
from nas_hpc.nas.parallel.base import Ranks, differing
from nas_hpc.nas.parallel.choose import RANKS_VARIABLE, WAY_VARIABLE, meet
from nas_hpc.nas.parallel.horovod import GlooAlone

MARK = "nas-hpc-proof "
_SIZE = 2


def main(arguments: Sequence[str]) -> None:
    """Entry: the ways to try."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for way in arguments:
        problem, passed_over = "", False
        try:
            prove(meet({RANKS_VARIABLE: str(_SIZE), WAY_VARIABLE: way}))
        except NasHpcError as error:
            problem, passed_over = error.message, isinstance(error, GlooAlone)
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(error)}"
        told = {"way": way, "text": versions(way), "problem": problem, "passed_over": passed_over}
        os.write(1, (MARK + json.dumps(told) + "\n").encode("ascii"))


def said(output: str) -> dict[str, list[dict[str, Any]]]:
    """By way, what the ranks told in their ``output``, in which there may be more, of whomever."""
    found: dict[str, list[dict[str, Any]]] = {}
    for match in re.finditer(re.escape(MARK), output):
        with contextlib.suppress(ValueError):
            told, _ = json.JSONDecoder().raw_decode(output, match.end())
            found.setdefault(told["way"], []).append(told)
    return found


def prove(ranks: Ranks) -> None:
    """Average the gradients 1 and 2 of two ranks, and have both begin with the numbers of the first.

    Raises RuntimeError with what came instead.
    """
    import keras
    import tensorflow as tf

    begun = ranks.broadcast(np.full(3, ranks.rank, np.float32))
    variable = keras.Variable(begun, trainable=True)

    def step() -> tuple[list[Any], Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable.value * float(ranks.rank + 1))
        return ranks.gradients(tape, loss, [variable], tf.constant([float(ranks.rank)]))

    (gradient,), beside = tf.function(step, autograph=False)()
    got = [float(begun[0]), float(gradient[0]), float(beside[0])]
    if got != [0.0, 1.5, 0.5] or differing(ranks, [np.array(gradient)]):
        raise RuntimeError(
            f"the two ranks do not work together: weights, gradient and loss are {got}, not [0.0, 1.5, 0.5]"
        )


def versions(way: str) -> str:
    """What takes part, for a person."""
    parts = [f"{way} {_version(way)}", f"TensorFlow {_tensorflow()}"]
    with contextlib.suppress(ImportError, RuntimeError):
        from mpi4py import MPI

        parts.append(" ".join(MPI.Get_library_version().replace("Version:", " ").splitlines()[0].split()))
    if way == "horovod":
        with contextlib.suppress(Exception):
            import horovod.tensorflow as hvd

            built = [name for name, there in (("MPI", hvd.mpi_built()), ("Gloo", hvd.gloo_built())) if there]
            parts.append(f"built with {' and '.join(built)}{' and NCCL' * bool(hvd.nccl_built())}")
    return ", ".join(parts)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _tensorflow() -> str:
    with contextlib.suppress(ImportError):
        import tensorflow as tf

        return str(tf.__version__)
    return "(not installed)"


if __name__ == "__main__":
    main(sys.argv[1:])
