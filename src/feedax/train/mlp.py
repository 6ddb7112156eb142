"""The tutorial's network, written for one example, under the tutorial's names.

The source is the JAX tutorial "Training a Simple Neural Network, with PyTorch Data Loading".
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike, DTypeLike

Params = list[tuple[Array, Array]]
"""One pair of weights ``(outputs, inputs)`` and biases ``(outputs,)`` per layer."""


def random_layer_params(m: int, n: int, key: Array, scale: float = 1e-2) -> tuple[Array, Array]:
    """Draw the parameters of one dense layer from m inputs to n outputs.

    Args:
        m: number of inputs.
        n: number of outputs.
        key: a JAX random key.
        scale: standard deviation of the normal distribution they are drawn from.

    Returns:
        Weights float32 `(n, m)` and biases float32 `(n,)`.

    >>> w, b = random_layer_params(3, 2, random.key(0))
    >>> w.shape, b.shape
    ((2, 3), (2,))
    """
    w_key, b_key = random.split(key)
    scale = jax.device_put(scale)
    return scale * random.normal(w_key, (n, m)), scale * random.normal(b_key, (n,))


def init_network_params(sizes: Sequence[int], key: Array) -> Params:
    """Draw the parameters of a fully connected network.

    Args:
        sizes: the number of values in each layer, input first, output last.
        key: a JAX random key.

    Returns:
        One pair of weights and biases per layer, see `random_layer_params`.

    >>> [w.shape for w, b in init_network_params([784, 512, 10], random.key(0))]
    [(512, 784), (10, 512)]
    """
    keys = random.split(key, len(sizes))
    pairs = zip(sizes[:-1], sizes[1:], keys, strict=False)  # one key more than layers, unused
    return [random_layer_params(m, n, k) for m, n, k in pairs]


def relu(x: ArrayLike) -> Array:
    """The positive part of x, element by element; any shape.

    >>> relu(jnp.array([-1.0, 2.0]))
    Array([0., 2.], dtype=float32)
    """
    return jnp.maximum(0, x)


def predict(params: Params, image: ArrayLike) -> Array:
    """Predict one example.

    Args:
        params: the network, see `init_network_params`.
        image: one flat example `(inputs,)`.

    Returns:
        Log-probabilities `(classes,)`; their exponentials sum to 1.

    Raises:
        TypeError: image is not one flat example of the network's input size.

    >>> params = init_network_params([784, 10], random.key(0))
    >>> predict(params, jnp.zeros(784)).shape
    (10,)
    """
    image = jnp.asarray(image)
    inputs = params[0][0].shape[1]
    if image.shape != (inputs,):
        raise TypeError(
            f"predict: image must be one example of shape ({inputs},), and its shape is "
            f"{image.shape}; {_remedy(image.shape, inputs)}"
        )
    with jax.numpy_dtype_promotion("standard"):
        activations = image.astype(jnp.promote_types(image.dtype, params[0][0].dtype))
    for w, b in params[:-1]:
        activations = relu(jnp.dot(w, activations) + b)
    final_w, final_b = params[-1]
    logits = jnp.dot(final_w, activations) + final_b
    return logits - logsumexp(logits)


def _remedy(shape: tuple[int, ...], inputs: int) -> str:
    if len(shape) == 2 and shape[1] == inputs:
        return "predict a batch with batched_predict, or with jax.vmap(predict, in_axes=(None, 0))"
    return "flatten it, or make the first layer fit it"


batched_predict = jax.vmap(predict, in_axes=(None, 0))
batched_predict.__doc__ = """Predict a batch: `predict`, mapped over the images' first dimension.

Args:
    params: the network, see `init_network_params`.
    images: `(examples, inputs)`.

Returns:
    Log-probabilities `(examples, classes)`.
"""


def one_hot(x: ArrayLike, k: int, dtype: DTypeLike = jnp.float32) -> Array:
    """One-hot encode class labels.

    Args:
        x: integer labels `(examples,)`.
        k: number of classes.
        dtype: of the result.

    Returns:
        `(examples, k)`: 1 at each label, else 0; all 0 for a label outside 0 to k - 1.

    >>> one_hot(jnp.array([1, 0]), 3)
    Array([[0., 1., 0.],
           [1., 0., 0.]], dtype=float32)
    """
    return jnp.array(jnp.asarray(x)[:, None] == jnp.arange(k)[None, :], dtype)


def accuracy(params: Params, images: ArrayLike, targets: ArrayLike) -> Array:
    """The share of a batch whose likeliest class is the target's.

    Args:
        params: the network.
        images: `(examples, inputs)`.
        targets: one-hot `(examples, classes)`.

    Returns:
        float32 scalar from 0 to 1.
    """
    target_class = jnp.argmax(jnp.asarray(targets), axis=1)
    predicted_class = jnp.argmax(batched_predict(params, images), axis=1)
    return jnp.mean(predicted_class == target_class)


def loss(params: Params, images: ArrayLike, targets: ArrayLike) -> Array:
    """The tutorial's loss of a batch: minus the mean of log-probabilities times targets.

    The mean is over examples *and* classes, so this is the cross-entropy divided by the number
    of classes.

    Args:
        params: the network.
        images: `(examples, inputs)`.
        targets: one-hot `(examples, classes)`.

    Returns:
        float32 scalar.
    """
    return -jnp.mean(batched_predict(params, images) * jnp.asarray(targets))


@jax.jit
def update(params: Params, x: ArrayLike, y: ArrayLike, step_size: Any = 0.01) -> Params:
    """One step of gradient descent on `loss`.

    Args:
        params: the network.
        x: images `(examples, inputs)`.
        y: one-hot targets `(examples, classes)`.
        step_size: what the gradient is multiplied by.

    Returns:
        The new parameters.
    """
    grads = jax.grad(loss)(params, x, y)
    return [
        (w - step_size * dw, b - step_size * db)
        for (w, b), (dw, db) in zip(params, grads, strict=True)
    ]
