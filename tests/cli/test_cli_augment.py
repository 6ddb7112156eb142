"""The flags that change images at random, on examples of every shape, and runs that use them."""

import inspect
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow, timeless
from safetensors.numpy import load_file
from scipy import ndimage

from feedax.cli.examples import Examples
from feedax.cli.flags import AugmentFlags, DataFlags, ModelFlags, TrainFlags, recipe_of
from feedax.cli.network import fit_arguments
from feedax.data import ArrayDataset
from feedax.errors import ModelError
from feedax.report.run_folder import RunFolder
from feedax.train.recipe import IMAGE_HYPERPARAMS
from feedax.train.recipe import hyperparams as hyperparams_of_recipe


def build_augment(flags, examples):
    return fit_arguments(flags, examples, [0])["augment"]


def hyperparams(flags):
    return hyperparams_of_recipe(recipe_of(flags))


@pytest.fixture
def train(on_digits):
    """Runs `feedax train` on the digits, in a folder of its own."""
    return lambda words, **how: on_digits(f"train {words}", **how)


def examples_of(path, inputs, flat=True):
    """The examples of an npz file, or of a dataset that leaves images as they are."""
    labels = np.arange(len(inputs)) % 2
    if not flat:
        data = ArrayDataset(inputs, labels)
        return Examples(DataFlags(dataset="mine:make"), data, None)
    np.savez(path / "d.npz", x_train=inputs, y_train=labels)
    return Examples.open(DataFlags(dataset=f"npz:{path / 'd.npz'}"))


def augmented(examples, example, count=40, scale_pixels=False, **given):
    """One example, changed `count` times, in its own shape; the values of the flags traced."""
    flags = TrainFlags(model=ModelFlags(scale_pixels=scale_pixels), augment=AugmentFlags(**given))
    augment = build_augment(flags, examples)
    keys = jax.random.split(jax.random.key(0), count)
    scalars = hyperparams(flags)
    changed = jax.jit(jax.vmap(lambda key, s: augment(key, example, **s), (0, None)))(keys, scalars)
    assert changed.shape == (count, *example.shape)
    return np.asarray(changed)


def test_nothing_is_asked_for_by_default(tmp_path, rng):
    examples = examples_of(tmp_path, rng.integers(0, 256, (4, 6, 5), dtype=np.uint8))
    assert build_augment(TrainFlags(), examples) is None
    # How smooth a distortion of strength 0 is changes nothing, and mixup is not of one example.
    flags = TrainFlags(augment=AugmentFlags(elastic_sigma=3.0, mixup=0.2))
    assert build_augment(flags, examples) is None
    assert hyperparams(flags) == {}
    computed = fit_arguments(flags, examples, [0])
    assert (computed["augment"], computed["mixup"], computed["hyperparams"]) == (None, 0.2, {})


def test_every_continuous_flag_is_a_hyperparameter_of_the_function_where_it_is_on(tmp_path, rng):
    examples = examples_of(tmp_path, rng.integers(0, 256, (4, 6, 5), dtype=np.uint8))
    augment = build_augment(TrainFlags(augment=AugmentFlags(flip=True)), examples)
    assert set(inspect.signature(augment).parameters) == {"key", "example", *IMAGE_HYPERPARAMS}
    values = dict(zip(IMAGE_HYPERPARAMS, (1.0, 0.2, 0.3, 4.0, 5.0, 0.6, 0.7), strict=True))
    flags = TrainFlags(augment=AugmentFlags(**values, mixup=0.3, crop_padding=1, cutout=2))
    assert hyperparams(flags) == values
    flags = replace(flags, augment=AugmentFlags(shear=0.5))
    assert hyperparams(flags) == {"shear": 0.5}


SHAPES = [((6, 5, 3), True), ((3, 6, 5), True), ((6, 5), False), ((1, 6, 5), False)]


