"""Why a training failed: classes whose names begin the reason that is recorded for its evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from nas_hpc.errors import WorkFailed
from nas_hpc.loading import one_line

_OF_MEMORY = ("ResourceExhaustedError", "MemoryError", "_ArrayMemoryError")
_SAID = ("RESOURCE_EXHAUSTED", "OOM when allocating", "out of memory", "std::bad_alloc")


class TrainingFailed(WorkFailed):
    """A network was asked for as it should be, and could not be trained."""


class CannotBuild(TrainingFailed):
    """Keras does not make the network of an architecture, or it does not fit its loss, metrics or data."""


class NotFinite(TrainingFailed):
    """The loss, or what the objective is of, became infinite or no number."""


class RanksDiffer(TrainingFailed):
    """The ranks of a training have not the same weights: their gradients were not averaged."""


class OutOfMemory(TrainingFailed):
    """The network or its batches do not fit into the memory."""


def is_memory(error: BaseException) -> bool:
    """Whether ``error``, or what it came from, says that there was not enough memory."""
    return any(
        type(one).__name__ in _OF_MEMORY or any(word in str(one) for word in _SAID) for one in _chain(error)
    )


def out_of_memory(error: BaseException, doing: str) -> OutOfMemory:
    """The failure for ``error``, which came while ``doing``."""
    said = next((one_line(one) for one in _chain(error) if type(one).__name__ in _OF_MEMORY), one_line(error))
    return OutOfMemory(f"there was not enough memory to {doing}: {said}".rstrip(": "))


def refused_step(error: BaseException) -> CannotBuild | None:
    """The failure for an operation that TensorFlow refused while it ran, because of its numbers or shapes;
    None for another ``error``. Of TensorFlow's many lines it has the one that says why."""
    if "OpError" not in [kind.__name__ for kind in type(error).__mro__]:
        return None
    lines = str(error).splitlines()
    end = next((n for n, line in enumerate(lines) if line.strip().startswith("[[{{node")), len(lines))
    said = next((line for line in reversed(lines[:end]) if line.strip()), type(error).__name__)
    return CannotBuild(f"TensorFlow refused a step of the training: {' '.join(said.split())}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
