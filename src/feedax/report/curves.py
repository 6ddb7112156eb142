"""Loss and accuracy by epoch, drawn as one PNG."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# The object interface only: pyplot would keep figures and settings that belong to the caller.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from feedax.train.history import Row

INK = "#333333"
# Told apart also by those who see no difference between red and green, and in grey print.
COLOURS = ("#1f6fb4", "#e07b1a", "#3a9d78", "#9a5fb0")

TITLES = {"train": "training"}


def curves_png(rows: "Sequence[Row]", title: str = "") -> bytes:
    """Draw the history of a run.

    Args:
        rows: one row an epoch, as `fit` returns them; a measure named ``<set>_loss`` or
            ``<set>_accuracy`` is a line of its own.
        title: written above, small.

    Returns:
        A PNG of 1600 x 640 pixels.
    """
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(10, 4), layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    _draw_panel(axes[0], rows, "loss")
    _draw_panel(axes[1], rows, "accuracy")
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    png = io.BytesIO()
    canvas.print_figure(png, format="png", dpi=160)
    return png.getvalue()


def _draw_panel(axes: Any, rows: "Sequence[Row]", measure: str) -> None:
    sets = [key.removesuffix(f"_{measure}") for key in rows[0] if key.endswith(f"_{measure}")]
    lines = [(f"{TITLES.get(name, name)} set", f"{name}_{measure}") for name in sets]
    if not lines and measure in rows[0]:
        lines = [("while training", measure)]
    epochs = [row["epoch"] for row in rows]
    for (label, key), colour in zip(lines, COLOURS, strict=False):
        values = [float("nan") if row.get(key) is None else row[key] for row in rows]
        axes.plot(epochs, values, label=label, color=colour, linewidth=1.8, marker="o", ms=3.5)

    finish_panel(axes, measure)
    if lines:
        axes.legend(frameon=False, labelcolor=INK)


def finish_panel(axes: Any, name: str) -> None:
    """Name the axes of a panel over the epochs, and draw them in the house style."""
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(name, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    axes.tick_params(colors=INK, length=3)
