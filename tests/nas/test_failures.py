"""What tells a lack of memory from other failures."""

from __future__ import annotations

import pytest

from nas_hpc.nas.failures import is_memory, out_of_memory


class ResourceExhaustedError(Exception):
    """As TensorFlow names it."""


def _wrapped(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as error:
            raise ValueError("the layer could not be made") from error
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ResourceExhaustedError("failed to allocate memory"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17 bytes"),
        RuntimeError("std::bad_alloc"),
        _wrapped(MemoryError()),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_known_also_behind_another_exception(error: Exception) -> None:
    assert is_memory(error)


def test_other_failures_are_none() -> None:
    assert not is_memory(_wrapped(KeyError("memory")))


def test_the_failure_says_in_one_line_what_was_done_and_what_could_not_be_had() -> None:
    failure = out_of_memory(_wrapped(ResourceExhaustedError("OOM when allocating\na tensor")), "train it")
    assert str(failure) == "there was not enough memory to train it: OOM when allocating a tensor"
    assert str(out_of_memory(MemoryError(), "build it")) == "there was not enough memory to build it"
