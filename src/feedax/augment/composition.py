"""One augmentation after another."""

from collections.abc import Callable

import jax
from jax import Array

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
