"""What a job asks for, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from nas_hpc.errors import PlacementError


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for: ``num_nodes`` nodes and of each the fraction ``share`` and ``gpus`` GPUs."""

    num_nodes: int = 1
    share: Fraction = Fraction(1)
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise PlacementError(f"num_nodes is {self.num_nodes}; a job needs at least 1")
        if not 0 <= self.share <= 1:
            raise PlacementError(f"a job asks for {self.share} of a node; it must be between 0 and 1")
        if self.num_nodes > 1 and self.share != 1:
            raise PlacementError(
                f"a job of {self.num_nodes} nodes asks for {self.share} of each; it must take them whole"
            )
        if self.gpus < 0:
            raise PlacementError(f"gpus is {self.gpus}; it must not be negative")

    def __str__(self) -> str:
        if self.share == 0:
            return f"{self.gpus} GPUs of a node" if self.gpus else "a place on a node"
        part = "" if self.share == 1 else f"{self.share} of "
        nodes = f"{part}a node" if self.num_nodes == 1 else f"{self.num_nodes} whole nodes"
        each = " on each" if self.num_nodes > 1 else ""
        return f"{nodes} with {self.gpus} GPUs{each}" if self.gpus else nodes


@dataclass(frozen=True, slots=True)
class Placement:
    """What a job holds. ``cores`` and ``gpus`` are ids on each of its nodes, in the order of ``nodes``."""

    nodes: tuple[str, ...]
    share: Fraction
    cores: tuple[tuple[int, ...], ...]
    gpus: tuple[tuple[str, ...], ...]
