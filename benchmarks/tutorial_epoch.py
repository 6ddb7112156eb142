"""One training epoch of the tutorial's network: feedax beside the tutorial's own loop.

Both train the same 784-512-512-10 network on the same 60,000 digits, in batches of 128, in the
same order, and both clocks stop when the last parameters are there. They take turns, so that a
machine that slows down slows both. Compilation is not counted for either. feedax transforms the
examples and puts them on the device once a run, the tutorial's loop loads them in every epoch; this
set-up has a row of its own.

Each turn also measures the rate of a 2048 x 2048 float32 product in NumPy, PyTorch and JAX. The
floor is what the epoch's matrix products would take at the best of these rates. A last row times
these very products in JAX and nothing else: no activation, no loss, no update. That is as fast as
any program that leaves them to XLA can be.

    python benchmarks/tutorial_epoch.py [--pairs 5]
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
import torch
import tutorial_script
from jax import jit
from torch.utils.data import DataLoader
from tutorial_script import BATCH_SIZE, SIZES, STEP_SIZE

import feedax

EXAMPLES = 60_000


def epoch_flops() -> float:
    """Floating-point operations of an epoch's matrix products.

    Forward and for the weights' gradients every layer costs one product; for the gradients of
    its inputs every layer but the first one more.
    """
    layers = [2 * m * n for m, n in itertools.pairwise(SIZES)]
    return EXAMPLES * (3 * sum(layers) - layers[0])


def plain_epoch(loader: DataLoader[Any], params: Any) -> tuple[Any, float]:
    """One epoch of the tutorial's loop: the new parameters and the seconds it took."""
    started = time.perf_counter()
    params = tutorial_script.train_epoch(params, loader)
    jax.block_until_ready(params)
    return params, time.perf_counter() - started


def feedax_epochs(
    loader: feedax.NumpyLoader, params: Any, epochs: int = 1
) -> tuple[Any, list[Any], float]:
    """The same by `fit`: parameters, history, and the seconds of setting up, once a run.

    Setting up is what `fit` does before and after the epochs, compilation apart: transform all
    examples, put them on the device, copy the parameters.
    """
    started = time.perf_counter()
    params, history = feedax.fit(
        feedax.predict,
        params,
        loader,
        loss=feedax.tutorial_loss,
        optimizer=optax.sgd(STEP_SIZE),
        epochs=epochs,
    )
    seconds = time.perf_counter() - started
    set_up = seconds - sum(row["seconds"] + row["compile_seconds"] for row in history)
    return params, history, set_up


def product_rates(size: int = 2048, repeats: int = 5) -> dict[str, float]:
    """The best rate of a float32 product in each library, in FLOP/s."""
    a = np.random.default_rng(0).normal(0, 1, (size, size)).astype(np.float32)
    on_torch, on_jax, dot = torch.tensor(a), jnp.array(a), jit(jnp.dot)
    dot(on_jax, on_jax).block_until_ready()
    products: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: a @ a,
        "PyTorch": lambda: on_torch @ on_torch,
        "JAX": lambda: dot(on_jax, on_jax).block_until_ready(),
    }
    rates = {}
    for name, product in products.items():
        product()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * size**3 / min(seconds)
    return rates


@jit
def products(params: Any, images: Any) -> Any:
    """The matrix products of one epoch, forward and backward, and nothing else."""
    (w1, _), (w2, _), (w3, _) = params

    def body(i: Any, _: Any) -> Any:
        x = jax.lax.dynamic_slice_in_dim(images, i * BATCH_SIZE, BATCH_SIZE)
        h1 = x @ w1.T
        h2 = h1 @ w2.T
        out = h2 @ w3.T
        d2 = out @ w3
        d1 = d2 @ w2
        return d1.T @ x, d2.T @ h1, out.T @ h2

    return jax.lax.fori_loop(0, -(-EXAMPLES // BATCH_SIZE), body, (w1, w2, w3))


def products_seconds(params: Any, images: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(products(params, images))
    return time.perf_counter() - started


def main() -> None:
    rounds = timing.parser(__doc__, "--pairs", 5).parse_args().rounds

    print(timing.machine())
    mnist = feedax.datasets.mnist()
    tutorial = DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=tutorial_script.numpy_collate)
    ours = feedax.NumpyLoader(mnist, batch_size=BATCH_SIZE)
    with jax.threefry_partitionable(False):
        start = feedax.init_network_params(SIZES, jax.random.PRNGKey(0))

    # Warm up with all of an epoch: both batch sizes are compiled, 128 and the last one's 96.
    by_tutorial, _ = plain_epoch(tutorial, start)
    by_feedax, *_ = feedax_epochs(ours, start)
    images = jnp.array(ours.arrays()[0]) / 255
    products_seconds(start, images)
    set_ups, rates = [], []

    def tutorial_side() -> float:
        nonlocal by_tutorial
        by_tutorial, seconds = plain_epoch(tutorial, by_tutorial)
        return seconds

    def feedax_side() -> float:
        nonlocal by_feedax
        by_feedax, (row,), set_up = feedax_epochs(ours, by_feedax)
        set_ups.append(set_up)
        rates.append(product_rates())
        return float(row["seconds"])

    sides = {
        "feedax, resident plan": feedax_side,
        "the tutorial's loop": tutorial_side,
        "its products alone, in JAX": lambda: products_seconds(start, images),
    }
    seconds = timing.in_turn(sides, rounds)

    # The same work: the same network came out of both, up to the rounding of sums.
    for a, b in zip(jax.tree.leaves(by_tutorial), jax.tree.leaves(by_feedax), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-3)

    best = {name: max(rate[name] for rate in rates) for name in rates[0]}
    floor = epoch_flops() / max(best.values())
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in best.items())
    print(f"2048 x 2048 product, best GFLOP/s: {shown}")
    print(f"floor: {epoch_flops() / 1e9:.0f} GFLOP at the best of these rates: {floor:.3f} s\n")
    print(timing.table(f"{rounds} pairs, in turn", seconds))
    print(f"| feedax's set-up, once a run | {timing.spread([1e3 * s for s in set_ups], 1)} | | | |")
    middle = statistics.median(seconds["feedax, resident plan"])
    print(f"\nfeedax / floor, of the median: {middle / floor:.2f}")


if __name__ == "__main__":
    main()
