"""Random transformations of one image, for training: `jax.vmap` makes them a batch's.

Each is a pure JAX function of a key and an image, its strengths given as keywords. The same key
gives the same image. Images are uint8 or floating, of shape `(height, width)`,
`(height, width, channels)`, or `(channels, height, width)` with ``channel_axis=0``, and come back
in the same shape and dtype; uint8 is computed in float32 and rounded. Strengths may be traced, so
that one compiled program serves them all; those that are not traced are checked.

>>> import jax, jax.numpy as jnp
>>> images, keys = jnp.zeros((16, 28, 28)), jax.random.split(jax.random.key(0), 16)
>>> jax.vmap(lambda key, image: warp(key, image, rotation=10, alpha=30))(keys, images).shape
(16, 28, 28)

`mixup` mixes the examples of a batch; `compose` joins several functions into one.
"""

from feedax.augment.geometry import (
    affine,
    affine_coordinates,
    elastic,
    elastic_field,
    interpolate,
    warp,
)
from feedax.augment.mixing import Augmentation, Mixed, compose, mixup
from feedax.augment.pixels import brightness, contrast, crop, cutout, flip, shift

__all__ = [
    "Augmentation",
    "Mixed",
    "affine",
    "affine_coordinates",
    "brightness",
    "compose",
    "contrast",
    "crop",
    "cutout",
    "elastic",
    "elastic_field",
    "flip",
    "interpolate",
    "mixup",
    "shift",
    "warp",
]
