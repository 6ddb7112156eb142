"""The datasets that torchvision downloads, over small files made here; no test has a network."""

import functools
import gzip
import hashlib
import http.server
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import pytest
import torchvision
from helpers import write_idx

from feedax import datasets
from feedax.errors import DatasetError
from feedax.machine import cache_folder

RNG = np.random.default_rng(0)
PIXELS = {"train": RNG.integers(0, 256, (6, 28, 28), np.uint8)}
PIXELS["test"] = RNG.integers(0, 256, (4, 28, 28), np.uint8)
LABELS = {"train": np.arange(6, dtype=np.uint8), "test": np.arange(4, dtype=np.uint8)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Proxies on a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, closed)
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


def message(call, *args, **kwargs):
    with pytest.raises(DatasetError) as caught:
        call(*args, **kwargs)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_mnist_like(raw):
    for part, prefix in (("train", "train"), ("test", "t10k")):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", PIXELS[part])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", LABELS[part])


def write_emnist(raw):
    for part in ("train", "test"):
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", PIXELS[part])
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", LABELS[part])


def write_qmnist(raw):
    for part in ("train", "test"):
        details = np.zeros((len(LABELS[part]), 8), np.int32)
        details[:, 0] = LABELS[part]
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte", PIXELS[part])
        write_idx(raw / f"qmnist-{part}-labels-idx2-int", details)


@pytest.mark.parametrize(
    ("text", "kind", "write"),
    [
        ("fashion_mnist", "FashionMNIST", write_mnist_like),
        ("fashion-mnist", "FashionMNIST", write_mnist_like),
        ("kmnist", "KMNIST", write_mnist_like),
        ("emnist:letters", "EMNIST", write_emnist),
        ("qmnist", "QMNIST", write_qmnist),
    ],
)
@pytest.mark.parametrize("where", ["root", "cache"])
def test_the_mnist_family_from_files_that_are_there(tmp_path, text, kind, write, where):
    folder = tmp_path / "data" if where == "root" else cache_folder()
    write(folder / kind / "raw")
    for part in ("train", "test"):
        data = datasets.load(text, train=part == "train", root=folder if where == "root" else None)
        assert type(data) is getattr(torchvision.datasets, kind)
        assert len(data) == len(LABELS[part])
        image, label = data[3]
        np.testing.assert_array_equal(image, PIXELS[part][3].ravel().astype(np.float32))
        assert (image.dtype, label) == (np.float32, 3)
        assert datasets.image_shape(data) == (28, 28)
        assert datasets.class_names(data) == tuple(data.classes)
    assert not list(folder.glob(".*"))  # no lock was needed


def test_transforms_are_handed_on(tmp_path):
    write_mnist_like(tmp_path / "KMNIST" / "raw")
    image, label = datasets.kmnist(
        root=tmp_path, transform=None, target_transform=lambda y: y + 100
    )[2]
    assert (image.size, label) == ((28, 28), 102)


# -------------------------------------------------------------------------------- CIFAR, SVHN

COLOURS = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8)


def write_cifar(folder, monkeypatch, kind, labels_key, names_key):
    """Batches of two pictures as CIFAR has them, and their checksums in the class."""
    place = folder / kind.base_folder
    place.mkdir(parents=True)
    batches = [name for name, _ in kind.train_list + kind.test_list]
    for i, name in enumerate(batches):
        pixels = COLOURS[2 * i : 2 * i + 2].reshape(2, -1)
        (place / name).write_bytes(pickle.dumps({"data": pixels, labels_key: [i, i + 1]}))
    meta = place / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({names_key: ["plane", "car"]}))
    for listed in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, listed)]
        monkeypatch.setattr(kind, listed, [[name, md5(place / name)] for name in names])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    return place


@pytest.mark.parametrize(
    ("name", "kind", "labels_key", "names_key", "count"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels", "label_names", 10),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels", "fine_label_names", 2),
    ],
)
def test_cifar(tmp_path, monkeypatch, name, kind, labels_key, names_key, count):
    write_cifar(tmp_path, monkeypatch, kind, labels_key, names_key)
    train = datasets.load(name, root=tmp_path)
    test = datasets.load(name, train=False, root=tmp_path)
    assert type(train) is type(test) is kind
    assert (len(train), len(test)) == (count, 2)
    image, label = train[1]
    np.testing.assert_array_equal(image, np.moveaxis(COLOURS[1], 0, -1).ravel())
    assert (image.shape, image.dtype, label) == ((3072,), np.float32, 1)
    assert test.targets[0] == count // 2
    assert datasets.image_shape(train) == (32, 32, 3)
    assert datasets.class_names(train) == ("plane", "car")


