"""What augmentations cost, beside an epoch of training.

Every augmentation runs over 60,000 images of 28 x 28 float32 in batches of 256, inside one compiled
loop that splits a key for each image, augments the batch and adds it up. Beside it stands an epoch
of the 784-512-512-10 network over the same batches: forward, backward and SGD, in one compiled loop
as well; and the same epoch with the warp inside. Sides take timing. A round's ratio is an
augmentation's time over that of the round's epoch. Compilation is timed apart, once.

    python benchmarks/augment.py [--rounds 7] [--quick]
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

import feedax
from feedax import augment

BATCH_SIZE = 256
EXAMPLES = 60_000
EPOCH, WARPED_EPOCH = "epoch of training", "epoch of training, with affine + elastic"
AFFINE = {"rotation": 10.0, "scale": 0.1, "shear": 0.1, "translation": 1.5}
WARP = partial(augment.warp, **AFFINE, alpha=30.0)

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""Of a key and a batch."""


def each(augmentation: augment.Augmentation) -> Transform:
    """An augmentation of one image, for every image of a batch."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        return jax.vmap(augmentation)(jax.random.split(key, len(images)), images)

    return transform


TRANSFORMS: dict[str, Transform] = {
    "nothing: the loop and its keys": each(lambda key, image: image * jax.random.bits(key)),
    "affine": each(partial(augment.affine, **AFFINE)),
    "elastic": each(partial(augment.elastic, alpha=30.0)),
    "warp: affine + elastic": each(WARP),
    "shift": each(partial(augment.shift, pixels=2)),
    "crop, reflected": each(partial(augment.crop, padding=2, edges="reflect")),
    "flip": each(augment.flip),
    "cutout": each(partial(augment.cutout, size=8)),
    "brightness": each(partial(augment.brightness, strength=0.2)),
    "contrast": each(partial(augment.contrast, strength=0.2)),
    "mixup": lambda key, images: augment.mixup(key, images, alpha=0.2).inputs,
    "warp, cutout, contrast composed": each(
        augment.compose(
            WARP, partial(augment.cutout, size=8), partial(augment.contrast, strength=0.2)
        )
    ),
}


def augmented(transform: Transform, images: jax.Array, key: jax.Array) -> jax.Array:
    """The sum of the augmented batches of `images`, `(batches, examples, height, width)`."""

    def add(total: jax.Array, batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, images = batch
        return total + transform(jax.random.fold_in(key, index), images), None

    batches = jnp.arange(len(images)), images
    return jax.lax.scan(add, jnp.zeros(images.shape[1:]), batches)[0]


def trained(
    transform: Transform | None, params: Any, images: jax.Array, labels: jax.Array, key: jax.Array
) -> Any:
    """The parameters after an epoch."""
    predict = jax.vmap(feedax.predict, (None, 0))

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = predict(params, jnp.reshape(images, (len(images), -1)))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(params: Any, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, None]:
        index, images, labels = batch
        if transform is not None:
            images = transform(jax.random.fold_in(key, index), images)
        grads = jax.grad(loss)(params, images, labels)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), None

    return jax.lax.scan(step, params, (jnp.arange(len(images)), images, labels))[0]


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[timing.Side, float]:
    """A side that runs the function, and the seconds that its compilation took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compiling = time.perf_counter() - start
    jax.block_until_ready(program(*arguments))  # the first run touches its memory

    def side() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return time.perf_counter() - start

    return side, compiling


def main() -> None:
    parser = timing.parser(__doc__, "--rounds", 7, quick="2 rounds of a part")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    batches = (3_000 if options.quick else EXAMPLES) // BATCH_SIZE

    print(f"{timing.machine()}\n", flush=True)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((batches, BATCH_SIZE, 28, 28), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, (batches, BATCH_SIZE), np.int32))
    key = jax.random.key(0)
    params = feedax.init_network_params([784, 512, 512, 10], key)

    programs = {
        EPOCH: compiled(partial(trained, None), params, images, labels, key),
        WARPED_EPOCH: compiled(partial(trained, each(WARP)), params, images, labels, key),
    }
    for name, transform in TRANSFORMS.items():
        programs[name] = compiled(partial(augmented, transform), images, key)
    seconds = timing.in_turn({name: side for name, (side, _) in programs.items()}, rounds)

    print(f"| {batches * BATCH_SIZE:,} images, n = {rounds} | ms | least | most |", end="")
    print(" / epoch | least | most | compiling, s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, (_, compiling) in programs.items():
        times = timing.spread([1e3 * s for s in seconds[name]], 1)
        parts = timing.spread(timing.ratios(seconds[name], seconds[EPOCH]), 3)
        print(f"| {name} | {times} | {parts} | {compiling:.2f} |")


if __name__ == "__main__":
    main()
