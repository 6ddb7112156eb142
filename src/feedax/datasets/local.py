"""The user's own examples: a folder of images, or an npz file of arrays."""

import math
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from feedax.data.array_dataset import ArrayDataset, FlattenAndCast
from feedax.datasets.standard import FLATTEN, AnyPath, Transform, torchvision_datasets
from feedax.errors import DatasetError, printable, reason
from feedax.files import open_regular
from feedax.pictures import picture_size, read_picture

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

_TEST_NAMES = ("test", "val", "valid")

MOST_UNPACKED, MOST_TIMES = 2**26, 100
"""Larger arrays that take so much less room in a file are there to fill the memory."""

_LOOKED_AT, _MOST_CLASSES = 256, 100
"""So many images are looked at before any time is spent, and one of each of so many classes."""


def image_folder(
    folder: AnyPath,
    train: bool = True,
    transform: Transform | None = FLATTEN,
    target_transform: Transform | None = None,
) -> "ImageFolder | None":
    """A folder with one subfolder of images for each class, as torchvision's ImageFolder.

    `folder/train` is the training part and the first of `folder/test`, `folder/val` and
    `folder/valid` that has class folders is the test part. Without these, `folder` itself is the
    training part. (A `train` that holds images only, beside other classes, is a class.)

    Args:
        folder: where the images are: PNG, JPEG, WebP, BMP, TIFF or PPM, held as they were taken.
        train: the training part, or else the test part.
        transform: a function of a PIL image, mode "RGB". The default one flattens it, so it wants
            images of one size.
        target_transform: a function of the class index, an int.

    Returns:
        `torchvision.datasets.ImageFolder`, or None for a test part that does not exist.

    Raises:
        DatasetError: the folder or its class folders are missing, a class has no image, or the
            two parts do not have the same classes; or, with the default transform, some images
            that are looked at are of several sizes or cannot be read.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         os.mkdir(os.path.join(folder, name))
    ...         Image.new("RGB", (4, 2), "white").save(os.path.join(folder, name, "0.png"))
    ...     data = image_folder(folder)
    ...     print(data.classes, data[1][0].shape, data[1][1], image_folder(folder, train=False))
    ['cat', 'dog'] (24,) 1 None
    """
    top = Path(os.path.expanduser(folder))
    try:
        training, test = _parts(top)
        if test is not None:
            _same_classes(training, test)
        part = training if train else test
        if part is None:
            return None
        dataset = _one_part(part, transform, target_transform)
        if type(transform) is FlattenAndCast:
            looked_at = _some(dataset)
            if not train:
                whole = torchvision_datasets().ImageFolder(training, allow_empty=True)
                looked_at = whole.samples[:1] + looked_at
            _refuse_several_sizes([path for path, _ in looked_at])
        return dataset
    except OSError as error:
        raise DatasetError(
            f"image_folder: {top} must be a folder that can be read, and it is not "
            f"({reason(error)}); check the path"
        ) from error


def _parts(top: Path) -> tuple[Path, Path | None]:
    """The folders of the training part and of the test part."""
    folders = _folders(top)
    # A `test` without class folders is common: unlabelled images, with the labelled ones in `val`.
    tests = [top / name for name in _TEST_NAMES if name in folders and _folders(top / name)]
    only_parts = folders <= {"train", *_TEST_NAMES}
    if "train" in folders and (only_parts or _folders(top / "train")):
        return top / "train", next(iter(tests), None)
    if tests:
        raise DatasetError(
            f"image_folder: a test part needs a training part beside it, and {top} has "
            f"{tests[0].name} but no train with class folders; move the training classes into "
            f"{top / 'train'}"
        )
    return top, None


def _folders(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


def _classes(part: Path) -> set[str]:
    names = _folders(part)
    if not names:
        raise DatasetError(
            f"image_folder: {part} must hold one folder of images for each class, and it holds no "
            "folder; sort the images into folders named after their classes"
        )
    return names


def _same_classes(training: Path, test: Path) -> None:
    """ImageFolder numbers the classes of each part by itself; the numbers must agree."""
    ours, theirs = _classes(training), _classes(test)
    if ours != theirs:
        one_sided = [
            f"only {part.name} has {', '.join(sorted(names))}"
            for part, names in ((training, ours - theirs), (test, theirs - ours))
            if names
        ]
        raise DatasetError(
            f"image_folder: {training} and {test} must hold the same class folders, and "
            f"{' and '.join(one_sided)}; add the missing folders or remove the extra ones"
        )


def _one_part(
    part: Path, transform: Transform | None, target_transform: Transform | None
) -> "ImageFolder":
    _classes(part)
    dataset = torchvision_datasets().ImageFolder(
        part, transform, target_transform, loader=_read_image, allow_empty=True
    )
    used = set(dataset.targets)
    empty = [name for name, index in dataset.class_to_idx.items() if index not in used]
    if empty:
        raise DatasetError(
            f"image_folder: every class folder in {part} must hold an image, and there is none in "
            f"{', '.join(empty)}; add images ({', '.join(dataset.extensions)}) or remove the folder"
        )
    return dataset


def _read_image(path: str) -> Image.Image:
    return read_picture(path, "image_folder", DatasetError).convert("RGB")


def _some(dataset: "ImageFolder") -> list[tuple[str, int]]:
    """Some of the images, spread over all of them, and one of every class."""
    first_of = {label: i for i, label in reversed([*enumerate(dataset.targets)])}
    spread = np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int).tolist()
    chosen = sorted({*spread, *[*first_of.values()][:_MOST_CLASSES]})
    return [dataset.samples[i] for i in chosen]


