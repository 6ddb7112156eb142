"""Curves by epoch, of a run, of several or of a sweep; what a network saw; and the house style."""

import io
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The object interface only: pyplot would keep figures and settings that belong to the caller.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from feedax.report.columns import column_label, column_of, measures
from feedax.report.sweep_folder import Record, by_setting
from feedax.train.history import Row
from feedax.train.networks import Sweep

INK = "#333333"
# Told apart also by those who see no difference between red and green, and in grey print.
COLOURS = ("#1f6fb4", "#e07b1a", "#3a9d78", "#9a5fb0")

MEASURES = ("loss", "accuracy")


# The palette of Okabe and Ito, without its yellow, which is faint on white, and grey after it.
SWEEP_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
    "#000000",
    "#999999",
)
STYLES = ("-", "--")
"""The second half of the settings is dashed, for those who see few colours and for grey print."""

LONG = 60
"""Letters of a label; of longer ones, there is no room for two side by side."""

WIDE = 40.0
"""Times the lowest value that the highest one is; from here on the axis is logarithmic."""

BARS = 10
"""Classes of an image that are drawn: the likeliest ones, where there are more."""


class Drawing(Figure):
    """A figure that shows itself in a notebook, without pyplot.

    Args:
        size: width and height in inches.
    """

    def __init__(self, size: tuple[float, float]) -> None:
        layout = ConstrainedLayoutEngine(wspace=0.06)
        super().__init__(size, layout=layout, facecolor="white")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return _png(self, dpi=100)


def plot(*histories: Sequence[Row] | Mapping[str, Sequence[Row]] | Sweep) -> Drawing:
    """Draw histories: a panel each for the loss, the accuracy and every other metric.

    Args:
        histories: what `fit` returns, rows that have an ``epoch`` each; several, or a dict of them
            by name, are drawn over each other, by their test set if they have one. Of a `Sweep`,
            for each setting the mean of its networks, in a band from the lowest to the highest.

    Returns:
        A matplotlib figure, which shows itself in a notebook; ``figure.savefig("curves.png")``
        writes it.

    >>> rows = [{"epoch": 0, "loss": 1.0, "test_loss": 1.5}, {"epoch": 1, "loss": 0.5}]
    >>> [axes.get_ylabel() for axes in plot(rows).axes]
    ['loss']
    """
    if len(histories) == 1 and isinstance(histories[0], Sweep):
        return _sweep_figure([_record(one) for one in histories[0].networks])
    labels: list[str] = []
    drawn: list[Sequence[Row]] = []
    for i, one in enumerate(histories):
        if isinstance(one, Mapping):
            labels += one
            drawn += one.values()
        elif isinstance(one, Sweep):
            labels += [network.name for network in one.networks]
            drawn += [network.history for network in one.networks]
        else:
            labels.append(f"history {i}")
            drawn.append(one)
    every = [row for rows in drawn for row in rows]
    shown = measures(every) or ["loss"]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    labels = labels if len(drawn) > 1 else []
    across = 2 if labels and max(map(len, labels)) <= LONG else 1
    height = 3.6 * lines + 0.22 * -(-len(labels) // across)
    figure = Drawing((max(6.0, 5.0 * columns), height))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, measure in zip(panels, shown, strict=False):
        if labels:
            _draw_histories(axes, drawn, measure)
        else:
            _draw_run(axes, every, measure, while_training=True)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if labels:
        figure.legend(
            figure.axes[0].get_lines(), labels, loc="outside lower center", ncols=across,
            frameon=False, labelcolor=INK, fontsize=9,
        )  # fmt: skip
    return figure


def _record(network: Any) -> Record:
    """A network as a `SweepFolder` keeps it."""
    return {
        "setting": network.setting,
        "error": network.error,
        "result": network.result,
        "rows": network.history,
    }


def _draw_histories(axes: Any, histories: Sequence[Sequence[Row]], measure: str) -> None:
    column = column_of([row for rows in histories for row in rows], measure) or measure
    for i, rows in enumerate(histories):
        turn, place = divmod(i, len(SWEEP_COLOURS))
        axes.plot(
            [row["epoch"] for row in rows], _values(rows, column), STYLES[turn % len(STYLES)],
            color=SWEEP_COLOURS[place], linewidth=1.8, marker="o", ms=3,
        )  # fmt: skip
    _finish_panel(
        axes,
        column_label(column, measure),
        [v for rows in histories for v in _values(rows, column)],
    )


def _values(rows: Sequence[Row], column: str) -> list[float]:
    """A column; NaN where there is none, as JSON has it for a NaN."""
    return [math.nan if row.get(column) is None else row[column] for row in rows]


def curves_png(rows: Sequence[Row], title: str = "") -> bytes:
    """Draw the history of a run.

    Args:
        rows: one row an epoch, as `fit` returns them; a measure named ``<set>_loss`` or
            ``<set>_accuracy`` is a line of its own.
        title: written above, small.

    Returns:
        A PNG of 1600 x 640 pixels.
    """
    figure = Drawing((10, 4))
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        _draw_run(axes, rows, measure)
    return _png(figure, title)


def _draw_run(axes: Any, rows: Sequence[Row], measure: str, while_training: bool = False) -> None:
    every = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in every if name.endswith(f"_{measure}")]
    if (while_training or not names) and measure in every:
        names.append(measure)
    epochs = [row["epoch"] for row in rows]
    for name, colour in zip(names, COLOURS, strict=False):
        label = column_label(name, measure).removesuffix(f" {measure}").removeprefix(f"{measure} ")
        style = "--" if name == measure and len(names) > 1 else "-"
        axes.plot(
            epochs, _values(rows, name), style, label=label, color=colour, linewidth=1.8,
            marker="o", ms=3.5,
        )  # fmt: skip

    _finish_panel(axes, measure)
    if names:  # above the lines, of which it hides none
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK,
            borderaxespad=0.2, fontsize=9,
        )  # fmt: skip


