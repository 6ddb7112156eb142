"""The preset `modern` beside the tutorial's own loop: the whole training of each.

The tutorial's loop trains its network for its 8 epochs in batches of 128. The preset trains the
same network its own way. They take turns; both clocks run from the first step to the last
parameters, without compilation and without evaluation. Then each is evaluated, once, on the test
set.

    python benchmarks/modern.py [--turns 3] [--preset modern]
"""

from typing import Any

import jax
import numpy as np
import timing
import tutorial_script
from torch.utils.data import DataLoader
from tutorial_epoch import plain_epoch
from tutorial_script import BATCH_SIZE, EPOCHS, SIZES, numpy_collate

import feedax
from feedax.presets import PRESETS, Recipe


def by_tutorial(mnist: Any, start: Any) -> tuple[Any, float]:
    """The tutorial's training: the parameters, and the seconds of all epochs."""
    loader = DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=numpy_collate)
    params, total = start, 0.0
    for _ in range(EPOCHS):
        params, seconds = plain_epoch(loader, params)
        total += seconds
    return params, total


def arguments_of(recipe: Recipe, mnist: Any, seed: int) -> dict[str, Any]:
    """The arguments of `fit` and `sweep` that both have."""
    train = feedax.NumpyLoader(
        mnist, batch_size=recipe.batch_size, shuffle=recipe.shuffle, seed=seed
    )
    arguments = feedax.fit_arguments(
        recipe, steps_per_epoch=len(train), image_shape=(28, 28), white=255
    )
    return {"train": train, **arguments}


def init(recipe: Recipe, key: Any) -> Any:
    return feedax.init_mlp((784, *recipe.hidden, 10), key, recipe.initialisation)


def by_preset(recipe: Recipe, mnist: Any, seed: int, **more: Any) -> tuple[Any, list[Any]]:
    """The preset's training: the parameters and the history; `more` are arguments of `fit`."""
    key = jax.random.key(seed)
    arguments = arguments_of(recipe, mnist, seed)
    return feedax.fit(params=init(recipe, key), key=key, **arguments, **more)


def main() -> None:
    parser = timing.parser(__doc__, "--turns", 3)
    parser.add_argument("--preset", default="modern", choices=list(PRESETS))
    arguments = parser.parse_args()

    print(f"{timing.machine()}\n")
    mnist = feedax.datasets.mnist()
    recipe = PRESETS[arguments.preset]
    test = feedax.NumpyLoader(feedax.datasets.mnist(train=False), batch_size=recipe.batch_size)
    images, labels = test.arrays()
    with jax.threefry_partitionable(False):
        start = feedax.init_network_params(SIZES, jax.random.PRNGKey(0))
    # Compiles both batch sizes; `fit` counts its compilation apart by itself.
    plain_epoch(DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=numpy_collate), start)

    ours, theirs = f"feedax, {arguments.preset}", f"the tutorial, {EPOCHS} epochs"
    accuracies: dict[str, list[float]] = {ours: [], theirs: []}

    def preset_side() -> float:
        params, history = by_preset(recipe, mnist, seed=len(accuracies[ours]))
        scored = feedax.evaluate(params=params, batches=test, **feedax.evaluate_arguments(recipe))
        accuracies[ours].append(scored["accuracy"])
        return sum(row["seconds"] for row in history)

    def tutorial_side() -> float:
        params, seconds = by_tutorial(mnist, start)
        predicted = tutorial_script.batched_predict(params, images).argmax(1)
        accuracies[theirs].append(float(np.mean(np.asarray(predicted) == labels)))
        return seconds

    seconds = timing.in_turn({ours: preset_side, theirs: tutorial_side}, arguments.rounds)
    print(timing.table(f"{arguments.rounds} turns", seconds))
    for name, values in accuracies.items():
        print(f"\n{name}: test accuracy {' '.join(f'{value:.4f}' for value in values)}")


if __name__ == "__main__":
    main()
