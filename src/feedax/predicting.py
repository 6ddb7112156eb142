"""What `feedax predict` makes of a person's image: an example as those of training were.

A network for MNIST has only seen bright digits on black, 20 pixels long, with their centre of mass
in the middle of 28 x 28. A photo or a drawing is none of that, so it is brought there the way MNIST
itself was made (LeCun, Cortes, Burges), and what was done is said in words.

In a photograph light falls unevenly, and paper has lines, grain and edges. As document scanners do,
the paper is estimated around every pixel: a grey closing with a window that no stroke fills takes
the ink away and leaves the light, its sharp shadows too. What differs from the paper is ink,
measured along the colour in which the ink differs most.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from feedax.errors import ImageError
from feedax.pictures import read_picture

SMALL = 8
"""Pixels: ink that is smaller has been enlarged out of hardly anything."""

LARGE = 600
"""Pixels of the longer side: a larger picture is averaged down to it before ink is looked for."""

UNSURE = 0.7
"""Where the likeliest class has less, a network errs in every second to fourth photograph."""

NOISE = 0.1
"""Of the strongest ink: what is fainter is the grain of the paper or of JPEG."""

BLANK = 24
"""Of 255: ink that stands out less from its background is none."""

FLAT = 12
"""Of 255: a background that varies less than this along the border is one colour."""

WINDOW = 0.22
"""Of the picture's longer side: no stroke is so wide, and a shadow's corners are hardly blunted."""


def doubts(probabilities: np.ndarray) -> tuple[str, ...]:
    """A note where the likeliest class is not likely enough.

    >>> doubts(np.array([0.9, 0.1]))
    ()
    """
    if probabilities.max() >= UNSURE:
        return ()
    return (f"uncertain to the network, whose likeliest class has a probability below {UNSURE}",)


@dataclass(frozen=True)
class PreparedImage:
    """One example for a model.

    Attributes:
        pixels: uint8, of the shape that was asked for.
        notes: what was done to the image and what is doubtful, in words; empty where it is as the
            dataset has it.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Framing:
    """How a family of 28 x 28 grey datasets places its ink.

    Attributes:
        length: pixels of the ink's longer side.
        by_mass: centred by the centre of mass, or else by the bounding box.
        transposed: the dataset stores its images with rows and columns exchanged.
        strict: every image of the dataset is framed so, within two pixels of length and one of
            place, so 28 x 28 pixels that are not are framed anew. (All 70,000 of MNIST are.)
    """

    length: int = 20
    by_mass: bool = True
    transposed: bool = False
    strict: bool = False


FRAMINGS = {
    "mnist": Framing(strict=True),
    "fashion_mnist": Framing(length=28, by_mass=False),
    "emnist": Framing(length=24, by_mass=False, transposed=True),
}
"""By the dataset's name; drawings for every other one are framed like MNIST."""


def prepare_image(path: str | Path, shape: tuple[int, ...], dataset: str = "") -> PreparedImage:
    """Read an image file and bring it into the form of a model's examples.

    Args:
        path: a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM of any size.
        shape: of one example, `(height, width)` for grey or `(height, width, channels)`.
        dataset: the name of the dataset that the model was trained on; it says how 28 x 28 grey
            images are framed.

    Raises:
        ImageError: the file is missing, is no such image, is corrupt, huge or blank, or there is no
            way from an image to `shape`.
    """
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(
            f"prepare_image: the model's examples must be grey or colour images, and their shape "
            f"is {tuple(shape)}; prepare such examples in Python"
        )
    with warnings.catch_warnings():
        # Odd EXIF, odd palettes; what Pillow warns of as too large is an error.
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        image = read_picture(path, "prepare_image", ImageError)
    if _is_framed_shape(shape):
        pixels, notes = _framed(image, FRAMINGS.get(dataset, Framing()), path)
    else:
        pixels, notes = _cropped(image, shape)
    return PreparedImage(pixels.reshape(shape), tuple(notes))


