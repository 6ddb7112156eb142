"""Figures as PNGs: loss and accuracy by epoch, of a run or a sweep, and what a network saw."""

import io
import math
import statistics
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

# The object interface only: pyplot would keep figures and settings that belong to the caller.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from feedax.report.sweep_folder import Record, by_setting, column_label

if TYPE_CHECKING:
    from feedax.train.history import Row

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


def curves_png(rows: "Sequence[Row]", title: str = "") -> bytes:
    """Draw the history of a run.

    Args:
        rows: one row an epoch, as `fit` returns them; a measure named ``<set>_loss`` or
            ``<set>_accuracy`` is a line of its own.
        title: written above, small.

    Returns:
        A PNG of 1600 x 640 pixels.
    """
    figure = _new_figure(4)
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        _draw_run(axes, rows, measure)
    return _png(figure, title)


def _draw_run(axes: Any, rows: "Sequence[Row]", measure: str) -> None:
    names = [name for name in rows[0] if name.endswith(f"_{measure}")]
    if not names and measure in rows[0]:
        names = [measure]
    epochs = [row["epoch"] for row in rows]
    for name, colour in zip(names, COLOURS, strict=False):
        values = [float("nan") if row.get(name) is None else row[name] for row in rows]
        label = column_label(name).removesuffix(f" {measure}").removeprefix(f"{measure} ")
        axes.plot(epochs, values, label=label, color=colour, linewidth=1.8, marker="o", ms=3.5)

    _finish_panel(axes, measure)
    if names:
        axes.legend(frameon=False, labelcolor=INK)


def _finish_panel(axes: Any, name: str) -> None:
    """Name the axes of a panel over the epochs, and draw them in the house style."""
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(name, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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
    groups = by_setting([one for one in records if one["error"] is None and one["rows"]])
    # Chosen as networks are, not by the test set where there is another.
    accuracy = _column(records, "accuracy", sets=("validation", "test"))
    drawn = sorted(groups, key=lambda group: -_final(group, accuracy))[: len(SWEEP_COLOURS)]
    shown = [group for group in groups if group in drawn]

    labels = [_label(group) for group in shown]
    count = 2 if len(labels) > 1 and max(map(len, labels)) <= LONG else 1
    height = 4 + 0.22 * (1 - (-len(labels) // count))
    figure = _new_figure(height)
    lines: list[Any] = []
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        lines = _draw_sweep(axes, shown, _column(records, measure), measure)
    if shown:
        what = "mean of the networks, and from the lowest to the highest"
        if len(shown) < len(groups):
            what += f"; the {len(shown)} most accurate of {len(groups)} settings"
        legend = figure.legend(
            lines, labels, loc="outside lower center", ncols=count, frameon=False, labelcolor=INK,
            fontsize=9, title=what, title_fontsize=9,
        )  # fmt: skip
        legend.get_title().set_color(INK)
    return _png(figure, title)


def _column(
    records: Sequence[Record], measure: str, sets: Sequence[str] = ("test", "validation")
) -> str:
    """A measure of the first of these sets that the rows have; else the one while training."""
    names = {name for one in records for row in one["rows"] for name in row}
    wanted = (f"{name}_{measure}" for name in sets)
    return next((name for name in wanted if name in names), measure)


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

    if measure == "loss" and every and min(every) > 0 and max(every) > WIDE * min(every):
        axes.set_yscale("log")
    _finish_panel(axes, column_label(column))
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
    figure = Figure((6.25, 2.25 * len(seen)), layout=ConstrainedLayoutEngine(), facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(seen), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), (title, pixels, probabilities) in zip(panels, seen, strict=True):
        left.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        left.set_axis_off()
        left.set_title(_short(title), fontsize=8, color=INK, parse_math=False)
        likeliest = np.sort((-probabilities).argsort(kind="stable")[:BARS])
        right.barh(range(len(likeliest)), probabilities[likeliest], color=COLOURS[0])
        right.set_yticks(
            range(len(likeliest)), [_short(names[label]) for label in likeliest], parse_math=False
        )
        right.invert_yaxis()
        right.set_xlim(0, 1)
        right.spines[["top", "right"]].set_visible(False)
        right.tick_params(colors=INK, length=2, labelsize=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # in file names
        return _png(figure)


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."


def _new_figure(height: float) -> Figure:
    figure = Figure((10, height), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure, title: str = "") -> bytes:
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    return png.getvalue()
