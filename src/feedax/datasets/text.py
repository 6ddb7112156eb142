"""Datasets by their text form, as the command line and run folders have them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedax.datasets.arguments import FLATTEN, AnyPath, Transform
from feedax.datasets.downloaded import (
    cifar10,
    cifar100,
    emnist,
    fashion_mnist,
    kmnist,
    qmnist,
    svhn,
)
from feedax.datasets.factory import from_factory
from feedax.datasets.local import image_folder, npz
from feedax.datasets.shipped import mnist
from feedax.datasets.words import NAMES, did_you_mean
from feedax.errors import DatasetError, UnknownDatasetError

_BY_NAME: dict[str, Callable[..., Any]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "kmnist": kmnist,
    "emnist": emnist,
    "qmnist": qmnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
}

_BY_PATH: dict[str, Callable[..., Any]] = {"imagefolder": image_folder, "npz": npz}

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def load(
    text: str,
    *,
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
) -> Any:
    """The dataset that a text names; `NAMES` lists the forms.

    Args:
        text: `mnist`, `fashion_mnist`, `kmnist`, `emnist`, `emnist:SPLIT`, `qmnist`, `cifar10`,
            `cifar100`, `svhn`, `imagefolder:DIR`, `npz:FILE` or `package.module:factory`. A `-`
            in a name is as good as a `_`.
        train: the training part, or else the test part.
        root: the folder for a named dataset, the cache folder for None.
        transform: the transform of one image; a factory brings its own.

    Returns:
        A PyTorch dataset with at least one example, or None where there is no test part.

    Raises:
        UnknownDatasetError: the text names no dataset.
        DatasetError: it cannot be had, or `root` is given with a text that does not use it.

    >>> len(load("mnist", train=False))
    10000
    >>> load("fashion-mnits")
    Traceback (most recent call last):
    feedax.errors.UnknownDatasetError: datasets: the dataset must be one of mnist, fashion_mnist, \
kmnist, emnist, emnist:SPLIT, qmnist, cifar10, cifar100, svhn, imagefolder:DIR, npz:FILE, \
package.module:factory, and it is 'fashion-mnits'; did you mean 'fashion_mnist'?
    """
    name, colon, rest = text.partition(":")
    plain = name.replace("-", "_")
    if not colon and plain in _BY_NAME:
        return _BY_NAME[plain](train=train, root=root, transform=transform)
    if name == "emnist":
        return emnist(train=train, root=root, transform=transform, split=rest)
    if name in _BY_PATH and rest:
        _refuse_root(text, root)
        return _BY_PATH[name](rest, train=train, transform=transform)
    if name not in _BY_PATH and _FACTORY.fullmatch(text):
        _refuse_root(text, root)
        return from_factory(text, train=train)
    raise UnknownDatasetError(
        f"datasets: the dataset must be one of {', '.join(NAMES)}, and it is {text!r}; "
        f"{did_you_mean(plain, [*_BY_NAME, *_BY_PATH])}"
    )


def is_code(text: str) -> bool:
    """Whether the text names a factory, so that loading it runs code of the user's.

    >>> is_code("my.module:make_dataset"), is_code("npz:digits.npz")
    (True, False)
    """
    name, colon, _ = text.partition(":")
    return bool(colon) and name != "emnist" and name not in _BY_PATH


def is_path(text: str) -> bool:
    """Whether the text names a file or a folder of the user's own.

    >>> is_path("npz:digits.npz"), is_path("emnist:letters")
    (True, False)
    """
    name, _, rest = text.partition(":")
    return name in _BY_PATH and bool(rest)


def from_anywhere(text: str) -> str:
    """The same text with its file or folder made absolute: it then holds in any folder.

    >>> from_anywhere("mnist")
    'mnist'
    >>> from_anywhere("npz:/data/digits.npz")
    'npz:/data/digits.npz'
    """
    name, _, rest = text.partition(":")
    if not is_path(text):
        return text
    return f"{name}:{Path(rest).expanduser().absolute()}"


def _refuse_root(text: str, root: AnyPath | None) -> None:
    if root is not None:
        raise DatasetError(
            f"datasets: root=DIR (--root DIR) is for datasets that are unpacked or downloaded, and "
            f"{text!r} says itself where to look; leave root out"
        )
