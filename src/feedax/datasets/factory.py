"""Any PyTorch dataset, by the name of the callable that makes it."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from feedax.datasets.words import NAMES, did_you_mean, reason
from feedax.errors import DatasetError, FeedaxError


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
    if _length(dataset) == 0:
        raise DatasetError(
            f"{text}: the factory must return a dataset with at least one example, and "
            f"{type(dataset).__name__} is empty; check where it reads from"
        )
    return dataset


def _find(text: str) -> Callable[..., Any]:
    """The callable that the text names."""
    module_name, _, path = text.partition(":")
    found = _import(text, module_name)
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
    factory: Callable[..., Any] = found
    return factory


def _import(text: str, name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        # A console script does not look in the current folder, `python` does. It stays on the
        # path, because worker processes import the dataset's module once more by its name.
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken_module(text, name, error) from error
        forms = [form.partition(":")[0] for form in NAMES]
        remedy = did_you_mean(name, forms, "install it or run feedax in the folder that has it")
        raise DatasetError(
            f"{text}: the module before the colon must be importable, and there is no "
            f"{error.name!r}; {remedy}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _broken_module(text, name, error) from error


def _broken_module(text: str, name: str, error: BaseException) -> DatasetError:
    return DatasetError(
        f"{text}: the module before the colon must be importable, and importing {name} raised "
        f"{reason(error)}; repair the module"
    )


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


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):  # streams have none
        return None


def _in_words(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
