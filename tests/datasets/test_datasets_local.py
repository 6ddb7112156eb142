"""Image folders and npz files."""

import errno
import os
import zipfile
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torchvision
from PIL import Image

from feedax import datasets
from feedax.data.array_dataset import ArrayDataset
from feedax.errors import DatasetError

RNG = np.random.default_rng(0)
EXTENSIONS = ".jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp"


message = partial(helpers.message, DatasetError)


# ------------------------------------------------------------------------------ image folders


def write_images(folder, *names, size=(5, 4)):
    """One PNG of noise in each named class folder; returns their pixels."""
    pixels = {}
    for name in names:
        pixels[name] = RNG.integers(0, 256, (*size, 3), np.uint8)
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels[name]).save(folder / name / "0.png")
    return pixels


def test_a_folder_without_parts_is_the_training_part(tmp_path):
    pixels = write_images(tmp_path, "dog", "cat")
    data = datasets.image_folder(tmp_path)
    assert type(data) is torchvision.datasets.ImageFolder
    assert data.class_to_idx == {"cat": 0, "dog": 1}
    image, label = data[1]
    np.testing.assert_array_equal(image, pixels["dog"].ravel())
    assert (image.dtype, label) == (np.float32, 1)
    assert datasets.image_folder(tmp_path, train=False) is None
    assert datasets.image_shape(data) == (5, 4, 3)
    assert datasets.class_names(data) == ("cat", "dog")


SEVERAL = (
    "image_folder: images must be of one size where the transform only flattens them, and {} is "
    "{} and {} is {} pixels; give a transform with torchvision.transforms.Resize, or resize the "
    "files"
)


def test_images_of_several_sizes_are_refused_before_any_is_loaded(tmp_path):
    write_images(tmp_path, "a", "b")
    odd = tmp_path / "a" / "1.png"
    Image.new("L", (7, 5)).save(odd)
    assert message(datasets.image_folder, tmp_path) == SEVERAL.format(
        tmp_path / "a" / "0.png", "4 x 5", odd, "7 x 5"
    )
    resized = torchvision.transforms.Compose([torchvision.transforms.Resize((3, 3)), np.asarray])
    data = datasets.image_folder(tmp_path, transform=resized)
    assert {image.shape for image, _ in data} == {(3, 3, 3)}


def test_a_test_part_of_another_size_is_refused(tmp_path):
    write_images(tmp_path / "train", "a")
    write_images(tmp_path / "test", "a", size=(6, 4))
    assert datasets.image_folder(tmp_path) is not None
    assert message(datasets.image_folder, tmp_path, train=False) == SEVERAL.format(
        tmp_path / "train" / "a" / "0.png", "4 x 5", tmp_path / "test" / "a" / "0.png", "4 x 6"
    )


def test_grey_beside_colour_and_other_files_are_no_matter(tmp_path):
    write_images(tmp_path, "a")
    Image.new("LA", (4, 5)).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    assert [image.shape for image, _ in datasets.image_folder(tmp_path)] == [(60,), (60,)]


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path, "a")
    bad = tmp_path / "a" / "1.png"
    bad.write_bytes(b"no image")
    assert message(datasets.image_folder, tmp_path) == (
        f"image_folder: {bad} must be a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM, and it is none of "
        "them; convert it"
    )


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_a_folder_with_parts(tmp_path, test_name):
    write_images(tmp_path / "train", "a", "b")
    pixels = write_images(tmp_path / test_name, "a", "b")
    data = datasets.load(f"imagefolder:{tmp_path}", train=False, transform=None)
    assert Path(data.root) == tmp_path / test_name
    np.testing.assert_array_equal(np.asarray(data[0][0]), pixels["a"])
    assert Path(datasets.image_folder(tmp_path).root) == tmp_path / "train"


def test_an_unlabelled_test_folder_is_passed_over(tmp_path):
    write_images(tmp_path / "train", "a")
    (tmp_path / "test").mkdir()
    assert datasets.image_folder(tmp_path, train=False) is None
    write_images(tmp_path / "val", "a")
    assert Path(datasets.image_folder(tmp_path, train=False).root) == tmp_path / "val"


