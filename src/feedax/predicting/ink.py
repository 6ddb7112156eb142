"""Ink on paper: what somebody wrote, found in a photograph of it.

Light falls unevenly, paper has lines, grain and edges. As document scanners do, the paper is
estimated around every pixel: a grey closing with a window that no stroke fills takes the ink away
and leaves the light, its sharp shadows too. What differs from the paper is ink, measured along the
colour in which the ink differs most.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

NOISE = 0.1
"""Of the strongest ink: what is fainter is the grain of the paper or of JPEG."""

BLANK = 24
"""Of 255: ink that stands out less from its background is none."""

FLAT = 12
"""Of 255: a background that varies less than this along the border is one colour."""

WINDOW = 0.22
"""Of the picture's longer side: no stroke is so wide, and a shadow's corners are hardly blunted."""


@dataclass(frozen=True)
class Ink:
    """What was written.

    Attributes:
        strength: float32 `(height, width)`, 0 where there is none.
        dark: whether it is darker than its paper.
        on_the_edge: whether it reaches the border of the picture.
        things: how many separate things there are; `strength` holds the largest only.
    """

    strength: np.ndarray
    dark: bool
    on_the_edge: bool
    things: int


def find_ink(picture: np.ndarray) -> Ink | None:
    """Separate what was written from what it was written on.

    Args:
        picture: float32 `(height, width, channels)`, 0 to 255.

    Returns:
        The ink, None where the picture is blank.
    """
    side = max(picture.shape)
    sigma = side / 300 if side > 100 else 0.0
    calm = ndimage.gaussian_filter(picture, (sigma, sigma, 0))
    outside = border(calm)
    paper = np.median(outside, axis=0)
    if np.mean(np.abs(outside - paper).max(1) > FLAT) < 0.1:
        difference = picture - paper
    else:
        signs, paper = _paper(calm, int(WINDOW * side) | 1)
        # In the shade, ink stands out less from its paper by the same factor.
        gain = np.clip((paper.mean((0, 1)) + 8) / (paper + 8), 0.3, 3)
        difference = picture - paper
        difference = np.where(signs * difference > 0, difference, 0) * gain
    direction = _direction(difference)
    strength = np.maximum(difference @ direction, 0)
    # A border without lines or grain: what is faint within it is ink.
    clean = (border(strength) <= NOISE * strength.max()).all()
    calm = strength if clean else ndimage.gaussian_filter(strength, 2 * sigma)
    level = calm.max()
    if level < BLANK:
        return None
    strong, least = calm > 0.5 * level, NOISE * level
    if not clean:
        # What the paper shows away from all strong ink, lines and grain, is not ink either.
        away = ~ndimage.binary_dilation(strong, iterations=max(2, side // 40))
        faint = np.percentile(calm[away], 99) if away.any() else 0.0
        least = min(max(least, 1.2 * faint), 0.6 * level)
    kept, things, on_the_edge = _one_thing(calm >= least, calm * strong)
    strength = np.where(kept & (strength >= least), strength, 0).astype(np.float32)
    return Ink(strength, bool(direction.sum() < 0), on_the_edge, things)


def border(picture: np.ndarray) -> np.ndarray:
    """The outermost pixels, in a row."""
    return np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])


def _direction(difference: np.ndarray) -> np.ndarray:
    """The unit vector in colour along which the strongest differences lie; opposite ones cancel."""
    sums = (difference * np.square(difference).sum(-1, keepdims=True)).sum((0, 1))
    return sums / max(np.linalg.norm(sums), 1e-9)


def _paper(calm: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """For each channel whether ink is brighter (1) or darker (-1), and the paper without ink."""
    step = max(1, max(calm.shape) // 36)
    small = calm[::step, ::step]
    # Ink covers less than half of any large window, so the median is paper.
    wide = 2 * (max(small.shape) // 4) + 1
    signs = np.sign(_direction(small - ndimage.median_filter(small, (wide, wide, 1))))
    paper = np.stack(
        [
            (ndimage.grey_opening if sign > 0 else ndimage.grey_closing)(
                calm[..., channel], (window, window), mode="nearest"
            )
            for channel, sign in enumerate(signs)
        ],
        axis=-1,
    )
    return signs, paper


def _one_thing(mask: np.ndarray, strong: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """The parts of the largest thing as a mask, how many things there are, and at the border?"""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    extents = np.array([max(side.stop - side.start for side in box) for box in boxes])
    weights = ndimage.sum_labels(strong, labels, np.arange(1, count + 1))
    on_the_edge = np.isin(np.arange(1, count + 1), border(labels))
    inner = ~on_the_edge & (weights > 0) & (extents > 0.04 * max(mask.shape))
    if inner.any():
        weights[on_the_edge & (extents > 0.6 * max(mask.shape))] = 0  # the end of the sheet, a line
    main = int((weights * (inner if inner.any() else 1)).argmax())
    # A five's bar may stand alone: parts that are near to each other are one thing.
    parts = [i for i in range(count) if weights[i] > 0.03 * weights[main]]
    joined = [i for i in parts if inner[i] or not inner.any()]
    kept = {main}
    while near := {
        i
        for i in joined
        if i not in kept and any(_gap(boxes[i], boxes[j]) <= 0.1 * extents[main] for j in kept)
    }:
        kept |= near
    others = sum(weights[i] > 0.15 * weights[main] for i in parts if i not in kept)
    return np.isin(labels, [i + 1 for i in kept]), 1 + others, bool(on_the_edge[list(kept)].any())


def _gap(one: tuple[slice, ...], other: tuple[slice, ...]) -> int:
    """Pixels between two boxes, along the axis where there are more; negative if they overlap."""
    return max(max(a.start - b.stop, b.start - a.stop) for a, b in zip(one, other, strict=True))
