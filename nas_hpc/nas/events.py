"""TensorBoard's events of a training, under the names that Keras's own callback gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class Events:
    """Writes to ``directory``/train and ``directory``/validation, as two lines of each picture."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Note the history's ``values`` of ``epoch``; they are in the files afterwards."""
        for name, value in values.items():
            part = "validation" if name.startswith("val_") else "train"
            with self._writer(part).as_default(step=epoch):
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value)
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, part: str) -> Any:
        if part not in self._writers:
            self._writers[part] = tf.summary.create_file_writer(str(self._directory / part))
        return self._writers[part]
