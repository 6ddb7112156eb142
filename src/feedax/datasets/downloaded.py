"""The datasets that torchvision downloads, with one signature and errors of one sentence."""

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torchvision import datasets

from feedax.datasets.arguments import (
    FLATTEN,
    AnyPath,
    Transform,
    folder_error,
    is_folder_error,
    root_or_cache,
)
from feedax.errors import DatasetError, did_you_mean, reason
from feedax.files import lock

_AnyDataset = TypeVar("_AnyDataset")


def fashion_mnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.FashionMNIST:
    """Fashion-MNIST: 60000 + 10000 grey pictures of clothes, 28 x 28, in 10 classes.

    torchvision downloads it (30 MB) unless `root` has it already.

    Args:
        train: the training examples, or else the test examples.
        root: the folder that has the data or will get them; the cache folder for None.
        transform: a function of a PIL image. None leaves the image.
        target_transform: a function of the label, an int.

    Returns:
        torchvision's own dataset: examples `(float32 (784,), int)` with the default transform.

    Raises:
        DatasetError: the download failed, the folder cannot be used, or its files are damaged.

    >>> len(fashion_mnist(train=False))  # doctest: +SKIP
    10000
    """
    return _open("fashion_mnist", datasets.FashionMNIST, root, train, transform, target_transform)


def kmnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.KMNIST:
    """Kuzushiji-MNIST: 60000 + 10000 grey Japanese characters, 28 x 28, in 10 classes.

    Arguments, result and errors are those of `fashion_mnist` (20 MB).

    >>> kmnist(train=False).classes[:3]  # doctest: +SKIP
    ['o', 'ki', 'su']
    """
    return _open("kmnist", datasets.KMNIST, root, train, transform, target_transform)


def emnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
    *,
    split: str = "balanced",
) -> datasets.EMNIST:
    """EMNIST: grey handwritten letters and digits, 28 x 28.

    Args:
        split: "balanced" (47 classes), "byclass" (62), "bymerge" (47), "letters" (26, numbered
            from 1), "digits" or "mnist" (10).

    The other arguments, result and errors are those of `fashion_mnist` (one download of 540 MB
    holds all splits). The pictures lie on their side, as EMNIST has them.

    >>> emnist(split="leters")
    Traceback (most recent call last):
    feedax.errors.DatasetError: emnist: the split must be one of byclass, bymerge, balanced, \
letters, digits, mnist, and it is 'leters'; did you mean 'letters'?
    """
    splits = datasets.EMNIST.splits
    if split not in splits:
        raise DatasetError(
            f"emnist: the split must be one of {', '.join(splits)}, and it is {split!r}; "
            f"{did_you_mean(split, splits)}"
        )
    return _open("emnist", datasets.EMNIST, root, train, transform, target_transform, split=split)


def qmnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.QMNIST:
    """QMNIST: the 60000 training digits of MNIST, and all 60000 test digits, 28 x 28.

    Arguments, result and errors are those of `fashion_mnist` (20 MB).

    >>> len(qmnist(train=False))  # doctest: +SKIP
    60000
    """
    return _open("qmnist", datasets.QMNIST, root, train, transform, target_transform)


def cifar10(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.CIFAR10:
    """CIFAR-10: 50000 + 10000 colour photographs, 32 x 32 x 3, in 10 classes.

    Arguments, result and errors are those of `fashion_mnist` (170 MB), and the default transform
    makes float32 `(3072,)`: rows, columns, then red, green, blue.

    >>> cifar10(train=False)[0][0].shape  # doctest: +SKIP
    (3072,)
    """
    return _open("cifar10", datasets.CIFAR10, root, train, transform, target_transform)


def cifar100(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.CIFAR100:
    """CIFAR-100: 50000 + 10000 colour photographs, 32 x 32 x 3, in 100 classes.

    Arguments, result and errors are those of `cifar10`.

    >>> len(cifar100(train=False).classes)  # doctest: +SKIP
    100
    """
    return _open("cifar100", datasets.CIFAR100, root, train, transform, target_transform)


def svhn(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> datasets.SVHN:
    """SVHN: 73257 + 26032 colour house numbers, 32 x 32 x 3, in 10 classes. Needs SciPy.

    Arguments, result and errors are those of `cifar10` (180 MB, 60 MB).

    Raises:
        DatasetError: also when SciPy, which reads the files, is not installed.

    >>> len(svhn(train=False))  # doctest: +SKIP
    26032
    """
    if importlib.util.find_spec("scipy") is None:  # torchvision would say so after the download
        raise DatasetError(
            "svhn: SciPy must be installed to read the files, and it is not; pip install scipy"
        )
    split = "train" if train else "test"
    return _open("svhn", datasets.SVHN, root, None, transform, target_transform, split=split)


def _open(
    who: str,
    kind: Callable[..., _AnyDataset],
    root: AnyPath | None,
    train: bool | None,
    transform: Transform | None,
    target_transform: Transform | None,
    **options: Any,
) -> _AnyDataset:
    """Open the dataset in its folder, after downloading it if need be."""
    folder = root_or_cache(root)
    options |= {"transform": transform, "target_transform": target_transform}
    if train is not None:
        options["train"] = train
    make = functools.partial(kind, folder, **options)

    # The usual case needs no lock and no right to write. If it fails, another process may be
    # unpacking the files at this moment: they are looked at again under the lock.
    with contextlib.suppress(Exception):
        return make(download=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = folder / ".feedax-download.lock"
        held.touch()
        with lock(held, wait=True):
            try:
                return make(download=False)
            except Exception as error:
                if is_folder_error(error):
                    raise
                # torchvision's words for files that it would have to download.
                if not str(error).startswith("Dataset not found"):
                    place = folder / getattr(kind, "base_folder", kind.__name__)
                    raise DatasetError(
                        f"{who}: the files in {place} must be whole, and torchvision cannot read "
                        f"them ({reason(error)}); delete {place} to have them downloaded anew"
                    ) from error
            # Standard output belongs to the program that asked; older versions print there.
            with contextlib.redirect_stdout(sys.stderr):
                return make(download=True)
    except DatasetError:
        raise
    except Exception as error:
        if is_folder_error(error):
            raise folder_error(who, folder, error, "enough space") from error
        raise DatasetError(
            who=who,
            rule=f"torchvision must download the files to {folder}",
            found=f"that failed ({reason(error)})",
            remedy="check the network and the proxy settings, or name a folder that has the files "
            "with root=DIR",
        ) from error
