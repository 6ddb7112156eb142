"""Figures of predictions, parameters and augmentations: their numbers are read back from them."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

import feedax
from feedax.errors import ModelError
from feedax.report.images import picture
from feedax.train.predictions import Predictions

ROWS = [
    {"epoch": 0, "seconds": 1.0, "loss": 2.0, "test_loss": 1.5, "test_accuracy": 0.25},
    {"epoch": 1, "seconds": 1.0, "loss": 1.0, "test_loss": 0.5, "test_accuracy": None},
]


def of_classes(classes, count=600):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, count)
    outputs = rng.normal(size=(count, classes)).astype(np.float32)
    outputs[np.arange(count), targets] += 2
    inputs = rng.random((count, 6, 5)).astype(np.float32)
    return Predictions(targets, outputs, dict(enumerate(inputs)))


def of_numbers():
    targets = np.linspace(-1, 1, 50)
    noise = np.random.default_rng(0).normal(size=50)
    return Predictions(targets, (targets + noise).astype(np.float32)[:, None], {3: np.arange(9.0)})


def drawn(figure):
    """The figure as it is shown: warnings of its layout are errors."""
    return Image.open(io.BytesIO(figure._repr_png_()))


def lines(axes):
    return [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()]


def test_a_history_is_drawn_by_measure():
    loss, accuracy = feedax.plot(ROWS).axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    assert lines(loss) == [[1.5, 0.5], [2.0, 1.0]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "test set",
        "while training",
    ]
    np.testing.assert_equal(lines(accuracy), [[0.25, np.nan]])
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["test set"]


def test_several_histories_and_a_sweep_are_drawn_over_each_other():
    other = [row | {"test_loss": 9.0} for row in ROWS]
    for figure in (feedax.plot(ROWS, other), feedax.plot({"a": ROWS, "b": other})):
        assert lines(figure.axes[0]) == [[1.5, 0.5], [9.0, 9.0]]
        drawn(figure)
    labels = feedax.plot({"a": ROWS, "b": other}).legends[0].get_texts()
    assert [text.get_text() for text in labels] == ["a", "b"]
    networks = [
        feedax.Network(seed, {}, None, feedax.History(rows))
        for seed, rows in enumerate((ROWS[:1], other[:1]))
    ]
    sweep = feedax.Sweep(networks, True)
    assert lines(feedax.plot(sweep).axes[0]) == [[5.25]]
    assert lines(feedax.plot(sweep, sweep).axes[0]) == [[1.5], [9.0]] * 2
    drawn(feedax.plot([]))


@pytest.mark.parametrize("classes", [3, 10, 47, 100])
def test_a_confusion_matrix_is_scikit_learns(classes):
    found = of_classes(classes)
    figure = feedax.confusion_matrix(found, [f"class {i}" for i in range(classes)])
    axes = figure.axes[0]
    counts = metrics.confusion_matrix(
        found.targets, found.outputs.argmax(1), labels=np.arange(classes)
    )
    shares = counts / np.maximum(1, counts.sum(1))[:, None]
    np.testing.assert_allclose(axes.images[0].get_array(), shares)
    drawn(figure)
    if classes <= 12:
        written = [int(text.get_text().split("\n")[0]) for text in axes.texts]
        assert written == counts.ravel().tolist()
    # No two names lie on each other.
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))


def test_a_reliability_diagrams_bars_are_accuracies():
    found = of_classes(4)
    above, below = (figure := feedax.reliability_diagram(found)).axes
    sure = np.asarray(jax.nn.softmax(found.outputs)).max(1)
    right = found.outputs.argmax(1) == found.targets
    inside = (sure > 0.5) & (sure <= 0.6)
    assert above.patches[5].get_height() == pytest.approx(right[inside].mean())
    assert [bar.get_height() for bar in below.patches] == np.histogram(sure, 10, (0, 1))[0].tolist()
    drawn(figure)


def test_mistakes_are_pictures_or_rows():
    found = of_classes(3)
    figure = feedax.mistakes(found)
    first = int(found.mistakes[0])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, picture(found.inputs[first]))
    true, taken = int(found.targets[first]), int(found.outputs[first].argmax())
    assert figure.axes[0].get_title().startswith(f"{true}, taken for\n{taken} (")
    assert sum(bool(axes.images) for axes in figure.axes) == min(40, len(found.mistakes))
    flat = Predictions(found.targets, found.outputs, {first: found.inputs[first].ravel()})
    assert feedax.mistakes(flat, (6, 5)).axes[0].images[0].get_array().shape == (6, 5)
    (text,) = feedax.mistakes(flat, class_names=["a", "b", "c"]).texts
    assert text.get_text().split()[:4] == [str(first), f"{'abc'[true]},", "taken", "for"]
    outside = Predictions(np.array([-1, 7]), found.outputs[:2], {0: flat.inputs[first], 1: first})
    (text,) = feedax.mistakes(outside, class_names=["a", "b"]).texts
    assert {line.split()[1] for line in text.get_text().splitlines()} == {"-1,", "7,"}
    (text,) = feedax.mistakes(of_numbers()).texts
    assert text.get_text().endswith("0 1 2 3 4 5 6 7 ...")
    (text,) = feedax.mistakes(Predictions(np.arange(2), np.eye(2, dtype="f4"), {})).texts
    assert text.get_text() == "no mistakes"
    for one in (figure, feedax.mistakes(flat), feedax.mistakes(of_numbers())):
        drawn(one)
    with pytest.raises(ModelError) as error:
        feedax.mistakes(flat, (28, 28))
    assert str(error.value) == (
        "mistakes: shape must be that of an example as a picture, 30 numbers, and it is (28, 28); "
        "give another one"
    )


@pytest.mark.parametrize(
    ("params", "shape", "first"),
    [
        ([(jnp.arange(24.0).reshape(2, 12), jnp.zeros(2))], (4, 3), np.arange(12.0).reshape(4, 3)),
        (jnp.arange(24.0).reshape(12, 2), (4, 3), np.arange(0, 24.0, 2).reshape(4, 3)),
        ({"w": np.arange(18.0).reshape(1, 2, 3, 3)}, None, np.arange(4.5, 13.5).reshape(3, 3)),
        ({"w": np.arange(18.0).reshape(3, 3, 2, 1)}, None, np.arange(0.5, 18, 2).reshape(3, 3)),
    ],
    ids=["units first", "pixels first", "filters", "flax's filters"],
)
def test_the_first_layer_is_drawn_as_pictures(params, shape, first):
    figure = feedax.first_layer(params, shape)
    # The stronger a weight is, the darker is its orange.
    red, _, blue = np.moveaxis(np.asarray(figure.axes[0].images[0].get_array(), int), -1, 0)
    assert (red >= blue).all()
    flat = np.ravel(first)
    np.testing.assert_array_equal(np.argsort(-blue.ravel(), kind="stable"), np.argsort(flat))
    drawn(figure)


def test_histograms_count_every_weight():
    figure = feedax.weight_histograms({"b": jnp.zeros(3), "w": jnp.arange(8.0).reshape(2, 4)})
    counts = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert counts == [3, 8]
    assert [axes.get_title() for axes in figure.axes] == ["['b']  [3]", "['w']  [2, 4]"]
    drawn(figure)


def test_augmentations_stand_beside_the_examples():
    xs = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    given = {
        "mirror": lambda key, x: x[:, ::-1],
        "draw": lambda key, x: x * jax.random.uniform(key),
    }
    figure = feedax.augmented({"mirror": given["mirror"]}, xs)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(shown, [xs[0], xs[0, :, ::-1], xs[1], xs[1, :, ::-1]])
    assert [axes.get_title() for axes in figure.axes] == ["as it is", "mirror", "", ""]
    draws = feedax.augmented(
        lambda key, x: 10 * given["draw"](key, x), xs.reshape(2, 12), shape=(3, 4)
    )
    arrays = {np.asarray(axes.images[0].get_array()).tobytes() for axes in draws.axes}
    assert len(arrays) == 12
    drawn(figure)


def test_residuals_are_what_predictions_differ_by():
    found = of_numbers()
    left, right = (figure := feedax.residuals(found)).axes
    np.testing.assert_allclose(left.get_lines()[0].get_ydata(), found.outputs[:, 0])
    apart = found.outputs[:, 0] - found.targets
    bars = [bar.get_height() for bar in right.patches]
    assert bars == np.histogram(apart, 50)[0].tolist()
    drawn(figure)


def test_figures_refuse_what_they_cannot_draw():
    for draw, given, message in (
        (
            feedax.confusion_matrix,
            of_numbers(),
            "confusion_matrix: the predictions must be of classes, scores of each and an integer "
            "target, and an example has outputs of [1] and a target float64[]; use residuals",
        ),
        (
            feedax.residuals,
            of_classes(3),
            "residuals: the predictions must be of numbers, one for each number of the target, and "
            "an example has a target of [] and outputs of [3]; use confusion_matrix for classes",
        ),
        (
            feedax.first_layer,
            [jnp.zeros((3, 4))],
            "first_layer: params must hold weights of pictures of shape None or filters of a "
            "convolution, and there are arrays of [(3, 4)]; give shape=, or the weights themselves",
        ),
    ):
        with pytest.raises(ModelError) as error:
            draw(given)
        assert str(error.value) == message
