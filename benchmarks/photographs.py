"""Digits as people photograph them, drawn from MNIST's own test digits: who reads how many?

Each picture is a test digit, enlarged to a smooth stroke, inked in a colour on paper, lit, turned
a little, and saved as a camera would. Everything is drawn from a seed. The kinds in `SEEN` were
looked at, with seeds 0 and 1, while `feedax.predicting` was written; nothing was changed for the
sake of those in `HELD_OUT`.

    python benchmarks/photographs.py RUN ... [--each 50] [--seed 2]
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timing
from PIL import Image, ImageFilter

Rng = np.random.Generator
Picture = np.ndarray
"""float32 `(height, width, 3)`, 0 to 255."""


@dataclass(frozen=True)
class Kind:
    """How a digit comes into a picture.

    Attributes:
        ink: draws the colour of the ink and that of the paper.
        height: of the digit, as the least and the greatest share of the picture's.
        pen: the width of the strokes: 0.5 as they are, below it thinner.
        turn: degrees, at most.
        tilt: how far the corners are moved, as a share of the side.
        paper: what is on the paper before it is lit, as functions of a generator and a picture.
        light: how it is lit, likewise.
        suffix, quality: how it is saved.
        blur: radius in pixels.
    """

    ink: Callable[[Rng], tuple[Any, Any]]
    height: tuple[float, float] = (0.35, 0.75)
    pen: float = 0.5
    turn: float = 8.0
    tilt: float = 0.04
    paper: tuple[Callable[[Rng, Picture], Picture], ...] = ()
    light: tuple[Callable[[Rng, Picture], Picture], ...] = ()
    suffix: str = ".jpg"
    quality: int = 85
    blur: float = 0.8


# ------------------------------------------------------------------------------- ink and paper


def black_on_white(rng: Rng) -> tuple[Any, Any]:
    return rng.uniform(10, 60) + rng.normal(0, 4, 3), rng.uniform(215, 250) + rng.normal(0, 4, 3)


def pencil(rng: Rng) -> tuple[Any, Any]:
    return rng.uniform(110, 150) + rng.normal(0, 4, 3), rng.uniform(200, 240) + rng.normal(0, 4, 3)


def coloured(rng: Rng) -> tuple[Any, Any]:
    inks = [(20, 40, 150), (190, 25, 35), (20, 110, 50), (100, 30, 130), (120, 60, 20)]
    papers = [(250, 240, 140), (250, 190, 200), (180, 220, 245), (190, 235, 185), (240, 240, 235)]
    return np.array(inks)[rng.integers(5)], np.array(papers)[rng.integers(5)]


def of_one_brightness(rng: Rng) -> tuple[Any, Any]:
    """Colours that are nearly one grey: red on green, blue on brown."""
    pairs = [((215, 40, 45), (80, 135, 75)), ((50, 80, 220), (150, 95, 40))]
    ink, paper = np.array(pairs[rng.integers(2)]) + rng.normal(0, 5, (2, 3))
    return ink, paper


def chalk(rng: Rng) -> tuple[Any, Any]:
    boards = [(30, 60, 45), (40, 42, 48), (25, 30, 70)]
    return rng.uniform(205, 245) + rng.normal(0, 5, 3), np.array(boards)[rng.integers(3)]


# --------------------------------------------------------------------------------- on the paper


def _grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from -1 to 1 along the rows and along the columns."""
    along = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape[:2]]
    rows, columns = np.meshgrid(*along, indexing="ij")
    return rows, columns


def _painted(picture: Picture, colour: Any, strength: np.ndarray) -> Picture:
    """The picture under a colour that covers it by 0 to 1, `(height, width)`."""
    strength = strength[..., None]
    return picture * (1 - strength) + np.asarray(colour, np.float32) * strength


def _ruled(
    rng: Rng, picture: Picture, across: bool, step: float, colour: Any, strength: float
) -> Picture:
    rows, columns = _grid(picture.shape)
    slope = rng.uniform(-0.05, 0.05)
    place = (rows + slope * columns if across else columns + slope * rows) / step + rng.uniform()
    width = rng.uniform(0.003, 0.007) / step
    line = np.clip(1.6 - np.abs(place - np.rint(place)) / width, 0, 1) * strength
    return _painted(picture, colour, line)


