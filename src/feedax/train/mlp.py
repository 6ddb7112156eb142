"""Fully connected networks, written for one example.

`predict` and what belongs to it have the names of the JAX tutorial "Training a Simple Neural
Network, with PyTorch Data Loading". `mlp` is the same network on examples of any shape, and
`mlp_with_dropout` and `he_normal` are what such networks are trained with today.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike, DTypeLike

from feedax.errors import ModelError

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
        remedy = "flatten it, or make the first layer fit it"
        if image.ndim == 2 and image.shape[1] == inputs:
            remedy = (
                "predict a batch with batched_predict, or with jax.vmap(predict, in_axes=(None, 0))"
            )
        raise TypeError(
            f"predict: image must be one example of shape ({inputs},), and its shape is "
            f"{image.shape}; {remedy}"
        )
    with jax.numpy_dtype_promotion("standard"):
        activations = image.astype(jnp.promote_types(image.dtype, params[0][0].dtype))
    for w, b in params[:-1]:
        activations = relu(jnp.dot(w, activations) + b)
    final_w, final_b = params[-1]
    logits = jnp.dot(final_w, activations) + final_b
    return logits - logsumexp(logits)


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


def mlp(params: Params, example: ArrayLike, *, divisor: float = 1) -> Array:
    """Predict one example of any shape: `predict` on its values in a row.

    Args:
        params: the network, see `init_mlp`.
        example: one example, of as many values as the network has inputs.
        divisor: every value is divided by it: 255 for pixels that are to lie in 0 to 1.

    Returns:
        Log-probabilities `(classes,)`, in the dtype of the parameters or a wider one of the
        example.

    Raises:
        TypeError: the example has another number of values.

    >>> mlp(init_mlp([784, 10], random.key(0)), jnp.zeros((28, 28))).shape
    (10,)
    """
    return predict(params, _flat(example, divisor))


def mlp_with_dropout(
    params: Params,
    example: ArrayLike,
    key: Array,
    train: bool,
    dropout: ArrayLike,
    *,
    divisor: float = 1,
) -> Array:
    """As `mlp`; in training, a fraction of every hidden layer's outputs is set to 0 at random.

    The other outputs are divided by the fraction that is kept, so that the expected value of each
    is unchanged (Srivastava et al. 2014, "Dropout", in the form called inverted).

    Args:
        params: the network.
        example: one example, as in `mlp`.
        key: a JAX random key of the example's own; `fit` gives it.
        train: whether the network is being trained; nothing is dropped otherwise.
        dropout: the fraction, from 0 to below 1; a hyperparameter of `fit`.
        divisor: as in `mlp`.

    Returns:
        Log-probabilities `(classes,)`.

    >>> params = init_mlp([4, 8, 2], random.key(0))
    >>> x = jnp.ones(4)
    >>> evaluated = mlp_with_dropout(params, x, random.key(1), train=False, dropout=0.5)
    >>> (evaluated == mlp(params, x)).all().item()
    True
    """
    if not train:
        return mlp(params, example, divisor=divisor)
    activations = _flat(example, divisor)
    for (w, b), layer_key in zip(params[:-1], random.split(key, len(params)), strict=False):
        outputs = relu(jnp.dot(w, activations) + b)
        kept = random.bernoulli(layer_key, 1 - dropout, outputs.shape)
        scaled = outputs / jnp.asarray(1 - dropout, outputs.dtype)
        activations = jnp.where(kept, scaled, 0)
    return predict(params[-1:], activations)


def _flat(example: ArrayLike, divisor: float) -> Array:
    flat = jnp.ravel(example)
    return flat if divisor == 1 else flat / divisor


@partial(jax.jit, static_argnums=0)
def _he_normal(sizes: tuple[int, ...], key: Array) -> Params:
    layers = list(itertools.pairwise(sizes))
    keys = random.split(key, len(layers))
    return [
        ((2 / inputs) ** 0.5 * random.normal(one, (outputs, inputs)), jnp.zeros(outputs))
        for one, (inputs, outputs) in zip(keys, layers, strict=True)
    ]


def he_normal(sizes: Sequence[int], key: Array) -> Params:
    """Draw the parameters of a network whose layers of ReLU keep the scale of their inputs.

    Weights have a normal distribution of standard deviation sqrt(2 / inputs), biases are 0 (He et
    al. 2015, "Delving Deep into Rectifiers", section 2.2).

    Args:
        sizes: the number of values in each layer, input first, output last.
        key: a JAX random key.

    Returns:
        One pair of weights float32 `(outputs, inputs)` and biases float32 `(outputs,)` per layer.

    >>> [(w.shape, b.shape) for w, b in he_normal([784, 512, 10], random.key(0))]
    [((512, 784), (512,)), ((10, 512), (10,))]
    """
    return _he_normal(tuple(sizes), key)


_init_network_params = jax.jit(init_network_params, static_argnums=0)  # one program for all arrays


def init_mlp(
    sizes: Sequence[int], key: Array, initialisation: Literal["tutorial", "he"] = "he"
) -> Params:
    """Draw the parameters of a network by the name of a method.

    Args:
        sizes: the number of values in each layer, input first, output last.
        key: a JAX random key.
        initialisation: ``"he"`` for `he_normal`; ``"tutorial"`` for `init_network_params` with the
            random bits that JAX had when the tutorial was written: those of the tutorial's own
            table of results, for its sizes and ``jax.random.key(0)``.

    Returns:
        One pair of weights float32 `(outputs, inputs)` and biases float32 `(outputs,)` per layer.

    Raises:
        ModelError: there is no such method.

    >>> [w.shape for w, b in init_mlp([784, 512, 10], random.key(0))]
    [(512, 784), (10, 512)]
    """
    if initialisation == "he":
        return he_normal(sizes, key)
    if initialisation != "tutorial":
        raise ModelError(
            f"init_mlp: initialisation must be 'tutorial' or 'he', and it is {initialisation!r}; "
            "give one of them"
        )
    with jax.threefry_partitionable(False):
        return _init_network_params(tuple(sizes), key)
