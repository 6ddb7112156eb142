"""The tutorial's step on a CPU: what XLA's options, other layouts and other libraries make of it.

Every row trains the same network for the same 150 batches of MNIST in one compiled loop, and must
reach the same parameters up to rounding; rows that say "products alone" do nothing but a step's
eight matrix products. Rows take turns.

    python benchmarks/arithmetic.py [--rounds 9]
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from jax import lax
from tutorial_script import BATCH_SIZE, SIZES, STEP_SIZE, init

import feedax

STEPS = 150
FUSIONS = "xla_cpu_experimental_{}_fusion_type"
DOTS = "LIBRARY_FUSION_TYPE_DOT"
OPTIONS: dict[str, dict[str, Any]] = {
    "XLA's own choices": {},
    "oneDNN": {"xla_cpu_use_onednn": True, FUSIONS.format("onednn"): DOTS},
    "oneDNN, its custom calls": {"xla_cpu_experimental_onednn_custom_call": True},
    "XNNPACK": {"xla_cpu_use_xnnpack": True, FUSIONS.format("xnn"): DOTS},
    "YNN for dots only": {FUSIONS.format("ynn"): DOTS},
    "no YNN": {FUSIONS.format("ynn"): ""},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
    "fast math": {"xla_cpu_enable_fast_math": True},
    "sums in any order": {"xla_cpu_strict_dot_conv_math": False},
    "concurrent scheduler": {"xla_cpu_enable_concurrency_optimized_scheduler": True},
    "Eigen in one thread": {"xla_cpu_multi_thread_eigen": False},
}

Affine = Callable[[Any, Any, Any], Any]
"""Of a batch `(examples, inputs)`, the weights and the biases."""


def loss(params: Any, x: Any, y: Any, affine: Affine) -> Any:
    *hidden, last = params
    for layer in hidden:
        x = jnp.maximum(0, affine(x, *layer))
    logits = affine(x, *last)
    return -jnp.mean(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, SIZES[-1]))


@jax.custom_vjp
def product(x: Any, w: Any) -> Any:
    """`x @ w.T`, whose gradient by the weights is the product of a transposed copy."""
    return x @ w.T


def _backward(saved: Any, g: Any) -> Any:
    x, w = saved
    return g @ w, lax.optimization_barrier(jnp.copy(g.T)) @ x


product.defvjp(lambda x, w: (x @ w.T, (x, w)), _backward)

TURNED = "weights as (inputs, outputs)"
AFFINES: dict[str, Affine] = {
    TURNED: lambda x, w, b: x @ w + b,
    "gradients of transposed copies": lambda x, w, b: product(x, w) + b,
}


def step(params: Any, x: Any, y: Any, affine: Affine) -> Any:
    grads = jax.grad(loss)(params, x, y, affine)
    return jax.tree.map(lambda p, g: p - STEP_SIZE * g, params, grads)


def products(params: Any, x: Any, y: Any) -> Any:
    """A step's products, each used by the next, so that none can be left out."""
    (w1, b1), (w2, b2), (w3, b3) = params
    h1 = x @ w1.T
    h2 = h1 @ w2.T
    out = h2 @ w3.T
    g2 = out @ w3
    g1 = g2 @ w2
    return [(g1.T @ x, b1), (g2.T @ h1, b2), (out.T @ h2, b3)]


def looped(one: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    def steps(params: Any, x: Any, y: Any, rows: Any) -> Any:
        return lax.fori_loop(0, STEPS, lambda i, p: one(p, x[rows[i]], y[rows[i]]), params)

    return steps


def turned(params: Any) -> Any:
    return [(w.T.copy(), b) for w, b in params]


def sides() -> Iterator[tuple[str, Callable[[], Any]]]:
    x, y = feedax.NumpyLoader(feedax.datasets.mnist()).arrays()
    rows = np.arange(STEPS * BATCH_SIZE, dtype=np.int32).reshape(STEPS, BATCH_SIZE)
    data = jax.device_put((x, y, rows))
    params = init(jax.random.key(0))
    batched = partial(step, affine=lambda x, w, b: x @ w.T + b)

    def compiled(one: Callable[..., Any], start: Any, options: Any = None) -> Callable[[], Any]:
        made = jax.jit(looped(one), compiler_options=options).lower(start, *data).compile()
        return lambda: jax.block_until_ready(made(start, *data))

    for name, options in OPTIONS.items():
        yield name, compiled(batched, params, options)
    for name, affine in AFFINES.items():
        start = turned(params) if name == TURNED else params
        yield name, compiled(partial(step, affine=affine), start)
    yield "products alone, XLA", compiled(products, params)
    tensors = [[torch.from_numpy(np.array(leaf)) for leaf in layer] for layer in params]
    batches = torch.from_numpy(x)[: STEPS * BATCH_SIZE].split(BATCH_SIZE)

    def in_torch() -> None:
        found = tensors
        with torch.inference_mode():
            for batch in batches:
                found = products(found, batch, None)

    yield "products alone, PyTorch", in_torch


def main() -> None:
    options = timing.parser(__doc__, "--rounds", 9).parse_args()
    print(f"{timing.machine()}\n", flush=True)
    runs = dict(sides())
    first = next(iter(runs))
    expected = runs[first]()
    for name, run in runs.items():
        found = run()  # the first call is not timed
        if "alone" not in name:
            found = turned(found) if name == TURNED else found
            for ours, theirs in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)

    def seconds(run: Callable[[], Any]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    found = timing.in_turn(
        {name: partial(seconds, run) for name, run in runs.items()}, options.rounds
    )
    print(f"| a step, n = {options.rounds} | ms | least | most | / the first | least | most |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, values in found.items():
        times = timing.spread([1e3 * s / STEPS for s in values], 2)
        print(f"| {name} | {times} | {timing.spread(timing.ratios(values, found[first]), 2)} |")


if __name__ == "__main__":
    main()