def lined(rng: Rng, picture: Picture) -> Picture:
    step, strength = rng.uniform(0.16, 0.35), rng.uniform(0.4, 0.8)
    return _ruled(rng, picture, True, step, (110, 140, 200), strength)


def squared(rng: Rng, picture: Picture) -> Picture:
    step, strength = rng.uniform(0.1, 0.2), rng.uniform(0.25, 0.5)
    for across in (True, False):
        picture = _ruled(rng, picture, across, step, (120, 150, 170), strength)
    return picture


def margin(rng: Rng, picture: Picture) -> Picture:
    """The red line at the left of an exercise book."""
    rows, columns = _grid(picture.shape)
    away = np.abs(columns + 0.02 * rows + rng.uniform(0.85, 0.95))
    return _painted(picture, (210, 70, 80), np.clip(1.5 - away / 0.006, 0, 1) * 0.8)


def specks(rng: Rng, picture: Picture) -> Picture:
    """Dust and crumbs, darker and lighter."""
    height, width = picture.shape[:2]
    ys, xs = np.ogrid[:height, :width]
    for _ in range(rng.integers(8, 25)):
        radius = rng.uniform(0.6, 0.008 * width)
        near = (ys - rng.uniform(0, height)) ** 2 + (xs - rng.uniform(0, width)) ** 2 < radius**2
        picture[near] = picture[near] * rng.uniform(0.2, 0.6)
    return picture


def stain(rng: Rng, picture: Picture) -> Picture:
    """The ring of a cup."""
    rows, columns = _grid(picture.shape)
    radius = np.hypot(rows - rng.uniform(-1, 1), columns - rng.uniform(-1, 1))
    ring = np.exp(-(((radius - rng.uniform(0.5, 0.9)) / 0.03) ** 2))[..., None]
    return picture * (1 - ring * np.array((0.1, 0.2, 0.35), np.float32))


def _smooth(rng: Rng, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """A smooth random field from 0 to 1."""
    noise = Image.fromarray(rng.random((cells, cells), np.float32))
    smooth = np.asarray(noise.resize(shape[1::-1], Image.Resampling.BICUBIC))
    return (smooth - smooth.min()) / np.ptp(smooth)


def crumpled(rng: Rng, picture: Picture) -> Picture:
    return picture * (1 - rng.uniform(0.15, 0.3) * _smooth(rng, picture.shape, 9))[..., None]


def on_a_table(rng: Rng, picture: Picture) -> Picture:
    """The sheet ends within the picture, on one or two sides."""
    rows, columns = _grid(picture.shape)
    slope = rng.uniform(-0.06, 0.06)
    outside = rows + slope * columns > rng.uniform(0.82, 0.95)
    if rng.random() < 0.6:
        outside |= columns - slope * rows < -rng.uniform(0.82, 0.95)
    table = np.array([(90, 60, 35), (50, 50, 55), (140, 110, 80)])[rng.integers(3)]
    wood = table * (0.85 + 0.3 * _smooth(rng, picture.shape, 14))[..., None]
    return np.where(outside[..., None], wood, picture)


# ---------------------------------------------------------------------------------------- light


def uneven(rng: Rng, picture: Picture) -> Picture:
    """A lamp at one side: the far side has a third to two thirds of its light."""
    rows, columns = _grid(picture.shape)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * rows + np.sin(angle) * columns) / 2.83 + 0.5
    return picture * (1 - rng.uniform(0.35, 0.65) * ramp ** rng.uniform(0.7, 1.5))[..., None]


def lamp(rng: Rng, picture: Picture) -> Picture:
    """A warm spot of light, dim around."""
    rows, columns = _grid(picture.shape)
    far = (rows - rng.uniform(-0.6, 0.6)) ** 2 + (columns - rng.uniform(-0.6, 0.6)) ** 2
    glow = 0.35 + 0.65 * np.exp(-far / rng.uniform(0.6, 1.5))
    return picture * glow[..., None] * np.array((1, 0.93, 0.78), np.float32)


def _shaded(rng: Rng, picture: Picture, depth: np.ndarray) -> Picture:
    """`depth` is above 0 within the shadow; its edge may be sharp."""
    edge = np.clip(depth / rng.choice([0.01, 0.05, 0.2]) + 0.5, 0, 1)
    return picture * (1 - rng.uniform(0.3, 0.55) * edge)[..., None]


