"""Shifting, flipping, erasing, and the changes of brightness and contrast."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from feedax.augment.arguments import (
    checked_image,
    from_real,
    spatial_axes,
    strength,
    to_real,
    whole_strength,
)
from feedax.errors import AugmentError

Axis = Literal["horizontal", "vertical"]
Edges = Literal["zero", "reflect"]

_GREY = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in grey: ITU-R BT.601, with torchvision's digits."""


def shift(
    key: Array,
    image: ArrayLike,
    *,
    pixels: ArrayLike,
    edges: Edges = "zero",
    channel_axis: int = -1,
) -> Array:
    """Move one image by whole pixels, at random down or up and right or left.

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels.
        pixels: the largest shift, a whole number; each from minus to plus it is as likely. A
            traced one is cut to a whole number.
        edges: what comes in: "zero", or "reflect" for the image mirrored at its outermost pixels,
            as in `numpy.pad`.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        The shifted image, of the image's shape and dtype.

    Raises:
        AugmentError: pixels is not a whole number >= 0, or the image is not one.

    >>> shift(jax.random.key(1), jnp.array([[1, 2, 3]], jnp.uint8), pixels=1).shape
    (1, 3)
    """
    return _shifted("shift: pixels", key, image, pixels, edges, channel_axis)


def crop(
    key: Array,
    image: ArrayLike,
    *,
    padding: ArrayLike,
    edges: Edges = "zero",
    channel_axis: int = -1,
) -> Array:
    """Pad one image on all sides and cut its size out at random, as torchvision's `RandomCrop`.

    That is `shift` by at most `padding` pixels, under the name that many know.

    >>> crop(jax.random.key(0), jnp.ones((32, 32, 3)), padding=4).shape
    (32, 32, 3)
    """
    return _shifted("crop: padding", key, image, padding, edges, channel_axis)


def flip(
    key: Array, image: ArrayLike, *, axis: Axis = "horizontal", channel_axis: int = -1
) -> Array:
    """Mirror one image with probability 1/2.

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels.
        axis: "horizontal" exchanges left and right, "vertical" top and bottom.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        The image or its mirror image, of the same shape and dtype.

    Raises:
        AugmentError: there is no such axis, or the image is not one.

    >>> flips = [flip(jax.random.key(i), jnp.array([[1.0, 2.0]])).tolist() for i in range(9)]
    >>> [[1.0, 2.0]] in flips, [[2.0, 1.0]] in flips
    (True, True)
    """
    _refuse_unknown("flip: axis", axis, get_args(Axis))
    image = checked_image("flip", image, channel_axis)
    along = spatial_axes(image, channel_axis)[axis == "horizontal"]
    return jnp.where(jax.random.bernoulli(key), jnp.flip(image, along), image)


