"""Warping: affine and elastic displacements, in one interpolation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from feedax.augment.arguments import (
    checked_image,
    from_real,
    is_zero,
    positive,
    size,
    strength,
    to_real,
)
from feedax.errors import AugmentError

_TRUNCATE = 4.0
"""The Gaussian ends at this many standard deviations, as scipy's does."""

_NEGLIGIBLE = 1e-2
"""Directions of the noise whose singular value is below this part of the largest are left out."""


def warp(
    key: Array,
    image: ArrayLike,
    *,
    rotation: ArrayLike = 0.0,
    scale: ArrayLike = 0.0,
    shear: ArrayLike = 0.0,
    translation: ArrayLike = 0.0,
    alpha: ArrayLike = 0.0,
    sigma: float = 4.0,
    channel_axis: int = -1,
) -> Array:
    """Turn, stretch, slant, move and bend one image at random, interpolating once.

    The image is scaled, then sheared, then rotated about its middle, then moved; the elastic
    field displaces where each pixel of the result looks. What lies outside the image is 0.

    Args:
        key: a key of `jax.random`.
        image: uint8 or floating `(height, width)`, or with channels.
        rotation: the largest angle in degrees; the angle is uniform between plus and minus it.
        scale: height and width are each multiplied by a factor between 1 / (1 + scale) and
            1 + scale, whose logarithm is uniform.
        shear: the largest slope; a row moves sideways by the slope times its distance from the
            middle, and the slope is uniform between plus and minus it.
        translation: pixels; down and to the right the image moves by uniform amounts between plus
            and minus it.
        alpha: the strength of the elastic deformation, see `elastic_field`.
        sigma: its smoothness in pixels, a Python number > 0.
        channel_axis: the axis of the channels of an image that has them; all move alike.

    Returns:
        The warped image, of the image's shape and dtype. Where every strength is 0, traced or
        not, it is the image to the bit.

    Raises:
        AugmentError: a strength is negative or not finite, or the image is not one.

    >>> image = jnp.zeros((28, 28)).at[10:18, 13:15].set(1.0)
    >>> warped = warp(jax.random.key(0), image, rotation=15, translation=2, alpha=30)
    >>> warped.shape, bool((warped == image).all())
    ((28, 28), False)
    """
    image = checked_image("warp", image, channel_axis)
    rotation = strength("warp: rotation", rotation)
    scale = strength("warp: scale", scale)
    shear = strength("warp: shear", shear)
    translation = strength("warp: translation", translation)
    alpha = strength("warp: alpha", alpha)
    sigma = positive("warp: sigma", sigma)
    affine_key, field_key = jax.random.split(key)
    moves, bends = not all(map(is_zero, (rotation, scale, shear, translation))), not is_zero(alpha)
    if not (moves or bends):
        return image
    shape = size(image, channel_axis)
    if moves:
        draws = jax.random.uniform(affine_key, (6,), jnp.float32, -1, 1)
        rows, columns = affine_coordinates(
            shape,
            angle=rotation * draws[0],
            scale=jnp.exp(jnp.log1p(scale) * draws[1:3]),
            shear=shear * draws[3],
            translation=translation * draws[4:6],
        )
    else:
        rows, columns = affine_coordinates(shape)
    if bends:
        down, right = elastic_field(field_key, shape, alpha=alpha, sigma=sigma)
        rows, columns = rows + down, columns + right
    return interpolate(image, rows, columns, channel_axis=channel_axis)


def affine(
    key: Array,
    image: ArrayLike,
    *,
    rotation: ArrayLike = 0.0,
    scale: ArrayLike = 0.0,
    shear: ArrayLike = 0.0,
    translation: ArrayLike = 0.0,
    channel_axis: int = -1,
) -> Array:
    """Turn, stretch, slant and move one image at random: `warp` without its elastic part.

    >>> affine(jax.random.key(0), jnp.ones((5, 5)), rotation=10).shape
    (5, 5)
    """
    return warp(
        key,
        image,
        rotation=rotation,
        scale=scale,
        shear=shear,
        translation=translation,
        channel_axis=channel_axis,
    )


