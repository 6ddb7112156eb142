"""The names of the datasets, and the phrases that error messages share."""

import difflib
from collections.abc import Iterable

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


def did_you_mean(word: str, choices: Iterable[str], otherwise: str = "take one of these") -> str:
    """The remedy for a mistyped word: the nearest choice, `otherwise` where none is near.

    >>> did_you_mean("mnits", ["mnist", "svhn"])
    "did you mean 'mnist'?"
    >>> did_you_mean("imagenet", ["mnist", "svhn"])
    'take one of these'
    """
    near = difflib.get_close_matches(word.lower(), list(choices), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def reason(error: BaseException) -> str:
    """What an exception says, on one line, without the path that the message around it names.

    >>> reason(PermissionError(13, "Permission denied", "/data/x"))
    'Permission denied'
    >>> reason(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
