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
from feedax.presets import PRESETS, Recipe

TUTORIAL_EPOCHS = 8


def by_tutorial(mnist: Any, start: Any) -> tuple[Any, float]:
    """The tutorial's training: the parameters, and the seconds of all epochs."""
    loader = DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=plain_collate)
    params, total = start, 0.0
    for _ in range(TUTORIAL_EPOCHS):
        params, seconds = plain_epoch(loader, params)
        total += seconds
    return params, total


def by_preset(recipe: Recipe, mnist: Any, seed: int) -> tuple[Any, float]:
    """The preset's: the parameters, and the seconds of all epochs."""
    train = feedax.NumpyLoader(
        mnist, batch_size=recipe.batch_size, shuffle=recipe.shuffle, seed=seed
    )
    arguments = feedax.fit_arguments(
        recipe, steps_per_epoch=len(train), image_shape=(28, 28), white=255
    )
    key = jax.random.key(seed)
    params = feedax.init_mlp((784, *recipe.hidden, 10), key, recipe.initialisation)
    params, history = feedax.fit(params=params, train=train, key=key, **arguments)
    return params, sum(row["seconds"] for row in history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="how many times each is timed")
    parser.add_argument("--preset", default="modern", choices=list(PRESETS))
    arguments = parser.parse_args()

    print(machine.describe())
    mnist = feedax.datasets.mnist()
    recipe = PRESETS[arguments.preset]
    test = feedax.NumpyLoader(feedax.datasets.mnist(train=False), batch_size=recipe.batch_size)
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
        params, seconds = by_preset(recipe, mnist, seed=turn)
        mine.append(seconds)
        scored = feedax.evaluate(params=params, batches=test, **feedax.evaluate_arguments(recipe))
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
