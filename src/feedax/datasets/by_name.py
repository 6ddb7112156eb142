"""Datasets by name, as the command line and run folders have them, and what those note of one.

A name is that of a dataset of torchvision, of a folder or file of the user's, or of a callable of
the user's that makes a dataset.
"""

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from feedax.data.array_dataset import ArrayDataset
from feedax.datasets.local import image_folder, npz
from feedax.datasets.standard import (
    FLATTEN,
    MNIST,
    AnyPath,
    Transform,
    cifar10,
    cifar100,
    emnist,
    fashion_mnist,
    kmnist,
    mnist,
    qmnist,
    svhn,
)
from feedax.errors import DatasetError, FeedaxError, UnknownDatasetError, did_you_mean, reason

NAMES = (
    "mnist",
    "fashion_mnist",
    "kmnist",
    "emnist",
    "emnist:SPLIT",
    "qmnist",
    "cifar10",
    "cifar100",
    "svhn",
    "imagefolder:DIR",
    "npz:FILE",
    "package.module:factory",
)
"""Every text that `feedax.datasets.load` takes; the parts in capitals are the user's own."""

_STANDARD = (mnist, fashion_mnist, kmnist, emnist, qmnist, cifar10, cifar100, svhn)
_BY_NAME: dict[str, Callable[..., Any]] = {dataset.__name__: dataset for dataset in _STANDARD}
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
        A PyTorch dataset with at least one example, or None where there is no test part. MNIST
        with the default transform is an `ArrayDataset`; the other named ones are torchvision's.

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
    if text == "mnist" and transform is FLATTEN:
        return MNIST(train, root)
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
        f"{_remedy(text, plain)}"
    )


def _remedy(text: str, name: str) -> str:
    """What a text that names no dataset, and begins with a name, may have been meant for."""
    if Path(text).suffix == ".npz":
        return f"did you mean 'npz:{text}'?"
    if os.path.isdir(text):
        return f"did you mean 'imagefolder:{text}'?"
    module, dot, factory = text.rpartition(".")
    if dot and _FACTORY.fullmatch(f"{module}:{factory}") and factory != "py":
        return f"did you mean '{module}:{factory}'?"
    return did_you_mean(name, [*_BY_NAME, *_BY_PATH])


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
    if not is_path(text):
        return text
    name, _, path = text.partition(":")
    return f"{name}:{Path(path).expanduser().absolute()}"


def from_factory(text: str, train: bool = True) -> Any:
    """The dataset that a callable of your own makes, named as `package.module:factory`.

    A factory that has a parameter `train` (or `**kwargs`) is called with `train=True` or
    `train=False`, and may return None for a test part that does not exist. Any other factory is
    called without arguments and makes the training part only.

    The module is looked for in the current folder too, after everything on `sys.path`.

    Args:
        text: the module and the callable in it, `package.module:factory`.
        train: the training part, or else the test part.

    Returns:
        What the factory returned, or None where there is no test part.

    Raises:
        DatasetError: the module cannot be imported, has no such callable, or the callable raised
            or returned something that is no dataset, or an empty one.

    >>> len(from_factory("feedax.datasets:mnist", train=False))
    10000
    """
    factory = _find(text)
    names_train = _takes_train(factory)
    if not train and not names_train:
        return None
    try:
        dataset = factory(train=train) if names_train else factory()
    except FeedaxError:
        raise  # it has said already what is wrong, in one sentence
    except (Exception, SystemExit) as error:  # nobody but the user ends the run
        raise DatasetError(
            f"{text}: the factory must return a dataset, and it raised {reason(error)}; call it in "
            "Python to see where"
        ) from error
    if dataset is None and not train:
        return None
    if not _is_dataset(dataset):
        raise DatasetError(
            f"{text}: the factory must return a PyTorch dataset of single examples, with "
            f"__getitem__ or __iter__, and it returned {_in_words(dataset)}; return the dataset "
            "itself"
        )
    with contextlib.suppress(TypeError, NotImplementedError):  # streams have no length
        if len(dataset) == 0:
            raise DatasetError(
                f"{text}: the factory must return a dataset with at least one example, and "
                f"{type(dataset).__name__} is empty; check where it reads from"
            )
    return dataset


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
    if isinstance(dataset, ArrayDataset):
        shape = dataset.inputs.shape[1:]
        return shape if len(shape) in (2, 3) else None
    # Whoever has one of torchvision's datasets has imported it.
    torchvision: Any = sys.modules.get("torchvision.datasets")
    if torchvision is None:
        return None
    if isinstance(dataset, (torchvision.MNIST, torchvision.CIFAR10)):
        return tuple(dataset.data.shape[1:])
    if isinstance(dataset, torchvision.SVHN):  # it keeps the channels first, hands out PIL images
        channels, height, width = dataset.data.shape[1:]
        return height, width, channels
    if isinstance(dataset, torchvision.ImageFolder):
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


def _refuse_root(text: str, root: AnyPath | None) -> None:
    if root is not None:
        raise DatasetError(
            who="datasets",
            rule="root=DIR is for datasets that are unpacked or downloaded",
            found=f"{text!r} says itself where to look",
            remedy="leave it out",
        )


def _find(text: str) -> Callable[..., Any]:
    """The callable that the text names."""
    module_name, _, path = text.partition(":")
    found: Any = _import(text, module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            public = [other for other in dir(found) if not other.startswith("_")]
            raise DatasetError(
                f"{text}: the name after the colon must be in {module_name}, and it has no "
                f"{name!r}; {did_you_mean(name, public, 'add it to the module')}"
            ) from error
    if not callable(found):
        raise DatasetError(
            f"{text}: the name after the colon must be a function or a class, and it is "
            f"{_in_words(found)}; name a callable that returns the dataset"
        )
    return found


def _import(text: str, name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        # A console script does not look in the current folder, `python` does. It stays on the
        # path, because worker processes import the dataset's module once more by its name.
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        found, remedy = f"importing {name} raised {reason(error)}", "repair the module"
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{name}.".startswith(f"{missing}."):
            forms = [form.partition(":")[0] for form in NAMES]
            found = f"there is no {missing!r}"
            remedy = did_you_mean(name, forms, "install it or run feedax in the folder that has it")
            if name.endswith(".py"):
                remedy = f"leave .py out: {text.replace('.py:', ':', 1)}"
        raise DatasetError(
            f"{text}: the module before the colon must be importable, and {found}; {remedy}"
        ) from error


def _takes_train(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return any(
        parameter.kind is parameter.VAR_KEYWORD
        or (parameter.name == "train" and parameter.kind is not parameter.POSITIONAL_ONLY)
        for parameter in parameters
    )


def _is_dataset(value: Any) -> bool:
    # These can be indexed or iterated, but not for examples: a (train, test) pair, a dict of
    # parts, a loader's batches, a class that nobody called.
    if isinstance(value, (type, str, bytes, tuple, dict, DataLoader)):
        return False
    return hasattr(value, "__getitem__") or hasattr(value, "__iter__")


def _in_words(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
