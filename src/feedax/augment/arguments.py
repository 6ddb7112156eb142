"""What every augmentation takes: an image, its channels, and strengths that may be traced.

A strength under `jax.jit` or `jax.vmap` may be a tracer, whose value is not known yet; those that
are known are checked here, and come back as Python numbers.
"""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from feedax.errors import AugmentError

Strength = float | Array
"""A Python number if it is known, else a traced float32 scalar."""


def strength(what: str, value: ArrayLike) -> Strength:
    """The strength, refused if it is known and negative or not finite."""
    if isinstance(value, jax.core.Tracer):
        if value.ndim == 0:
            return jnp.asarray(value, jnp.float32)
        raise AugmentError(f"{what} must be one number, and its shape is {value.shape}; {_VMAP}")
    number = _number(value)
    if not 0 <= number < math.inf:
        raise AugmentError(
            f"{what} must be a finite number >= 0, and it is {value!r}; give 0 for none"
        )
    return number


def whole_strength(what: str, value: ArrayLike) -> int | Array:
    """A strength in whole pixels; a traced one is cut to a whole number."""
    if isinstance(value, jax.core.Tracer):
        return strength(what, value).astype(jnp.int32)  # type: ignore[union-attr]
    try:
        pixels = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pixels = -1
    if not 0 <= pixels <= _COUNTABLE:
        raise AugmentError(
            f"{what} must be a whole number of pixels from 0 to {_COUNTABLE}, and it is {value!r}; "
            "give 0 for none"
        )
    return pixels


def positive(what: str, value: ArrayLike) -> float:
    """A number > 0 that must be known when the program is compiled."""
    if isinstance(value, jax.core.Tracer):
        raise AugmentError(
            f"{what} must be known when the program is compiled, and it is traced; give a Python "
            "number"
        )
    number = _number(value)
    if not 0 < number < math.inf:
        raise AugmentError(
            f"{what} must be a finite number > 0, and it is {value!r}; give a larger one"
        )
    return number


def is_zero(value: Strength) -> bool:
    """Whether the strength is known to be 0, so that its work can be left out."""
    return isinstance(value, float) and value == 0


def checked_image(who: str, image: ArrayLike, channel_axis: int) -> Array:
    """The image as a JAX array, refused if its shape or dtype is not that of one image."""
    array = jnp.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise AugmentError(
            f"{who}: the image must be of shape (height, width) or that and channels, none of "
            f"them 0, and its shape is {array.shape}; for a batch, use jax.vmap"
        )
    if array.dtype != jnp.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
        raise AugmentError(
            f"{who}: the image must be uint8 or floating, and it is {array.dtype}; convert it"
        )
    if array.ndim == 3 and channel_axis not in range(-3, 3):
        raise AugmentError(
            f"{who}: channel_axis must be an axis of the image, from -3 to 2, and it is "
            f"{channel_axis!r}; give -1 for (height, width, channels), 0 for (channels, height, "
            "width)"
        )
    return array


def spatial_axes(image: Array, channel_axis: int) -> tuple[int, int]:
    """The axes of height and width."""
    rows, columns = (a for a in range(image.ndim) if image.ndim == 2 or a != channel_axis % 3)
    return rows, columns


def size(image: Array, channel_axis: int) -> tuple[int, int]:
    """Height and width."""
    rows, columns = spatial_axes(image, channel_axis)
    return image.shape[rows], image.shape[columns]


def to_real(image: Array) -> Array:
    """The image in the dtype that is computed in: float32, or wider where the image is."""
    return image.astype(jnp.float64 if image.dtype == jnp.float64 else jnp.float32)


def from_real(values: Array, dtype: np.dtype) -> Array:
    """Back in the image's dtype: for uint8 rounded and clipped to 0..255."""
    if dtype == jnp.uint8:
        values = jnp.clip(jnp.round(values), 0, 255)
    return values.astype(dtype)


_COUNTABLE = 2**30
"""Sums of two such numbers are an int32."""

_VMAP = "for one strength for each image, use jax.vmap"


def _number(value: ArrayLike) -> float:
    """The value of a scalar, or NaN for anything else."""
    try:
        if isinstance(value, bool) or np.ndim(value) != 0:
            return math.nan
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
