"""Standard datasets, as torchvision has them: MNIST from the package, the others downloaded once.

All functions have one signature, and their errors are of one sentence.
"""

import contextlib
import errno
import gzip
import hashlib
import importlib.resources
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feedax.data.array_dataset import ArrayDataset, FlattenAndCast
from feedax.data.array_form import register_arrays
from feedax.errors import DatasetError, did_you_mean, reason
from feedax.files import lock, open_regular, replace_file
from feedax.machine import cache_folder

if TYPE_CHECKING:
    from torchvision import datasets

AnyPath = str | os.PathLike[str]

Transform = Callable[[Any], Any]

FLATTEN = FlattenAndCast()
"""The default transform. It has no state, so all datasets share it."""

# A folder that cannot take a file answers with one of these, and not the network; torchvision
# raises an OSError for both.
_FOLDER_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


class _Content(NamedTuple):
    size: int
    md5: str

    def __str__(self) -> str:
        return f"{self.size} bytes with MD5 {self.md5}"


_TRAIN = {
    "train-images-idx3-ubyte": _Content(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": _Content(60_008, "a25bea736e30d166cdddb491f175f624"),
}
_TEST = {
    "t10k-images-idx3-ubyte": _Content(7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": _Content(10_008, "27ae3e4e09519cfbb04c329615203637"),
}

# Machines under FIPS rules allow MD5 only for uses like this one.
_md5 = partial(hashlib.md5, usedforsecurity=False)


def mnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.MNIST":
    """The MNIST digits as torchvision's own dataset, made from the files inside the package.

    The first call unpacks them to `MNIST/raw` in the cache folder (55 MB). Every call compares
    the files it is about to use with their known MD5. A damaged file in the cache is replaced
    without a word; in a `root` of yours it is never touched.

    Args:
        train: the 60000 training examples, or else the 10000 test examples.
        root: the folder to use instead of the cache folder. MNIST files that torchvision put
            there are used as they are; missing ones are added.
        transform: a function of a PIL image, mode "L", 28 x 28. None leaves the image.
        target_transform: a function of the label, an int from 0 to 9.

    Returns:
        `torchvision.datasets.MNIST`: examples `(float32 (784,), int)` with the default transform.

    Raises:
        DatasetError: the folder cannot be used or has no space, a file in your `root` is damaged,
            or the installed package itself is.

    >>> data = mnist()
    >>> image, label = data[0]
    >>> len(data), image.shape, image.dtype, image.max().item(), label
    (60000, (784,), dtype('float32'), 255.0, 5)
    """
    folder = _unpacked(train, root)
    return torchvision_datasets().MNIST(folder, train, transform, target_transform)


class MNIST(ArrayDataset):
    """The examples of `mnist`, bit for bit, as arrays: torchvision need not be imported for them.

    Args:
        train: the 60000 training examples, or else the 10000 test examples.
        root: as in `mnist`.

    Attributes:
        inputs: uint8 `(n, 28, 28)`.
        targets: int64 `(n,)`.
        classes: the names of the classes, as torchvision has them.

    Raises:
        DatasetError: as in `mnist`.

    >>> image, label = MNIST(train=False)[0]
    >>> image.shape, image.dtype, int(label), MNIST.classes[label]
    ((784,), dtype('float32'), 7, '7 - seven')
    """

    classes = (
        "0 - zero",
        "1 - one",
        "2 - two",
        "3 - three",
        "4 - four",
        "5 - five",
        "6 - six",
        "7 - seven",
        "8 - eight",
        "9 - nine",
    )

    def __init__(self, train: bool = True, root: AnyPath | None = None) -> None:
        raw = _unpacked(train, root) / "MNIST" / "raw"
        files = _TRAIN if train else _TEST
        images, labels = (np.fromfile(raw / name, np.uint8) for name in files)
        # Of the IDX format: three dimensions make a header of 16 bytes, one makes one of 8.
        super().__init__(images[16:].reshape(-1, 28, 28), labels[8:].astype(np.int64), FLATTEN)


register_arrays(
    MNIST, lambda data: (data.inputs, data.targets), transform=lambda data: data.transform
)


def _unpacked(train: bool, root: AnyPath | None) -> Path:
    """The folder that holds `MNIST/raw` with the files of the package."""
    folder = _root_or_cache(root)
    raw = folder / "MNIST" / "raw"
    try:
        _refuse_processed_files(folder)
        raw.mkdir(parents=True, exist_ok=True)
        for name, content in (_TRAIN if train else _TEST).items():
            _provide(raw / name, content, replace=root is None)
        # torchvision refuses to open either part unless the other one's files exist as well.
        for name, content in (_TEST if train else _TRAIN).items():
            if not (raw / name).is_file():
                replace_file(raw / name, _unpack(name, content))
    except OSError as error:
        raise _folder_error("mnist", raw, error, "about 55 MB") from error
    return folder


def torchvision_datasets() -> Any:
    """torchvision's datasets, imported where one is asked for: it takes as long as torch itself."""
    return importlib.import_module("torchvision.datasets")


def fashion_mnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.FashionMNIST":
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
    return _open("fashion_mnist", "FashionMNIST", root, transform, target_transform, train=train)


def kmnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.KMNIST":
    """Kuzushiji-MNIST: 60000 + 10000 grey Japanese characters, 28 x 28, in 10 classes.

    Arguments, result and errors are those of `fashion_mnist` (20 MB).

    >>> kmnist(train=False).classes[:3]  # doctest: +SKIP
    ['o', 'ki', 'su']
    """
    return _open("kmnist", "KMNIST", root, transform, target_transform, train=train)


def emnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
    *,
    split: str = "balanced",
) -> "datasets.EMNIST":
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
    splits = torchvision_datasets().EMNIST.splits
    if split not in splits:
        raise DatasetError(
            f"emnist: the split must be one of {', '.join(splits)}, and it is {split!r}; "
            f"{did_you_mean(split, splits)}"
        )
    options = {"train": train, "split": split}
    return _open("emnist", "EMNIST", root, transform, target_transform, **options)


def qmnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.QMNIST":
    """QMNIST: the 60000 training digits of MNIST, and all 60000 test digits, 28 x 28.

    Arguments, result and errors are those of `fashion_mnist` (20 MB).

    >>> len(qmnist(train=False))  # doctest: +SKIP
    60000
    """
    return _open("qmnist", "QMNIST", root, transform, target_transform, train=train)


def cifar10(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.CIFAR10":
    """CIFAR-10: 50000 + 10000 colour photographs, 32 x 32 x 3, in 10 classes.

    Arguments, result and errors are those of `fashion_mnist` (170 MB), and the default transform
    makes float32 `(3072,)`: rows, columns, then red, green, blue.

    >>> cifar10(train=False)[0][0].shape  # doctest: +SKIP
    (3072,)
    """
    return _open("cifar10", "CIFAR10", root, transform, target_transform, train=train)


def cifar100(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.CIFAR100":
    """CIFAR-100: 50000 + 10000 colour photographs, 32 x 32 x 3, in 100 classes.

    Arguments, result and errors are those of `cifar10`.

    >>> len(cifar100(train=False).classes)  # doctest: +SKIP
    100
    """
    return _open("cifar100", "CIFAR100", root, transform, target_transform, train=train)


def svhn(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "datasets.SVHN":
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
    return _open("svhn", "SVHN", root, transform, target_transform, split=split)


def _open(
    who: str,
    name: str,
    root: AnyPath | None,
    transform: Transform | None,
    target_transform: Transform | None,
    **part: Any,
) -> Any:
    """Open torchvision's dataset of a name in its folder, after downloading it if need be."""
    folder, kind = _root_or_cache(root), getattr(torchvision_datasets(), name)
    make = partial(kind, folder, transform=transform, target_transform=target_transform, **part)

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
                if _is_folder_error(error):
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
        if _is_folder_error(error):
            raise _folder_error(who, folder, error, "enough space") from error
        raise DatasetError(
            who=who,
            rule=f"torchvision must download the files to {folder}",
            found=f"that failed ({reason(error)})",
            remedy="check the network and the proxy settings, or name a folder that has the files "
            "with root=DIR",
        ) from error


def _root_or_cache(root: AnyPath | None) -> Path:
    return cache_folder() if root is None else Path(os.path.expanduser(root))


def _is_folder_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FOLDER_ERRORS


def _folder_error(who: str, folder: Path, error: Exception, space: str) -> DatasetError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DatasetError(
        who=who,
        rule=f"the files are kept in {folder}",
        found=f"it cannot be used ({reason(error)})",
        remedy=f"{f'free {space} there or ' * full}name another folder with root=DIR",
    )


def _refuse_processed_files(folder: Path) -> None:
    """torchvision prefers the files of its 2021 versions, which have no known MD5."""
    old = [folder / "MNIST" / "processed" / name for name in ("training.pt", "test.pt")]
    if all(path.exists() for path in old):
        raise DatasetError(
            who="mnist",
            rule="the files in MNIST/raw are the ones to read",
            found=f"torchvision would read {old[0]} instead",
            remedy=f"delete {old[0].parent} or name another folder with root=DIR",
        )


def _provide(path: Path, content: _Content, replace: bool) -> None:
    """Make sure that the file at `path` has the content."""
    found = _content_of(path)
    if found == content:
        return
    if found is not None and not replace:
        raise DatasetError(
            who="mnist",
            rule=f"{path} must hold {content}",
            found=f"it holds {found}",
            remedy="delete it to have it written anew or name another folder with root=DIR",
        )
    payload = _unpack(path.name, content)
    try:
        replace_file(path, payload)
    except OSError:
        # Windows refuses to replace a file that another process has open: one that unpacked it
        # a moment earlier, and reads it now.
        if _content_of(path) != content:
            raise


def _content_of(path: Path) -> _Content | None:
    """Size and MD5 of a file, None where there is no file."""
    try:
        with open_regular(path) as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
            return _Content(file.tell(), md5)
    except FileNotFoundError:
        return None


def _unpack(name: str, content: _Content) -> bytes:
    """The bytes of one shipped file."""
    packed = importlib.resources.files("feedax.datasets") / "shipped_mnist" / f"{name}.gz"
    cause = None
    try:
        payload = gzip.decompress(packed.read_bytes())
        if _md5(payload).hexdigest() == content.md5:
            return payload
    except (OSError, EOFError, zlib.error) as error:
        cause = error
    raise DatasetError(
        f"mnist: the installed package must hold {packed} intact, and the file is missing or "
        "damaged; install feedax again"
    ) from cause
