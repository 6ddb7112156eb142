"""What a dataset says of itself: the shape of its images, the names of its classes."""

from typing import Any

import numpy as np
from torch.utils.data import Subset
from torchvision.datasets import CIFAR10, MNIST, SVHN, ImageFolder

from feedax.data.array_dataset import ArrayDataset
from feedax.errors import DatasetError, reason


def image_shape(dataset: Any) -> tuple[int, ...] | None:
    """The shape of one image as the dataset's transform gets it.

    Returns:
        `(height, width)` or `(height, width, channels)`; None for a dataset that is not known to
        hold images. An ImageFolder answers with its first image. A `Subset` answers as the whole.

    Raises:
        DatasetError: the first image of an ImageFolder cannot be read.

    >>> image_shape(ArrayDataset(np.zeros((5, 8, 6)), np.zeros(5)))
    (8, 6)
    >>> print(image_shape([1, 2, 3]))
    None
    """
    dataset = _whole(dataset)
    if isinstance(dataset, (MNIST, CIFAR10)):
        return tuple(dataset.data.shape[1:])
    if isinstance(dataset, SVHN):  # it keeps the channels first, and hands out PIL images
        channels, height, width = dataset.data.shape[1:]
        return height, width, channels
    if isinstance(dataset, ArrayDataset):
        shape = dataset.inputs.shape[1:]
        return shape if len(shape) in (2, 3) else None
    if isinstance(dataset, ImageFolder):
        path = dataset.samples[0][0]
        try:
            return np.asarray(dataset.loader(path)).shape
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for damaged files
            raise DatasetError(
                f"image_folder: {path} must be an image, and it cannot be read ({reason(error)}); "
                "repair or remove it"
            ) from error
    return None


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes in the order of their labels, or None where they have none.

    >>> from feedax.datasets import mnist
    >>> class_names(mnist(train=False))[:2]
    ('0 - zero', '1 - one')
    """
    classes = getattr(_whole(dataset), "classes", None)
    return None if classes is None else tuple(str(name) for name in classes)


def _whole(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset
