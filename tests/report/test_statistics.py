"""What a report says of predictions, held against SciPy and scikit-learn."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from feedax.report.statistics import calibration, class_scores, confusion, wilson


@given(st.integers(1, 20000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(counts: tuple[int, int]) -> None:
    right, count = counts
    theirs = binomtest(right, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(right, count), (theirs.low, theirs.high), atol=1e-9)


def test_confusion_and_class_scores_are_scikit_learns(rng: np.random.Generator) -> None:
    targets, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    found = confusion(targets, predicted, 5)
    np.testing.assert_array_equal(found, metrics.confusion_matrix(targets, predicted))
    theirs = metrics.precision_recall_fscore_support(targets, predicted)
    for ours, other in zip(class_scores(found), theirs, strict=True):
        np.testing.assert_allclose(ours, other)


def test_a_class_that_nobody_has_or_predicts_has_no_scores() -> None:
    found = class_scores(confusion(np.array([0, 0, 7, -1]), np.array([0, 0, 0, 0]), 2))
    assert found.support.tolist() == [2, 0]
    assert np.isnan(found.precision[1])
    assert np.isnan(found.recall[1])


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.55, 0.45], [0.5, 0.5]])
    found = calibration(probabilities, np.array([0, 1, 0, 0, 0]))
    assert found.counts.tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0, 2]
    np.testing.assert_allclose(found.confidence[[4, 5, 9]], [0.5, 0.575, 0.95])
    np.testing.assert_allclose(found.accuracy[[4, 5, 9]], [1, 1, 0.5])
    np.testing.assert_allclose(found.error, (0.5 + 2 * 0.425 + 2 * 0.45) / 5)


def test_probabilities_that_are_frequencies_have_no_error(rng: np.random.Generator) -> None:
    right = rng.uniform(0.5, 1, 200_000)
    targets = (rng.uniform(size=len(right)) > right).astype(int)
    assert calibration(np.stack([right, 1 - right], 1), targets).error < 0.005
