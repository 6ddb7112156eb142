"""What the network saw in each image, drawn beside its probabilities."""

import io
import warnings
from collections.abc import Sequence

import numpy as np

# The object interface only: pyplot would keep figures and settings that belong to the caller.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from feedax.report.curves import COLOURS, INK

BARS = 10
"""Classes of an image that are drawn: the likeliest ones, where there are more."""


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
    canvas = FigureCanvasAgg(figure)
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
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # in file names
        canvas.print_figure(png, format="png", dpi=160)
    return png.getvalue()


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."