def shadow(rng: Rng, picture: Picture) -> Picture:
    """A shadow with a straight edge across the picture."""
    rows, columns = _grid(picture.shape)
    angle = rng.uniform(0, 2 * np.pi)
    depth = np.cos(angle) * rows + np.sin(angle) * columns - rng.uniform(-0.5, 0.5)
    return _shaded(rng, picture, depth)


def hand(rng: Rng, picture: Picture) -> Picture:
    """The shadow of the hand or the telephone: a blob that comes in from a corner."""
    rows, columns = _grid(picture.shape)
    y, x = rng.choice([-1, 1], 2)
    radius = rng.uniform(1.0, 1.6) + 0.4 * _smooth(rng, picture.shape, 4)
    return _shaded(rng, picture, radius - np.hypot(rows - y, columns - x))


def _grain(strength: float) -> Callable[[Rng, Picture], Picture]:
    return lambda rng, picture: picture + rng.normal(0, strength, picture.shape).astype(np.float32)


soft_grain, grain = _grain(3), _grain(14)

SEEN = {
    "plain": Kind(black_on_white, suffix=".png"),
    "thin pen": Kind(black_on_white, pen=0.24, light=(soft_grain,)),
    "felt pen": Kind(black_on_white, (0.75, 0.92), pen=0.8, light=(soft_grain,)),
    "uneven light": Kind(black_on_white, light=(uneven, soft_grain)),
    "shadow with an edge": Kind(black_on_white, light=(shadow, soft_grain)),
    "lined paper": Kind(black_on_white, paper=(lined,), light=(soft_grain,)),
    "grain, strong JPEG": Kind(black_on_white, light=(uneven, grain), quality=25),
    "coloured ink and paper": Kind(coloured, light=(uneven, soft_grain)),
    "chalk on a board": Kind(chalk, light=(uneven, soft_grain)),
    "edge of the sheet": Kind(
        black_on_white, (0.3, 0.5), paper=(on_a_table,), light=(uneven, soft_grain)
    ),
    "dust and a stain": Kind(black_on_white, paper=(stain, specks), light=(uneven, soft_grain)),
    "pencil": Kind(pencil, pen=0.35, light=(uneven, soft_grain)),
    "pencil in a shadow": Kind(pencil, pen=0.4, light=(shadow, soft_grain)),
}
HELD_OUT = {
    "squared paper by a lamp": Kind(black_on_white, paper=(squared,), light=(lamp, soft_grain)),
    "exercise book, uneven light": Kind(
        coloured, paper=(lined, margin), light=(uneven, soft_grain)
    ),
    "shadow of a hand": Kind(black_on_white, light=(hand, soft_grain)),
    "crumpled paper": Kind(black_on_white, paper=(crumpled,), light=(uneven, soft_grain)),
    "blurred, WebP": Kind(
        black_on_white, light=(lamp, soft_grain), blur=4.0, suffix=".webp", quality=40
    ),
    "ink as bright as the paper": Kind(of_one_brightness, light=(soft_grain,)),
    "turned and tilted": Kind(black_on_white, turn=15.0, tilt=0.09, light=(uneven, soft_grain)),
}
KINDS = SEEN | HELD_OUT


