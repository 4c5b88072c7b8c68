"""A trial's trainer in TensorFlow: ``nas_hpc.problems.trials.digits`` with Keras.

python -m nas_hpc.problems.trials.digits_tensorflow --nas-params-str='{"filters_1": 4, "kernel_1": 3, …}'
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

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
    place = flags.job_dir or None

    parameters = trial.read_architecture(flags)
    layers = digits.expand(parameters)
    trial.save_architecture(place, parameters, layers)
    train, validation = digits.load_data(flags.share, flags.seed)
    each = -(-len(train[0]) // BATCH)
    total = flags.epochs * each
    model = build(layers, parameters["learning_rate"], total, flags.seed)
    step = trial.load_keras(model, trial.find_checkpoint(flags))

    while step < total and not trial.stop_training(place, step - 1, total):
        if trial.should_stop():
            return  # the allocation ends; the next one goes on from the checkpoint
        begin, start, epoch = step, time.perf_counter(), step // each
        model.fit(*train, batch_size=BATCH, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
        spent, step = time.perf_counter() - start, int(model.optimizer.iterations)
        accuracy = model.evaluate(*validation, verbose=0, return_dict=True)["accuracy"]
        trial.update_trial_training_accuracy_metric(place, accuracy, begin, step - 1, spent, total)
        trial.save_keras(model, place)  # last: an interrupted cycle is made again

    accuracy = model.evaluate(*validation, verbose=0, return_dict=True)["accuracy"]
    trial.report("accuracy", accuracy, step, other_metrics={"parameters": model.count_params()})
    print(f"accuracy {accuracy:.4f} after {step} steps")


def build(layers: Sequence[Mapping[str, Any]], rate: float, steps: int, seed: int) -> Any:
    """The compiled network."""
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for layer in layers:
        if layer["layer"] == "convolution":
            model.add(
                keras.layers.Conv2D(
                    layer["filters"], layer["kernel"], padding="same", activation=layer["activation"]
                )
            )
        elif layer["layer"] == "pooling":
            model.add(keras.layers.AveragePooling2D(layer["size"]))
        else:
            if len(model.output_shape) > 2:
                model.add(keras.layers.Flatten())
            model.add(keras.layers.Dense(layer["units"], activation=layer["activation"]))
    falling = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(falling), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    main()
