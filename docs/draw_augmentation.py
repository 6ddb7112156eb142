"""Draws docs/images/augmentation.png: six digits, and what each augmentation makes of them.

python docs/draw_augmentation.py
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import feedax
from feedax import augment

DIGITS = 6
ROWS = {
    "as they are": lambda key, image: image,
    "affine": partial(augment.affine, rotation=15, scale=0.15, shear=0.1, translation=2),
    "elastic": partial(augment.elastic, alpha=36, sigma=4),
    "warp": partial(
        augment.warp, rotation=15, scale=0.15, shear=0.1, translation=2, alpha=36, sigma=4
    ),
    "crop": partial(augment.crop, padding=4),
    "cutout": partial(augment.cutout, size=10),
    "contrast": partial(augment.contrast, strength=0.8),
}


def main() -> None:
    images = np.asarray(feedax.datasets.mnist().data[:DIGITS], np.float32) / 255
    figure = Figure(figsize=(0.62 * DIGITS + 1.2, 0.62 * len(ROWS)), facecolor="white")
    axes = figure.subplots(len(ROWS), DIGITS)
    for row, (name, change) in zip(axes, ROWS.items(), strict=True):
        changed = jax.vmap(change)(jax.random.split(jax.random.key(1), DIGITS), images)
        for cell, image in zip(row, changed, strict=True):
            cell.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_color("#cccccc")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color="#333333")
    figure.subplots_adjust(left=0.22, right=0.99, top=0.99, bottom=0.01, wspace=0.06, hspace=0.06)
    path = Path(__file__).parent / "images" / "augmentation.png"
    FigureCanvasAgg(figure).print_figure(path, dpi=160)


if __name__ == "__main__":
    main()