def elastic(
    key: Array, image: ArrayLike, *, alpha: ArrayLike, sigma: float = 4.0, channel_axis: int = -1
) -> Array:
    """Bend one image at random: `warp` without its affine part.

    >>> elastic(jax.random.key(0), jnp.ones((5, 5)), alpha=34).shape
    (5, 5)
    """
    return warp(key, image, alpha=alpha, sigma=sigma, channel_axis=channel_axis)


def affine_coordinates(
    shape: tuple[int, int],
    *,
    angle: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    shear: ArrayLike = 0.0,
    translation: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """Where each pixel of an affinely moved image comes from.

    The image is scaled, then sheared, then rotated, all about its middle, then moved. Any of the
    numbers may be traced.

    Args:
        shape: height and width, in pixels.
        angle: degrees, counterclockwise as one looks at the image, as `numpy.rot90` turns it.
        scale: the factor of height and width, or a pair of factors.
        shear: how far a row moves to the right, for each row that it lies below the middle.
        translation: pixels down and to the right: one number for both, or a pair.

    Returns:
        The rows and the columns that the pixels look at, in pixels of the image, from 0: two
        float32 `(height, width)`.

    >>> rows, columns = affine_coordinates((2, 3), translation=(0, 1))
    >>> columns.tolist()
    [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]
    """
    turn = jnp.deg2rad(jnp.asarray(angle, jnp.float32))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    shrink_y, shrink_x = 1 / _pair(scale)
    down, right = _pair(translation)
    middle_y, middle_x = ((pixels - 1) / 2 for pixels in shape)
    y = (jnp.arange(shape[0], dtype=jnp.float32) - middle_y - down)[:, None]
    x = (jnp.arange(shape[1], dtype=jnp.float32) - middle_x - right)[None, :]
    # Each step undoes one, the last one first.
    y, x = cos * y + sin * x, cos * x - sin * y
    x -= jnp.asarray(shear, jnp.float32) * y
    return y * shrink_y + middle_y, x * shrink_x + middle_x


def elastic_field(
    key: Array, shape: tuple[int, int], *, alpha: ArrayLike, sigma: float = 4.0
) -> tuple[Array, Array]:
    """A smooth random field of displacements.

    As in Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied
    to visual document analysis" (2003), every pixel is displaced by noise that a Gaussian has
    smoothed.

    Its mean and covariance are those of ``alpha * gaussian_filter(noise, sigma)``, scipy's filter
    with ``mode="constant"`` over noise uniform in -1..1. It is not scaled by its own norm. Far
    from the border a displacement's standard deviation is about ``0.163 * alpha / sigma``: 1.4
    pixels with Simard's alpha 34 and sigma 4. torchvision's ``ElasticTransform`` counts in half
    images, so that its alpha moves pixels half as far as the same one here.

    The filter is a product with a matrix on either side, ``B N C^T``. With the singular value
    decomposition ``B = U S V^T``, and with normal noise ``N``, which no rotation ``V`` changes,
    that has the law of ``(U S) n (U S)^T`` with only rank x rank normal numbers ``n``: 8 x 8
    instead of 28 x 28 with sigma 4. So the numbers are normal, with the variance 1/3 of uniform
    ones; a weighted sum of hundreds of uniform numbers is close to normal itself. Directions of
    less than 1 % of the largest singular value are left out, which takes less than 0.1 % of any
    pixel's variance.

    Args:
        key: a key of `jax.random`.
        shape: height and width, in pixels.
        alpha: the strength; it may be traced.
        sigma: the Gaussian's standard deviation in pixels, > 0, a Python number.

    Returns:
        Displacements down, and displacements to the right, in pixels: two float32
        `(height, width)`.

    Raises:
        AugmentError: alpha is negative or not finite; sigma is not > 0, or traced.

    >>> down, right = elastic_field(jax.random.key(0), (28, 28), alpha=34.0)
    >>> down.shape, 0.7 < float(jnp.std(down)) < 2.1
    ((28, 28), True)
    """
    alpha = strength("elastic_field: alpha", alpha)
    sigma = positive("elastic_field: sigma", sigma)
    rows, columns = (noise_to_field(pixels, sigma) for pixels in shape)
    noise = jax.random.normal(key, (2, rows.shape[1], columns.shape[1]), jnp.float32)
    noise *= alpha / math.sqrt(3)  # the standard deviation of a uniform number in -1..1
    down, right = (
        jnp.einsum("ia,ab,jb->ij", rows, part, columns, precision="highest") for part in noise
    )
    return down, right


@functools.cache
def noise_to_field(pixels: int, sigma: float) -> np.ndarray:
    """What makes smooth noise along one axis: `U S` of the Gaussian filter's matrix.

    Returns:
        float32 `(pixels, rank)`; times its transpose, the covariance of filtered unit noise.
    """
    u, s, _ = np.linalg.svd(gaussian_matrix(pixels, sigma))
    return np.asarray((u * s)[:, s >= _NEGLIGIBLE * s[0]], np.float32)


def gaussian_matrix(pixels: int, sigma: float) -> np.ndarray:
    """The matrix of scipy's ``gaussian_filter1d(..., sigma, mode="constant")``.

    Returns:
        float64 `(pixels, pixels)`.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    away = np.arange(pixels)[:, None] - np.arange(pixels)
    inside = np.abs(away) <= radius
    return np.where(inside, weights[np.clip(away + radius, 0, 2 * radius)], 0)


def interpolate(
    image: ArrayLike, rows: ArrayLike, columns: ArrayLike, *, channel_axis: int = -1
) -> Array:
    """Look at an image between its pixels: bilinear, with 0 outside.

    Less than a pixel outside, the border fades into the 0, as with scipy's
    ``map_coordinates(..., order=1, mode="grid-constant")``. On a pixel, the value is the pixel's
    own, to the bit, whatever its neighbours are; there, the derivative by the coordinates is 0.

    Args:
        image: uint8 or floating `(height, width)`, or with channels.
        rows: floating `(m, n)`: the rows to look at, in pixels of the image, from 0.
        columns: the columns to look at, of the same shape.
        channel_axis: the axis of the channels of an image that has them.

    Returns:
        What is seen there: `(m, n)`, or with channels, in the image's dtype.

    Raises:
        AugmentError: the image is not of such a shape or dtype, or the rows and columns not of such
            a shape.

    >>> interpolate(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2)), jnp.array([[0.25, 1.5]])).tolist()
    [[0.25, 0.5]]
    """
    image = checked_image("interpolate", image, channel_axis)
    rows, columns = jnp.asarray(rows), jnp.asarray(columns)
    if rows.ndim != 2 or rows.shape != columns.shape:
        raise AugmentError(
            "interpolate: rows and columns must have two axes and the same shape, and theirs are "
            f"{rows.shape} and {columns.shape}; give both for every pixel of the result"
        )
    height, width = size(image, channel_axis)
    # Counted from the frame of zeros, which everything further out looks at as well.
    y = jnp.clip(rows + 1, 0, height + 1)
    x = jnp.clip(columns + 1, 0, width + 1)
    top, left = jnp.minimum(jnp.floor(y), height), jnp.minimum(jnp.floor(x), width)
    below, beside = y - top, x - left
    corner = top.astype(jnp.int32) * (width + 2) + left.astype(jnp.int32)

    def look(channel: Array) -> Array:
        framed = jnp.ravel(jnp.pad(channel, 1))
        # A flat gather, and no test of its indices: several times as fast on a CPU.
        a, b, c, d = (
            framed.at[corner + step].get(mode="promise_in_bounds")
            for step in (0, 1, width + 2, width + 3)
        )
        return _between(_between(a, b, beside), _between(c, d, beside), below)

    if image.ndim == 3:
        look = jax.vmap(look, channel_axis, channel_axis)
    return from_real(look(to_real(image)), image.dtype)


def _between(a: Array, b: Array, part: Array) -> Array:
    if jnp.float64 in (a.dtype, part.dtype):
        a, b, part = (values.astype(jnp.float64) for values in (a, b, part))
    return jnp.where(part == 0, a, a + (b - a) * part)


def _pair(value: ArrayLike) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (2,))