@pytest.mark.parametrize(("shape", "flat"), SHAPES, ids=str)
def test_a_flip_exchanges_left_and_right_whatever_the_shape(tmp_path, rng, shape, flat):
    image = rng.integers(1, 256, shape, dtype=np.uint8)
    examples = examples_of(tmp_path, image[None], flat)
    width = {(3, 6, 5): 2, (1, 6, 5): 2}.get(shape, 1)
    example = examples.train[0][0]
    assert example.ndim == (1 if flat else len(shape))
    ours = augmented(examples, example, flip=True).reshape(-1, *shape)
    mirrored = np.flip(image, width)
    is_mirrored = [np.array_equal(one, mirrored) for one in ours]
    is_same = [np.array_equal(one, image) for one in ours]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 8 < sum(is_mirrored) < 32


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5)], ids=str)
def test_a_crop_is_a_window_of_the_padded_image(tmp_path, rng, shape):
    image = rng.integers(1, 256, shape, dtype=np.uint8)
    examples = examples_of(tmp_path, image[None])
    last = np.moveaxis(image, 0, -1) if shape[0] == 3 else image
    last = last.reshape(6, 5, -1)
    padded = np.pad(last, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    ours = augmented(examples, examples.train[0][0], crop_padding=2, count=200)
    ours = ours.reshape(-1, *shape)
    ours = np.moveaxis(ours, 1, -1) if shape[0] == 3 else ours
    seen = {np.ascontiguousarray(one.reshape(6, 5, -1), np.uint8).tobytes() for one in ours}
    assert seen == windows


def test_a_cutout_is_a_square_of_zeros(tmp_path):
    image = np.full((9, 8), 7, np.uint8)
    examples = examples_of(tmp_path, image[None])
    ours = augmented(examples, examples.train[0][0], cutout=3).reshape(-1, 9, 8)
    assert set(np.unique(ours)) == {0, 7}
    counts = (ours == 0).sum((1, 2))
    assert set(counts) <= {4, 6, 9}  # less at the border
    assert (counts == 9).any()


def test_the_warp_moves_every_image_in_one_interpolation(tmp_path, rng):
    """By its moments: the middle of a blob moves by at most the translation, and its mass stays."""
    image = np.zeros((29, 29))
    image[14, 14] = 255 * 30
    image = np.uint8(ndimage.gaussian_filter(image, 2).clip(0, 255))
    examples = examples_of(tmp_path, image[None])
    # It turns about the middle of the image, where the blob is, and then moves.
    ours = augmented(examples, examples.train[0][0], translation=4.0, rotation=30.0)
    ours = ours.reshape(-1, 29, 29)
    np.testing.assert_allclose(ours.sum((1, 2)), image.sum(), rtol=0.02)
    middles = np.array([ndimage.center_of_mass(one) for one in ours]) - 14
    assert 3 < abs(middles).max() <= 4.01
    assert (middles.max(0) > 2).all()
    assert (middles.min(0) < -2).all()
    elastic = augmented(examples, examples.train[0][0], elastic_alpha=30.0, elastic_sigma=6.0)
    assert (abs(elastic - image.ravel()).max(1) > 5).all()
    assert elastic.min() >= 0
    assert elastic.max() <= 255


@pytest.mark.parametrize("white", [255, 1])
def test_brightness_and_contrast_know_the_range_of_the_pixels(tmp_path, rng, white):
    image = np.array([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])
    image = np.uint8(image * 255) if white == 255 else np.float32(image)
    examples = examples_of(tmp_path, image[None])
    example = examples.train[0][0]
    bright = augmented(examples, example, brightness=0.5)
    factors = bright[:, 1] / example[1]
    assert 0.5 <= factors.min() < 0.7 < 1.3 < factors.max() <= 1.5
    expected = (example * factors[:, None]).clip(0, white)
    np.testing.assert_allclose(bright, expected, rtol=1e-4)
    contrasts = augmented(examples, example, contrast=0.9)
    mean = example.mean()
    factors = (contrasts[:, 2] - mean) / (example[2] - mean)
    assert 0.1 <= factors.min() < 0.4 < 1.6 < factors.max() <= 1.9
    expected = (mean + (example - mean) * factors[:, None]).clip(0, white)
    np.testing.assert_allclose(contrasts, expected, rtol=1e-3, atol=white * 1e-5)


def test_a_range_that_is_not_known_is_refused(tmp_path):
    examples = examples_of(tmp_path, np.float32([[[0, 200]], [[9, 100]]]))
    flags = TrainFlags(augment=AugmentFlags(contrast=0.5))
    with pytest.raises(ModelError) as error:
        build_augment(flags, examples)
    assert str(error.value) == (
        "the network: --contrast wants pixels from 0 to 1, and those of the first example of "
        f"npz:{tmp_path / 'd.npz'} go from 0.0 to 200.0; leave it out, or give --scale-pixels for "
        "pixels from 0 to 255"
    )
    ours = augmented(examples, examples.train[0][0], scale_pixels=True, brightness=0.5)
    assert ours.max() == 255
    assert build_augment(replace(flags, augment=AugmentFlags(rotation=3.0)), examples) is not None


def test_examples_that_are_no_images_are_refused(train, tmp_path):
    np.savez("flat.npz", x_train=np.ones((8, 16), np.float32), y_train=np.arange(8) % 2)
    done = train("--dataset npz:flat.npz --flip --rotation 5 --out run", start=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "feedax train: the network: --rotation changes images, and the examples of "
        f"npz:{tmp_path / 'flat.npz'}, of shape (16,), are not known to be that; leave it out, or "
        "use examples of (height, width) or (height, width, channels)\n",
    )
    done = train("--cutout 9 --out run")
    assert (done.returncode, done.stderr) == (
        2,
        "feedax train: --cutout must be no larger than the images of 8 x 8 pixels, and it is 9\n",
    )
    assert not Path("run").exists()


def test_a_share_of_a_run_without_length_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_endless.py").write_text(
        "import numpy as np\nfrom torch.utils.data import IterableDataset\n"
        "class Stream(IterableDataset):\n"
        "    def __iter__(self): return ((np.ones(4, np.float32), i % 2) for i in range(9))\n"
    )
    done = train("--dataset my_endless:Stream --warmup-share 0.1 --out run", start=False)
    assert (done.returncode, done.stderr) == (
        1,
        "feedax train: optimizer: --warmup-fraction is a fraction of the run, and the stream "
        "my_endless:Stream does not know its length; give --warmup-steps or --steps\n",
    )