def test_a_class_called_train(tmp_path):
    write_images(tmp_path, "bus", "train")
    assert datasets.image_folder(tmp_path).classes == ["bus", "train"]


def test_paths_with_a_tilde_and_a_colon(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_images(tmp_path / "pictures", "a")
    assert len(datasets.load("imagefolder:~/pictures")) == 1
    if os.name != "nt":
        write_images(tmp_path / "C:pictures", "a")
        assert len(datasets.load(f"imagefolder:{tmp_path}/C:pictures")) == 1


def test_parts_with_different_classes(tmp_path):
    write_images(tmp_path / "train", "a", "b", "c")
    write_images(tmp_path / "test", "a", "d")
    for train in (True, False):
        assert message(datasets.image_folder, tmp_path, train) == (
            f"image_folder: {tmp_path / 'train'} and {tmp_path / 'test'} must hold the same class "
            "folders, and only train has b, c and only test has d; add the missing folders or "
            "remove the extra ones"
        )


def test_a_test_part_without_a_training_part(tmp_path):
    write_images(tmp_path / "val", "a")
    assert message(datasets.image_folder, tmp_path) == (
        f"image_folder: a test part needs a training part beside it, and {tmp_path} has val but "
        f"no train with class folders; move the training classes into {tmp_path / 'train'}"
    )


def test_a_folder_that_is_missing(tmp_path):
    assert message(datasets.image_folder, tmp_path / "no") == (
        f"image_folder: {tmp_path / 'no'} must be a folder that can be read, and it is not "
        f"({os.strerror(errno.ENOENT)}); check the path"
    )


def test_a_folder_without_classes(tmp_path):
    for folder in (tmp_path, tmp_path / "train"):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / "loose.png")
        assert message(datasets.image_folder, tmp_path) == (
            f"image_folder: {folder} must hold one folder of images for each class, and it holds "
            "no folder; sort the images into folders named after their classes"
        )


def test_a_class_without_images(tmp_path):
    write_images(tmp_path, "a")
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    assert message(datasets.image_folder, tmp_path) == (
        f"image_folder: every class folder in {tmp_path} must hold an image, and there is none in "
        f"b, c; add images ({EXTENSIONS}) or remove the folder"
    )


def test_the_shape_of_a_damaged_image(tmp_path):
    write_images(tmp_path, "a")
    path = tmp_path / "a" / "0.png"
    data = datasets.image_folder(tmp_path)
    path.write_bytes(b"no image")
    for read in (lambda: datasets.image_shape(data), lambda: data[0]):
        assert message(read) == (
            f"image_folder: {path} must be a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM, and it is "
            "none of them; convert it"
        )


