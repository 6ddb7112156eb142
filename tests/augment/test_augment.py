"""Warping: against scipy, torchvision and arithmetic by hand; and what all augmentations keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms.functional as tvf
from jax.test_util import check_grads
from torchvision.transforms import InterpolationMode

from feedax import augment
from feedax.augment.geometry import gaussian_matrix, noise_to_field
from feedax.errors import AugmentError

KEY = jax.random.key(0)
STRENGTHS = {
    "warp": {"rotation": 20.0, "scale": 0.2, "shear": 0.2, "translation": 2.0, "alpha": 20.0},
    "affine": {"rotation": 20.0, "scale": 0.2, "shear": 0.2, "translation": 2.0},
    "elastic": {"alpha": 20.0},
    "shift": {"pixels": 2},
    "crop": {"padding": 2},
    "cutout": {"size": 3},
    "brightness": {"strength": 0.4},
    "contrast": {"strength": 0.4},
}
ZEROS = [
    ((8, 8), jnp.float32),
    pytest.param((8, 8), jnp.uint8, marks=pytest.mark.slow),
    pytest.param((8, 8), jnp.float16, marks=pytest.mark.slow),
    pytest.param((8, 8), jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param((1, 1), jnp.float32, marks=pytest.mark.slow),
    pytest.param((1, 5), jnp.float32, marks=pytest.mark.slow),
    pytest.param((7, 4, 3), jnp.float32, marks=pytest.mark.slow),
    ((3, 4, 9), jnp.uint8),
]


def pixels(rng, shape, dtype=jnp.float32):
    values = rng.integers(0, 256, shape)
    return jnp.asarray(values, dtype) if dtype == jnp.uint8 else jnp.asarray(values / 256, dtype)


def of(name):
    """The augmentation with strengths, a function of a key and an image."""
    return partial(getattr(augment, name), **STRENGTHS[name])


@jax.jit
def placed(image, numbers):
    return augment.interpolate(image, *augment.affine_coordinates(image.shape, **numbers))


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Interpolation and coordinates.


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 4), (8, 8)])
def test_interpolation_is_scipys(rng, shape):
    image = np.float32(rng.random(shape))
    rows, columns = np.float32(rng.uniform(-3, 11, (2, 20, 30)))
    rows[0, :4] = columns[0, :4] = -1, 0, shape[0] - 1, shape[0]  # on the border, to the bit
    found = augment.interpolate(image, rows, columns)
    wanted = scipy.ndimage.map_coordinates(image, [rows, columns], order=1, mode="grid-constant")
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_far_outside_is_zero_and_not_a_number_stays_so():
    far = jnp.array([[-jnp.inf, -1e30, -1.0, 2.0, 1e30, jnp.inf, jnp.nan]])
    found = augment.interpolate(jnp.ones((2, 2)), far, jnp.zeros_like(far))
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, 0, 0, np.nan]])


def test_affine_coordinates_are_those_of_the_inverse_matrix(rng):
    """The forward map written as a product of matrices, in float64, and inverted by NumPy."""
    image = np.float32(rng.random((9, 12)))
    angle, scale, shear, move = 33.0, (1.3, 0.8), 0.25, (1.5, -2.25)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    # Rows count downwards, so that a counterclockwise turn has its minus at the bottom.
    rotate, slant = np.array([[c, -s], [s, c]]), np.array([[1, 0], [shear, 1]])
    inverse = np.linalg.inv(rotate @ slant @ np.diag(scale))
    middle = np.array([4.0, 5.5])
    offset = middle - inverse @ (middle + move)
    wanted = scipy.ndimage.affine_transform(image, inverse, offset, order=1, mode="grid-constant")
    numbers = {"angle": angle, "scale": scale, "shear": shear, "translation": move}
    found = placed(image, jax.tree.map(np.float32, numbers, is_leaf=lambda n: isinstance(n, tuple)))
    np.testing.assert_allclose(found, wanted, atol=5e-6)


@pytest.mark.parametrize(
    ("angle", "scale", "slope", "down", "right"),
    [(30, 1.0, 0.0, 0, 0), (0, 1.4, 0.0, 0, 0), (0, 1, 0.3, 0, 0), (-50, 0.8, 0.2, 2, -3)],
)
def test_affine_is_torchvisions(rng, angle, scale, slope, down, right):
    """torchvision turns clockwise, and slants to the left by an angle."""
    image = np.zeros((16, 21), np.float32)
    image[5:11, 7:14] = rng.random((6, 7))  # the border itself fades otherwise in torchvision
    wanted = tvf.affine(
        torch.from_numpy(image)[None],
        angle=-angle,
        translate=[right, down],
        scale=scale,
        shear=[-np.rad2deg(np.arctan(slope)), 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )[0]
    move = np.array([down, right], np.float32)
    numbers = {"angle": angle, "scale": scale, "shear": slope}
    found = placed(image, {**jax.tree.map(np.float32, numbers), "translation": move})
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_quarter_turn_is_rot90(rng):
    image = pixels(rng, (7, 7))
    turned = placed(image, {"angle": 90.0})
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)


def test_a_bar_turns_by_the_angle():
    """The axis of a bar, from its second moments; rows count downwards."""
    bar = np.zeros((41, 41), np.float32)
    bar[19:22, 6:35] = 1
    turned = np.asarray(placed(bar, {"angle": 30.0}))
    weights = np.float64(turned) / turned.sum()
    right, up = np.arange(41) - 20, 20 - np.arange(41)
    xx, yy = np.sum(weights * right**2), np.sum(weights * up[:, None] ** 2)
    xy = np.sum(weights * up[:, None] * right)
    assert np.rad2deg(np.arctan2(2 * xy, xx - yy) / 2) == pytest.approx(30, abs=0.1)


def test_a_point_goes_through_scale_then_shear_then_rotation_then_translation():
    """By hand, from the middle (10, 10): (0, 3) right -> scaled by 2 (0, 6); a slope moves a row
    by its distance, 0; turned by 90 degrees it is 6 up, (-6, 0); moved by (1, 2): (5, 12)."""
    point = jnp.zeros((21, 21)).at[10, 13].set(1)
    numbers = {"angle": 90.0, "scale": 2.0, "shear": 0.5, "translation": np.array([1, 2])}
    moved = placed(point, numbers)
    assert np.unravel_index(np.argmax(moved), moved.shape) == (5, 12)


def test_a_slanted_row_moves_by_its_distance_from_the_middle():
    point = jnp.zeros((9, 9)).at[6, 4].set(1)  # 2 below the middle
    moved = placed(point, {"shear": 0.5})
    assert np.unravel_index(np.argmax(moved), moved.shape) == (6, 5)


def test_translation_moves_by_that_many_pixels(rng):
    image = np.asarray(pixels(rng, (6, 8)))
    moved = placed(image, {"translation": np.array([2, -3])})
    wanted = np.zeros_like(image)
    wanted[2:, :-3] = image[:-2, 3:]
    same_bits(moved, jnp.asarray(wanted))


# The elastic field.


@pytest.mark.parametrize(("size", "sigma"), [(28, 4.0), (9, 0.7), (1, 4.0), (40, 2.5)])
def test_the_filter_is_scipys_and_little_of_its_covariance_is_left_out(size, sigma):
    matrix = gaussian_matrix(size, sigma)
    wanted = scipy.ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="constant")
    np.testing.assert_allclose(matrix, wanted, atol=1e-15)
    covariance = wanted @ wanted.T
    factor = noise_to_field(size, sigma)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=5e-4 * covariance.max())
    # Of both axes together, less than 0.1 % of any pixel's variance.
    kept = np.diag(factor @ factor.T) / np.diag(covariance)
    assert kept.min() ** 2 > 0.999
    assert factor.shape[1] <= size
    if (size, sigma) == (28, 4.0):
        assert factor.shape[1] == 8


def test_fields_are_spread_as_scipys_filtered_noise(rng):
    """Covariances of 4,000 samples, each known to 2 or 3 % of the variance: 5 standard errors."""
    noise = rng.uniform(-1, 1, (4000, 12, 12))
    wanted = 34 * scipy.ndimage.gaussian_filter(noise, (0, 3, 3), mode="constant")
    field = jax.jit(jax.vmap(partial(augment.elastic_field, shape=(12, 12), alpha=34.0, sigma=3.0)))
    down, right = field(jax.random.split(KEY, 4000))
    for found in (down, right):
        a, b = (np.reshape(x, (4000, -1)) for x in (found, wanted))
        covariance = b.T @ b / 4000
        np.testing.assert_allclose(a.T @ a / 4000, covariance, atol=0.16 * covariance.max())
        assert np.abs(a.mean(0)).max() < 5 * a.std() / np.sqrt(4000)
    assert abs(np.mean(down * right)) < 0.05 * np.mean(down**2)  # the two are independent


def test_far_from_the_border_the_spread_is_the_documented_one():
    factor = noise_to_field(101, 4.0)[50]
    assert 34 / np.sqrt(3) * np.sum(factor**2) == pytest.approx(34 * 0.163 / 4, rel=2e-3)


def test_elastic_is_the_field_added_to_the_pixels(rng):
    image = pixels(rng, (8, 10))
    down, right = augment.elastic_field(jax.random.split(KEY)[1], (8, 10), alpha=20.0, sigma=2.0)
    grid = np.mgrid[:8, :10] + np.stack([down, right])
    wanted = scipy.ndimage.map_coordinates(image, grid, order=1, mode="grid-constant")
    found = augment.elastic(KEY, image, alpha=20.0, sigma=2.0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# What is drawn.


def drawn(**strengths):
    """Coordinates of 2,000 keys, measured through images that hold their own coordinates."""
    ramp = jnp.arange(21.0) - 10
    image = jnp.stack(jnp.meshgrid(ramp, ramp, indexing="ij"), -1)
    middle = jax.jit(jax.vmap(lambda key: augment.affine(key, image, **strengths)[9:12, 9:12]))
    return np.asarray(jnp.concatenate([middle(k) for k in jax.random.split(KEY, (20, 100))]))


def uniform_in(values, least, most):
    """They reach within 1 % of both ends, go no further, and are spread evenly."""
    width = most - least
    assert least - 1e-3 * width <= values.min() <= least + 0.01 * width
    assert most - 0.01 * width <= values.max() <= most + 1e-3 * width
    steps = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(np.sort(values) - (least + width * steps)).max() < 0.05 * width


def test_translations_are_uniform():
    seen = drawn(translation=3.0)[:, 1, 1]
    uniform_in(seen[:, 0], -3, 3)
    uniform_in(seen[:, 1], -3, 3)
    assert abs(np.corrcoef(seen.T)[0, 1]) < 0.1


@pytest.mark.slow
def test_angles_are_uniform():
    right = drawn(rotation=40.0)[:, 1, 2]
    uniform_in(np.rad2deg(np.arctan2(right[:, 0], right[:, 1])), -40, 40)


@pytest.mark.slow
def test_logarithms_of_scales_are_uniform():
    seen = drawn(scale=0.5)
    for factor in (1 / seen[:, 2, 1, 0], 1 / seen[:, 1, 2, 1]):
        uniform_in(np.log(factor), -np.log(1.5), np.log(1.5))


@pytest.mark.slow
def test_slopes_are_uniform():
    uniform_in(-drawn(shear=0.3)[:, 2, 1, 1], -0.3, 0.3)


# What all keep. They are compiled together, which is most of what these tests cost.


@partial(jax.jit, static_argnames=("names", "white", "channel_axis"))
def augmented(key, image, strengths, names=tuple(STRENGTHS), white=None, channel_axis=-1):
    """The image under each augmentation, its strengths traced."""
    more = {name: {"white": white} for name in ("brightness", "contrast")}
    return {
        name: getattr(augment, name)(
            key, image, **strengths[name], **more.get(name, {}), channel_axis=channel_axis
        )
        for name in names
    }


@pytest.mark.parametrize(("shape", "dtype"), ZEROS, ids=str)
def test_zero_strength_is_the_identity_to_the_bit(rng, shape, dtype):
    image = pixels(rng, shape, dtype)
    if dtype != jnp.uint8:
        image = (image * 3 - 1).at[0].set(-0.0)  # also beyond what is clipped
    zeros = jax.tree.map(lambda value: 0 * value, STRENGTHS)
    for found in augmented(KEY, image, zeros, channel_axis=-3 if shape[0] == 3 else -1).values():
        same_bits(found, image)


@pytest.mark.parametrize("name", STRENGTHS)
def test_known_zero_strength_is_the_identity_to_the_bit(rng, name):
    image = pixels(rng, (8, 8))
    zeros = dict.fromkeys(STRENGTHS[name], 0)
    same_bits(getattr(augment, name)(KEY, image, **zeros), image)


def test_the_key_decides_and_one_of_a_batch_is_the_one_alone(rng):
    image = pixels(rng, (8, 8))
    keys = jax.random.split(KEY, 20)
    each = jax.jit(jax.vmap(lambda key: augmented(key, image, STRENGTHS)))
    found, again = each(keys), each(keys)
    alone = augmented(keys[3], image, STRENGTHS)
    for name, images in found.items():
        same_bits(images, again[name])
        assert len({np.asarray(one).tobytes() for one in images}) > 10, name
        np.testing.assert_allclose(images[3], alone[name], atol=3e-5)


def test_traced_strengths_are_the_known_ones_and_compile_once(rng):
    image = pixels(rng, (8, 8))
    found = augmented(KEY, image, STRENGTHS)
    compiled = augmented._cache_size()
    twice = augmented(KEY, image, jax.tree.map(lambda value: 2 * value, STRENGTHS))
    assert augmented._cache_size() == compiled
    known = jax.jit(lambda key: {name: of(name)(key, image) for name in STRENGTHS})(KEY)
    for name in STRENGTHS:
        np.testing.assert_allclose(found[name], known[name], atol=3e-5)
        assert not np.array_equal(found[name], twice[name]), name


def test_channels_are_each_changed_alike(rng):
    names = ("warp", "shift", "cutout", "brightness")
    image = pixels(rng, (8, 8, 3))
    alone = [augmented(KEY, image[..., channel], STRENGTHS) for channel in range(3)]
    for axis in (0, -1):
        moved = jnp.moveaxis(image, -1, axis)
        found = augmented(KEY, moved, STRENGTHS, names=names, channel_axis=axis)
        for name in names:
            wanted = jnp.stack([channel[name] for channel in alone], axis)
            np.testing.assert_allclose(found[name], wanted, atol=2e-6)


def test_uint8_is_the_float_image_rounded(rng):
    image = pixels(rng, (8, 8), jnp.uint8)
    whole = augmented(KEY, image, STRENGTHS)
    real = augmented(KEY, image.astype(jnp.float32), STRENGTHS, white=255.0)
    for name in STRENGTHS:
        assert whole[name].dtype == jnp.uint8
        np.testing.assert_array_equal(whole[name], np.round(real[name]))


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.bfloat16])
def test_short_floats_are_computed_in_float32(rng, dtype):
    image = pixels(rng, (8, 8), dtype)
    short = augmented(KEY, image, STRENGTHS)
    long = augmented(KEY, image.astype(jnp.float32), STRENGTHS)
    for name in STRENGTHS:
        same_bits(short[name], long[name].astype(dtype))


def test_float64_stays_float64_and_draws_the_same(rng):
    image = rng.random((8, 8))
    warped = jax.jit(of("warp"))
    short = warped(KEY, np.float32(image))
    with jax.enable_x64(True):
        long = warped(KEY, jnp.asarray(image, jnp.float64))
        assert long.dtype == jnp.float64
        np.testing.assert_allclose(long, short, atol=1e-5)
        assert warped(KEY, np.float32(image)).dtype == jnp.float32


def test_gradients_in_the_image_are_finite_differences(rng):
    image = pixels(rng, (8, 8)) * 0.4 + 0.3  # where nothing is clipped
    check_grads(
        lambda image: augmented(KEY, image, STRENGTHS),
        (image,),
        1,
        modes=["fwd", "rev"],
        atol=1e-2,
        rtol=1e-2,
    )


def test_between_pixels_the_derivative_by_the_coordinates_is_the_slope():
    ramp = 3.0 * jnp.arange(4.0)[:, None] - 2.0 * jnp.arange(5.0)[None, :]

    def seen(row, column):
        return augment.interpolate(ramp, row[None, None], column[None, None])[0, 0]

    slopes = jax.jit(jax.grad(seen, (0, 1)))(jnp.float32(1.3), jnp.float32(2.6))
    np.testing.assert_allclose(slopes, (3, -2), rtol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: augment.warp(KEY, jnp.ones((3, 3)), rotation=-1),
            "warp: rotation must be a finite number >= 0, and it is -1; give 0 for none",
        ),
        (
            lambda: augment.affine(KEY, jnp.ones((3, 3)), scale=float("nan")),
            "warp: scale must be a finite number >= 0, and it is nan; give 0 for none",
        ),
        (
            lambda: augment.elastic(KEY, jnp.ones((3, 3)), alpha="much"),
            "warp: alpha must be a finite number >= 0, and it is 'much'; give 0 for none",
        ),
        (
            lambda: augment.elastic(KEY, jnp.ones((3, 3)), alpha=1, sigma=0),
            "warp: sigma must be a finite number > 0, and it is 0; give a larger one",
        ),
        (
            lambda: jax.jit(lambda s: augment.elastic(KEY, jnp.ones((3, 3)), alpha=1, sigma=s))(1),
            "warp: sigma must be known when the program is compiled, and it is traced; give a "
            "Python number",
        ),
        (
            lambda: jax.jit(lambda r: augment.warp(KEY, jnp.ones((3, 3)), rotation=r))(np.ones(2)),
            "warp: rotation must be one number, and its shape is (2,); for one strength for each "
            "image, use jax.vmap",
        ),
        (
            lambda: augment.warp(KEY, jnp.ones((2, 3, 3, 1)), rotation=1),
            "warp: the image must be of shape (height, width) or that and channels, none of them "
            "0, and its shape is (2, 3, 3, 1); for a batch, use jax.vmap",
        ),
        (
            lambda: augment.warp(KEY, jnp.ones((3, 3), int), rotation=1),
            "warp: the image must be uint8 or floating, and it is int32; convert it",
        ),
        (
            lambda: augment.flip(KEY, jnp.ones((3, 3, 1)), channel_axis=3),
            "flip: channel_axis must be an axis of the image, from -3 to 2, and it is 3; give -1 "
            "for (height, width, channels), 0 for (channels, height, width)",
        ),
        (
            lambda: augment.interpolate(jnp.ones((3, 3)), jnp.ones((2, 2)), jnp.ones((2, 3))),
            "interpolate: rows and columns must have two axes and the same shape, and theirs are "
            "(2, 2) and (2, 3); give both for every pixel of the result",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(AugmentError) as caught:
        call()
    assert str(caught.value) == message