def cutout(key: Array, image: ArrayLike, *, size: ArrayLike, channel_axis: int = -1) -> Array:
    """Set a square of one image to zero, at a random place.

    Its centre is any pixel, each as likely, and what lies outside the image is cut off: DeVries
    and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017).

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels.
        size: the side of the square, in whole pixels; 0 for none. A traced one is cut to a whole
            number.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        The image with its hole, of the same shape and dtype.

    Raises:
        AugmentError: size is not a whole number >= 0, or the image is not one.

    >>> int(cutout(jax.random.key(0), jnp.ones((9, 9)), size=3).sum()) in (72, 75, 77)
    True
    """
    side = whole_strength("cutout: size", size)
    image = checked_image("cutout", image, channel_axis)
    axes = spatial_axes(image, channel_axis)
    # Drawn as JAX's default integers, whose bits are others, and then of one dtype with `at`.
    centre = jax.random.randint(key, (2,), 0, jnp.array([image.shape[axis] for axis in axes]))
    centre = centre.astype(jnp.int32)
    kept = jnp.zeros(image.shape, bool)
    for axis, first in zip(axes, centre - side // 2, strict=True):
        at = jax.lax.broadcasted_iota(jnp.int32, image.shape, axis)
        kept |= (at < first) | (at >= first + side)
    return jnp.where(kept, image, jnp.zeros((), image.dtype))


def brightness(
    key: Array,
    image: ArrayLike,
    *,
    strength: ArrayLike,
    white: float | None = None,
    channel_axis: int = -1,
) -> Array:
    """Make one image brighter or darker at random, as torchvision's `ColorJitter`.

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels, from 0 (black) to `white`.
        strength: the values are multiplied by a factor uniform from max(0, 1 - strength) to
            1 + strength, and clipped to 0..white.
        white: the largest value; if None, 255 for uint8 and 1 for floating images.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        The image of another brightness, of the same shape and dtype; where the strength is 0, the
        image to the bit.

    Raises:
        AugmentError: strength is negative or not finite, or the image is not one.

    >>> bright = brightness(jax.random.key(0), jnp.full((2, 2), 100, jnp.uint8), strength=0.5)
    >>> 50 <= int(bright[0, 0]) <= 150
    True
    """
    image = checked_image("brightness", image, channel_axis)
    factor = _factor("brightness: strength", key, strength)
    return _blended(image, jnp.zeros((), factor.dtype), factor, white)


def contrast(
    key: Array,
    image: ArrayLike,
    *,
    strength: ArrayLike,
    white: float | None = None,
    channel_axis: int = -1,
) -> Array:
    """Strengthen or weaken one image's contrast at random, as torchvision's `ColorJitter`.

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels, from 0 (black) to `white`.
        strength: the distances to the image's mean are multiplied by a factor uniform from
            max(0, 1 - strength) to 1 + strength, and the values clipped to 0..white. The mean is
            that of the image in grey: three channels are red, green and blue and count 0.2989,
            0.587 and 0.114; others count the same.
        white: the largest value; if None, 255 for uint8 and 1 for floating images.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        The image of another contrast, of the same shape and dtype; where the strength is 0, the
        image to the bit.

    Raises:
        AugmentError: strength is negative or not finite, or the image is not one.

    >>> flat = contrast(jax.random.key(0), jnp.full((2, 2), 7, jnp.uint8), strength=0.5)
    >>> int(flat[0, 0])
    7
    """
    image = checked_image("contrast", image, channel_axis)
    factor = _factor("contrast: strength", key, strength)
    real = to_real(image)
    if image.ndim == 3 and image.shape[channel_axis] == len(_GREY):
        channels = jnp.mean(real, spatial_axes(image, channel_axis))
        mean = jnp.dot(channels, jnp.array(_GREY, real.dtype), precision="highest")
    else:
        mean = jnp.mean(real)
    return _blended(image, mean, factor, white)


def _shifted(
    what: str, key: Array, image: ArrayLike, pixels: ArrayLike, edges: str, channel_axis: int
) -> Array:
    who = what.split(":")[0]
    _refuse_unknown(f"{who}: edges", edges, get_args(Edges))
    most = whole_strength(what, pixels)
    image = checked_image(who, image, channel_axis)
    steps = jax.random.randint(key, (2,), -most, most + 1)
    for axis, step in zip(spatial_axes(image, channel_axis), steps, strict=True):
        image = _moved(image, axis, step, edges)
    return image


def _moved(image: Array, axis: int, step: Array, edges: str) -> Array:
    """Moved along one axis, towards its end where `step` is positive."""
    pixels = image.shape[axis]
    source = jnp.arange(pixels, dtype=step.dtype) - step
    if edges == "reflect":
        period = max(2 * (pixels - 1), 1)
        source = source % period
        return jnp.take(image, jnp.minimum(source, period - source), axis, mode="clip")
    inside = jnp.expand_dims(
        (source >= 0) & (source < pixels), [a for a in range(image.ndim) if a != axis]
    )
    moved = jnp.take(image, source, axis, mode="clip")
    return jnp.where(inside, moved, jnp.zeros((), image.dtype))


def _factor(what: str, key: Array, value: ArrayLike) -> Array:
    """Uniform from max(0, 1 - value) to 1 + value."""
    most = strength(what, value)
    least = jnp.maximum(0, 1 - most)
    draw = jax.random.uniform(key, (), jnp.float32)
    return least + draw * (1 + most - least)


def _blended(image: Array, other: Array, factor: Array, white: float | None) -> Array:
    """The distance to `other` times the factor, clipped to what an image may hold."""
    if white is None:
        white = 255 if image.dtype == jnp.uint8 else 1
    real = to_real(image)
    part, other = factor.astype(real.dtype), other.astype(real.dtype)
    values = jnp.clip(part * real + (1 - part) * other, 0, white)
    # A factor of 1 clips nothing either.
    return jnp.where(factor == 1, image, from_real(values, image.dtype))


def _refuse_unknown(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise AugmentError(
            f"{what} must be one of {', '.join(names)}, and it is {name!r}; choose one of them"
        )