def test_a_folders_picture_never_starts_a_program(tmp_path, monkeypatch):
    """PostScript that is called .png: Pillow would hand it to Ghostscript."""
    write_images(tmp_path, "a")
    Image.new("RGB", (5, 4)).save(tmp_path / "a" / "0.png", "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program started"))
    folder = datasets.image_folder(tmp_path, transform=None)
    reads = (lambda: folder[0], lambda: datasets.image_folder(tmp_path))
    for read in reads:
        assert message(read).endswith("and it is none of them; convert it")
    (tmp_path / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    for read in reads:
        assert message(read).endswith(
            "must be an image file that can be read, and that fails (it is a pipe); name another "
            "one"
        )


def test_a_folders_picture_is_held_as_it_was_taken(tmp_path):
    pixels = write_images(tmp_path, "a")["a"]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    folder = datasets.image_folder(tmp_path, transform=None)
    np.testing.assert_array_equal(np.asarray(folder[0][0]), np.rot90(pixels, -1))
    assert datasets.image_shape(folder) == (4, 5, 3)


# ------------------------------------------------------------------------------------ npz


@pytest.fixture
def keras(tmp_path):
    path = tmp_path / "keras.npz"
    np.savez_compressed(
        path,
        x_train=RNG.integers(0, 256, (5, 4, 3), np.uint8),
        y_train=np.arange(5),
        x_test=RNG.integers(0, 256, (2, 4, 3), np.uint8),
        y_test=np.arange(2)[:, None],
    )
    return path


def test_an_npz_as_keras_writes_it(keras):
    train, test = (datasets.load(f"npz:{keras}", train=part) for part in (True, False))
    assert type(train) is type(test) is ArrayDataset
    with np.load(keras) as arrays:
        np.testing.assert_array_equal(train[4][0], arrays["x_train"][4].ravel())
        np.testing.assert_array_equal(test.inputs, arrays["x_test"])
    assert (len(train), len(test)) == (5, 2)
    assert train[4][0].dtype == np.float32
    assert test.targets.shape == (2,)  # labels (n, 1) become (n,)
    assert datasets.image_shape(train) == (4, 3)


def test_an_npz_without_a_test_part(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.zeros((3, 1)))
    np.savez(tmp_path / "b.npz", x_train=np.ones((3, 2)), y_train=np.zeros(3))
    for name in ("a.npz", "b.npz"):
        data = datasets.npz(f"~/{name}", transform=None)
        assert (len(data), data[0][0].dtype) == (3, np.float64)
        assert datasets.npz(f"~/{name}", train=False) is None
    assert datasets.npz("~/a.npz").targets.shape == (3, 1)  # float targets keep their shape


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({}, "nothing"),
        ({"images": 1, "labels": 1}, "images, labels"),
        ({"x": 1}, "x"),
        ({"x_train": 1, "x": 1, "y": 1}, "x_train, x, y"),
    ],
)
def test_missing_keys(tmp_path, arrays, found):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert message(datasets.npz, path) == (
        f"npz: {path} must hold x_train and y_train (and x_test and y_test), or x and y, and it "
        f"holds {found}; write it again under these keys"
    )


def test_half_a_test_part(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=np.ones(1), y_train=np.ones(1), x_test=np.ones(1))
    assert len(datasets.npz(path)) == 1
    assert "it holds x_train, y_train, x_test;" in message(datasets.npz, path, train=False)


@pytest.mark.parametrize(
    ("x_shape", "y_shape"), [((3, 2), (2,)), ((0, 2), (0,)), ((), ()), ((3,), ())]
)
def test_arrays_that_do_not_hold_the_same_examples(tmp_path, x_shape, y_shape):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones(x_shape), y=np.ones(y_shape))
    assert message(datasets.npz, path) == (
        "npz: x and y in "
        f"{path} must hold the same examples, at least one, and their shapes are {x_shape} and "
        f"{y_shape}; write the file again with arrays of one length"
    )


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{}, []], object), y=np.zeros(2))
    assert message(datasets.npz, path) == (
        f"npz: {path} must hold arrays of numbers, and it holds arrays of Python objects, which "
        "could run code when read; write them with a numeric dtype"
    )


def test_files_that_are_missing(tmp_path):
    for path, code in ((tmp_path / "no.npz", errno.ENOENT), (tmp_path, errno.EISDIR)):
        assert message(datasets.npz, path) == (
            f"npz: {path} must be a file that can be read, and it is not ({os.strerror(code)}); "
            "check the path"
        )


def cut(keras):
    os.truncate(keras, keras.stat().st_size // 2)


def empty(keras):
    os.truncate(keras, 0)


def npy(keras):
    with open(keras, "wb") as file:
        np.save(file, np.zeros(3))


def flip(keras):
    with zipfile.ZipFile(keras) as archive:
        start = archive.getinfo("x_train.npy").header_offset
    content = bytearray(keras.read_bytes())
    for i in range(start + 60, start + 90):
        content[i] ^= 0x55
    keras.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, npy, flip])
def test_files_that_are_no_whole_npz(keras, damage):
    damage(keras)
    text = message(datasets.npz, keras)
    assert text.startswith(f"npz: {keras} must be a whole npz file, and it cannot be read (")
    assert text.endswith("); write it again with numpy.savez")
