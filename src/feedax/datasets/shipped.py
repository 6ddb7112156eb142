"""MNIST from the bytes that the package ships: no download, ever."""

import gzip
import hashlib
import importlib.resources
import zlib
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import MNIST

from feedax.datasets.arguments import FLATTEN, AnyPath, Transform, folder_error, root_or_cache
from feedax.errors import DatasetError
from feedax.files import open_regular, replace_file


@dataclass(frozen=True)
class _Content:
    size: int
    md5: str

    def __str__(self) -> str:
        return f"{self.size} bytes with MD5 {self.md5}"


_TRAIN = {
    "train-images-idx3-ubyte": _Content(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": _Content(60_008, "a25bea736e30d166cdddb491f175f624"),
}
_TEST = {
    "t10k-images-idx3-ubyte": _Content(7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": _Content(10_008, "27ae3e4e09519cfbb04c329615203637"),
}


def mnist(
    train: bool = True,
    root: AnyPath | None = None,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> MNIST:
    """The MNIST digits as torchvision's own dataset, made from the files inside the package.

    The first call unpacks them to `MNIST/raw` in the cache folder (55 MB). Every call compares
    the files it is about to use with their known MD5. A damaged file in the cache is replaced
    without a word; in a `root` of yours it is never touched.

    Args:
        train: the 60000 training examples, or else the 10000 test examples.
        root: the folder to use instead of the cache folder. MNIST files that torchvision put
            there are used as they are; missing ones are added.
        transform: a function of a PIL image, mode "L", 28 x 28. None leaves the image.
        target_transform: a function of the label, an int from 0 to 9.

    Returns:
        `torchvision.datasets.MNIST`: examples `(float32 (784,), int)` with the default transform.

    Raises:
        DatasetError: the folder cannot be used or has no space, a file in your `root` is damaged,
            or the installed package itself is.

    >>> data = mnist()
    >>> image, label = data[0]
    >>> len(data), image.shape, image.dtype, image.max().item(), label
    (60000, (784,), dtype('float32'), 255.0, 5)
    """
    folder = root_or_cache(root)
    raw = folder / "MNIST" / "raw"
    try:
        _refuse_processed_files(folder)
        raw.mkdir(parents=True, exist_ok=True)
        for name, content in (_TRAIN if train else _TEST).items():
            _provide(raw / name, content, replace=root is None)
        # torchvision refuses to open either part unless the other one's files exist as well.
        for name, content in (_TEST if train else _TRAIN).items():
            if not (raw / name).is_file():
                replace_file(raw / name, _unpack(name, content))
    except OSError as error:
        raise folder_error("mnist", raw, error, "about 55 MB") from error
    return MNIST(folder, train=train, transform=transform, target_transform=target_transform)


def _refuse_processed_files(folder: Path) -> None:
    """torchvision prefers the files of its 2021 versions, which have no known MD5."""
    old = [folder / "MNIST" / "processed" / name for name in ("training.pt", "test.pt")]
    if all(path.exists() for path in old):
        raise DatasetError(
            who="mnist",
            rule="the files in MNIST/raw are the ones to read",
            found=f"torchvision would read {old[0]} instead",
            remedy=f"delete {old[0].parent} or name another folder with root=DIR",
        )


def _provide(path: Path, content: _Content, replace: bool) -> None:
    """Make sure that the file at `path` has the content."""
    found = _content_of(path)
    if found == content:
        return
    if found is not None and not replace:
        raise DatasetError(
            who="mnist",
            rule=f"{path} must hold {content}",
            found=f"it holds {found}",
            remedy="delete it to have it written anew or name another folder with root=DIR",
        )
    payload = _unpack(path.name, content)
    try:
        replace_file(path, payload)
    except OSError:
        # Windows refuses to replace a file that another process has open: one that unpacked it
        # a moment earlier, and reads it now.
        if _content_of(path) != content:
            raise


def _content_of(path: Path) -> _Content | None:
    """Size and MD5 of a file, None where there is no file."""
    try:
        with open_regular(path) as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
            return _Content(file.tell(), md5)
    except FileNotFoundError:
        return None


def _unpack(name: str, content: _Content) -> bytes:
    """The bytes of one shipped file."""
    packed = importlib.resources.files("feedax.datasets") / "shipped_mnist" / f"{name}.gz"
    cause: Exception | None = None
    try:
        payload = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        cause = error
    else:
        if _md5(payload).hexdigest() == content.md5:
            return payload
    raise DatasetError(
        f"mnist: the installed package must hold {packed} intact, and the file is missing or "
        "damaged; install feedax again"
    ) from cause


def _md5(payload: bytes = b"") -> "hashlib._Hash":
    # Machines under FIPS rules allow MD5 only for uses like this one.
    return hashlib.md5(payload, usedforsecurity=False)
