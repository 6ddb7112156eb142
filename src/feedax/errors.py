"""The errors of feedax.

Every message is one sentence: who speaks, the rule, the value that breaks it, the remedy.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST_VALUE, LONGEST_MESSAGE = 200, 1000
"""Letters of a value that a message repeats, and of a message."""

_VALUES = [
    re.compile(r"\S+"),
    re.compile(r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)"),
    re.compile(r'(?<!\w)"(?:[^"\\]|\\.)*"(?!\w)'),
    re.compile(r"\[(?:[^][]|\[[^][]*\])*\]"),
    re.compile(r"\{[^{}]*\}"),
]
"""How values stand in a message: without spaces, in quotes, in brackets."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = LONGEST_VALUE
_repr.maxlist = _repr.maxdict = _repr.maxtuple = 20


def one_line(message: str) -> str:
    """A message on one line, which repeats no more of a long value than its two ends.

    >>> one_line("it is 'a\\nb'")
    "it is 'a b'"
    >>> len(one_line(f"it is {'x' * 100_000!r}; give less"))
    215
    """
    text = re.sub(r"\s*[\n\r\t\v\f]\s*", " ", shortened(message, 4 * LONGEST_MESSAGE))
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    for value in _VALUES:
        text = value.sub(lambda match: shortened(match[0]), text)
    return shortened(text, LONGEST_MESSAGE)


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """A text, or the two ends of a longer one.

    >>> shortened("abcdefghij", 7)
    'ab...ij'
    """
    half = (most - len("...")) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def shown(value: Any) -> str:
    """A value as a message repeats it: as Python writes it, and no more than its two ends.

    >>> shown([16, "8", 3]), len(shown("9" * 100_000)), len(shown([["9" * 90] * 9] * 9))
    ("[16, '8', 3]", 200, 199)
    """
    return shortened(_repr.repr(value))


def printable(text: str) -> str:
    """A text of a file for a terminal: itself, or what `shown` makes of one that could steer it.

    >>> printable("7 - seven"), printable("7\\x1b[2J")
    ('7 - seven', "'7\\\\x1b[2J'")
    """
    return text if text.isprintable() and len(text) <= LONGEST_VALUE else shown(text)


def reason(error: BaseException) -> str:
    """What an exception of other code says, with its type, on one line and no longer than a value.

    Of an operating system's error, the message around it names the path.

    >>> reason(PermissionError(13, "Permission denied", "/data/x"))
    'Permission denied'
    >>> reason(ValueError("two\\nlines")), reason(KeyError())
    ('ValueError: two lines', 'KeyError')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = shortened(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an exception of other code says; NumPy and JAX add many to it.

    >>> first_line(ValueError("Shapes differ.\\n\\nThe first is ..."))
    'Shapes differ.'
    """
    return str(error).strip().partition("\n")[0]


def did_you_mean(word: str, choices: Iterable[str], otherwise: str = "choose one of these") -> str:
    """The remedy for a mistyped word: the nearest choice, or `otherwise` if none is near.

    >>> did_you_mean("mnits", ["mnist", "svhn"])
    "did you mean 'mnist'?"
    >>> did_you_mean("imagenet", ["mnist", "svhn"])
    'choose one of these'
    """
    near = difflib.get_close_matches(word.lower(), list(choices), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


class FeedaxError(Exception):
    """The base of every error that feedax raises on purpose; its message is one line.

    Attributes:
        who: who speaks; empty, as the others, where the error was made of a whole message.
        rule: what must be.
        found: what is.
        remedy: what to do, in the words of a script; the command line has its own.

    >>> print(FeedaxError(who="a", rule="b must be 1", found="it is 2", remedy="give b=1"))
    a: b must be 1, and it is 2; give b=1
    """

    def __init__(
        self, *arguments: object, who: str = "", rule: str = "", found: str = "", remedy: str = ""
    ) -> None:
        self.who, self.rule, self.found, self.remedy = who, rule, found, remedy
        if rule:
            arguments = (f"{who}: {rule}, and {found}; {remedy}",)
        super().__init__(*(one_line(a) if isinstance(a, str) else a for a in arguments))


class DatasetError(FeedaxError):
    """A dataset is missing, corrupt or empty."""


class UnknownDatasetError(DatasetError):
    """A text names no dataset."""


class ExampleError(FeedaxError):
    """Examples do not fit together in one batch."""


class PlanError(FeedaxError):
    """The plan that was asked for cannot be had."""


class WorkerError(FeedaxError, RuntimeError):
    """A worker process cannot be started, was lost, or takes longer than the loader's timeout.

    A RuntimeError too, as torch raises it where a worker dies or is late.
    """


class PositionError(FeedaxError):
    """A loader's saved position is damaged, or belongs to another loader, sampler or dataset."""


class BatchError(FeedaxError):
    """A batch is not something that `fit` can train on."""


class ModelError(FeedaxError):
    """A model, a loss or a metric does not fit the data."""


class ProgramError(ModelError):
    """A network cannot run in a page."""


class OptimizerError(FeedaxError):
    """An optimizer or a learning rate schedule is unknown, or one of its numbers out of range."""


class LabelError(FeedaxError):
    """A class label lies outside the classes of the model."""


class NotANumberError(FeedaxError):
    """A training loss is not a finite number.

    Attributes:
        epoch: the epoch it happened in, counted from 0.
        step: the step of that epoch, counted from 0.
        params: the parameters at the start of that epoch.
        history: the rows of the epochs before it.
    """

    epoch: int
    step: int
    params: object
    history: list[dict[str, float]]

    @classmethod
    def at(cls, epoch: int, step: int, who: str = "fit") -> "NotANumberError":
        """The error of a step of an epoch."""
        error = cls(
            f"{who}: the loss and the parameters must be finite numbers, and they were not in "
            f"epoch {epoch} at step {step}; lower the step size, or look at that batch's examples"
        )
        error.epoch, error.step = epoch, step
        return error


class ProcessError(FeedaxError):
    """Several processes cannot join to train one model."""


class RunFolderError(FeedaxError):
    """A run folder cannot be written or read."""


class CheckpointError(RunFolderError):
    """A checkpoint is missing, damaged or of a later feedax, or does not fit the state."""


class ImageError(FeedaxError):
    """An image file cannot be prepared for a model."""


class AugmentError(FeedaxError):
    """A strength of an augmentation is out of range, or its image is not an image."""


class LoggerError(FeedaxError):
    """The library of a logger is not installed."""
