"""Figures of what a network predicts, what its parameters are, and what an augmentation does."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.colors import PowerNorm

from feedax.errors import ModelError
from feedax.report import images
from feedax.report.figures import COLOURS, INK, SWEEP_COLOURS, Drawing, short, style_axes
from feedax.report.statistics import calibration, class_name, confusion
from feedax.train.predictions import Predictions

WRITTEN_CLASSES, NAMED_CLASSES = 12, 60
"""Classes up to which a confusion matrix has a number in each cell, and a name at each row."""
PICTURES, ACROSS = 40, 8
"""Examples of a figure, and how many of them stand side by side."""
VALUES = 8
"""Numbers that are written of an example that is no picture."""
UNITS, LEAVES, DRAWS = 64, 24, 5
"""Units of a layer, arrays of parameters, and random draws of an augmentation that are drawn."""
POINTS = 20_000
"""Examples of a set, spread over it, that are drawn as points."""


def confusion_matrix(predictions: Predictions, class_names: Sequence[str] | None = None) -> Drawing:
    """Draw how many examples of each class (row) each was taken for (column).

    Args:
        predictions: what `feedax.predictions` returns, of classes.
        class_names: of each class; their numbers if None.

    Returns:
        A matplotlib figure, which shows itself in a notebook. The colour is the share of the row.
        Up to 12 classes, each cell has its count and, on the diagonal too, that share.

    Raises:
        ModelError: the predictions are not about classes.
    """
    _refuse_no_classes(predictions, "confusion_matrix")
    classes = predictions.outputs.shape[1]
    counts = confusion(predictions.targets, predictions.predicted, classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    size = min(12.0, 5.0 + 0.25 * classes)
    figure = Drawing((size + 0.6, size))
    axes = figure.subplots()
    # Mistakes are few: their shades are spread.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1))
    bar = figure.colorbar(image, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the row", color=INK)
    if classes <= WRITTEN_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            text = f"{count}\n{shares[row, column]:.1%}" if count else "0"
            colour = "white" if shares[row, column] > 0.25 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    step = 1 if classes <= NAMED_CLASSES else 10
    ticks = range(0, classes, step)
    names = [short(class_name(class_names, label), 16) for label in ticks]
    font = 9 if classes <= 20 else 7
    turn = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(ticks, names, rotation=turn, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=INK, length=2)
    return figure


def reliability_diagram(predictions: Predictions, bins: int = 10) -> Drawing:
    """Draw whether probabilities are frequencies: how often a class is right by how likely it was.

    Below it, how many examples have such a probability. The title has the expected calibration
    error, see `feedax.report.statistics.calibration`.

    Args:
        predictions: what `feedax.predictions` returns, of classes.
        bins: of equal width, of the likeliest class's probability.

    Raises:
        ModelError: the predictions are not about classes.
    """
    _refuse_no_classes(predictions, "reliability_diagram")
    found = calibration(predictions.probabilities, predictions.targets, bins)
    figure = Drawing((5, 5.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles, width = (found.edges[:-1] + found.edges[1:]) / 2, 0.94 / bins
    accuracy = np.nan_to_num(found.accuracy)
    above.bar(middles, accuracy, width, color=COLOURS[0])
    above.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
    seen = found.counts > 0
    above.plot(found.confidence[seen], found.accuracy[seen], "o", color=COLOURS[1], ms=5)
    above.set_title(
        f"expected calibration error {found.error:.2%}\n"
        "dot: a bar's mean probability; dashed: calibrated",
        fontsize=9, color=INK,
    )  # fmt: skip
    style_axes(above, "", "accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(middles, found.counts, width, color="#999999")
    style_axes(below, "probability of the predicted class", "examples")
    return figure


def mistakes(
    predictions: Predictions,
    shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Drawing:
    """Draw the most confident mistakes; where targets are no classes, the largest errors.

    Args:
        predictions: what `feedax.predictions` returns; its `inputs` are drawn.
        shape: of an example as a picture, ``(28, 28)`` say, or with 1 or 3 channels last or first;
            None for the inputs' own, if they have two axes or more. Other examples are rows of
            their first numbers.
        class_names: of each class; their numbers if None.

    Raises:
        ModelError: the inputs have other sizes than `shape`.
    """
    found = [i for i in predictions.mistakes.tolist() if i in predictions.inputs][:PICTURES]
    if not found:
        figure = Drawing((5, 1))
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", color=INK)
        return figure
    captions = [_caption(predictions, i, class_names) for i in found]
    pictures = [_picture(predictions.inputs[i], shape, "mistakes") for i in found]
    if any(picture is None for picture in pictures):
        flat = [caption.replace("\n", " ") for caption in captions]
        width = max(map(len, flat))
        pairs = zip(found, flat, strict=True)
        return _rows_of(
            [f"{i:>7}  {one:<{width}}  {_numbers(predictions.inputs[i])}" for i, one in pairs]
        )
    return _grid(pictures, captions)


def first_layer(params: Any, shape: Sequence[int] | None = None) -> Drawing:
    """Draw the weights of the first layer as pictures: orange is positive, blue is negative.

    Args:
        params: parameters, or an array of weights. Of parameters, the first array that fits.
        shape: of an example as a picture, ``(28, 28)`` say, for weights ``(units, pixels)`` or
            ``(pixels, units)``. Not needed for filters of a convolution, ``(out, in, height,
            width)`` or ``(height, width, in, out)``: three channels are drawn as colours around
            grey, others as their mean.

    Returns:
        A matplotlib figure of the 64 units with the largest weights.

    Raises:
        ModelError: no array fits.
    """
    tiles = images.first_layer(params, shape)
    if tiles is None:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) in (2, 4)]
        raise ModelError(
            f"first_layer: params must hold weights of pictures of shape {shape} or filters of a "
            f"convolution, and there are arrays of {shapes}; give shape=, or the weights themselves"
        )
    shown = images.in_colours(images.strongest(tiles, UNITS))
    return _grid(list(shown), [""] * len(shown))


def weight_histograms(params: Any) -> Drawing:
    """Draw a histogram of each array of parameters, of at most 24.

    Args:
        params: a PyTree of arrays.
    """
    named = [
        (jax.tree_util.keystr(path), np.asarray(leaf, np.float32))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, np.floating)
    ][:LEAVES]
    across = max(1, min(4, len(named)))
    lines = max(1, -(-len(named) // across))
    figure = Drawing((3.0 * across, 2.3 * lines))
    panels = list(figure.subplots(lines, across, squeeze=False).flat)
    for axes, (name, array) in zip(panels, named, strict=False):
        axes.hist(array[np.isfinite(array)].ravel(), bins=50, color=COLOURS[0])
        axes.set_title(
            f"{short(name, 30)}  {list(array.shape)}", fontsize=8, color=INK, parse_math=False
        )
        axes.locator_params(axis="x", nbins=5)
        style_axes(axes, "", "")
        axes.tick_params(labelsize=7)
    for axes in panels[len(named) :]:
        axes.set_axis_off()
    return figure


def augmented(
    augment: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    examples: Any,
    key: jax.Array | None = None,
    shape: Sequence[int] | None = None,
) -> Drawing:
    """Draw examples as an augmentation changes them: each in a row, first as it is.

    Args:
        augment: a function of (key, x), see `feedax.augment`, of which five draws are shown; or
            several by name, of each of which one is.
        examples: inputs ``(examples, ...)``, of which the first six are drawn.
        key: the random key ``()``; ``jax.random.key(0)`` if None.
        shape: of an example as a picture, as in `mistakes`.

    Raises:
        ModelError: the examples are no pictures.
    """
    given = augment if isinstance(augment, Mapping) else {"": augment}
    draws = list(given.items()) if isinstance(augment, Mapping) else [*given.items()] * DRAWS
    xs = np.asarray(examples)[:6]
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(draws) * len(xs))
    pictures, titles = [], []
    for i, x in enumerate(xs):
        changed = [
            one(keys[i * len(draws) + j], jax.numpy.asarray(x)) for j, (_, one) in enumerate(draws)
        ]
        pictures += [_picture(np.asarray(one), shape, "augmented") for one in (x, *changed)]
        names = ["as it is", *(name for name, _ in draws)]
        titles += names if i == 0 else [""] * len(names)
    if any(picture is None for picture in pictures):
        raise ModelError(
            f"augmented: the examples must be pictures, and they are {list(xs.shape[1:])}; give "
            "shape=(28, 28), say"
        )
    return _grid(pictures, titles, across=1 + len(draws))


def residuals(predictions: Predictions) -> Drawing:
    """Draw predicted against true values, and a histogram of what they differ by.

    Args:
        predictions: what `feedax.predictions` returns, whose targets are numbers, as many as the
            outputs.

    Raises:
        ModelError: they are not as many.
    """
    true, found = predictions.targets, predictions.outputs
    if predictions.is_of_classes or true.size != found.size:
        raise ModelError(
            "residuals: the predictions must be of numbers, one for each number of the target, and "
            f"an example has a target of {list(true.shape[1:])} and outputs of "
            f"{list(found.shape[1:])}; use confusion_matrix for classes"
        )
    true = true.reshape(len(true), -1).astype(np.float64)
    found = found.reshape(true.shape).astype(np.float64)
    figure = Drawing((10, 4.4))
    left, right = figure.subplots(1, 2)
    some = np.unique(np.linspace(0, len(true) - 1, min(len(true), POINTS)).astype(int))
    several, alpha = true.shape[1] > 1, float(np.clip(200 / len(some), 0.08, 0.8))
    for i in range(min(true.shape[1], len(SWEEP_COLOURS))):
        colour, label = SWEEP_COLOURS[i], f"output {i}"
        left.plot(
            true[some, i], found[some, i], "o", color=colour, ms=3.5, mew=0, alpha=alpha,
            rasterized=True,
        )  # fmt: skip
        right.hist(
            found[:, i] - true[:, i], bins=50, color=colour, label=label,
            histtype="step" if several else "bar", linewidth=1.6,
        )  # fmt: skip
    ends = [min(true.min(), found.min()), max(true.max(), found.max())]
    left.plot(ends, ends, "--", color=INK, linewidth=1)
    style_axes(left, "true", "predicted")
    style_axes(right, "predicted - true", "examples")
    right.axvline(0, color=INK, linewidth=1, linestyle="--")
    apart = found - true
    right.set_title(
        f"mean {apart.mean():.3g}, root mean square {math.sqrt(np.square(apart).mean()):.3g}",
        fontsize=9, color=INK,
    )  # fmt: skip
    if several:
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside lower center", ncols=8,
            frameon=False, labelcolor=INK, fontsize=9,
        )  # fmt: skip
    return figure


def _refuse_no_classes(predictions: Predictions, who: str) -> None:
    if not predictions.is_of_classes:
        raise ModelError(
            f"{who}: the predictions must be of classes, scores of each and an integer target, and "
            f"an example has outputs of {list(predictions.outputs.shape[1:])} and a target "
            f"{predictions.targets.dtype}{list(predictions.targets.shape[1:])}; use residuals"
        )


def _caption(predictions: Predictions, i: int, class_names: Sequence[str] | None) -> str:
    """What an example is, and what it was taken for."""
    if not predictions.is_of_classes:
        target, output = (np.ravel(one[i]) for one in (predictions.targets, predictions.outputs))
        return f"true {_numbers(target)},\npredicted {_numbers(output)}"
    label = int(predictions.predicted[i])
    names = [
        short(class_name(class_names, one), 12) for one in (int(predictions.targets[i]), label)
    ]
    probability = math.floor(1000 * predictions.probabilities[i, label]) / 10
    return f"{names[0]}, taken for\n{names[1]} ({probability:.1f} %)"


def _numbers(array: Any) -> str:
    """The first numbers of an example, in a line."""
    flat = np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(array)])
    some = " ".join(f"{value:.4g}" for value in flat[:VALUES].tolist())
    return f"{some} ..." if len(flat) > VALUES else some


def _picture(x: Any, shape: Sequence[int] | None, who: str) -> np.ndarray | None:
    """An example ``(height, width)`` or ``(height, width, 3)``; None if it is no picture."""
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1:
        return None
    array = np.asarray(leaves[0])
    if shape is not None and array.size != math.prod(shape):
        raise ModelError(
            f"{who}: shape must be that of an example as a picture, {array.size} numbers, and it "
            f"is {tuple(shape)}; give another one"
        )
    return images.picture(array, shape)


def _grid(pictures: Sequence[Any], titles: Sequence[str], across: int | None = None) -> Drawing:
    """Pictures uint8 side by side."""
    across = across or min(ACROSS, len(pictures))
    lines = -(-len(pictures) // across)
    titled = sum(any(titles[i : i + across]) for i in range(0, len(titles), across))
    figure = Drawing((1.25 * across, 1.25 * lines + 0.4 * titled))
    figure.get_layout_engine().set(wspace=0.1, hspace=0.1)  # type: ignore[union-attr,call-arg]
    panels = list(figure.subplots(lines, across, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, picture, title in zip(panels, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if title:
            axes.set_title(title, fontsize=7, color=INK, pad=2, parse_math=False)
    return figure


def _rows_of(lines: Sequence[str]) -> Drawing:
    """Lines of text as a figure."""
    figure = Drawing((0.075 * max(map(len, lines)) + 0.4, 0.18 * len(lines) + 0.3))
    figure.text(
        0.01, 0.5, "\n".join(lines), family="monospace", fontsize=8, va="center", color=INK,
        parse_math=False,
    )  # fmt: skip
    return figure
