"""What a report says of one run: plain values for the page, section by section.

A section that a run has nothing for is None, and the page leaves it out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from feedax.report.columns import column_label, columns_of, measures
from feedax.report.images import data_uri, first_layer, in_colours, mosaic, picture, strongest
from feedax.report.statistics import calibration, class_name, class_scores, confusion, wilson
from feedax.train.history import Row
from feedax.train.predictions import Predictions

MOST_CLASSES = 30
"""Classes that a confusion matrix is shown whole for; of more, their commonest mistakes are."""
MISTAKES, LEAST_CERTAIN = 40, 20
TILES = 100
"""Units of the first layer that are shown."""
BINS = 40
POINTS = 2000
"""Examples of a set, spread over it, that are drawn as points."""
SHOWN_VALUES = 8
"""Values of an example that is no picture."""
DASHES = ((), (6, 4), (2, 3), (10, 3, 2, 3))


@dataclass(frozen=True)
class RunReport:
    """All that is known of a run that a report is written about.

    Attributes:
        title: what was trained on what.
        history: a row for each epoch.
        set_name: of the set that the predictions are of, ``"test"`` say.
        predictions: of that set.
        params: the parameters.
        class_names: of each output; None for numbers.
        image_shape: of the images that examples are the pixels of; None where they are the images
            themselves, or none.
        command: what reproduces the run.
        learning_rates: at the end of each epoch.
        published: others' results to draw beside the curves: a name, and a column of the rows with
            its values.
        augmented: a name for each change, and six pictures of it.
        layers: what `feedax.summary` returns.
        canvas: what the page needs to run the network on drawings, or why it cannot, in words.
        facts: other facts in groups: a name and its values by name.
    """

    title: str
    history: Sequence[Row]
    set_name: str = "test"
    predictions: Predictions | None = None
    params: Any = None
    class_names: Sequence[str] | None = None
    image_shape: Sequence[int] | None = None
    command: str | None = None
    learning_rates: Sequence[float] | None = None
    published: tuple[str, Mapping[str, Sequence[float]]] | None = None
    augmented: Sequence[tuple[str, Sequence[np.ndarray]]] = ()
    layers: Any = None
    canvas: Mapping[str, Any] | str | None = None
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def name_of(self, label: int) -> str:
        """The name of a class."""
        return class_name(self.class_names, label)


def sections(run: RunReport) -> dict[str, Any]:
    """Every section of the page of one run, by name."""
    found = run.predictions
    of_classes = found is not None and found.is_of_classes
    return {
        "headline": headline(run),
        "curves": curves(run),
        "classes": classes(run) if of_classes else None,
        "reliability": reliability(run) if of_classes else None,
        "numbers": numbers(run),
        "examples": examples(run),
        "first_layer": tiles(run),
        "weights": weights(run),
        "augmented": [
            {"name": name, "pictures": [data_uri(one) for one in some]}
            for name, some in run.augmented
        ],
        "layers": run.layers,
        "canvas": run.canvas,
        "facts": run.facts,
        "command": run.command,
    }


def percent(share: float, decimals: int = 2) -> str:
    return f"{100 * share:.{decimals}f} %"


def seconds_of(value: float) -> str:
    """
    >>> seconds_of(0.034), seconds_of(12.34), seconds_of(125), seconds_of(7300)
    ('0.03 s', '12.3 s', '2 min 5 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def headline(run: RunReport) -> dict[str, Any]:
    """The result, and where the time went."""
    return {"result": _result(run), "times": times(run.history)}


def _result(run: RunReport) -> dict[str, str] | None:
    found = run.predictions
    if found is None:
        return None
    count = len(found.targets)
    what = f"{count:,} examples of the {run.set_name} set"
    if found.is_of_classes:
        right = int((found.predicted == found.targets).sum())
        low, high = wilson(right, count)
        return {
            "value": percent(right / count),
            "what": f"accuracy on {what}",
            "more": f"95 % interval {percent(low)} to {percent(high)}: {count - right:,} mistakes",
        }
    if found.outputs.size != found.targets.size:
        return None
    apart = (found.outputs.reshape(found.targets.shape) - found.targets).astype(np.float64)
    spread = float(np.square(found.targets - found.targets.mean(0)).sum())
    determined = 1 - float(np.square(apart).sum()) / spread if spread else float("nan")
    return {
        "value": f"R² {determined:.4f}",
        "what": f"of the variance of {what} is explained",
        "more": f"root mean square error {np.sqrt(np.square(apart).mean()):.4g}, mean absolute "
        f"error {np.abs(apart).mean():.4g}",
    }


def times(history: Sequence[Row]) -> list[dict[str, Any]]:
    """Parts of the time of all epochs, as shares of the whole."""

    def total(name: str) -> float:
        return sum(row.get(name) or 0.0 for row in history)

    waiting = total("wait_seconds")
    parts = {
        "training": total("seconds") - waiting,
        "waiting for data": waiting,
        "compiling": total("compile_seconds"),
        "evaluating": total("evaluate_seconds"),
    }
    whole = sum(parts.values())
    return [
        {"name": name, "seconds": seconds_of(seconds), "share": seconds / whole}
        for name, seconds in parts.items()
        if whole > 0
    ]


def curves(run: RunReport) -> list[dict[str, Any]]:
    """Charts over the epochs: of losses, of accuracies and other measures, of the learning rate."""
    if not run.history:
        return []
    epochs = [int(row["epoch"]) for row in run.history]
    found = []
    for measure in measures(run.history):
        series = [
            {"label": column_label(name, measure), "values": [row.get(name) for row in run.history]}
            for name in columns_of(run.history, measure)
        ]
        title, others = run.published or ("", {})
        for name, values in others.items():
            if name.endswith(f"_{measure}"):
                label = f"{column_label(name, measure)}, {title}"
                series.append({"label": label, "values": _fitted(values, len(epochs))})
        if series:
            found.append(chart(measure, epochs, series, log=True))
    if run.learning_rates is not None:
        rates = [{"label": "learning rate", "values": list(run.learning_rates)}]
        found.append(chart("learning rate", epochs, rates, log=True))
    return found


def chart(
    title: str, x: Sequence[float], series: Sequence[Mapping[str, Any]], *, log: bool = False,
    x_label: str = "epoch",
) -> dict[str, Any]:  # fmt: skip
    """What charts.js draws lines of; each has a colour and a dash of its own."""
    return {
        "title": title,
        "xLabel": x_label,
        "x": list(x),
        "log": log,
        "series": [
            {
                "dash": list(DASHES[i % len(DASHES)]),
                **one,
                "values": [
                    v if v is not None and math.isfinite(v) else None for v in one["values"]
                ],
            }
            for i, one in enumerate(series)
        ],
    }


def _fitted(values: Sequence[float], count: int) -> list[float | None]:
    return [*values[:count], *[None] * (count - len(values))]


def classes(run: RunReport) -> dict[str, Any]:
    """The confusion matrix, or of many classes the commonest mistakes, and each class's scores."""
    found = run.predictions
    assert found is not None
    count = found.outputs.shape[1]
    matrix = confusion(found.targets, found.predicted, count)
    scores = class_scores(matrix)
    names = [run.name_of(i) for i in range(count)]
    rows = [
        {
            "name": names[i],
            "scores": [_number(of[i]) for of in scores[:3]],
            "support": int(scores.support[i]),
        }
        for i in range(count)
    ]
    shares = matrix / np.maximum(1, scores.support)[:, None]
    wrong = matrix - np.diag(np.diag(matrix))
    commonest = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CLASSES]
    return {
        "names": names,
        "cells": None
        if count > MOST_CLASSES
        else [
            [
                {"count": int(matrix[i, j]), "share": float(shares[i, j]), "right": i == j}
                for j in range(count)
            ]
            for i in range(count)
        ],
        "commonest": [
            {"true": names[i], "taken": names[j], "count": int(wrong[i, j])}
            for i, j in (divmod(int(cell), count) for cell in commonest)
            if wrong[i, j]
        ],
        "rows": rows,
    }


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


