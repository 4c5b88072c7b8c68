"""Parts of the training data: shuffled, stratified or balanced, the same for the same seed.

A smaller part is in each larger one of the same seed, so that tasks with more data see what those with less
see, and more. Standard library only.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from nas_hpc.errors import WrongCall
from nas_hpc.files import replace_file


def choose_subset(
    count: int,
    share: float,
    seed: int = 0,
    labels: Sequence[object] | None = None,
    *,
    balance: bool = False,
) -> list[int]:
    """Indices of a ``share`` of ``count`` examples, in random order; at least one.

    With ``labels``, one for each, the same share of each class; with ``balance`` as many of each class, at
    most what the smallest has and no more in all than the share. Raises WrongCall.
    """
    if not 0.0 < share <= 1.0:
        raise WrongCall(f"the share of the training data is {share!r}: give more than 0 and at most 1")
    if count < 1:
        raise WrongCall("there is no training data to take a part of")
    if balance and labels is None:
        raise WrongCall("the classes can be balanced only if labels are given")
    if labels is not None and len(labels) != count:
        raise WrongCall(f"there are {len(labels)} labels for {count} examples: give one for each")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    if labels is None:
        return order[: _part(share, count)]
    classes: dict[object, list[int]] = {}
    for index in order:
        classes.setdefault(labels[index], []).append(index)
    most = {label: _part(share, len(rows)) for label, rows in classes.items()}
    if balance:
        least = min(len(rows) for rows in classes.values())
        each = max(1, min(least, math.floor(share * count / len(classes) + 1e-9)))
        most = dict.fromkeys(classes, each)
    kept = {index for label, rows in classes.items() for index in rows[: most[label]]}
    return [index for index in order if index in kept]


def write_subset(
    manifest: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    share: float,
    seed: int = 0,
    label: Callable[[str], str] | None = None,
    *,
    balance: bool = False,
) -> str:
    """Write a manifest of a part of ``manifest``, one example or shard a line, in random order; its path.

    ``label`` gives the class of a line, such as ``folder_of``. The same call writes the same file again.

    Raises WrongCall if the manifest cannot be read, is empty, or the part cannot be written.
    """
    source = Path(manifest)
    try:
        lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise WrongCall(
            f"the manifest {str(source)!r} cannot be read ({why}): give one example a line"
        ) from error
    if not lines:
        raise WrongCall(f"the manifest {str(source)!r} is empty: give one example a line")
    labels = None if label is None else [label(line) for line in lines]
    rows = choose_subset(len(lines), share, seed, labels, balance=balance)
    kind = "_balanced" if balance else "_stratified" if labels is not None else ""
    path = Path(output_dir, f"{source.stem}_{100 * share:.6g}pct_seed{seed}{kind}{source.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "".join(f"{lines[row]}\n" for row in rows), mode=0o644)
    except OSError as error:
        raise WrongCall(f"{str(path)!r} cannot be written: {error.strerror}") from error
    return str(path.resolve())


def folder_of(line: str) -> str:
    """The class of an example that is a file in its class's folder: ``data/train/cat/1.png`` is a cat."""
    return Path(line.strip()).parent.name


def _part(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))
