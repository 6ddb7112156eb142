"""The shipped MNIST and the cache that it is unpacked to."""

import errno
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import torchvision

from feedax import datasets
from feedax.data import ArrayDataset, NumpyLoader
from feedax.datasets import standard
from feedax.errors import DatasetError
from feedax.files import replace_file
from feedax.machine import cache_folder

SRC = Path(standard.__file__).parents[2]
SHIPPED = Path(standard.__file__).parent / "shipped_mnist"
NAMES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
REMEDY = "name another folder with root=DIR"


message = partial(helpers.message, DatasetError)


def files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------ shipped MNIST


def by_hand(name):
    """The array in a shipped file, read with nothing but gzip and NumPy."""
    content = gzip.decompress((SHIPPED / f"{name}.gz").read_bytes())
    dims = content[3]
    shape = np.frombuffer(content, ">i4", dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


@pytest.mark.parametrize(
    ("train", "part", "count"), [(True, "train", 60000), (False, "t10k", 10000)]
)
def test_mnist_is_torchvisions_own_and_holds_the_shipped_bytes(own_cache, train, part, count):
    data = datasets.mnist(train)
    assert type(data) is torchvision.datasets.MNIST
    assert data.train is train
    assert len(data) == count
    np.testing.assert_array_equal(data.data.numpy(), by_hand(f"{part}-images-idx3-ubyte"))
    np.testing.assert_array_equal(data.targets.numpy(), by_hand(f"{part}-labels-idx1-ubyte"))
    assert files_under(own_cache) == sorted(NAMES)


@pytest.mark.parametrize("train", [True, False])
def test_mnist_by_name_has_the_examples_of_torchvisions(unpacked, train):
    ours, theirs = datasets.load("mnist", train=train), datasets.mnist(train)
    assert isinstance(ours, ArrayDataset)
    assert list(ours.classes) == theirs.classes
    assert datasets.image_shape(ours) == datasets.image_shape(theirs) == (28, 28)
    np.testing.assert_array_equal(ours.inputs, theirs.data.numpy())
    np.testing.assert_array_equal(ours.targets, theirs.targets.numpy())
    for index in (0, 1, len(theirs) - 1):
        (x, y), (image, label) = ours[index], theirs[index]
        assert x.dtype == image.dtype
        np.testing.assert_array_equal(x, image)
        assert int(y) == label
    assert NumpyLoader(ours).plan() == NumpyLoader(theirs).plan()


def test_the_files_have_the_md5_that_their_readme_gives(unpacked):
    readme = (SHIPPED / "README.md").read_text()
    stated = dict(re.findall(r"\| (\S+ubyte) \|.*\| ([0-9a-f]{32}) \|", readme))
    assert sorted(stated) == sorted(NAMES)
    for name, md5 in stated.items():
        content = (unpacked / "MNIST" / "raw" / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == md5
        known = (standard._TRAIN | standard._TEST)[name]
        assert (known.size, known.md5) == (len(content), md5)


def test_mnist_transforms(unpacked):
    image, label = datasets.mnist(root=unpacked)[0]
    assert (image.dtype, image.shape, label) == (np.float32, (784,), 5)
    np.testing.assert_array_equal(image, by_hand("train-images-idx3-ubyte")[0].ravel())
    image, label = datasets.mnist(False, unpacked, transform=None, target_transform=lambda y: -y)[0]
    assert (image.mode, image.size, label) == ("L", (28, 28), -7)


def test_a_root_with_a_tilde_and_an_intact_file_that_stays_untouched(unpacked, monkeypatch):
    monkeypatch.setenv("HOME", str(unpacked))
    monkeypatch.setenv("USERPROFILE", str(unpacked))
    image_file = unpacked / "MNIST" / "raw" / NAMES[0]
    before = image_file.stat().st_mtime_ns
    assert Path(datasets.mnist(root="~").root) == unpacked
    assert image_file.stat().st_mtime_ns == before


def truncate(path):
    os.truncate(path, 100)


def flip_a_byte(path):
    with open(path, "r+b") as file:
        file.seek(20)
        byte = file.read(1)[0]
        file.seek(20)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
def test_a_damaged_file_in_the_cache_is_replaced(own_cache, unpacked, damage, capfd):
    shutil.copytree(unpacked, own_cache)
    path = own_cache / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    damage(path)
    data = datasets.mnist(train=False)
    np.testing.assert_array_equal(data.data.numpy(), by_hand("t10k-images-idx3-ubyte"))
    assert hashlib.md5(path.read_bytes()).hexdigest() == standard._TEST[path.name].md5
    assert files_under(own_cache) == sorted(NAMES)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_in_the_users_root_is_never_overwritten(tmp_path, unpacked):
    root = tmp_path / "mine"
    shutil.copytree(unpacked, root)
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"mine")
    assert message(datasets.mnist, train=False, root=root) == (
        f"mnist: {path} must hold 10008 bytes with MD5 27ae3e4e09519cfbb04c329615203637, and it "
        f"holds 4 bytes with MD5 {hashlib.md5(b'mine').hexdigest()}; delete it to have it written "
        "anew or name another folder with root=DIR"
    )
    assert path.read_bytes() == b"mine"
    assert len(datasets.mnist(root=root)) == 60000  # the other part is whole
    assert path.read_bytes() == b"mine"
    path.unlink()
    assert len(datasets.mnist(train=False, root=root)) == 10000


def test_files_that_torchvision_would_prefer_are_refused(tmp_path, unpacked):
    root = tmp_path / "old"
    shutil.copytree(unpacked, root)
    processed = root / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), processed / name)
    assert message(datasets.mnist, root=root) == (
        f"mnist: the files in MNIST/raw are the ones to read, and torchvision would read "
        f"{processed / 'training.pt'} instead; delete {processed} or name another folder with "
        "root=DIR"
    )