def reliability(run: RunReport) -> dict[str, Any]:
    """Whether probabilities are frequencies."""
    found = run.predictions
    assert found is not None
    measured = calibration(found.probabilities, found.targets)
    bars = []
    for i in np.flatnonzero(measured.counts).tolist():
        low, high = measured.edges[i], measured.edges[i + 1]
        bars.append(
            {
                "left": float(low),
                "width": float(high - low),
                "accuracy": float(measured.accuracy[i]),
                "confidence": float(measured.confidence[i]),
                "said": f"probability {low:.1f} to {high:.1f}: {int(measured.counts[i]):,} "
                f"examples, {percent(measured.accuracy[i])} right",
            }
        )
    return {"bars": bars, "error": f"{measured.error:.4f}"}


def numbers(run: RunReport) -> dict[str, Any] | None:
    """Of targets that are numbers: predicted against true, and the residuals."""
    found = run.predictions
    if found is None or found.is_of_classes or found.outputs.size != found.targets.size:
        return None
    true = found.targets.astype(np.float64).ravel()
    said = found.outputs.astype(np.float64).ravel()
    # Spread over the set.
    points = np.unique(np.linspace(0, len(true) - 1, min(len(true), POINTS)).astype(int))
    points = points[np.isfinite(true[points])]
    order = points[np.argsort(true[points], kind="stable")]
    x = true[order].tolist()
    return {
        "predicted": chart(
            "predicted against true",
            x,
            [
                {"label": "predicted", "values": said[order].tolist(), "points": True},
                {"label": "where both are the same", "values": x, "colour": 8},
            ],
            x_label="true",
        ),
        "residuals": histogram("predicted minus true", said - true),
    }


