"""What each choice of a preset is worth: the preset with one thing changed, a row each.

Every row trains some seeds on 50,000 of MNIST's training images and evaluates them, after the last
epoch, on the other 10,000, which were drawn once. The test set is not looked at. Seconds are those
of training one network, without compilation and evaluation.

    python benchmarks/presets.py modern [--seeds 3]
    python benchmarks/presets.py best --seeds 1 --epochs 20
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import timing
from torch.utils.data import Subset

import feedax
from feedax.presets import PRESETS

HELD_OUT = 1 / 6

MODERN: list[dict[str, Any]] = [
    {},
    {"epochs": 18},
    {"rotation": 0, "scaling": 0, "shear": 0, "translation": 0},
    {"rotation": 5, "scaling": 0.05, "shear": 0.05, "translation": 1},
    {"rotation": 15, "scaling": 0.15, "shear": 0.15, "translation": 2},
    {"elastic_alpha": 20},
    {"label_smoothing": 0},
    {"dropout": 0.1},
    {"weight_decay": 0.01},
    {"learning_rate": 0.002},
    {"learning_rate": 0.008},
    {"schedule": "constant"},
    {"batch_size": 128},
    {"batch_size": 512},
    {"initialisation": "tutorial"},
    {"optimizer": "nesterov", "learning_rate": 0.4, "weight_decay": 0.00005},
]
BEST: list[dict[str, Any]] = [
    {},
    {"hidden": (1024, 1024)},
    {"hidden": (512, 512)},
    {"elastic_alpha": 0},
    {"rotation": 10, "scaling": 0.1, "translation": 1.5},
]
ROWS = {"modern": MODERN, "best": BEST}


def validated(preset: str, change: Mapping[str, Any], seeds: int) -> tuple[list[float], float]:
    """The accuracy of every seed on the held-out images, and seconds of training one."""
    recipe = replace(PRESETS[preset], **change)
    mnist = feedax.datasets.mnist()
    order = np.random.default_rng(0).permutation(len(mnist))
    parts = np.split(order, [round(HELD_OUT * len(mnist))])
    some, rest = (Subset(mnist, np.sort(part).tolist()) for part in parts)
    train = feedax.NumpyLoader(rest, batch_size=recipe.batch_size, shuffle=recipe.shuffle)
    validation = feedax.NumpyLoader(some, batch_size=recipe.batch_size)
    found = feedax.sweep(
        init=partial(
            feedax.init_mlp, (784, *recipe.hidden, 10), initialisation=recipe.initialisation
        ),
        train=train,
        evaluate={"validation": validation},
        seeds=seeds,
        **feedax.fit_arguments(recipe, steps_per_epoch=len(train), image_shape=(28, 28), white=255),
    )
    rows = [network.history for network in found.networks if network.error is None]
    seconds = [sum(row["seconds"] for row in history) for history in rows]
    return [one[-1]["validation_accuracy"] for one in rows], statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of every row, in place of the preset's")
    arguments = parser.parse_args()
    more = {} if arguments.epochs is None else {"epochs": arguments.epochs}

    print(timing.machine())
    print(f"{arguments.preset}, {arguments.seeds} seeds, {HELD_OUT:.4f} held out")
    print("\n| change | wrong of 10,000 | sd | least | most | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for change in ROWS[arguments.preset]:
        accuracies, seconds = validated(arguments.preset, more | change, arguments.seeds)
        wrong = [10_000 * (1 - accuracy) for accuracy in accuracies]
        sd = f"{statistics.stdev(wrong):.1f}" if len(wrong) > 1 else ""
        words = ", ".join(f"{name}={value!r}" for name, value in change.items())
        name = f"`{words}`" if change else "the preset"
        print(
            f"| {name} | {statistics.fmean(wrong):.1f} | {sd} | {min(wrong):.0f} | "
            f"{max(wrong):.0f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
