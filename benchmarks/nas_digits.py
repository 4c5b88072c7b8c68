"""``nas_hpc.problems.nas.digits_dense``, trained for fewer epochs: BENCH_EPOCHS, which a search's evaluations
find in their environment."""

from __future__ import annotations

import copy
import os

from nas_hpc.problems.nas import digits_dense

EPOCHS = "BENCH_EPOCHS"
Problem = copy.deepcopy(digits_dense.Problem)
Problem.hyperparameters(num_epochs=int(os.environ.get(EPOCHS, "5")))
