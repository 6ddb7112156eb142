"""Joining augmentations into one, and mixing the examples of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from feedax.augment.arguments import from_real, positive, to_real
from feedax.errors import AugmentError

Augmentation = Callable[[Array, Array], Array]
"""A function of a key and an image."""


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation that applies several, the first one first, each with a key of its own.

    Args:
        augmentations: functions of a key and an image; `functools.partial` sets their strengths.

    Returns:
        A function of a key and an image; without augmentations, it returns the image.

    Raises:
        AugmentError: one of them is not a function.

    >>> from functools import partial
    >>> import jax.numpy as jnp
    >>> from feedax.augment import cutout, flip
    >>> augment = compose(flip, partial(cutout, size=2))
    >>> augment(jax.random.key(0), jnp.ones((4, 4))).shape
    (4, 4)
    """
    for augmentation in augmentations:
        if not callable(augmentation):
            raise AugmentError(
                "compose: every augmentation must be a function of a key and an image, and one is "
                f"{augmentation!r}; set strengths with functools.partial"
            )

    def composed(key: Array, image: Array) -> Array:
        keys = jax.random.split(key, len(augmentations))
        for augmentation, own_key in zip(augmentations, keys, strict=True):
            image = augmentation(own_key, image)
        return image

    return composed


class Mixed(NamedTuple):
    """A mixed batch, and of what it was mixed.

    Attributes:
        inputs: a PyTree as it was given, its arrays `(examples, ...)`.
        partners: int32 `(examples,)`: which example of the batch each one was mixed with.
        shares: float32 `(examples,)`: the weight of its own input, from 0 to 1.
    """

    inputs: Any
    partners: Array
    shares: Array


def mixup(key: Array, inputs: Any, *, alpha: ArrayLike, mask: ArrayLike | None = None) -> Mixed:
    """Mix every example of a batch with another one: ``share * own + (1 - share) * partner``.

    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond empirical risk minimization" (2018). As in
    the paper's text every example draws a share of its own from Beta(alpha, alpha); the authors'
    code draws one for a batch. Partners are a random permutation of the batch, so that an example
    may be its own. The loss is mixed as the inputs are::

        shares * loss(predictions, targets) + (1 - shares) * loss(predictions, targets[partners])

    Args:
        key: a key of `jax.random`.
        inputs: a PyTree of uint8 or floating arrays `(examples, ...)`.
        alpha: > 0; the smaller, the closer the shares are to 0 and 1. 0.2 is the paper's for
            ImageNet, 1 for CIFAR-10. It may be traced.
        mask: bool `(examples,)`: False for a copy that only fills the batch, which is mixed with
            itself alone. What becomes of the others does not depend on it. None if all count.

    Returns:
        The mixed batch, with its partners and shares.

    Raises:
        AugmentError: alpha is not > 0, or the arrays and the mask do not have the same number of
            examples.

    >>> mixed = mixup(jax.random.key(0), jnp.eye(4), alpha=1.0)
    >>> mixed.inputs.shape, bool(jnp.allclose(mixed.inputs.sum(1), 1))
    ((4, 4), True)
    """
    if not isinstance(alpha, jax.core.Tracer):
        alpha = positive("mixup: alpha", alpha)
    inputs = jax.tree.map(jnp.asarray, inputs)
    examples = _examples(jax.tree.leaves(inputs))
    partner_key, share_key = jax.random.split(key)
    counts = jnp.ones(examples, bool) if mask is None else jnp.asarray(mask, bool)
    if counts.shape != (examples,):
        raise AugmentError(
            f"mixup: the mask must have a value for each of the {examples} examples, and its shape "
            f"is {counts.shape}; leave it out if all count"
        )
    partners = _partners(partner_key, counts)
    shares = jax.random.beta(share_key, alpha, alpha, (examples,), jnp.float32)

    def mix(own: Array) -> Array:
        real = to_real(own)
        share = jnp.reshape(shares, (-1,) + (1,) * (own.ndim - 1))
        return from_real(share * real + (1 - share) * real[partners], own.dtype)

    return Mixed(jax.tree.map(mix, inputs), partners, shares)


def _partners(key: Array, counts: Array) -> Array:
    """A random permutation of the examples that count: each has one of them as its partner."""
    # Those that count, in a random order, and then the others.
    order = jnp.lexsort((jax.random.bits(key, counts.shape, jnp.uint32), ~counts))
    own = jnp.arange(len(counts), dtype=order.dtype)
    return jnp.where(counts, order[jnp.cumsum(counts) - 1], own).astype(jnp.int32)


def _examples(arrays: list[Array]) -> int:
    """How many examples the arrays have, all the same number."""
    shapes = [array.shape for array in arrays]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1 or 0 in shapes[0]:
        raise AugmentError(
            "mixup: the inputs must be arrays of the same number of examples, at least one, and "
            f"their shapes are {shapes}; give a whole batch"
        )
    for array in arrays:
        if array.dtype != jnp.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
            raise AugmentError(
                f"mixup: the inputs must be uint8 or floating, and one is {array.dtype}; mix "
                "labels through the loss, by partners and shares"
            )
    return shapes[0][0]
