"""Shifts, flips, holes, brightness, contrast and mixing: against torchvision and NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from helpers import slow

from feedax import augment
from feedax.errors import AugmentError

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 300)


@pytest.fixture
def image(rng):
    return np.float32(rng.uniform(0.1, 1, (5, 6)))


def all_keys(augmentation, image, **strengths):
    """The image under 300 keys."""
    each = jax.jit(jax.vmap(partial(augmentation, **strengths), (0, None)))
    return np.asarray(each(KEYS, image))


def are_just(found, wanted):
    """Every found image is a wanted one, and every wanted one is found."""
    assert {one.tobytes() for one in found} == {np.asarray(one).tobytes() for one in wanted}


@pytest.mark.parametrize(("edges", "mode"), [slow("zero", "constant"), ("reflect", "reflect")])
def test_crops_are_torchvisions_padded_and_cut(image, edges, mode):
    padded = tvf.pad(torch.from_numpy(image)[None], [2], padding_mode=mode)[0].numpy()
    wanted = [padded[y : y + 5, x : x + 6] for y in range(5) for x in range(5)]
    found = all_keys(augment.crop, image, padding=2, edges=edges)
    are_just(found, wanted)
    np.testing.assert_array_equal(found, all_keys(augment.shift, image, pixels=2, edges=edges))


def test_shifts_beyond_the_image_leave_nothing_or_go_on_mirroring(image):
    gone = all_keys(augment.shift, image, pixels=40)
    assert np.mean(np.all(gone == 0, (1, 2))) > 0.9
    one = jnp.ones((1, 1))
    np.testing.assert_array_equal(all_keys(augment.shift, one, pixels=3, edges="reflect"), 1)
    padded = np.pad(image, 13, mode="reflect")
    wanted = {padded[y : y + 5, x : x + 6].tobytes() for y in range(27) for x in range(27)}
    found = all_keys(augment.shift, image, pixels=13, edges="reflect")
    assert {one.tobytes() for one in found} <= wanted


@pytest.mark.parametrize(("axis", "flip"), [("horizontal", tvf.hflip), slow("vertical", tvf.vflip)])
def test_flips_are_torchvisions_half_of_the_time(image, axis, flip):
    mirrored = flip(torch.from_numpy(image)[None])[0].numpy()
    found = all_keys(augment.flip, image, axis=axis)
    are_just(found, [image, mirrored])
    # 300 tosses: 150 and 8.7, the standard deviation.
    assert 115 < sum(one.tobytes() == mirrored.tobytes() for one in found) < 185


def test_flips_leave_the_channels_where_they_are():
    colour = jnp.arange(12.0).reshape(3, 2, 2)
    are_just(
        all_keys(augment.flip, colour, channel_axis=0), [colour, np.asarray(colour)[:, :, ::-1]]
    )


@pytest.mark.parametrize("size", [slow(1), 2, slow(3)])
def test_holes_have_their_centre_on_any_pixel(image, size):
    wanted = []
    for y, x in np.ndindex(image.shape):
        top, left = y - size // 2, x - size // 2
        holed = image.copy()
        holed[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        wanted.append(holed)
    are_just(all_keys(augment.cutout, image, size=size), wanted)


@pytest.mark.parametrize(("strength", "least", "most"), [slow(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_factors_are_uniform(strength, least, most):
    grey = jnp.full((1, 1), 0.25)
    drawn = all_keys(augment.brightness, grey, strength=strength, white=1.0)[:, 0, 0] / 0.25
    steps = least + (most - least) * (np.arange(300) + 0.5) / 300
    assert least <= drawn.min() <= drawn.max() <= most + 1e-6
    assert np.abs(np.sort(drawn) - steps).max() < 0.1 * (most - least)


@pytest.mark.parametrize("channels", [slow(1), 3])
def test_brightness_and_contrast_are_torchvisions(rng, channels):
    """The factor is read off an image that brightness does not clip; contrast draws it alike."""
    colour = np.float32(rng.random((channels, 5, 4)))
    for key in KEYS[:2]:
        dim = augment.brightness(key, jnp.full((1, 1), 0.5), strength=0.9)
        factor = float(dim[0, 0]) / 0.5
        tensor = torch.from_numpy(colour)
        for ours, theirs in (
            (augment.brightness, tvf.adjust_brightness),
            (augment.contrast, tvf.adjust_contrast),
        ):
            found = ours(key, colour, strength=0.9, channel_axis=0)
            np.testing.assert_allclose(found, theirs(tensor, factor), atol=1e-6)
            # Of uint8, torchvision cuts what is rounded here, and cuts the grey image too.
            whole = np.uint8(255 * colour)
            found = ours(key, whole, strength=0.9, channel_axis=0).astype(int)
            wanted = theirs(torch.from_numpy(whole), factor).numpy().astype(int)
            assert np.abs(found - wanted).max() <= 2


def test_white_is_what_the_image_says():
    bright = all_keys(augment.brightness, jnp.full((1, 1), 200.0), strength=0.9, white=255.0)
    assert bright.max() == 255
    assert np.mean(bright == 255) == pytest.approx((1.9 - 255 / 200) / 1.8, abs=0.1)


def test_mixup_mixes_by_its_shares(rng):
    inputs = {
        "image": np.float32(rng.random((64, 3, 2))),
        "byte": rng.integers(0, 256, (64, 2), np.uint8),
        "half": jnp.asarray(rng.random(64), jnp.float16),
    }
    mixed = jax.jit(partial(augment.mixup, alpha=0.4))(KEY, inputs)
    shares, partners = np.float64(mixed.shares), np.asarray(mixed.partners)
    np.testing.assert_array_equal(np.sort(partners), np.arange(64))
    assert len(np.unique(shares)) > 50
    for name, tolerance in (("image", 1e-6), ("byte", 0.501), ("half", 1e-3)):
        own = np.float64(inputs[name])
        share = shares.reshape(-1, *[1] * (own.ndim - 1))
        wanted = share * own + (1 - share) * own[partners]
        assert mixed.inputs[name].dtype == inputs[name].dtype
        np.testing.assert_allclose(np.float64(mixed.inputs[name]), wanted, atol=tolerance)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_of_the_beta_distribution(alpha):
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), of 4,000; 5 standard errors."""
    mixup = jax.jit(augment.mixup)  # alpha traced: one program for both
    shares = np.asarray(mixup(KEY, jnp.zeros((4000, 1)), alpha=alpha).shares)
    assert 0 <= shares.min() <= shares.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 4000))
    assert shares.var() == pytest.approx(variance, abs=5 * 0.3 * variance / np.sqrt(400))