def _finish_panel(axes: Any, name: str, values: Sequence[float] = ()) -> None:
    """Name the axes of a panel over the epochs; logarithmic for a loss of many sizes."""
    is_loss = name.endswith(("loss", "loss while training"))
    if is_loss and values and min(values) > 0 and max(values) > WIDE * min(values):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes, "epoch", name)


def style_axes(axes: Any, x: str, y: str) -> None:
    """Name the axes of a panel, and draw them in the house style."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    axes.tick_params(colors=INK, length=3)


def sweep_curves_png(records: Sequence[Record], title: str = "") -> bytes:
    """Draw the mean of each setting's networks, in a band from the lowest to the highest.

    Networks that turned not-a-number are left out, and so are settings that have no other.

    Args:
        records: the networks, with ``setting``, ``error``, ``result`` and ``rows``, as a
            `SweepFolder` keeps them. Of more settings than there are colours, the best are drawn.
        title: written above, small.

    Returns:
        A PNG, 1600 pixels wide.
    """
    return _png(_sweep_figure(records), title)


def _sweep_figure(records: Sequence[Record]) -> Drawing:
    groups = by_setting([one for one in records if one["error"] is None and one["rows"]])
    # Chosen as networks are, not by the test set where there is another.
    rows = [row for one in records for row in one["rows"]]
    accuracy = column_of(rows, "accuracy", sets=("validation", "test")) or "accuracy"
    drawn = sorted(groups, key=lambda group: -_final(group, accuracy))[: len(SWEEP_COLOURS)]
    shown = [group for group in groups if group in drawn]

    labels = [_label(group) for group in shown]
    count = 2 if len(labels) > 1 and max(map(len, labels)) <= LONG else 1
    height = 4 + 0.22 * (1 - (-len(labels) // count))
    figure = Drawing((10, height))
    lines: list[Any] = []
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        lines = _draw_sweep(axes, shown, column_of(rows, measure) or measure, measure)
    if shown:
        what = "mean of the networks, and from the lowest to the highest"
        if len(shown) < len(groups):
            what += f"; the {len(shown)} most accurate of {len(groups)} settings"
        legend = figure.legend(
            lines, labels, loc="outside lower center", ncols=count, frameon=False, labelcolor=INK,
            fontsize=9, title=what, title_fontsize=9,
        )  # fmt: skip
        legend.get_title().set_color(INK)
    return figure


def _final(networks: Sequence[Record], column: str) -> float:
    values = [one["result"].get(column) for one in networks]
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else -math.inf


def _draw_sweep(
    axes: Any, groups: Sequence[Sequence[Record]], column: str, measure: str
) -> list[Any]:
    lines, every = [], []
    alpha = 0.6 / max(3, len(groups))  # many bands lie on each other
    for i, networks in enumerate(groups):
        colour, style = SWEEP_COLOURS[i], STYLES[2 * i // len(SWEEP_COLOURS)]
        epochs: dict[int, list[float]] = {}
        for row in (row for one in networks for row in one["rows"]):
            if row.get(column) is not None:
                epochs.setdefault(row["epoch"], []).append(row[column])
        numbers = sorted(epochs)
        values = [epochs[number] for number in numbers]
        every += [value for some in values for value in some]
        low, high = [*map(min, values)], [*map(max, values)]
        axes.fill_between(numbers, low, high, color=colour, alpha=alpha, linewidth=0)
        lines += axes.plot(
            numbers, [*map(statistics.fmean, values)], style, color=colour,
            linewidth=1.8, marker="o", ms=3,
        )  # fmt: skip

    _finish_panel(axes, column_label(column, measure), every)
    return lines


def _label(networks: Sequence[Record]) -> str:
    name = "  ".join(f"{key} {value}" for key, value in networks[0]["setting"].items())
    return f"{name or 'every network'}  (n={len(networks)})"


def seen_png(seen: Sequence[tuple[str, np.ndarray, np.ndarray]], names: Sequence[str]) -> bytes:
    """Draw prepared images, each beside the probabilities of its ten likeliest classes.

    Args:
        seen: one row each: a title, the pixels uint8 of an image, and the probabilities of the
            classes.
        names: of the classes.

    Returns:
        A PNG, 1000 pixels wide and 360 high for each image.
    """
    figure = Drawing((6.25, 2.25 * len(seen)))
    panels = figure.subplots(len(seen), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), (title, pixels, probabilities) in zip(panels, seen, strict=True):
        left.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        left.set_axis_off()
        left.set_title(short(title), fontsize=8, color=INK, parse_math=False)
        likeliest = np.sort((-probabilities).argsort(kind="stable")[:BARS])
        right.barh(range(len(likeliest)), probabilities[likeliest], color=COLOURS[0])
        right.set_yticks(
            range(len(likeliest)), [short(names[label]) for label in likeliest], parse_math=False
        )
        right.invert_yaxis()
        right.set_xlim(0, 1)
        right.spines[["top", "right"]].set_visible(False)
        right.tick_params(colors=INK, length=2, labelsize=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # in file names
        return _png(figure)


def short(text: str, most: int = 24) -> str:
    """A text, or the beginning of a longer one."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _png(figure: Figure, title: str = "", dpi: int = 160) -> bytes:
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return png.getvalue()