def test_a_warm_up_by_share_is_one_by_steps(train):
    words = "--epochs 2 --batch-size 32 --hidden 8 --schedule cosine"
    assert train(f"{words} --warmup-share 0.25 --out share").returncode == 0
    assert train(f"{words} --warmup-steps 5 --out steps").returncode == 0
    same_end(Path("share"), Path("steps"))


RANDOM = (
    "--preset modern --hidden 16 --batch-size 32 --epochs 2 --validation 0.2 --dropout 0.2 "
    "--label-smoothing 0.1 --mixup 0.2 --elastic-alpha 5 --flip --cutout 2 --brightness 0.2"
)


def rows(run):
    """The rows of a run but for what the clock says."""
    return timeless(RunFolder.open(run).rows())


def same_end(run, other):
    ours, theirs = (load_file(folder / "params.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert rows(run) == rows(other)


def test_a_run_of_all_that_is_random_goes_on_to_the_same_bits(train):
    every = "--checkpoint-every-steps 3 --keep-checkpoints 99"
    done = train(f"{RANDOM} {every} --out whole")
    assert done.returncode == 0, done.stderr
    assert len(rows(Path("whole"))) == 2
    # As it was when the run was killed after step 9 of 16, in its second epoch.
    shutil.copytree("whole", "run")
    for checkpoint in Path("run/checkpoints").iterdir():
        if int(checkpoint.stem.partition("-")[2]) > 9:
            checkpoint.unlink()
    Path("run/params.safetensors").unlink()
    done = train("--resume run")
    assert done.returncode == 0, done.stderr
    assert "resumed after step 9" in done.stderr
    same_end(Path("run"), Path("whole"))


@pytest.mark.parametrize("change", [slow(""), "--flip --dropout 0.3"])
def test_a_seed_has_its_own_changes(train, change):
    """The same examples in the same order from the same parameters: only the changes differ."""
    assert train("--epochs 1 --hidden 8 --out first").returncode == 0
    words = "--epochs 1 --initial-params first --batch-size 64"
    losses = []
    for seed in (0, 1):
        done = train(f"{words} {change} --seed {seed} --out run{seed}")
        assert done.returncode == 0, done.stderr
        losses.append(rows(Path(f"run{seed}"))[0]["loss"])
    assert (losses[0] == losses[1]) == (change == "")


def test_one_program_serves_every_strength(tmp_path, rng):
    """What `hyperparams` names is traced, so that a sweep compiles once."""
    examples = examples_of(tmp_path, rng.integers(1, 256, (1, 8, 8), dtype=np.uint8))
    example = jnp.asarray(examples.train[0][0])
    augment = build_augment(TrainFlags(augment=AugmentFlags(rotation=9.0, shear=0.1)), examples)
    compiled = jax.jit(augment)
    key = jax.random.key(1)
    turned = [compiled(key, example, rotation=r, shear=s) for r, s in ((0.0, 0.0), (9.0, 0.3))]
    assert compiled._cache_size() == 1
    assert bool((turned[0] == example).all())
    assert not bool((turned[1] == example).all())
