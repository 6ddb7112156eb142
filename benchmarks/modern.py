"""The preset `modern` beside the tutorial's own loop: the whole training of each.

The tutorial's loop trains its network for its 8 epochs in batches of 128. The preset trains the
same network its own way. They take turns; both clocks run from the first step to the last
parameters, without compilation and without evaluation. Then each is evaluated, once, on the test
set.

    python benchmarks/modern.py [--turns 3] [--preset modern]
"""

import argparse
import statistics
from typing import Any

import jax
import machine
import numpy as np
from torch.utils.data import DataLoader
from tutorial_epoch import BATCH_SIZE, SIZES, plain_collate, plain_epoch, plain_predict

import feedax
from feedax.cli.examples import Examples
from feedax.cli.network import initial_params
from feedax.cli.presets import PRESETS
from feedax.cli.recipe import fit_arguments

TUTORIAL_EPOCHS = 8


def by_tutorial(mnist: Any, start: Any) -> tuple[Any, float]:
    """The tutorial's training: the parameters, and the seconds of all epochs."""
    loader = DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=plain_collate)
    params, total = start, 0.0
    for _ in range(TUTORIAL_EPOCHS):
        params, seconds = plain_epoch(loader, params)
        total += seconds
    return params, total


def by_preset(flags: Any, examples: Examples, seed: int) -> tuple[Any, float, Any]:
    """The preset's: the parameters, the seconds of all epochs, and how to predict."""
    train = examples.loaders()["train"].with_seed(seed)
    arguments = fit_arguments(flags, examples, train) | {"key": jax.random.key(seed)}
    layers = (examples.values, *flags.model.hidden, examples.class_count)
    params = initial_params(layers, seed, flags.model.initialisation)
    params, history = feedax.fit(params=params, train=train, **arguments)
    return params, sum(row["seconds"] for row in history), arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="how many times each is timed")
    parser.add_argument("--preset", default="modern", choices=list(PRESETS))
    arguments = parser.parse_args()

    print(machine.describe())
    mnist = feedax.datasets.mnist()
    flags = PRESETS[arguments.preset]
    examples = Examples.open(flags.data)
    test = examples.loaders()["test"]
    images, labels = test.arrays()
    with jax.threefry_partitionable(False):
        start = feedax.init_network_params(SIZES, jax.random.PRNGKey(0))
    # Compiles both batch sizes; `fit` counts its compilation apart by itself.
    plain_epoch(DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=plain_collate), start)

    theirs, mine, accuracies = [], [], []
    for turn in range(arguments.turns):
        params, seconds = by_tutorial(mnist, start)
        theirs.append(seconds)
        predicted = jax.vmap(plain_predict, (None, 0))(params, images).argmax(1)
        tutorial_accuracy = float(np.mean(np.asarray(predicted) == labels))
        params, seconds, how = by_preset(flags, examples, seed=turn)
        mine.append(seconds)
        scored = feedax.evaluate(
            how["predict"], params, test, loss=how["loss"], hyperparams=how["hyperparams"]
        )
        accuracies.append(scored["accuracy"])

    print(f"{arguments.turns} turns                 median s   minimum   maximum   test accuracy")
    shown = {
        "the tutorial, 8 epochs": (theirs, f"{tutorial_accuracy:.4f}"),
        f"feedax, {arguments.preset}": (mine, " ".join(f"{one:.4f}" for one in accuracies)),
    }
    for name, (seconds_of, accuracy) in shown.items():
        middle = statistics.median(seconds_of)
        print(
            f"{name:<24} {middle:9.2f} {min(seconds_of):9.2f} {max(seconds_of):9.2f}   {accuracy}"
        )
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(
        f"{arguments.preset} / tutorial, median of {arguments.turns} ratios: "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
