"""Image files of every kind, prepared for a network."""

import os
import socket

import numpy as np
import photographs
import pytest
from PIL import Image

from feedax.errors import DatasetError, ImageError
from feedax.pictures import FORMATS, read_picture
from feedax.predicting import prepare_image

NAMES = "PNG, JPEG, WebP, BMP, GIF, TIFF or PPM"


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
            f"{{p}} must be a {NAMES}, and it is none of them; convert it",
        ),
        (  # Pillow would start Ghostscript for it, whatever its name is
            lambda p: Image.new("L", (9, 9)).save(p, "EPS"),
            f"{{p}} must be a {NAMES}, and it is none of them; convert it",
        ),
        (
            lambda p: Image.new("L", (9, 9)).save(p, "PCX"),
            f"{{p}} must be a {NAMES}, and it is none of them; convert it",
        ),
        (
            lambda p: os.mkfifo(p),
            "{p} must be an image file that can be read, and that fails (it is a pipe); "
            "name another one",
        ),
        (
            lambda p: p.symlink_to("/dev/zero"),
            "{p} must be an image file that can be read, and that fails (it is a device); "
            "name another one",
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
            f"prepare_image: {tmp_path / 'image.png'} must have at most 100 pixels, and it has "
            "more; make it smaller"
        )


def test_a_file_larger_than_all_its_pixels_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (5, 5)).save(tmp_path / "image.png")
    os.truncate(tmp_path / "image.png", 10_000)
    with pytest.raises(ImageError, match="must have at most 100 pixels, and it has more"):
        prepare_image(tmp_path / "image.png", (28, 28))


@pytest.mark.parametrize("limit", [100, 150])  # Pillow raises for the one, and warns of the other
def test_a_huge_picture_of_a_folder_is_a_dataset_error(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    Image.new("L", (15, 15)).save(tmp_path / "image.png")
    with pytest.raises(DatasetError, match=f"^x: .* must have at most {limit} pixels"):
        read_picture(tmp_path / "image.png", "x", DatasetError)


def test_a_socket_is_no_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("image.png")
        with pytest.raises(ImageError, match=r"^prepare_image: image.png .* \(it is a socket\);"):
            prepare_image("image.png", (28, 28))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, digits, name):
    drawn = enlarged(digits[0][0])
    Image.fromarray(drawn).save(tmp_path / "image", name)
    pixels = prepare_image(tmp_path / "image", (28, 28), "mnist").pixels
    assert np.abs(pixels.astype(int) - prepared(tmp_path, drawn).pixels).mean() < 1


@pytest.mark.parametrize("name", ["GIF", "WebP", "TIFF", "PNG"])
def test_the_first_frame_counts(tmp_path, digits, name):
    first, second = (Image.fromarray(enlarged(digits[0][i])) for i in (0, 1))
    options = {"lossless": True} if name == "WebP" else {}
    first.save(tmp_path / "i", name, save_all=True, append_images=[second], **options)
    pixels = prepare_image(tmp_path / "i", (28, 28), "mnist").pixels
    assert np.abs(pixels.astype(int) - digits[0][0]).mean() < 1


# ------------------------------------------------------------------------- framing and notes


def test_all_of_mnist_is_framed_as_it_is(mnist_train, mnist_test):
    """The images themselves, since 70,000 files would take minutes."""
    from feedax.predicting import FRAMINGS, is_framed

    for part in (mnist_train, mnist_test):
        images = part.data.numpy()
        assert all(is_framed(image, FRAMINGS["mnist"]) for image in images[::5])
    # Those that lie farthest from the middle, and the shortest.
    images = mnist_train.data.numpy()
    ink = np.where(images >= 25, images, 0).astype(np.float64)
    rows, columns = ink.sum(2), ink.sum(1)
    off = [np.abs(a @ np.arange(28) / a.sum(1) - 14) for a in (rows, columns)]
    long = np.maximum((rows > 0).sum(1), (columns > 0).sum(1))
    for index in {*np.argsort(off[0])[-20:], *np.argsort(off[1])[-20:], *np.argsort(long)[:20]}:
        assert is_framed(images[index], FRAMINGS["mnist"])


