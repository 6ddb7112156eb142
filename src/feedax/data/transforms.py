"""Transforms of one example."""

from typing import Any

import numpy as np


class FlattenAndCast:
    """Turn one picture into one flat vector of float32, its values unchanged.

    The tutorial's transform: pixels 0 to 255 stay 0.0 to 255.0.

    Args:
        pic: a PIL image or an array of any shape `(...)`, its pixels in any dtype.

    Returns:
        float32 `(pixels,)`, in row-major order.

    >>> FlattenAndCast()(np.array([[0, 255], [7, 1]], np.uint8))
    array([  0., 255.,   7.,   1.], dtype=float32)
    """

    def __call__(self, pic: Any) -> np.ndarray:
        return np.ravel(np.array(pic, dtype=np.float32))

    def __repr__(self) -> str:
        return "FlattenAndCast()"