def test_svhn(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    files = {}
    for split, labels in (("train", [10, 1, 2]), ("test", [4, 10])):
        path = tmp_path / f"{split}_32x32.mat"
        pixels = COLOURS[: len(labels)].transpose(2, 3, 1, 0)
        scipy_io.savemat(path, {"X": pixels, "y": np.array(labels, np.uint8)[:, None]})
        files[split] = ["http://unused/", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", files)
    train, test = (datasets.load("svhn", train=part, root=tmp_path) for part in (True, False))
    assert (len(train), len(test)) == (3, 2)
    image, label = train[0]
    np.testing.assert_array_equal(image, np.moveaxis(COLOURS[0], 0, -1).ravel())
    assert label == 0
    assert datasets.image_shape(train) == (32, 32, 3)
    assert datasets.class_names(train) is None


def test_svhn_without_scipy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DatasetError) as caught:
        datasets.svhn(root=tmp_path)
    assert str(caught.value) == (
        "svhn: SciPy must be installed to read the files, and it is not; pip install scipy"
    )


# ----------------------------------------------------------------------------------- downloads


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder and the address of a web server on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder, f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()
        thread.join()


@pytest.fixture
def fashion_mirror(server, monkeypatch):
    """FashionMNIST's download, six pictures large."""
    folder, address = server
    write_mnist_like(folder)
    resources = []
    for path in sorted(folder.iterdir()):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, md5(packed)))
    kind = torchvision.datasets.FashionMNIST
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", [address])
    return server


def test_a_download_happens_once_and_leaves_standard_output_alone(fashion_mirror, capsys):
    assert len(datasets.fashion_mnist()) == 6
    shutil.rmtree(fashion_mirror[0])
    assert len(datasets.fashion_mnist(train=False)) == 4
    assert capsys.readouterr().out == ""


def test_what_a_torchvision_prints_goes_to_standard_error(fashion_mirror, monkeypatch, capsys):
    kind = torchvision.datasets.FashionMNIST
    download = kind.download

    def chatty(self):
        print("Downloading")
        download(self)

    monkeypatch.setattr(kind, "download", chatty)
    datasets.fashion_mnist()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Downloading" in err


def test_a_download_with_a_wrong_checksum(fashion_mirror, tmp_path):
    folder, address = fashion_mirror
    packed = folder / "t10k-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(b"something else"))
    text = message(datasets.fashion_mnist, root=tmp_path / "data")
    # Newer releases of torchvision name the file and the address, too.
    said = text.replace(f"Error downloading {packed.name}: Tried {address}, got: ", "")
    assert said == (
        f"fashion_mnist: torchvision must download the files to {tmp_path / 'data'}, and that "
        "failed (RuntimeError: File not found or corrupted.); check the network and the proxy "
        "settings, or name a folder that has the files with root=DIR"
    )


def test_a_second_process_waits_for_the_first_ones_download(tmp_path):
    """The first one is in the middle of a file; the second one must not take half for damage."""
    pytest.importorskip("fcntl")
    root = tmp_path / "data"
    raw = root / "FashionMNIST" / "raw"
    write_mnist_like(raw)
    half = raw / "train-images-idx3-ubyte"
    whole = half.rename(tmp_path / "whole")
    half.write_bytes(b"half")
    holder = textwrap.dedent(
        """
        import fcntl, sys, time
        lock = open(sys.argv[1], "ab")
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("held", flush=True)
        time.sleep(0.5)
        open(sys.argv[3], "wb").write(open(sys.argv[2], "rb").read())
        """
    )
    arguments = [root / ".feedax-download.lock", whole, half]
    child = subprocess.Popen(
        [sys.executable, "-c", holder, *map(str, arguments)], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout.readline() == b"held\n"
        assert len(datasets.fashion_mnist(root=root)) == 6
    assert child.returncode == 0


def test_cifar_from_its_archive(server, tmp_path, monkeypatch):
    folder, address = server
    kind = torchvision.datasets.CIFAR10
    place = write_cifar(tmp_path / "made", monkeypatch, kind, "labels", "label_names")
    archive = folder / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(place, kind.base_folder)
    monkeypatch.setattr(kind, "url", address + archive.name)
    text = message(datasets.cifar10, root=tmp_path / "data")
    assert "(RuntimeError: File not found or corrupted.)" in text
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    assert len(datasets.cifar10(root=tmp_path / "data")) == 10


@pytest.mark.parametrize(
    "name", ["fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "cifar100", "svhn"]
)
def test_no_network(tmp_path, name, capsys):
    text = message(datasets.load, name, root=tmp_path / "data")
    assert text.startswith(
        f"{name}: torchvision must download the files to {tmp_path / 'data'}, and that failed ("
    )
    assert "refused" in text
    assert text.endswith(
        "); check the network and the proxy settings, or name a folder that has the files with "
        "root=DIR"
    )
    assert "\n" not in text
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "data"
    assert message(datasets.cifar10, root=root) == (
        f"cifar10: the files are kept in {root}, and it cannot be used (Not a directory); name "
        "another folder with root=DIR"
    )


def test_a_damaged_file(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    write_mnist_like(raw)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x06\0\0\0\x1c\0\0\0\x1c1")
    text = message(datasets.kmnist, root=tmp_path)
    place = tmp_path / "KMNIST"
    assert text.startswith(
        f"kmnist: the files in {place} must be whole, and torchvision cannot read them ("
    )
    assert text.endswith(f"); delete {place} to have them downloaded anew")


def test_an_emnist_split_that_does_not_exist(tmp_path):
    with pytest.raises(DatasetError) as caught:
        datasets.load("emnist:lettres", root=tmp_path)
    assert str(caught.value) == (
        "emnist: the split must be one of byclass, bymerge, balanced, letters, digits, mnist, and "
        "it is 'lettres'; did you mean 'letters'?"
    )
