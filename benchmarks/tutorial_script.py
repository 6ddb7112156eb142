"""The JAX tutorial's job as a script of its own: no feedax, a DataLoader and a jitted update.

    python benchmarks/tutorial_script.py ROOT

ROOT holds torchvision's `MNIST/raw`. It prints what the tutorial prints.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import MNIST

SIZES = [784, 512, 512, 10]
EPOCHS = 8
BATCH_SIZE = 128
STEP_SIZE = 0.01


def init(key: Any) -> Any:
    params = []
    for k, n_in, n_out in zip(jax.random.split(key, len(SIZES)), SIZES, SIZES[1:], strict=False):
        w_key, b_key = jax.random.split(k)
        w = 0.01 * jax.random.normal(w_key, (n_out, n_in))
        params.append((w, 0.01 * jax.random.normal(b_key, (n_out,))))
    return params


def predict(params: Any, image: Any) -> Any:
    activations = image
    for w, b in params[:-1]:
        activations = jnp.maximum(0, jnp.dot(w, activations) + b)
    w, b = params[-1]
    logits = jnp.dot(w, activations) + b
    return logits - logsumexp(logits)


batched_predict = jax.vmap(predict, (None, 0))


def loss(params: Any, images: Any, targets: Any) -> Any:
    return -jnp.mean(batched_predict(params, images) * targets)


def accuracy(params: Any, images: Any, targets: Any) -> Any:
    predicted = jnp.argmax(batched_predict(params, images), axis=1)
    return jnp.mean(predicted == jnp.argmax(targets, axis=1))


@jax.jit
def update(params: Any, x: Any, y: Any) -> Any:
    grads = jax.grad(loss)(params, x, y)
    return jax.tree.map(lambda p, g: p - STEP_SIZE * g, params, grads)


def one_hot(x: Any, k: int) -> Any:
    return jnp.array(x[:, None] == jnp.arange(k), jnp.float32)


def flatten_and_cast(image: Any) -> Any:
    return np.ravel(np.array(image, dtype=jnp.float32))


def numpy_collate(batch: Any) -> Any:
    return jax.tree.map(np.asarray, default_collate(batch))


def train_epoch(params: Any, loader: Iterable[Any]) -> Any:
    for x, y in loader:
        params = update(params, x, one_hot(y, 10))
    return params


def whole(dataset: MNIST) -> tuple[Any, Any]:
    """All of a dataset at once, to evaluate on."""
    images = np.array(dataset.data, dtype=jnp.float32).reshape(len(dataset), -1)
    return jnp.array(images), one_hot(np.array(dataset.targets), 10)


def main(root: str) -> None:
    train = MNIST(root, train=True, transform=flatten_and_cast)
    loader = DataLoader(train, batch_size=BATCH_SIZE, collate_fn=numpy_collate)
    train_set, test_set = whole(train), whole(MNIST(root, train=False))
    params = init(jax.random.PRNGKey(0))
    for epoch in range(EPOCHS):
        started = time.time()
        params = train_epoch(params, loader)
        print(f"Epoch {epoch} in {time.time() - started:0.2f} sec")
        print(f"Training set accuracy {accuracy(params, *train_set)}")
        print(f"Test set accuracy {accuracy(params, *test_set)}")


if __name__ == "__main__":
    main(sys.argv[1])
