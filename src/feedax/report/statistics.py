"""How good predictions are: intervals, confusions, the scores of each class, calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959963984540054
"""The normal distribution has 95 % of its mass within so many standard deviations."""


def class_name(names: Sequence[str] | None, label: int) -> str:
    """The name of a class, or its number where it has none: a target may be outside the classes.

    >>> class_name(["cat", "dog"], 1), class_name(["cat", "dog"], -1), class_name(None, 1)
    ('dog', '-1', '1')
    """
    return names[label] if names is not None and 0 <= label < len(names) else str(label)


def wilson(right: int, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The interval of an accuracy, of right answers among independent examples.

    Args:
        right: right answers.
        count: examples, at least 1.
        z: standard deviations of the normal distribution; the default is for 95 %.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    >>> low, high = wilson(9672, 10000)
    >>> round(low, 4), round(high, 4)
    (0.9635, 0.9705)
    """
    share, shrink = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrink
    half = z / shrink * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 ``(classes, classes)``: how many examples of each class (row) each was taken for.

    Targets outside of 0 to classes - 1 are left out.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    array([[1, 0],
           [1, 1]])
    """
    known = (targets >= 0) & (targets < classes)
    cells = targets[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


class ClassScores(NamedTuple):
    """Scores of each class: ``(classes,)`` each; NaN where a score has no examples.

    Attributes:
        precision: of those taken for the class, the share that is of it.
        recall: of those of the class, the share that is taken for it.
        f1: the harmonic mean of both.
        support: examples of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def class_scores(confusions: np.ndarray) -> ClassScores:
    """The scores of each class, of what `confusion` returns.

    >>> scores = class_scores(np.array([[1, 0], [1, 1]]))
    >>> scores.precision, scores.recall
    (array([0.5, 1. ]), array([1. , 0.5]))
    """
    right, support, taken = np.diag(confusions), confusions.sum(1), confusions.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ClassScores(right / taken, right / support, 2 * right / (taken + support), support)


class Calibration(NamedTuple):
    """Whether probabilities are frequencies: a reliability diagram.

    Attributes:
        edges: ``(bins + 1,)``: of the bins of the likeliest class's probability, from 0 to 1.
        counts: ``(bins,)``: examples in each.
        confidence: ``(bins,)``: their mean probability; NaN where there is none.
        accuracy: ``(bins,)``: the share of them that is right; NaN where there is none.
        error: the expected calibration error: the mean of |accuracy - confidence|, weighted by
            counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(probabilities: np.ndarray, targets: np.ndarray, bins: int = 10) -> Calibration:
    """Compare the probability of the likeliest class with how often it is right.

    Args:
        probabilities: ``(examples, classes)``.
        targets: int ``(examples,)``.
        bins: of equal width.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    >>> found = calibration(np.array([[0.25, 0.75], [0.25, 0.75]]), np.array([1, 0]))
    >>> found.error, found.counts.tolist()
    (0.25, [0, 0, 0, 0, 0, 0, 0, 2, 0, 0])
    """
    edges = np.linspace(0, 1, bins + 1)
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == targets
    # The lower edge is not in a bin, the upper one is.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights, minlength=bins) for weights in (confidence, right)]
    error = float(np.abs(sums[0] - sums[1]).sum() / max(1, len(targets)))
    with np.errstate(invalid="ignore"):
        return Calibration(edges, counts, sums[0] / counts, sums[1] / counts, error)
