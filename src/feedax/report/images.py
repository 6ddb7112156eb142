"""Arrays as pictures: examples, and the weights that look at them."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

NEGATIVE, POSITIVE = np.array([0, 90, 160.0]), np.array([200, 85, 0.0])
"""The colours of weights, with white between them: told apart by the colour-blind."""


LARGEST = 16
"""Pixels of a filter's side."""


def picture(example: Any, shape: Sequence[int] | None = None) -> np.ndarray | None:
    """One example as a picture.

    Args:
        example: an array of pixels, 0 to 255 or 0 to 1; others are stretched between their lowest
            and highest value.
        shape: the image's, where the example has its pixels in a row.

    Returns:
        uint8 ``(height, width)`` or ``(height, width, 3)``; None where the example is no picture.

    >>> picture(np.array([0.0, 1.0, 0.5, 0.0]), (2, 2))
    array([[  0, 255],
           [128,   0]], dtype=uint8)
    """
    if not isinstance(example, np.ndarray | np.generic | jax.Array):
        return None
    pixels = np.asarray(example)
    if shape is not None and pixels.size == math.prod(shape):
        pixels = pixels.reshape(tuple(shape))
    if (pixels := _channels_last(pixels)) is None:
        return None
    if pixels.dtype.kind not in "biuf" or min(pixels.shape[:2]) < 2:
        return None
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float64))
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / max(high - low, 1e-30))
    return np.rint(values).astype(np.uint8)


def _channels_last(pixels: Any) -> Any:
    """The array of a picture, grey or of three channels; None where it is none."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return pixels if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3) else None


def first_layer(params: Any, shape: Sequence[int] | None = None) -> np.ndarray | None:
    """The weights of the first layer, as pictures of what each unit looks for.

    Args:
        params: any PyTree: the first array is taken that holds weights of all pixels, ``(units,
            pixels)`` or ``(pixels, units)``, or filters of a convolution, ``(filters, channels,
            height, width)`` or ``(height, width, channels, filters)``.
        shape: of one image, ``(height, width)``, with channels first or last if it has any; None
            for filters alone.

    Returns:
        ``(units, height, width)``, of several channels their mean, or ``(units, height, width, 3)``
        of colours; None where there are none.

    >>> first_layer([(np.zeros((5, 4)), np.zeros(5))], (2, 2)).shape
    (5, 2, 2)
    """
    pixels = 0 if shape is None else math.prod(shape)
    for leaf in map(np.asarray, jax.tree.leaves(params)):
        if leaf.ndim == 4 and (filters := _filters(leaf, shape)) is not None:
            return _shown_channels(filters)
        if leaf.ndim == 2 and shape is not None and pixels in leaf.shape:
            rows = leaf if leaf.shape[1] == pixels else leaf.T
            tiles = rows.reshape(len(rows), *shape)
            if tiles.ndim == 4 and shape[2] not in (1, 3) and shape[0] in (1, 3):
                tiles = np.moveaxis(tiles, 1, -1)
            return tiles if tiles.ndim == 3 else _shown_channels(tiles)
    return None


def _filters(leaf: np.ndarray, shape: Sequence[int] | None) -> np.ndarray | None:
    """Filters as ``(filters, height, width, channels)``; None if these are none."""
    channels = None if shape is None else 1 if len(shape) == 2 else min(shape[0], shape[2])
    first = np.moveaxis(leaf, 1, -1)  # of (filters, channels, height, width)
    last = np.moveaxis(leaf, -1, 0)  # of (height, width, channels, filters)
    fitting = [
        one
        for one in (first, last)
        if max(one.shape[1:3]) <= LARGEST and channels in (None, one.shape[3])
    ]
    # Filters are square, and smaller than there are many.
    fitting.sort(key=lambda one: (one.shape[1] != one.shape[2], max(one.shape[1:3])))
    return fitting[0] if fitting else None


def _shown_channels(tiles: np.ndarray) -> np.ndarray:
    return tiles if tiles.shape[-1] == 3 else tiles.mean(-1)


def in_colours(weights: np.ndarray) -> np.ndarray:
    """uint8 ``(..., 3)``: 0 is white, negative weights are blue, positive ones are orange.

    Weights of three channels, ``(units, height, width, 3)``, show their colours instead, around
    grey.
    """
    largest = max(float(np.abs(weights).max()), 1e-30)
    if weights.ndim == 4:
        return np.rint(127.5 + 127.5 * weights / largest).astype(np.uint8)
    share = np.abs(weights)[..., None] / largest
    colour = np.where(weights[..., None] < 0, NEGATIVE, POSITIVE)
    return np.rint(255 + (colour - 255) * share).astype(np.uint8)


def strongest(tiles: np.ndarray, most: int) -> np.ndarray:
    """The tiles with the largest weights, in their own order."""
    sizes = np.square(tiles.reshape(len(tiles), -1)).sum(1)
    return tiles[np.sort(np.argsort(-sizes, kind="stable")[:most])]


def mosaic(tiles: np.ndarray, columns: int, gap: int = 1, paper: int = 255) -> np.ndarray:
    """Pictures of one shape ``(pictures, height, width[, 3])`` side by side, in rows.

    >>> mosaic(np.zeros((3, 2, 2), np.uint8), columns=2).shape
    (5, 5)
    """
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    columns = min(columns, count)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    whole = np.full(shape, paper, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        whole[top : top + height, left : left + width] = tile
    return whole


def data_uri(pixels: np.ndarray) -> str:
    """A picture, uint8 ``(height, width[, 3])``, as a PNG within an address."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
