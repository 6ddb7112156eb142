"""A convolutional network under `fit` beside its plain `jit` loop.

Two convolutions with batch norm and a linear layer, on 4,096 digits of MNIST in shuffled batches of
128. `fit` gets the same network as the loop by hand, written for a batch (`batched=True`), and also
written for one example, with `state=` for its running statistics; it measures the loss and the
accuracy in every step. By hand, a step that donates its state is compiled and called in a loop over
the same batches. That is done in two ways: a batch is gathered from examples that live on the
device, inside the step, or indexed in NumPy and handed over. The faster one counts.

The first epoch compiles and does not count; the clock runs from its end until the last parameters
are there. Sides take turns, and at the end all must have trained the same network, up to the
rounding of sums.

    python benchmarks/fit_conv.py [--pairs 7] [--epochs 3] [--quick]
"""

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from jax import lax
from torch.utils.data import Subset

import feedax

EXAMPLES = 4_096
BATCH_SIZE = 128
CHANNELS = (1, 16, 32)
OPTIMIZER = optax.sgd(0.05)
AIM = 1.0
FIT, FIT_ONE = "fit, network of a batch", "fit, network of one example"
GATHERED, HANDED = "plain loop, gathered on the device", "plain loop, handed over"


def initial() -> tuple[Any, Any]:
    """The parameters and the running statistics."""
    keys = iter(jax.random.split(jax.random.key(0), 3))
    convs, state = [], []
    for before, after in itertools.pairwise(CHANNELS):
        kernel = jax.random.normal(next(keys), (3, 3, before, after)) / np.sqrt(9 * before)
        convs.append((kernel, jnp.ones(after), jnp.zeros(after)))
        state.append((jnp.zeros(after), jnp.ones(after)))
    dense = jax.random.normal(next(keys), (7 * 7 * CHANNELS[-1], 10)) * 0.02
    return {"convs": convs, "dense": dense}, state


def network(params: Any, state: Any, images: Any, mean: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Logits of a batch of images, and the statistics that follow; `mean` is over the batch."""
    x = jnp.reshape(images, (-1, 28, 28, 1)) / 255
    following = []
    for (kernel, scale, shift), (mu, var) in zip(params["convs"], state, strict=True):
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        batch_mu = mean(x)
        batch_var = mean(jnp.square(x - batch_mu))
        x = jax.nn.relu((x - batch_mu) * lax.rsqrt(batch_var + 1e-5) * scale + shift)
        following.append((0.9 * mu + 0.1 * batch_mu, 0.9 * var + 0.1 * batch_var))
    return jnp.reshape(x, (len(x), -1)) @ params["dense"], following


def predict(params: Any, state: Any, image: Any) -> tuple[Any, Any]:
    """The network of one example, as `fit` wants it."""
    logits, state = network(
        params, state, image[None], lambda x: lax.pmean(jnp.mean(x, (0, 1, 2)), "batch")
    )
    return logits[0], state


def batched_predict(params: Any, state: Any, images: Any) -> tuple[Any, Any]:
    """The network of a batch, as the loop by hand has it."""
    return network(params, state, images, lambda x: jnp.mean(x, (0, 1, 2)))


def by_fit(loader: feedax.NumpyLoader, epochs: int, batched: bool) -> timing.Trained:
    clock = timing.Clock()
    params, state = initial()
    trained, _ = feedax.fit(
        batched_predict if batched else predict,
        params,
        loader,
        loss=feedax.cross_entropy,
        optimizer=OPTIMIZER,
        epochs=1 + epochs,
        callbacks=[clock],
        state=state,
        batched=batched,
    )
    jax.block_until_ready(trained)
    return trained, clock.seconds() / epochs


def batch_loss(params: Any, state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    logits, state = batched_predict(params, state, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), state


def update(trained: Any, opt_state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    params, state = trained
    grads, state = jax.grad(batch_loss, has_aux=True)(params, state, images, labels)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), state), opt_state


@partial(jax.jit, donate_argnums=(0, 1))
def handed_step(trained: Any, opt_state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    return update(trained, opt_state, images, labels)


@partial(jax.jit, donate_argnums=(0, 1))
def gathered_step(
    trained: Any, opt_state: Any, images: Any, labels: Any, indices: Any
) -> tuple[Any, Any]:
    return update(trained, opt_state, images[indices], labels[indices])


def by_hand(loader: feedax.NumpyLoader, epochs: int, gathers: bool) -> timing.Trained:
    """The plain loop, its batches gathered on the device or handed over."""
    images, labels = loader.arrays()
    if gathers:
        images, labels = jax.device_put((images, labels))
    trained = initial()
    opt_state = OPTIMIZER.init(trained[0])
    clock = timing.Clock()
    for epoch in range(1 + epochs):
        if epoch == 1:
            clock.start()
        for indices in loader.index_batches():
            if gathers:
                step, batch = gathered_step, (images, labels, indices)
            else:
                step, batch = handed_step, (images[indices], labels[indices])
            trained, opt_state = step(trained, opt_state, *batch)
        jax.block_until_ready(trained)
    return trained, clock.seconds() / epochs


def main() -> None:
    parser = timing.parser(__doc__, "--pairs", 7, quick="2 pairs of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="how many count, each time")
    options = parser.parse_args()
    rounds, epochs = (2, 1) if options.quick else (options.rounds, options.epochs)

    print(f"{timing.machine()}\n", flush=True)
    dataset = Subset(feedax.datasets.mnist(), range(EXAMPLES))

    def side(run: Callable[..., timing.Trained], **how: bool) -> Callable[[], timing.Trained]:
        # A loader of its own: every side sees the same epochs' orders, from the first one on.
        return lambda: run(
            feedax.NumpyLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, seed=0), epochs, **how
        )

    sides = {
        FIT: side(by_fit, batched=True),
        FIT_ONE: side(by_fit, batched=False),
        GATHERED: side(by_hand, gathers=True),
        HANDED: side(by_hand, gathers=False),
    }
    seconds = timing.train_in_turn(sides, rounds, tolerance=5e-3)
    print(timing.table(f"{EXAMPLES:,} digits, an epoch", seconds))
    better = min((GATHERED, HANDED), key=lambda name: statistics.median(seconds[name]))
    for name in (FIT, FIT_ONE):
        print(f"\n{name} / {better}: {timing.verdict(seconds[name], seconds[better], AIM)}")


if __name__ == "__main__":
    main()
