"""Keras models of architectures."""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.loading import one_line
from nas_hpc.nas.architecture import Architecture, Part
from nas_hpc.nas.failures import CannotBuild, is_memory, out_of_memory

_OTHER = {"uniform": "RandomUniform", "normal": "RandomNormal"}
"""Names that arguments of layers have for initialisers which stand in Keras under another one."""


def build_model(architecture: Architecture, seed: int) -> keras.Model:
    """The network of ``architecture``, not compiled, its weights drawn from ``seed``.

    It takes and gives a tensor, or a list of them where the architecture has several inputs or outputs. A
    layer has its node's name; where a node makes several the others have a number after it. The same
    architecture and seed give the same weights, and the same noise of Dropout: each layer has a seed of its
    own, made of ``seed`` and its name, and the process's random numbers are neither used nor changed.

    What Dropout has drawn so far is in ``model.variables``, and not in ``model.weights``.
    Raises CannotBuild if Keras refuses a layer or gives it another shape than ``architecture.shapes``, and
    OutOfMemory.
    """
    layers = _Layers(seed, [part.name for part in architecture.parts])
    tensors: dict[str, Any] = {}
    for part in architecture.parts:
        given = [tensors[name] for name in part.inputs]
        try:
            tensor = _output(part, given, layers)
        except WrongCall:
            raise
        except Exception as error:
            raise _refusal(part, error) from error
        shape, wanted = tuple(tensor.shape[1:]), tuple(architecture.shapes[part.name])
        if shape != wanted:
            raise CannotBuild(
                f"node {part.name}: Keras gives {part.operation} the output {shape}, not {wanted}"
            )
        tensors[part.name] = tensor
    inputs = [tensors[part.name] for part in architecture.parts if part.operation is None]
    outputs = [tensors[name] for name in architecture.outputs]
    try:
        return keras.Model(_one_or_all(inputs), _one_or_all(outputs), name="architecture")
    except ValueError as error:
        raise CannotBuild(f"the architecture {architecture}: {one_line(error)}") from error


def _output(part: Part, given: Sequence[Any], layers: _Layers) -> Any:
    if part.operation is None:
        return keras.Input(part.shape, name=part.name)
    return part.operation.build(given, layers.of(part))


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _refusal(part: Part, error: Exception) -> Exception:
    if is_memory(error):
        return out_of_memory(error, f"make node {part.name}, {part.operation}")
    return CannotBuild(f"node {part.name}, {part.operation}: {type(error).__name__}: {one_line(error)}")


class _Layers:
    """Makes the layers of an architecture, each with a name and a seed of its own."""

    def __init__(self, seed: int, nodes: Sequence[str]) -> None:
        self._seed = seed
        self._names = set(nodes)
        self._made: dict[tuple[str, int], tuple[str, dict[str, Any], Any]] = {}

    def of(self, part: Part) -> Any:
        """The ``Make`` of ``part``: where it shares weights it gives the layers of the node that has them."""
        count = 0

        def make(layer: str, **arguments: Any) -> Any:
            nonlocal count
            count += 1
            wanted = layer, arguments
            if part.shares:
                kind, before, shared = self._made.get((part.shares, count), ("", {}, None))
                if (kind, before) == wanted:
                    return shared
            made = self._layer(layer, arguments, self._name(part.name, count))
            self._made[part.name, count] = (*wanted, made)
            return made

        return make

    def _name(self, node: str, count: int) -> str:
        if count == 1:
            return node
        number = count - 1
        while f"{node}_{number}" in self._names:
            number += 1
        self._names.add(f"{node}_{number}")
        return f"{node}_{number}"

    def _layer(self, layer: str, arguments: Mapping[str, Any], name: str) -> Any:
        kind = getattr(keras.layers, layer)
        seed = _seed_of(self._seed, name)
        return kind(**{**_seeded(kind, arguments, seed), **arguments, "name": name})


def _seed_of(seed: int, name: str) -> int:
    """Of the layer ``name``: a number that fits where Keras takes seeds."""
    mixed = np.random.SeedSequence([seed % 2**64, zlib.crc32(name.encode())])
    return int(mixed.generate_state(1)[0]) >> 1


def _seeded(kind: Any, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Values for the arguments of a layer ``kind`` that draw random numbers, where these are not given."""
    values: dict[str, Any] = {}
    for name, initializer in _random(kind).items():
        if name in arguments:
            continue
        own = (seed + zlib.crc32(name.encode())) % 2**31  # two kernels of a layer differ
        values[name] = own if initializer is None else initializer(seed=own)
    return values


@functools.cache
def _random(kind: Any) -> dict[str, Any]:
    """The arguments of a layer ``kind`` that draw random numbers: initialisers and their classes; and "seed"
    with None."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        default = parameter.default
        if name == "seed":
            found[name] = None
        elif name.endswith("_initializer") and isinstance(default, str):
            # Not initializers.get, which draws a seed from the process's random numbers.
            initializer = getattr(keras.initializers, _OTHER.get(default, default), None)
            if initializer is not None and "seed" in inspect.signature(initializer).parameters:
                found[name] = initializer
    return found
