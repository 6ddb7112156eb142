"""Arrays as pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from feedax.report.images import data_uri, first_layer, in_colours, mosaic, picture, strongest


@pytest.mark.parametrize(
    ("example", "shape", "expected"),
    [
        (np.array([[0, 255], [7, 1]], np.uint8), None, [[0, 255], [7, 1]]),
        (np.array([0.0, 255, 7, 1], np.float32), (2, 2), [[0, 255], [7, 1]]),
        (np.array([[0, 1], [0.2, 0]]), None, [[0, 255], [51, 0]]),
        (np.array([[-1.0, 1], [0, 0]]), None, [[0, 255], [128, 128]]),
        (np.array([[[0.0], [1]], [[1], [0]]]), None, [[0, 255], [255, 0]]),
    ],
)
def test_examples_are_shown_as_pictures(example, shape, expected) -> None:
    np.testing.assert_array_equal(picture(example, shape), expected)


def test_colours_are_channels_last_whatever_they_were(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture(np.moveaxis(image, -1, 0)), image)
    np.testing.assert_array_equal(picture(image.ravel(), (5, 6, 3)), image)


@pytest.mark.parametrize(
    "example", [np.zeros(7), np.zeros((2, 3, 4, 5)), {"x": np.zeros((4, 4))}, np.array(["a"]), 3]
)
def test_what_is_no_picture_is_none(example) -> None:
    assert picture(example) is None


def test_the_first_layer_is_found_in_every_library_s_layout(rng: np.random.Generator) -> None:
    dense = rng.normal(size=(7, 12))
    for params in ([(dense, np.zeros(7))], {"linear": {"bias": np.zeros(7), "kernel": dense.T}}):
        np.testing.assert_array_equal(first_layer(params, (3, 4)), dense.reshape(7, 3, 4))
    filters = rng.normal(size=(8, 1, 3, 3))
    for params in ([filters, dense], {"conv": np.moveaxis(filters, (0, 1), (3, 2))}):
        np.testing.assert_array_equal(first_layer(params, (28, 28, 1)), filters[:, 0])
    filters = rng.normal(size=(3, 3, 3, 16))  # of Flax, though torch could have such a shape
    np.testing.assert_array_equal(first_layer([filters], (32, 32, 3)), np.moveaxis(filters, 3, 0))
    assert first_layer([np.zeros((3, 5))], (28, 28)) is None
    assert first_layer([rng.normal(size=(4, 3, 5, 5))], (3, 32, 32)).shape == (4, 5, 5, 3)


def test_weights_have_colours_by_their_sign() -> None:
    colours = in_colours(np.array([[[-2.0, 0], [1, 2]]]))
    assert colours[0, 0, 0].tolist() == [0, 90, 160]
    assert colours[0, 0, 1].tolist() == [255, 255, 255]
    assert colours[0, 1, 1].tolist() == [200, 85, 0]
    assert strongest(np.array([[[1.0]], [[-3]], [[2]]]), 2).ravel().tolist() == [-3, 2]


def test_a_picture_comes_back_out_of_its_address(rng: np.random.Generator) -> None:
    tiles = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    whole = mosaic(tiles, columns=2)
    assert whole.shape == (14, 7)
    np.testing.assert_array_equal(whole[5:9, 4:7], tiles[3])
    start, _, data = data_uri(whole).partition(",")
    assert start == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), whole)
