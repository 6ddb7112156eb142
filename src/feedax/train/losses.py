"""Losses and metrics of one example: functions of its prediction and its target."""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike


def cross_entropy(prediction: Array, target: Array) -> Array:
    """Minus the log-probability of the right class.

    Args:
        prediction: logits or log-probabilities `(classes,)`.
        target: integer label, a scalar.

    Returns:
        Scalar, in nats.

    >>> round(float(cross_entropy(jnp.log(jnp.array([0.25, 0.75])), jnp.array(1))), 4)
    0.2877
    """
    return optax.softmax_cross_entropy_with_integer_labels(prediction, target)


def tutorial_loss(prediction: Array, target: Array) -> Array:
    """The tutorial's loss of one example: the cross-entropy divided by the number of classes.

    Args:
        prediction: log-probabilities `(classes,)`.
        target: integer label, a scalar.

    Returns:
        Scalar; its mean over a batch is the tutorial's `loss` of that batch.

    >>> round(float(tutorial_loss(jnp.log(jnp.array([0.25, 0.75])), jnp.array(1))), 4)
    0.1438
    """
    right = target == jnp.arange(prediction.shape[-1])
    return -jnp.mean(prediction * right.astype(prediction.dtype))


def smoothed_cross_entropy(prediction: Array, target: Array, label_smoothing: ArrayLike) -> Array:
    """The cross-entropy with a target that is smoothed over the classes.

    The fraction `label_smoothing` of the target's probability is spread evenly over all classes,
    the right one included (Szegedy et al. 2016, "Rethinking the Inception Architecture", section
    7). With ``optax.smooth_labels`` it would be the same up to rounding, of one-hot targets.

    Args:
        prediction: log-probabilities `(classes,)`.
        target: integer label, a scalar.
        label_smoothing: the fraction, from 0 to below 1; a hyperparameter of `fit`.

    Returns:
        Scalar, in nats.

    >>> log_probabilities = jnp.log(jnp.array([0.25, 0.75]))
    >>> round(float(smoothed_cross_entropy(log_probabilities, jnp.array(1), 0.2)), 4)
    0.3975
    """
    right, share = cross_entropy(prediction, target), jnp.asarray(label_smoothing)
    return (1 - share) * right - share * jnp.mean(prediction)


LABEL_LOSSES = (cross_entropy, tutorial_loss)
"""Losses whose targets are class labels, so that labels can be checked against the classes."""


def is_right(prediction: Array, target: Array) -> Array:
    """Whether the likeliest class is the target: the metric whose mean is the accuracy.

    Args:
        prediction: a score for each class `(classes,)`.
        target: integer label, a scalar.

    Returns:
        bool scalar.
    """
    return jnp.argmax(prediction).astype(target.dtype) == target