@pytest.mark.parametrize(
    "content", [None, b"", b"not gzip", gzip.compress(b"other bytes", mtime=0)]
)
def test_a_damaged_installation(monkeypatch, tmp_path, content):
    package = tmp_path / "package"
    (package / "shipped_mnist").mkdir(parents=True)
    packed = package / "shipped_mnist" / "train-images-idx3-ubyte.gz"
    if content is not None:
        packed.write_bytes(content)
    monkeypatch.setattr("importlib.resources.files", lambda name: package)
    assert message(datasets.mnist) == (
        f"mnist: the installed package must hold {packed} intact, and the file is missing or "
        "damaged; install feedax again"
    )


def test_a_cut_off_shipped_file(monkeypatch, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "shipped_mnist")
    os.truncate(tmp_path / "shipped_mnist" / "t10k-images-idx3-ubyte.gz", 1000)
    monkeypatch.setattr("importlib.resources.files", lambda name: tmp_path)
    assert "install feedax again" in message(datasets.mnist, train=False)


CHILD = """
import hashlib, sys
from feedax.datasets import mnist
print("jax imported:", "jax" in sys.modules, flush=True)
sys.stdin.readline()
data = mnist()
print(len(data), hashlib.md5(data.data.numpy().tobytes()).hexdigest())
"""


def test_two_processes_at_once_into_one_empty_cache_and_without_jax(own_cache):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=os.environ | {"PYTHONPATH": str(SRC)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "jax imported: False\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=60)[0] for child in children]
    pixels = by_hand("train-images-idx3-ubyte").tobytes()
    assert answers == [f"60000 {hashlib.md5(pixels).hexdigest()}\n"] * 2
    assert [child.returncode for child in children] == [0, 0]
    assert files_under(own_cache) == sorted(NAMES)


def test_many_threads_at_once_into_one_empty_cache(own_cache):
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(datasets.mnist, [True, False, True, False]))
    assert [len(part) for part in parts] == [60000, 10000, 60000, 10000]
    assert files_under(own_cache) == sorted(NAMES)


# ------------------------------------------------------------------------- folders that fail


def test_a_file_size_limit_leaves_whole_files_only(own_cache):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, limits[1]))
    try:
        text = message(datasets.mnist, train=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    raw = own_cache / "MNIST" / "raw"
    assert text == (
        f"mnist: the files are kept in {raw}, and it cannot be used "
        f"({os.strerror(errno.EFBIG)}); {REMEDY}"
    )
    assert files_under(own_cache) == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    assert len(datasets.mnist(train=False)) == 10000


def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this process does not have")
    try:
        text = message(datasets.mnist, root=small)
        left = files_under(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert text == (
        f"mnist: the files are kept in {small / 'MNIST' / 'raw'}, and it cannot be used "
        f"({os.strerror(errno.ENOSPC)}); free about 55 MB there or {REMEDY}"
    )
    assert left == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    text = message(datasets.mnist, root=tmp_path / "file" / "data")
    raw = tmp_path / "file" / "data" / "MNIST" / "raw"
    assert text == (
        f"mnist: the files are kept in {raw}, and it cannot be used "
        f"({os.strerror(errno.ENOTDIR)}); {REMEDY}"
    )


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
def test_a_read_only_folder(tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # the superuser may write anywhere, except where nobody may
        folder = Path("/proc/feedax")
    text = message(datasets.mnist, root=folder)
    assert re.fullmatch(
        rf"mnist: the files are kept in {folder}/MNIST/raw, and it cannot be used \(.+\); "
        rf"{re.escape(REMEDY)}",
        text,
    )


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupt(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, b"new")
    assert files_under(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_rename_refused_because_the_other_process_was_first(own_cache, monkeypatch):
    """What Windows does when the file is open elsewhere."""
    replace = os.replace

    def refuse(source, target, **folders):
        shutil.copyfile(own_cache / source, own_cache / target)
        raise PermissionError(errno.EACCES, "in use")

    own_cache.mkdir(parents=True)
    monkeypatch.setattr(os, "replace", refuse)
    standard._provide(own_cache / NAMES[3], standard._TEST[NAMES[3]], replace=True)
    monkeypatch.setattr(os, "replace", replace)
    assert files_under(own_cache) == [NAMES[3]]


def test_the_cache_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "feedax"
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setattr(sys, "platform", "linux")
        assert cache_folder() == tmp_path / ".cache" / "feedax"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_folder() == tmp_path / "Library" / "Caches" / "feedax"


def test_no_home_directory(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert message(datasets.mnist) == (
        "datasets: the cache folder lies in the home directory, and this user has none; set "
        "XDG_CACHE_HOME or name a folder with root=DIR"
    )
