"""The objective of a trained network, from the history of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names

History = Mapping[str, Sequence[float]]
"""Values by epoch of "loss", of each metric, and of these with "val_" before them."""
_KINDS: dict[str, Callable[[Sequence[float]], float]] = {
    "max": max,
    "min": min,
    "last": lambda values: values[-1],
}


@dataclass(frozen=True)
class Objective:
    """``[-]NAME[__max|__min|__last]``, such as ``val_accuracy__max`` or ``-val_loss__min``; without an end
    the last epoch's value. The search maximises it, so what is better when it is smaller has a minus."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or self.kind not in _KINDS or not self.name:
            raise WrongCall(
                f"objective {self.text!r}: give NAME__max, NAME__min or NAME__last, as in val_accuracy__max, "
                "with a minus before it if less is better, or a function of the history"
            )

    @property
    def name(self) -> str:
        """Of the history's values."""
        return self.text.removeprefix("-").partition("__")[0]

    @property
    def kind(self) -> str:
        """max, min or last."""
        return self.text.partition("__")[2] or "last"

    def check(self, metrics: Sequence[str]) -> None:
        """Raise WrongCall if networks with ``metrics`` have no such value in their history."""
        known = ["loss", *metrics]
        if self.name.removeprefix("val_") not in known:
            names = [*known, *(f"val_{one}" for one in known)]
            near = close_names(self.name, names)
            raise WrongCall(f"objective {self.text!r} names no metric of the problem{near}")
        if self.name.removeprefix("val_") == "loss" and not self.text.startswith("-"):
            raise WrongCall(f"objective {self.text!r} would maximise the loss: give '-{self.name}__min'")

    def __call__(self, history: History) -> float:
        """Its value. Raises WrongCall if the history has no such values, or one that is not finite."""
        values = history.get(self.name)
        if not values:
            raise WrongCall(
                f"objective {self.text!r}: the history has no {self.name!r}, but {', '.join(history)}"
            )
        finite = [value for value in values if math.isfinite(value)]
        value = _KINDS[self.kind](finite if self.kind != "last" else values) if finite else math.nan
        if not math.isfinite(value):
            raise WrongCall(
                f"objective {self.text!r}: {self.name} is {values[-1]} after {len(values)} epochs"
            )
        return -value if self.text.startswith("-") else value
