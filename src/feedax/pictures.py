"""A picture from a file that may be anybody's.

Pillow picks a decoder by the file's first bytes, whatever its name, and some of its decoders start
programs or read without end. So the decoders are named here, and only regular files are opened.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from feedax.errors import FeedaxError
from feedax.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read, by Pillow's names: decoders that compute, and start no program."""

_BYTES_A_PIXEL = 8
"""Of four channels with 16 bits; a file that is larger than all its pixels holds something else."""


def read_picture(path: str | Path, who: str, kind: Callable[[str], FeedaxError]) -> Image.Image:
    """Read the picture in a file, the first one of an animation, held as it was taken.

    Args:
        path: a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.
        who: the function that speaks in an error.
        kind: the class of the error.

    Returns:
        The picture, loaded, in the mode that the file has.

    Raises:
        FeedaxError: of `kind`; the file is missing, no regular file, of another format, corrupt,
            or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _opened(path, who, kind) as picture:
        picture.load()
        # A phone stores a photo lying down and notes how to hold it.
        return ImageOps.exif_transpose(picture)


def picture_size(path: str | Path, who: str, kind: Callable[[str], FeedaxError]) -> tuple[int, int]:
    """The width and height in pixels of what `read_picture` reads, by the file's head alone."""
    with _opened(path, who, kind) as picture:
        # Of a PNG without it in its head, Pillow would read all to look for it.
        has_exif = picture.format != "PNG" or "exif" in picture.info
        lies = has_exif and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (picture.height, picture.width) if lies else picture.size


@contextmanager
def _opened(
    path: str | Path, who: str, kind: Callable[[str], FeedaxError]
) -> Iterator[Image.Image]:
    """The picture in a file, not loaded yet; errors while it is used are said in a sentence."""
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    too_large = f"must have at most {limit:,} pixels, and it has more; make it smaller"
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > limit * _BYTES_A_PIXEL:
                raise kind(f"{who}: {path} {too_large}")
            with Image.open(file, formats=FORMATS) as picture:
                # Up to twice the limit, Pillow only warns.
                if picture.width * picture.height > limit:
                    raise kind(f"{who}: {path} {too_large}")
                yield picture
    except FeedaxError:
        raise
    except Exception as error:  # a decoder that meets a corrupt file may say so in any way
        match error:
            case IsADirectoryError():
                rest = "must be an image file, and it is a folder; name the files in it"
            case FileNotFoundError():
                rest = "must be an image file, and it is not there; check the path"
            case Image.DecompressionBombError() | Image.DecompressionBombWarning():
                rest = too_large
            case UnidentifiedImageError():
                rest = (
                    "must be a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM, and it is none of them; "
                    "convert it"
                )
            case OSError(filename=name) if name is not None:  # it was not opened
                rest = (
                    "must be an image file that can be read, and that fails "
                    f"({error.strerror}); name another one"
                )
            case _:
                said = " ".join(str(error).split()) or type(error).__name__
                rest = f"must be a whole image, and it cannot be read ({said}); get it again"
        raise kind(f"{who}: {path} {rest}") from error
