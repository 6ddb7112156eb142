"""The network of the command line: its forward pass, its first parameters, its losses."""

import inspect
import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import feedax
from feedax.cli import main
from feedax.presets import Recipe
from feedax.report.run_folder import RunFolder

SEVEN = np.uint8([[0, 0, 0, 0], [0, 255, 255, 255], [0, 0, 0, 200], [0, 0, 180, 0], [0, 90, 0, 0]])


@pytest.fixture
def feedax_command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(words):
        code = main(words.split())
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run


def initial_params(layers, seed, initialisation="tutorial"):
    return feedax.init_mlp(layers, jax.random.key(seed), initialisation)


def predict_of(recipe):
    return feedax.evaluate_arguments(recipe)["predict"]


def by_numpy(params, x, masks=None):
    """Log-probabilities in float64; each hidden layer's outputs times its mask."""
    x = np.float64(x).ravel()
    for i, (w, b) in enumerate(params[:-1]):
        x = np.maximum(np.float64(w) @ x + np.float64(b), 0)
        x = x if masks is None else x * masks[i]
    w, b = params[-1]
    logits = np.float64(w) @ x + np.float64(b)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.parametrize("shape", [(20,), (5, 4), (5, 2, 2)])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_forward_pass(rng, shape, scaled):
    params = initial_params((20, 9, 8, 3), 1, "he")
    x = np.float32(rng.integers(0, 256, shape))
    function = predict_of(Recipe(scale_pixels=scaled))
    expected = by_numpy(params, x / 255 if scaled else x)
    np.testing.assert_allclose(function(params, x), expected, rtol=1e-4, atol=1e-5)


def test_the_tutorials_network_takes_no_key_and_is_as_it_was(rng):
    function = predict_of(Recipe())
    assert list(inspect.signature(function).parameters) == ["params", "example", "divisor"]
    with jax.threefry_partitionable(False):
        params = feedax.init_network_params([784, 512, 10], jax.random.PRNGKey(3))
    ours = initial_params((784, 512, 10), 3)
    # One program may round otherwise than many.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), ours, params)
    x = np.float32(rng.integers(0, 256, 784))
    assert function(params, x).tolist() == feedax.predict(params, x).tolist()
    assert feedax.evaluate_arguments(Recipe())["hyperparams"] == {}


def test_dropout_leaves_out_whole_outputs_of_every_hidden_layer(rng):
    """Each prediction is that of one of the 2 ** 4 networks with outputs left out."""
    params = initial_params((6, 2, 2, 3), 0, "he")
    params = [(abs(w), b + 0.5) for w, b in params[:-1]] + params[-1:]  # every output counts
    x = np.float32(rng.uniform(size=6))
    kept = [0.0, 1 / 0.75]
    networks = np.array(
        [
            by_numpy(params, x, [np.array([a, b]), np.array([c, d])])
            for a in kept
            for b in kept
            for c in kept
            for d in kept
        ]
    )
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = jax.vmap(lambda key: feedax.mlp_with_dropout(params, x, key, True, 0.25))(keys)
    distances = np.abs(np.asarray(drawn)[:, None] - networks).max(-1)
    assert distances.min(1).max() < 1e-5
    assert len(set(distances.argmin(1))) > 8


def test_dropout_keeps_the_mean_and_has_the_variance_of_its_rate():
    """One hidden layer of ones, of which a logit is the mean: by hand r / ((1 - r) n)."""
    n, rate, draws = 400, 0.2, 3000
    params = [
        (jnp.ones((n, 1)), jnp.zeros(n)),
        (jnp.stack([jnp.full(n, 1 / n), jnp.zeros(n)]), jnp.zeros(2)),
    ]
    keys = jax.random.split(jax.random.key(7), draws)
    drawn = jax.vmap(lambda key: feedax.mlp_with_dropout(params, jnp.ones(1), key, True, rate))(
        keys
    )
    logits = np.asarray(drawn[:, 0] - drawn[:, 1], np.float64)
    variance = rate / ((1 - rate) * n)
    assert abs(logits.mean() - 1) < 5 * (variance / draws) ** 0.5
    assert abs(logits.var() / variance - 1) < 5 * (2 / draws) ** 0.5


def test_dropout_is_for_training_only_and_keeps_the_dtype(rng):
    params = initial_params((20, 9, 3), 1, "he")
    x = np.float32(rng.normal(size=20))
    function = predict_of(Recipe(dropout=0.5, scale_pixels=True))
    key = jax.random.key(0)
    evaluated = function(params, x, key, False, jnp.float32(0.5))
    assert evaluated.tolist() == feedax.mlp(params, x, divisor=255).tolist()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    shape = jax.eval_shape(
        lambda rate: function(half, x.astype(jnp.bfloat16), key, True, rate), jnp.float32(0.5)
    )
    assert shape.dtype == jnp.bfloat16