def test_copies_that_fill_a_batch_are_mixed_with_themselves():
    """Each of 5 examples has each as its partner in a fifth of 500 draws; 5 standard errors."""
    mask = np.isin(np.arange(9), [0, 2, 3, 6, 8])
    inputs = jnp.arange(9.0)
    mixup = jax.jit(partial(augment.mixup, alpha=1.0))
    keys = jax.random.split(KEY, 500)
    mixed = jax.vmap(lambda key: mixup(key, inputs, mask=mask))(keys)
    partners = np.asarray(mixed.partners)
    assert (partners[:, ~mask] == np.flatnonzero(~mask)).all()
    assert (np.sort(partners[:, mask]) == np.flatnonzero(mask)).all()
    counts = np.array(
        [np.bincount(partners[:, i], minlength=9)[mask] for i in np.flatnonzero(mask)]
    )
    np.testing.assert_allclose(counts / 500, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 500))
    filled = mixup(KEY, inputs, mask=np.arange(9) < 5)
    alone = mixup(KEY, inputs[:5])
    np.testing.assert_array_equal(filled.partners[:5], alone.partners)
    np.testing.assert_array_equal(filled.shares[:5], alone.shares)


def test_mixed_losses_are_those_of_mixed_targets():
    """A loss linear in the target is mixed by shares and partners as the target itself."""
    targets = jnp.eye(4)
    mixed = jax.jit(augment.mixup)(KEY, targets, alpha=1.0)
    losses = targets @ jnp.arange(4.0)
    by_shares = mixed.shares * losses + (1 - mixed.shares) * losses[mixed.partners]
    np.testing.assert_allclose(by_shares, mixed.inputs @ jnp.arange(4.0), atol=1e-6)


def test_composed_augmentations_go_in_order_with_keys_of_their_own():
    seen = []

    def add(key, image):
        seen.append(key)
        return image + 1

    def double(key, image):
        seen.append(key)
        return image * 2

    assert float(augment.compose(add, double)(KEY, jnp.float32(3))) == 8
    assert float(augment.compose(double, add)(KEY, jnp.float32(3))) == 7
    assert jnp.all(seen[0] == jax.random.split(KEY)[0])
    assert not jnp.all(seen[0] == seen[1])
    assert augment.compose()(KEY, "as it was") == "as it was"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: augment.shift(KEY, jnp.ones((3, 3)), pixels=1.5),
            "shift: pixels must be a whole number of pixels from 0 to 1073741824, and it is 1.5; "
            "give 0 for none",
        ),
        (
            lambda: augment.crop(KEY, jnp.ones((3, 3)), padding=-1),
            "crop: padding must be a whole number of pixels from 0 to 1073741824, and it is -1; "
            "give 0 for none",
        ),
        (
            lambda: augment.crop(KEY, jnp.ones((3, 3)), padding=1, edges="wrap"),
            "crop: edges must be one of zero, reflect, and it is 'wrap'; choose one of them",
        ),
        (
            lambda: augment.flip(KEY, jnp.ones((3, 3)), axis="x"),
            "flip: axis must be one of horizontal, vertical, and it is 'x'; choose one of them",
        ),
        (
            lambda: augment.cutout(KEY, jnp.ones((3, 3)), size=True),
            "cutout: size must be a whole number of pixels from 0 to 1073741824, and it is True; "
            "give 0 for none",
        ),
        (
            lambda: augment.contrast(KEY, jnp.ones((3, 3)), strength=float("inf")),
            "contrast: strength must be a finite number >= 0, and it is inf; give 0 for none",
        ),
        (
            lambda: augment.mixup(KEY, jnp.ones((3, 3)), alpha=0),
            "mixup: alpha must be a finite number > 0, and it is 0; give a larger one",
        ),
        (
            lambda: augment.mixup(KEY, (jnp.ones(3), jnp.ones(2)), alpha=1),
            "mixup: the inputs must be arrays of the same number of examples, at least one, and "
            "their shapes are [(3,), (2,)]; give a whole batch",
        ),
        (
            lambda: augment.mixup(KEY, jnp.ones(3), alpha=1, mask=jnp.ones(2, bool)),
            "mixup: the mask must have a value for each of the 3 examples, and its shape is (2,); "
            "leave it out if all count",
        ),
        (
            lambda: augment.mixup(KEY, jnp.arange(3), alpha=1),
            "mixup: the inputs must be uint8 or floating, and one is int32; mix labels through "
            "the loss, by partners and shares",
        ),
        (
            lambda: augment.compose("flip"),
            "compose: every augmentation must be a function of a key and an image, and one is "
            "'flip'; set strengths with functools.partial",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(AugmentError) as caught:
        call()
    assert str(caught.value) == message
