"""PyTorch datasets, ready for training: by function, or by text with `load`.

Every function returns a real torchvision dataset (or an `ArrayDataset`), takes `train=True` or
`train=False`, and flattens its images to float32 unless it is given another `transform`. MNIST
comes with the package; what torchvision has to download is downloaded once.
"""

from feedax.datasets.by_name import (
    NAMES,
    class_names,
    from_anywhere,
    from_factory,
    image_shape,
    is_code,
    is_path,
    load,
)
from feedax.datasets.local import image_folder, npz
from feedax.datasets.standard import (
    cifar10,
    cifar100,
    emnist,
    fashion_mnist,
    kmnist,
    mnist,
    qmnist,
    svhn,
)

__all__ = [
    "NAMES",
    "cifar10",
    "cifar100",
    "class_names",
    "emnist",
    "fashion_mnist",
    "from_anywhere",
    "from_factory",
    "image_folder",
    "image_shape",
    "is_code",
    "is_path",
    "kmnist",
    "load",
    "mnist",
    "npz",
    "qmnist",
    "svhn",
]