def _perspective(rng: Rng, side: int, kind: Kind) -> list[float]:
    """The eight numbers of Pillow's PERSPECTIVE for a turn and moved corners."""
    angle = np.deg2rad(rng.uniform(-kind.turn, kind.turn))
    to = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float) - 0.5
    turned = to @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    source = (turned + rng.uniform(-kind.tilt, kind.tilt, (4, 2)) + 0.5) * side
    rows = []
    for (x, y), (u, v) in zip((to + 0.5) * side, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return list(np.linalg.solve(np.array(rows), source.ravel()))


def photograph(digit: np.ndarray, kind: Kind, rng: Rng) -> Image.Image:
    """A picture of a digit, mode RGB, some 300 to 480 pixels a side.

    Args:
        digit: uint8 `(28, 28)`, bright on black.
        kind: how it is drawn.
        rng: of all that is random.
    """
    height, width = rng.integers(300, 480, 2)
    side = int(min(height, width) * rng.uniform(*kind.height) * 28 / 20)
    smooth = Image.fromarray(digit.astype(np.float32) / 255)
    stroke = np.asarray(smooth.resize((side, side), Image.Resampling.BICUBIC))
    # Cut at a level of the smooth field, the strokes get a pen's edge, at any width.
    ink = np.clip((stroke - (1 - kind.pen)) * side / 28 * 0.6 + 0.5, 0, 1)
    tilt = Image.Transform.PERSPECTIVE, _perspective(rng, side, kind), Image.Resampling.BILINEAR
    mask = np.asarray(Image.fromarray(ink.astype(np.float32)).transform((side, side), *tilt))
    spare = height - side, width - side
    top, left = (int(rng.integers(s + 1)) if s > 0 else s // 2 for s in spare)
    y, x = max(top, 0), max(left, 0)
    part = mask[y - top : height - top, x - left : width - left]
    alpha = np.zeros((height, width), np.float32)
    alpha[y : y + part.shape[0], x : x + part.shape[1]] = part

    ink_colour, paper_colour = (np.asarray(c, np.float32) for c in kind.ink(rng))
    picture = np.broadcast_to(paper_colour, (height, width, 3)).copy()
    for mark in kind.paper:
        picture = mark(rng, picture)
    picture = _painted(picture, ink_colour, alpha)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    picture = np.asarray(image.filter(ImageFilter.GaussianBlur(kind.blur)), np.float32)
    for change in kind.light:
        picture = change(rng, picture)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def photographs(
    images: np.ndarray, labels: np.ndarray, kinds: dict[str, Kind], each: int, seed: int, to: Path
) -> Iterator[tuple[str, Path, int]]:
    """Write so many pictures of each kind; yield the kind, the file and the label of each.

    `images` are uint8 `(n, 28, 28)`, the digits to draw from, and `labels` int `(n,)`.
    """
    for number, (name, kind) in enumerate(kinds.items()):
        rng = np.random.default_rng([seed, number])
        for i, digit in enumerate(rng.choice(len(images), each, replace=False)):
            file = to / f"{name.replace(' ', '-')}-{i}{kind.suffix}"
            photograph(images[digit], kind, rng).save(file, quality=kind.quality)
            yield name, file, int(labels[digit])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, trained on MNIST")
    parser.add_argument("--each", type=int, default=50, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()

    # Not above: a test draws pictures without them.
    import jax

    import feedax
    from feedax.predicting import UNSURE, prepare_image
    from feedax.report.run_folder import RunFolder

    print(timing.machine())
    digits = feedax.datasets.mnist(train=False)
    images, targets = digits.data.numpy(), digits.targets.numpy()
    each, seed = arguments.each, arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        names, files, labels = zip(
            *photographs(images, targets, KINDS, each, seed, Path(folder)), strict=True
        )
        examples = np.stack([prepare_image(file, (28, 28), "mnist").pixels for file in files])
    examples = examples.reshape(len(files), -1).astype(np.float32)
    right, sure = [], []
    for run in map(RunFolder.open, arguments.runs):
        divisor = 255 if "--scale-pixels" in run.setting("arguments") else 1
        params = run.load_params(feedax.init_mlp(run.setting("layers"), jax.random.key(0)))
        predict = partial(feedax.mlp, divisor=divisor)
        logs = np.asarray(jax.vmap(predict, (None, 0))(params, examples))
        right.append(logs.argmax(1) == labels)
        sure.append(np.exp(logs).max(1) >= UNSURE)

    print("|", " | ".join([f"seed {seed}", "pictures", *(run.name for run in arguments.runs)]), "|")
    print("|---|---:|" + "---:|" * len(arguments.runs))
    rows = {name: [name] for name in KINDS}
    rows |= {"all that were looked at": [*SEEN], "all that were held out": [*HELD_OUT]}
    for title, kinds in rows.items():
        which = np.isin(names, kinds)
        shares = (f"{np.mean(one[which]):.3f}" for one in right)
        print("|", " | ".join([title, str(which.sum()), *shares]), "|")
    for run, is_right, is_sure in zip(arguments.runs, right, sure, strict=True):
        print(
            f"{run.name}: unsure of {(~is_sure).sum()}, of which {(~is_sure & ~is_right).sum()} "
            f"wrong; sure of {is_sure.sum()}, of which {(is_sure & ~is_right).sum()} wrong"
        )


if __name__ == "__main__":
    main()
