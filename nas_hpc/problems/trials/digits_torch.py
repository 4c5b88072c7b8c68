"""A trial's trainer in PyTorch: ``nas_hpc.problems.trials.digits`` with torch, which is not among the extras.

python -m nas_hpc.problems.trials.digits_torch --nas-params-str='{"filters_1": 4, "kernel_1": 3, …}'
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nas_hpc import trial
from nas_hpc.problems.trials import digits

BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    """Train one network; report its validation accuracy, and what it costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    trial.add_arguments(parser)
    parser.add_argument("--epochs", type=digits.count, default=12, help="each of them is validated")
    parser.add_argument("--share", type=float, default=1.0, help="of the training data")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    place, step = flags.job_dir or None, 0

    parameters = trial.read_architecture(flags)
    trial.save_architecture(place, parameters, digits.expand(parameters))
    torch.manual_seed(flags.seed)
    (x, y), (x_valid, y_valid) = (
        map(torch.from_numpy, two) for two in digits.load_data(flags.share, flags.seed)
    )
    model = build(digits.expand(parameters))
    optimizer = torch.optim.Adam(model.parameters(), lr=parameters["learning_rate"])
    total = flags.epochs * -(-len(y) // BATCH)
    found = trial.find_checkpoint(flags)
    if found is not None:
        state, step = torch.load(io.BytesIO(found.content), weights_only=True), found.step
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    while step < total and not trial.stop_training(place, step - 1, total):
        if trial.should_stop():
            return  # the allocation ends; the next one goes on from the checkpoint
        begin, start = step, time.perf_counter()
        order = torch.Generator().manual_seed(flags.seed + step)  # the same one when it goes on from here
        for rows in torch.randperm(len(y), generator=order).split(BATCH):
            optimizer.param_groups[0]["lr"] = digits.learning_rate(parameters["learning_rate"], step, total)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
        spent, accuracy = time.perf_counter() - start, score(model, x_valid, y_valid)
        trial.update_trial_training_accuracy_metric(place, accuracy, begin, step - 1, spent, total)
        content = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
        trial.save_checkpoint(place, step, content.getvalue())  # last: an interrupted cycle is made again

    trial.report("accuracy", score(model, x_valid, y_valid), step)


def build(layers: Sequence[Mapping[str, Any]]) -> Any:
    """The network; the softmax of its last layer is in the loss."""
    made: list[Any] = [torch.nn.Unflatten(1, (1, 8)), torch.nn.Flatten(3)]
    for layer in layers:
        if layer["layer"] == "pooling":
            made.append(torch.nn.AvgPool2d(layer["size"]))
        elif layer["layer"] == "convolution":
            made.append(torch.nn.LazyConv2d(layer["filters"], layer["kernel"], padding="same"))
        else:
            made += [torch.nn.Flatten(), torch.nn.LazyLinear(layer["units"])]
        made += {"relu": [torch.nn.ReLU()], "tanh": [torch.nn.Tanh()]}.get(layer.get("activation", ""), [])
    model = torch.nn.Sequential(*made)
    model(torch.zeros(1, 8, 8, 1))  # the lazy layers learn their sizes
    return model


def score(model: Any, x: Any, y: Any) -> float:
    """The share of images whose likeliest label is the right one."""
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


if __name__ == "__main__":
    main()