def examples(run: RunReport) -> dict[str, Any] | None:
    """The examples that are worth a look."""
    found = run.predictions
    if found is None:
        return None
    groups = {
        "mistakes": found.mistakes[:MISTAKES],
        "least_certain": found.least_certain[:LEAST_CERTAIN],
    }
    known = {name: [i for i in some.tolist() if i in found.inputs] for name, some in groups.items()}
    if not any(known.values()):
        return None
    return {
        "of_classes": found.is_of_classes,
        **{name: [_example(run, i) for i in some] for name, some in known.items()},
    }


def _example(run: RunReport, i: int) -> dict[str, Any]:
    found = run.predictions
    assert found is not None
    pixels = picture(found.inputs[i], run.image_shape)
    shown: dict[str, Any] = {
        "index": i,
        "picture": None if pixels is None else data_uri(pixels),
        "values": None if pixels is not None else _values(found.inputs[i]),
    }
    if not found.is_of_classes:
        return shown | {
            "true": _values(found.targets[i]),
            "said": _values(found.outputs[i].reshape(found.targets[i].shape)),
            "probabilities": [],
        }
    likeliest = np.argsort(-found.probabilities[i], kind="stable")[:2].tolist()
    return shown | {
        "true": run.name_of(int(found.targets[i])),
        "said": run.name_of(likeliest[0]),
        "probabilities": [
            (run.name_of(label), percent(float(found.probabilities[i, label]), 1))
            for label in likeliest
        ],
    }


def _values(example: Any) -> str:
    """The first values of an example, as text."""
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(example)] or [np.zeros(0)])
    text = ", ".join(f"{value:.4g}" for value in values[:SHOWN_VALUES].tolist())
    return text + f", … ({len(values):,} values)" * (len(values) > SHOWN_VALUES)


def tiles(run: RunReport) -> dict[str, Any] | None:
    """What the first layer looks for."""
    shape = run.image_shape
    if shape is None and run.predictions is not None:
        seen = [np.shape(one) for one in run.predictions.inputs.values()]
        shape = next((one for one in seen if len(one) in (2, 3)), None)
    if shape is None or (found := first_layer(run.params, shape)) is None:
        return None
    shown = strongest(found, TILES)
    # Small filters are enlarged by the page as they are.
    columns = int(np.ceil(np.sqrt(1.8 * len(shown))))
    return {
        "picture": data_uri(mosaic(in_colours(shown), columns)),
        "shown": len(shown),
        "count": len(found),
        "in_colour": found.ndim == 4,
        "size": f"{found.shape[1]} x {found.shape[2]}",
    }


def weights(run: RunReport) -> list[dict[str, Any]]:
    """A histogram of each array of weights."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.params):
        values = np.asarray(leaf)
        if values.ndim >= 2 and values.dtype.kind == "f":
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found.append(histogram(f"{name or 'weights'} {values.shape}", values))
    return found[:50]


def histogram(title: str, values: np.ndarray) -> dict[str, Any]:
    """Bars of a histogram between the lowest and the highest value, as shares of the tallest."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return {"title": title, "bars": [], "low": "–", "high": "–", "sd": "–"}
    counts, edges = np.histogram(finite, BINS)
    return {
        "title": title,
        "bars": [
            {"share": float(count / counts.max()), "said": f"{low:.3g} to {high:.3g}: {count:,}"}
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
        ],
        "low": f"{finite.min():.3g}",
        "high": f"{finite.max():.3g}",
        "sd": f"{finite.std():.3g}",
    }
