"""An image file, prepared as the training examples were.

A network for MNIST has only seen bright digits on black, 20 pixels long, with their centre of mass
in the middle of 28 x 28. A photo or a drawing is none of that, so it is brought there the way MNIST
itself was made (LeCun, Cortes, Burges), and what was done is said in words.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from feedax.errors import ImageError

BLANK = 24
"""Of 255: ink that stands out less from its background is none."""

NOISE = 0.1
"""Of the strongest ink: what is fainter is the grain of the paper or of JPEG."""

SMALL = 8
"""Pixels: ink that is smaller has been enlarged out of hardly anything."""


@dataclass(frozen=True)
class PreparedImage:
    """One example for a model.

    Attributes:
        pixels: uint8, of the shape that was asked for.
        notes: what was done to the image, in words; empty where nothing had to be.
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
    """

    length: int = 20
    by_mass: bool = True
    transposed: bool = False


FRAMINGS = {
    "fashion_mnist": Framing(length=28, by_mass=False),
    "emnist": Framing(length=24, by_mass=False, transposed=True),
}
"""By the dataset's name; every other one is framed like MNIST."""


def prepare_image(path: str | Path, shape: tuple[int, ...], dataset: str = "") -> PreparedImage:
    """Read an image file and bring it into the form of a model's examples.

    Args:
        path: a PNG or JPEG of any size.
        shape: of one example, `(height, width)` for grey or `(height, width, channels)`.
        dataset: the name of the dataset that the model was trained on; it says how 28 x 28 grey
            images are framed.

    Raises:
        ImageError: the file is missing, is no PNG or JPEG, is corrupt, huge or blank, or there is
            no way from an image to `shape`.
    """
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(
            f"prepare_image: the model's examples must be grey or colour images, and their shape "
            f"is {tuple(shape)}; prepare such examples in Python"
        )
    image = _read(Path(path))
    if tuple(shape[:2]) == (28, 28) and shape[2:] in ((), (1,)):
        pixels, notes = _framed(image, FRAMINGS.get(dataset, Framing()), path)
    else:
        pixels, notes = _cropped(image, shape)
    return PreparedImage(pixels.reshape(shape), tuple(notes))


def _read(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's guard against a small file that unpacks to a huge image.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # odd EXIF, odd palettes
            # Only these two: some of Pillow's other formats start programs.
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                image.load()
                # A phone stores a photo lying down and notes how to hold it.
                return ImageOps.exif_transpose(image)
    except IsADirectoryError:
        raise ImageError(
            f"prepare_image: {path} must be an image file, and it is a folder; name the files in it"
        ) from None
    except FileNotFoundError:
        raise ImageError(
            f"prepare_image: {path} must be an image file, and it is not there; check the path"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"prepare_image: {path} must have fewer than {Image.MAX_IMAGE_PIXELS:,} pixels, and it "
            f"has more; make it smaller"
        ) from error
    except UnidentifiedImageError:
        raise ImageError(
            f"prepare_image: {path} must be a PNG or JPEG, and it is neither; convert it"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's three ways to say corrupt
        raise ImageError(
            f"prepare_image: {path} must be a whole image, and it cannot be read ({error}); "
            f"get it again"
        ) from error


def _framed(image: Image.Image, framing: Framing, path: str | Path) -> tuple[np.ndarray, list[str]]:
    """A drawing of any size as 28 x 28 bright ink on black."""
    notes = []
    grey = _grey(image)
    background = _border_level(grey)
    if background > 127:
        notes.append("dark on light, so inverted")
        grey, background = 255 - grey, 255 - background
    if grey.max() - background < BLANK:
        raise ImageError(
            f"prepare_image: {path} must show something, and it is blank; write with a darker pen"
        )
    if grey.shape == (28, 28) and background == 0:
        pixels = grey  # as the dataset has it
    else:
        size = f"{image.width} x {image.height} pixels"
        ink = np.maximum(grey - background, 0.0)
        ink[ink < NOISE * ink.max()] = 0
        pixels, extent = _placed(ink, framing)
        if max(extent) < SMALL:
            size += f" with ink of only {extent[1]} x {extent[0]}"
        notes.append(f"{size}, so cropped to the ink, scaled and centred in 28 x 28")
    if framing.transposed:
        pixels = pixels.T
    return np.rint(pixels).astype(np.uint8), notes


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


def _border_level(grey: np.ndarray) -> float:
    """The background: the median of the outermost pixels, which ink rarely reaches."""
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    return float(np.median(border))


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
