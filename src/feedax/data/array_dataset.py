"""A dataset over arrays, in memory or in mapped files, and a transform of its examples."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from feedax.errors import DatasetError
from feedax.tree import NotAnArray, as_array


class ArrayDataset(Dataset[Any]):
    """A map-style PyTorch dataset of the pairs `(inputs[i], targets[i])`.

    Args:
        inputs: array or memory map `(n, ...)`; of a memory map, only what a batch needs is read.
        targets: array or memory map `(n, ...)`.
        transform: a function of one input, or None for the input as it is.

    Raises:
        DatasetError: the two arrays do not hold the same number of examples, or masked values.

    >>> data = ArrayDataset(np.zeros((3, 2, 2), np.uint8), np.array([4, 5, 6]))
    >>> len(data), data[2]
    (3, (array([[0, 0],
           [0, 0]], dtype=uint8), np.int64(6)))
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        for name, array in (("inputs", inputs), ("targets", targets)):
            try:
                if isinstance(array, np.ma.MaskedArray):
                    as_array(array)
            except NotAnArray as no:
                raise DatasetError(
                    f"ArrayDataset: {name} must hold a value everywhere, and it is {no.what}; "
                    f"{no.remedy}"
                ) from no
            if array.ndim == 0:
                raise DatasetError(
                    f"ArrayDataset: {name} must be an array of examples, and it is the single "
                    f"value {array}; give it a first dimension"
                )
        if len(inputs) != len(targets):
            raise DatasetError(
                f"ArrayDataset: inputs and targets must hold one entry per example, and there are "
                f"{len(inputs)} inputs and {len(targets)} targets; cut them to one length"
            )
        self.inputs = inputs
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x = self.inputs[index]
        return (x if self.transform is None else self.transform(x)), self.targets[index]


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
