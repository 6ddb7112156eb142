"""The text form of datasets, and what datasets say of themselves."""

from functools import partial

import helpers
import numpy as np
import pytest
import torchvision
from torch.utils.data import Subset

from feedax import datasets
from feedax.data.array_dataset import ArrayDataset
from feedax.errors import DatasetError

message = partial(helpers.message, DatasetError)


# ------------------------------------------------------------------------------ the text form


def test_load_mnist(unpacked):
    data = datasets.load("mnist", train=False, root=unpacked, transform=None)
    assert type(data) is torchvision.datasets.MNIST
    assert (len(data), data.transform) == (10000, None)


LISTED = (
    "datasets: the dataset must be one of mnist, fashion_mnist, kmnist, emnist, emnist:SPLIT, "
    "qmnist, cifar10, cifar100, svhn, imagefolder:DIR, npz:FILE, package.module:factory, and it is "
)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("mnits", "did you mean 'mnist'?"),
        ("MNIST", "did you mean 'mnist'?"),
        ("cifar-10", "did you mean 'cifar10'?"),
        ("fashion", "did you mean 'fashion_mnist'?"),
        ("coco", "choose one of these"),
        ("loop_base.Mine", "did you mean 'loop_base:Mine'?"),
        ("loop_base.py", "choose one of these"),
        ("data/digits.npz", "did you mean 'npz:data/digits.npz'?"),
        (".", "did you mean 'imagefolder:.'?"),
        ("", "choose one of these"),
        ("imagefoldr:/data/cats", "did you mean 'imagefolder'?"),
        ("imagefolder", "did you mean 'imagefolder'?"),
        ("npz:", "did you mean 'npz'?"),
        ("C:\\data", "choose one of these"),
    ],
)
def test_a_text_that_names_no_dataset(text, remedy):
    assert message(datasets.load, text) == f"{LISTED}{text!r}; {remedy}"


def test_every_listed_name_is_taken():
    for name in datasets.NAMES:
        if name.islower() and ":" not in name:
            assert callable(getattr(datasets, name))
    assert set(datasets.__all__) <= set(dir(datasets))


@pytest.mark.parametrize("text", ["npz:a.npz", "imagefolder:a", "a.b:c"])
def test_a_root_that_would_do_nothing(text, tmp_path):
    assert message(datasets.load, text, root=tmp_path) == (
        "datasets: root=DIR is for datasets that are unpacked or downloaded, and "
        f"{text!r} says itself where to look; leave it out"
    )


# ---------------------------------------------------------------------- shapes and class names


def test_facts_of_mnist(unpacked):
    data = datasets.mnist(train=False, root=unpacked)
    assert datasets.image_shape(data) == (28, 28)
    assert datasets.class_names(data)[9] == "9 - nine"
    part = Subset(Subset(data, range(10)), [1, 2])
    assert datasets.image_shape(part) == (28, 28)
    assert datasets.class_names(part) == datasets.class_names(data)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 9), None), ((4, 5, 6), (5, 6)), ((4, 5, 6, 3), (5, 6, 3)), ((4, 2, 5, 6, 3), None)],
)
def test_the_shape_of_arrays(shape, expected):
    data = ArrayDataset(np.zeros(shape), np.zeros(4))
    assert datasets.image_shape(data) == expected
    assert datasets.class_names(data) is None


def test_an_unknown_dataset_says_nothing():
    assert datasets.image_shape([(1, 2)]) is None
    assert datasets.class_names([(1, 2)]) is None
