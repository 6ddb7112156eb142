"""Image files of every kind, prepared for a network."""

import numpy as np
import pytest
from PIL import Image

from feedax.errors import ImageError
from feedax.predicting.image import prepare_image


def enlarged(digit, factor=10, margins=((40, 70), (100, 20))):
    """A digit as somebody draws it: large, black on white, off centre."""
    return 255 - np.pad(np.kron(digit, np.ones((factor, factor), np.uint8)), margins)


@pytest.fixture(scope="module")
def digits(mnist_test):
    return mnist_test.data[:200].numpy(), mnist_test.targets[:200].numpy()


def prepared(tmp_path, array, name="image.png", shape=(28, 28), dataset="mnist", **save):
    Image.fromarray(array).save(tmp_path / name, **save)
    return prepare_image(tmp_path / name, shape, dataset)


def test_a_digit_of_the_dataset_stays_as_it_is(tmp_path, digits):
    for digit in digits[0][:20]:
        image = prepared(tmp_path, digit)
        np.testing.assert_array_equal(image.pixels, digit)
        assert (image.pixels.dtype, image.notes) == (np.uint8, ())


def test_an_inverted_digit_is_inverted_back(tmp_path, digits):
    image = prepared(tmp_path, 255 - digits[0][0])
    np.testing.assert_array_equal(image.pixels, digits[0][0])
    assert image.notes == ("dark on light, so inverted",)


def test_an_enlarged_digit_comes_back(tmp_path, digits):
    """The framing is MNIST's own: most digits come back, but for faint ink at the box's edge."""
    differences = []
    for digit in digits[0]:
        image = prepared(tmp_path, enlarged(digit))
        differences.append(np.abs(image.pixels.astype(int) - digit).mean())
        assert image.notes == (
            "dark on light, so inverted",
            "400 x 390 pixels, so cropped to the ink, scaled and centred in 28 x 28",
        )
    assert np.median(differences) < 0.5  # a shift by one pixel makes 15


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "1", "I;16"])
def test_every_mode_of_a_png_shows_the_same_digit(tmp_path, digits, mode):
    drawn = enlarged(digits[0][0])
    picture = Image.fromarray(drawn)
    if mode in ("LA", "RGBA"):  # black ink on nothing
        picture = Image.merge("LA", (Image.new("L", picture.size, 0), Image.fromarray(255 - drawn)))
        picture = picture.convert(mode)
    elif mode == "I;16":
        picture = Image.fromarray(drawn.astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "image.png")
    pixels = prepare_image(tmp_path / "image.png", (28, 28)).pixels
    expected = prepared(tmp_path, drawn, "plain.png").pixels
    limit = 25 if mode == "1" else 1  # one bit a pixel is dithered
    assert np.abs(pixels.astype(int) - expected).mean() < limit


def test_white_ink_on_nothing_is_seen(tmp_path, digits):
    ink = 255 - enlarged(digits[0][0])
    Image.merge("LA", (Image.new("L", ink.shape[::-1], 255), Image.fromarray(ink))).save(
        tmp_path / "image.png"
    )
    image = prepare_image(tmp_path / "image.png", (28, 28))
    assert len(image.notes) == 1  # not inverted
    assert np.abs(image.pixels.astype(int) - digits[0][0]).mean() < 1


def test_a_photo_lying_down_is_turned_up(tmp_path, digits):
    drawn = enlarged(digits[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    lying = prepared(tmp_path, np.rot90(drawn), "lying.jpg", quality=95, exif=exif)
    upright = prepared(tmp_path, drawn, "upright.jpg", quality=95)
    assert np.abs(lying.pixels.astype(int) - upright.pixels).mean() < 2


def test_faint_ink_on_grey_paper_is_made_bright(tmp_path, digits):
    paper = (120 + enlarged(digits[0][0]) / 255 * 80).astype(np.uint8)
    image = prepared(tmp_path, paper)
    assert image.pixels.max() == 255
    assert image.pixels.min() == 0


def test_a_tiny_image_is_enlarged_and_said_so(tmp_path):
    array = np.zeros((12, 12), np.uint8)
    array[4:9, 5] = 255
    image = prepared(tmp_path, array)
    assert image.notes == (
        "12 x 12 pixels with ink of only 1 x 5, so cropped to the ink, scaled and centred in 28 x "
        "28",
    )
    assert np.flatnonzero(image.pixels.any(1)).tolist() == list(range(4, 24))


def test_emnist_is_transposed_and_fashion_fills_the_frame(tmp_path, digits):
    digit = digits[0][0]
    np.testing.assert_array_equal(prepared(tmp_path, digit, dataset="emnist").pixels, digit.T)
    filled = prepared(tmp_path, enlarged(digit), dataset="fashion_mnist").pixels
    assert max(np.ptp(np.flatnonzero(filled.any(axis))) for axis in (0, 1)) == 27


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 6), (10, 20, 1), (16, 16, 4)])
def test_other_shapes_take_the_middle(tmp_path, shape):
    array = np.zeros((60, 100, 3), np.uint8)
    array[20:40, 40:60] = (255, 0, 0)
    image = prepared(tmp_path, array, shape=shape)
    assert (image.pixels.shape, image.pixels.dtype) == (shape, np.uint8)
    assert image.notes == (f"100 x 60 pixels, so its middle was scaled to {shape[1]} x {shape[0]}",)
    middle = image.pixels[shape[0] // 2, shape[1] // 2]
    assert np.ravel(middle)[0] > 70


def test_colour_is_kept_and_transparent_is_white(tmp_path):
    array = np.zeros((32, 32, 4), np.uint8)
    image = prepared(tmp_path, array, shape=(32, 32, 3))
    assert image.pixels.min() == 255
    assert image.notes == ("transparent, so laid on white",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "{p} must be an image file, and it is not there; check the path"),
        (
            lambda p: p.mkdir(),
            "{p} must be an image file, and it is a folder; name the files in it",
        ),
        (
            lambda p: p.write_text("no"),
            "{p} must be a PNG or JPEG, and it is neither; convert it",
        ),
        (
            lambda p: Image.new("L", (9, 9)).save(p, "GIF"),
            "{p} must be a PNG or JPEG, and it is neither; convert it",
        ),
        (
            lambda p: Image.new("L", (9, 9), 255).save(p),
            "{p} must show something, and it is blank; write with a darker pen",
        ),
        (
            lambda p: Image.new("RGBA", (9, 9)).save(p),
            "{p} must show something, and it is blank; write with a darker pen",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, make, message):
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(ImageError) as error:
        prepare_image(path, (28, 28))
    assert str(error.value) == f"prepare_image: {message.format(p=path)}"


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_cut_off_file_is_refused(tmp_path, rng, name, share):
    path = tmp_path / name
    Image.fromarray(rng.integers(0, 255, (99, 99), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match=r"^prepare_image: .* must be a"):
        prepare_image(path, (28, 28))


def test_a_huge_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (12, 30):
        Image.new("L", (side, side)).save(tmp_path / "image.png")
        with pytest.raises(ImageError) as error:
            prepare_image(tmp_path / "image.png", (28, 28))
        assert str(error.value) == (
            f"prepare_image: {tmp_path / 'image.png'} must have fewer than 100 pixels, and it has "
            "more; make it smaller"
        )


def test_a_shape_that_is_no_image_is_refused():
    with pytest.raises(
        ImageError, match=r"must be grey or colour images, and their shape is \(5,\)"
    ):
        prepare_image("any.png", (5,))