def _refuse_several_sizes(paths: list[str]) -> None:
    """What a batch of images would be refused for, by the heads of some of their files."""
    sizes = ((path, picture_size(path, "image_folder", DatasetError)) for path in paths)
    first, size = next(sizes)
    for path, other in sizes:
        if other != size:
            raise DatasetError(
                who="image_folder",
                rule="images must be of one size where the transform only flattens them",
                found=f"{first} is {size[0]} x {size[1]} and {path} is {other[0]} x {other[1]} "
                "pixels",
                remedy="give a transform with torchvision.transforms.Resize, or resize the files",
            )


def npz(
    file: AnyPath, train: bool = True, transform: Transform | None = FLATTEN
) -> ArrayDataset | None:
    """The arrays of a NumPy .npz file.

    The keys are `x_train`, `y_train` and, for a test part, `x_test`, `y_test`, as Keras writes
    them; or `x`, `y` for a file without a test part. Nothing in the file is ever unpickled. The
    mask of a masked array is not in it: ``numpy.savez`` writes what lies beneath the mask.

    Args:
        file: the path of the file.
        train: the training part, or else the test part.
        transform: a function of one `x[i]`.

    Returns:
        `feedax.data.ArrayDataset`, or None for a test part that does not exist. Integer labels
        `(n, 1)`, Keras's shape for CIFAR, become `(n,)`.

    Raises:
        DatasetError: the file is missing, damaged or no npz; keys are missing; or the arrays are
            empty, of different lengths, or of Python objects.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "digits.npz")
    ...     np.savez(file, x=np.zeros((3, 2, 2), np.uint8), y=np.array([4, 5, 6]))
    ...     data = npz(file)
    ...     print(len(data), data[2], npz(file, train=False))
    3 (array([0., 0., 0., 0.], dtype=float32), np.int64(6)) None
    """
    path = Path(os.path.expanduser(file))
    arrays = _read_npz(path, train)
    if arrays is None:
        return None
    (x_key, x), (y_key, y) = arrays.items()
    lengths = [len(array) if array.ndim else None for array in (x, y)]
    if lengths[0] != lengths[1] or not lengths[0]:
        raise DatasetError(
            f"npz: {x_key} and {y_key} in {path} must hold the same examples, at least "
            f"one, and their shapes are {x.shape} and {y.shape}; write the file again with arrays "
            "of one length"
        )
    if y.ndim == 2 and y.shape[1] == 1 and np.issubdtype(y.dtype, np.integer):
        y = y[:, 0]
    return ArrayDataset(x, y, transform)


def _read_npz(path: Path, train: bool) -> dict[str, Any] | None:
    """The two arrays of one part by key, inputs first."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            keys = _keys(path, list(names), train)
            size = os.fstat(file.fileno()).st_size
            return None if keys is None else {k: _array(archive, names[k], size) for k in keys}
    except OSError as error:
        raise DatasetError(
            f"npz: {path} must be a file that can be read, and it is not ({reason(error)}); check "
            "the path"
        ) from error
    except DatasetError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy have many for files that are not whole
        if "Object arrays" in str(error):
            raise DatasetError(
                f"npz: {path} must hold arrays of numbers, and it holds arrays of Python objects, "
                "which could run code when read; write them with a numeric dtype"
            ) from error
        raise DatasetError(
            f"npz: {path} must be a whole npz file, and it cannot be read ({reason(error)}); write "
            "it again with numpy.savez"
        ) from error


def _array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """One array; `most` is the size of the whole file, in bytes."""
    entry = archive.getinfo(name)
    packed, unpacked = entry.compress_size, entry.file_size
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    if unpacked > MOST_UNPACKED and unpacked > MOST_TIMES * packed:
        raise ValueError(f"{name} unpacks {packed} bytes to {unpacked}, as no data do")
    if not is_stored and entry.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{name} is compressed otherwise than NumPy does")
    if packed > most or (is_stored and unpacked != packed):
        raise ValueError(f"{name} has another size than it says, {unpacked} bytes")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name} has a header of version {version}")
        size = math.prod(shape) * dtype.itemsize
        if not dtype.itemsize:
            raise ValueError(f"{name} holds values of no size, {dtype}")
        # NumPy refuses arrays of objects itself, and would take memory for what is not there.
        if not dtype.hasobject and (min(shape, default=0) < 0 or size != unpacked - file.tell()):
            raise ValueError(f"{name} has another size than its shape, {shape}")
        file.seek(0)
        return np.lib.format.read_array(file)


def _keys(path: Path, found: list[str], train: bool) -> tuple[str, str] | None:
    """The keys of one part, None for a test part that the file does not have."""
    tests = {"x_test", "y_test"} & set(found)
    has_parts = tests or {"x_train", "y_train"} & set(found)
    keys = ("x_train", "y_train") if has_parts else ("x", "y")
    if not set(keys) <= set(found) or (not train and len(tests) == 1):
        raise DatasetError(
            f"npz: {path} must hold x_train and y_train (and x_test and y_test), or x and y, and "
            f"it holds {printable(', '.join(found)) or 'nothing'}; write it again under these keys"
        )
    if train:
        return keys
    return ("x_test", "y_test") if tests else None