def test_he_initialisation():
    layers = (300, 500, 400, 10)
    params = initial_params(layers, 5, "he")
    assert [w.shape for w, _ in params] == [(500, 300), (400, 500), (10, 400)]
    for (w, b), inputs in zip(params, layers[:-1], strict=True):
        # A sample's standard deviation is off by about a share of 1 / sqrt(2 n).
        assert abs(float(w.std()) / (2 / inputs) ** 0.5 - 1) < 5 / (2 * w.size) ** 0.5
        assert abs(float(w.mean())) < 5 * (2 / inputs) ** 0.5 / w.size**0.5
        assert (w.dtype, b.dtype, b.any()) == (jnp.float32, jnp.float32, False)
    again = feedax.he_normal(layers, jax.random.key(5))
    np.testing.assert_allclose(again[0][0], params[0][0], rtol=1e-6)
    assert (initial_params(layers, 6, "he")[0][0] != params[0][0]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
def test_label_smoothing_is_torchs(rng, smoothing):
    logits = rng.normal(size=(16, 7)).astype(np.float32) * 4
    labels = rng.integers(0, 7, 16)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing, reduction="none"
    )
    log_probabilities = jax.nn.log_softmax(logits)
    ours = jax.vmap(feedax.smoothed_cross_entropy, (0, 0, None))(
        log_probabilities, labels, smoothing
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_label_smoothing_is_a_hyperparameter_where_it_is_on():
    on = feedax.evaluate_arguments(Recipe(loss="cross_entropy", label_smoothing=0.1))
    assert on["loss"] is feedax.smoothed_cross_entropy
    off = feedax.evaluate_arguments(Recipe(loss="cross_entropy"))
    assert off["loss"] is feedax.cross_entropy
    assert feedax.evaluate_arguments(Recipe())["loss"] is feedax.tutorial_loss
    assert on["hyperparams"] == {"label_smoothing": 0.1}


def test_evaluate_and_predict_rebuild_the_network_that_was_trained(feedax_command, rng):
    """Scaled pixels, dropout and smoothed labels: the run's last row is what evaluate says."""
    images = np.where(np.arange(60)[:, None, None] % 2, SEVEN, SEVEN.T.reshape(5, 4))
    images = np.uint8(np.clip(images - rng.integers(0, 60, images.shape), 0, 255))
    labels = np.arange(60) % 2
    np.savez("d.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    done = feedax_command(
        "train --dataset npz:d.npz --hidden 16 --initialisation he --scale-pixels --dropout 0.2 "
        "--loss cross_entropy --label-smoothing 0.1 --optimizer adam --batch-size 10 --epochs 12 "
        "--rotation 5 --out run"
    )
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open("run")
    row = folder.rows()[-1]
    again = feedax_command("evaluate run --dataset npz:d.npz")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines() == [
        f"Training set accuracy {float(np.float32(row['train_accuracy']))}",
        f"Training set loss {row['train_loss']}",
        f"Test set accuracy {float(np.float32(row['test_accuracy']))}",
        f"Test set loss {row['test_loss']}",
    ]
    assert row["test_accuracy"] == 1
    Image.fromarray(images[1]).save("one.png")
    said = feedax_command("predict run one.png")
    assert said.returncode == 0, said.stderr
    params = folder.load_params(initial_params((20, 16, 2), 0))
    expected = np.exp(by_numpy(params, images[1] / 255))
    assert said.stdout.startswith(
        f"one.png: class 1 with probability {expected[1]:.4f}, then class 0 with probability"
    )


def test_a_run_of_before_these_flags_is_read_with_their_defaults(feedax_command, rng):
    import json

    np.savez("d.npz", x_train=np.float32(rng.normal(size=(9, 4))), y_train=np.arange(9) % 3)
    assert feedax_command("train --dataset npz:d.npz --epochs 1 --out run").returncode == 0
    expected = feedax_command("evaluate run --dataset npz:d.npz").stdout
    config = json.loads(Path("run/config.json").read_text())
    words = config["arguments"]
    first, last = words.index("--initialisation"), words.index("--preset")
    del words[first:last]
    for flag, count in (("--label-smoothing", 2), ("--warmup-fraction", 2)):
        del words[words.index(flag) : words.index(flag) + count]
    del words[words.index("--rotation") : words.index("--optimizer")]
    Path("run/config.json").write_text(json.dumps(config))
    done = feedax_command("evaluate run --dataset npz:d.npz")
    assert (done.returncode, done.stdout) == (0, expected)
    assert feedax_command("train --resume run --dataset npz:d.npz").returncode == 0
