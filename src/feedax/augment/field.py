"""The random displacement field of an elastic deformation.

Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied to visual
document analysis" (2003): every pixel is displaced by uniform noise that a Gaussian has smoothed.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from feedax.augment.arguments import positive, strength

_TRUNCATE = 4.0
"""The Gaussian ends at this many standard deviations, as scipy's does."""

_NEGLIGIBLE = 1e-2
"""Directions of the noise whose singular value is below this part of the largest are left out."""


def elastic_field(
    key: Array, shape: tuple[int, int], *, alpha: ArrayLike, sigma: float = 4.0
) -> tuple[Array, Array]:
    """A smooth random field of displacements.

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
    size = strength("elastic_field: alpha", alpha)
    width = positive("elastic_field: sigma", sigma)
    rows, columns = (noise_to_field(pixels, width) for pixels in shape)
    noise = jax.random.normal(key, (2, rows.shape[1], columns.shape[1]), jnp.float32)
    noise *= size / math.sqrt(3)  # the standard deviation of a uniform number in -1..1
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
