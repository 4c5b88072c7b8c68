"""Horovod's wrapped optimizer, which must not train a Keras 3 network."""

from __future__ import annotations

from typing import Any

from nas_hpc.errors import WrongCall


def refuse_wrapped(optimizer: Any) -> None:
    """Raise WrongCall if ``optimizer`` is what ``hvd.DistributedOptimizer`` gives.

    That is an object of a class which Horovod derives from the optimizer's own, with its functions in the
    places where Keras 2 asked for gradients. Keras 3 asks elsewhere: it runs, and each rank trains alone.
    """
    for kind in type(optimizer).__mro__:
        for member in vars(kind).values():
            if (getattr(member, "__module__", None) or "").partition(".")[0] == "horovod":
                raise WrongCall(
                    f"the optimizer {type(optimizer).__name__} is wrapped by Horovod (DistributedOptimizer): "
                    "on Keras 3 it does not average the gradients of the ranks, and says nothing: give the "
                    "optimizer itself, the training averages its gradients"
                )