@pytest.mark.parametrize("change", ["moved", "small"])
def test_28_by_28_that_is_not_framed_is_framed(tmp_path, digits, change):
    digit = digits[0][1]
    if change == "moved":
        drawn = np.roll(digit, (-1, -2), (0, 1))
    else:
        small = np.asarray(Image.fromarray(digit).resize((14, 14), Image.Resampling.BOX))
        drawn = np.pad(small, ((1, 13), (12, 2)))
    image = prepared(tmp_path, drawn)
    assert image.notes == (
        "28 x 28 pixels not framed as the dataset's, so cropped to the ink, scaled and centred in "
        "28 x 28",
    )
    limit = 1 if change == "moved" else 20  # half the pixels are lost
    assert np.abs(image.pixels.astype(int) - digit).mean() <= limit
    # What feedax has no framing of is taken as it is.
    other = prepared(tmp_path, drawn, dataset="kmnist")
    np.testing.assert_array_equal(other.pixels, drawn)
    assert other.notes == ()


def test_two_digits_are_said_and_the_larger_is_taken(tmp_path, digits):
    seven, two = (np.kron(digits[0][i], np.ones((8, 8), np.uint8)) for i in (0, 1))
    both = 255 - np.hstack([np.pad(seven[::2, ::2], ((56, 56), (20, 60))), np.pad(two, 0)])
    image = prepared(tmp_path, both)
    assert image.notes[-1] == "perhaps 2 things, of which the largest was taken"
    assert np.abs(image.pixels.astype(int) - digits[0][1]).mean() < 3


def test_a_digit_that_is_cut_off_is_said(tmp_path, digits):
    image = prepared(tmp_path, enlarged(digits[0][0])[:, 180:])
    assert image.notes[-1] == "perhaps cut off, since ink touches the border"


def test_dust_and_the_bar_of_a_five(tmp_path, digits):
    """A speck is left out without a word, and a detached bar stays."""
    drawn = np.zeros((280, 280), np.uint8)
    drawn[80:200, 100:120] = drawn[64:74, 100:170] = 255
    image = prepared(tmp_path, drawn)
    drawn[20:24, 250:254] = 255
    speckled = prepared(tmp_path, drawn)
    np.testing.assert_array_equal(image.pixels, speckled.pixels)
    assert len(image.notes) == len(speckled.notes) == 1
    height, width = (np.ptp(np.flatnonzero(image.pixels.any(axis))) + 1 for axis in (1, 0))
    assert (height, width) == (20, 10)  # without the bar 3 wide


@pytest.mark.parametrize("shade", [0, 90])
def test_blank_paper_is_blank_in_any_light(tmp_path, rng, shade):
    paper = 230 - shade * np.linspace(0, 1, 300) + rng.normal(0, 3, (200, 300))
    with pytest.raises(ImageError, match=r"must show something, and it is blank"):
        prepared(tmp_path, paper.astype(np.uint8))


def test_a_picture_of_a_telephone_costs_no_more_than_a_small_one(tmp_path, digits):
    drawn = np.kron(enlarged(digits[0][0]), np.ones((8, 8), np.uint8))  # 3200 x 3120
    image = prepared(tmp_path, drawn)
    assert image.notes[1].startswith("3200 x 3120 pixels")
    assert np.abs(image.pixels.astype(int) - digits[0][0]).mean() < 2


# ------------------------------------------------------------------------------ photographs


def test_digits_are_photographed_from_a_seed_alone(tmp_path, digits):
    kinds = {"chalk on a board": photographs.SEEN["chalk on a board"]}
    pictures = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        drawn = photographs.photographs(*digits, kinds, 2, 5, tmp_path / part)
        pictures.append([(name, file.read_bytes(), label) for name, file, label in drawn])
    assert pictures[0] == pictures[1]


def test_photographs_come_back_as_the_digits_they_show(tmp_path, mnist_test):
    """Read by the nearest of the training digits' means, which needs no network of ours."""
    from sklearn.neighbors import KNeighborsClassifier

    import feedax

    train = feedax.datasets.mnist(train=True)
    reader = KNeighborsClassifier(1).fit(
        train.data[:6000].numpy().reshape(6000, -1), train.targets[:6000].numpy()
    )
    images, labels = mnist_test.data.numpy(), mnist_test.targets.numpy()
    right = {}
    for name, file, label in photographs.photographs(
        images, labels, photographs.KINDS, 3, 3, tmp_path
    ):
        pixels = prepare_image(file, (28, 28), "mnist").pixels
        right.setdefault(name, []).append(reader.predict(pixels.reshape(1, -1))[0] == label)
    assert len(right) == 20
    # Of the digits themselves it reads 0.90; with one background for the whole picture, 0.31.
    assert np.mean(list(right.values())) >= 0.75, right


def test_a_shape_that_is_no_image_is_refused():
    with pytest.raises(
        ImageError, match=r"must be grey or colour images, and their shape is \(5,\)"
    ):
        prepare_image("any.png", (5,))