def canvas_data(
    shape: tuple[int, ...],
    dataset: str,
    class_names: Sequence[str],
    program: Mapping[str, Any] | None = None,
    white: float = 255.0,
) -> dict[str, Any]:
    """What ``feedax.canvas`` of a page needs to know, as plain JSON.

    Args:
        shape, dataset: as in `prepare_image`.
        class_names: of the network's outputs.
        program: what `feedax.train.page_program.network_program` returns, of a network that takes
            the pixels in any shape. None where a server prepares and predicts.
        white: what the network's examples have for a white pixel; black is 0.

    Raises:
        ImageError: there is a program, and the shape is none that a page brings a drawing to.

    >>> canvas_data((28, 28), "mnist", ["0", "1"])["framing"]["length"]
    20
    """
    if program is not None and not _is_framed_shape(shape):
        raise ImageError(
            who="canvas_data",
            rule="a page brings a drawing to 28 x 28 grey pixels",
            found=f"the shape of the network's examples is {tuple(shape)}",
            remedy="let feedax show run it on this machine",
        )
    framing = asdict(FRAMINGS.get(dataset, Framing()))
    return {
        "shape": list(shape),
        "framing": {**framing, "blank": BLANK, "noise": NOISE},
        "classNames": list(class_names),
        "unsure": UNSURE,
        "program": program,
        "white": white,
    }


def _is_framed_shape(shape: tuple[int, ...]) -> bool:
    return tuple(shape[:2]) == (28, 28) and shape[2:] in ((), (1,))


def _framed(image: Image.Image, framing: Framing, path: str | Path) -> tuple[np.ndarray, list[str]]:
    """A drawing of any size as 28 x 28 bright ink on black."""
    size = f"{image.width} x {image.height} pixels"
    image = _smaller(image)
    grey, notes = _grey(image), []
    inverted = bool(np.median(_border(grey)) > 127)
    bright = 255 - grey if inverted else grey
    # Bright on exact black, as a dataset has it?
    if grey.shape == (28, 28) and np.median(_border(bright)) == 0 and bright.max() >= BLANK:
        if not framing.strict or is_framed(bright, framing):
            notes += ["dark on light, so inverted"] * inverted
            return np.rint(bright.T if framing.transposed else bright).astype(np.uint8), notes
        size += " not framed as the dataset's"
    ink = _find_ink(_colours(image, grey))
    if ink is None:
        raise ImageError(
            f"prepare_image: {path} must show something, and it is blank; write with a darker pen"
        )
    if ink.is_dark:
        notes.append("dark on light, so inverted")
    pixels, extent = _placed(ink.strength, framing)
    if max(extent) < SMALL:
        size += f" with ink of only {extent[1]} x {extent[0]}"
    notes.append(f"{size}, so cropped to the ink, scaled and centred in 28 x 28")
    if ink.things > 1:
        notes.append(f"perhaps {ink.things} things, of which the largest was taken")
    if ink.is_on_the_edge:
        notes.append("perhaps cut off, since ink touches the border")
    return np.rint(pixels.T if framing.transposed else pixels).astype(np.uint8), notes


def _smaller(image: Image.Image) -> Image.Image:
    factor = -(-max(image.size) // LARGE)
    if factor == 1:
        return image
    if image.has_transparency_data:
        return image.convert("RGBA").reduce(factor)
    if image.mode.startswith("I"):
        image = Image.fromarray(_grey(image))
    return (image.convert("RGB") if image.mode in ("1", "P") else image).reduce(factor)


def is_framed(grey: np.ndarray, framing: Framing) -> bool:
    """Whether `(28, 28)` bright on black lies as a framing by mass says.

    The ink may differ by two pixels in length and by one in place.
    """
    ink = np.where(grey >= NOISE * grey.max(), grey, 0)
    length = max(np.ptp(np.flatnonzero(ink.any(axis))) + 1 for axis in (0, 1))
    off = max(abs(middle - 14) for middle in _centre_of_mass(ink))
    return bool(abs(length - framing.length) <= 2 and off <= 1)


def _colours(image: Image.Image, grey: np.ndarray) -> np.ndarray:
    """float32 `(height, width, channels)`, 0 to 255, of three channels where there is colour."""
    if image.has_transparency_data or image.mode in ("1", "L", "F") or image.mode[0] == "I":
        return grey[..., None]
    return np.asarray(image.convert("RGB"), np.float32)


def _grey(image: Image.Image) -> np.ndarray:
    """float32 `(height, width)`, 0 to 255; what is transparent takes the ink's opposite."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        return np.asarray(image, np.float32) / 257
    if image.mode == "F":
        return np.clip(np.asarray(image, np.float32), 0, 255)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), np.float32)
    grey, alpha = np.split(np.asarray(image.convert("RGBA").convert("LA"), np.float32), 2, axis=2)
    opacity = alpha / 255
    ink = (grey * opacity).sum() / max(opacity.sum(), 1)
    paper = 255.0 if ink < 128 else 0.0
    return np.rint(grey * opacity + paper * (1 - opacity))[..., 0]


def _placed(ink: np.ndarray, framing: Framing) -> tuple[np.ndarray, tuple[int, int]]:
    """The ink in a 28 x 28 frame, and the `(height, width)` it had."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = framing.length / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    # Averaging over areas gives an enlarged MNIST digit back exactly; enlarging needs a curve.
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    picture = Image.fromarray(np.ascontiguousarray(box))
    small = np.asarray(picture.resize((width, height), method))
    # A thin pen grows faint when it is scaled down; the dataset's strokes are always bright.
    small = np.clip(small * (255 / small.max()), 0, 255)

    if framing.by_mass:
        offsets = [14 - middle for middle in _centre_of_mass(small)]  # MNIST's lie at pixel 14
    else:
        offsets = [(28 - side) / 2 for side in small.shape]
    top, left = (
        min(max(round(offset), 0), 28 - side)
        for offset, side in zip(offsets, small.shape, strict=True)
    )
    frame = np.zeros((28, 28), np.float32)
    frame[top : top + height, left : left + width] = small
    return frame, box.shape


def _centre_of_mass(image: np.ndarray) -> tuple[float, float]:
    total = image.sum()
    rows, columns = np.indices(image.shape)
    return float((rows * image).sum() / total), float((columns * image).sum() / total)


def _cropped(image: Image.Image, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """The middle of a picture at the model's size and channels."""
    height, width, *channels = shape
    mode = {(): "L", (1,): "L", (3,): "RGB", (4,): "RGBA"}[tuple(channels)]
    notes = []
    if image.has_transparency_data and mode != "RGBA":
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        notes.append("transparent, so laid on white")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey(image).astype(np.uint8))
    size = image.size
    image = image.convert(mode)
    if size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        notes.append(
            f"{size[0]} x {size[1]} pixels, so its middle was scaled to {width} x {height}"
        )
    return np.asarray(image), notes


class _Ink(NamedTuple):
    """What was written, the largest of so many separate things."""

    strength: np.ndarray  # float32 (height, width), 0 where there is no ink
    is_dark: bool  # darker than its paper
    is_on_the_edge: bool  # it reaches the border of the picture
    things: int


def _find_ink(picture: np.ndarray) -> _Ink | None:
    """What was written on a picture, float32 `(height, width, channels)`; None if it is blank."""
    from scipy import ndimage

    side = max(picture.shape)
    sigma = side / 300 if side > 100 else 0.0
    calm = ndimage.gaussian_filter(picture, (sigma, sigma, 0))
    outside = _border(calm)
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
    clean = (_border(strength) <= NOISE * strength.max()).all()
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
    return _Ink(strength, bool(direction.sum() < 0), on_the_edge, things)


def _border(picture: np.ndarray) -> np.ndarray:
    """The outermost pixels, in a row."""
    return np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])


def _direction(difference: np.ndarray) -> np.ndarray:
    """The unit vector in colour along which the strongest differences lie; opposite ones cancel."""
    sums = (difference * np.square(difference).sum(-1, keepdims=True)).sum((0, 1))
    return sums / max(np.linalg.norm(sums), 1e-9)


def _paper(calm: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """For each channel whether ink is brighter (1) or darker (-1), and the paper without ink."""
    from scipy import ndimage

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
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    extents = np.array([max(side.stop - side.start for side in box) for box in boxes])
    weights = ndimage.sum_labels(strong, labels, np.arange(1, count + 1))
    on_the_edge = np.isin(np.arange(1, count + 1), _border(labels))
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
