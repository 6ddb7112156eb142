"""What `fit` trains of its parameters: complex ones too, and it names those that it does not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers import slow, squared

import feedax
from feedax.data import ArrayDataset
from feedax.errors import ModelError
from feedax.storage.params_file import load_params, save_params

GOAL = 1 + 2j
ONES = [(np.ones((8, 1), np.float32), np.zeros(8, np.float32))]
HALF = 0.5 + 0.5j


def constant(w, x):
    return w


def distance(prediction, target):
    return jnp.abs(prediction - GOAL) ** 2


def fit(optimizer, epochs, w=HALF, **options):
    trained, rows = feedax.fit(
        constant, jnp.asarray(w), ONES, loss=distance, optimizer=optimizer, epochs=epochs, **options
    )
    return complex(trained), rows


def test_a_complex_parameter_goes_down_the_steepest_way():
    w = HALF
    for _ in range(40):
        w -= 0.1 * 2 * (w - GOAL)
    trained, rows = fit(optax.sgd(0.1), 40)
    assert trained == pytest.approx(w, rel=1e-5)
    assert rows[-1]["loss"] < 1e-6
    # The learning rate apart multiplies the same update.
    assert fit(optax.sgd(1.0), 40, learning_rate=0.1)[0] == pytest.approx(w, rel=1e-5)


def test_complex_parameters_train_as_torchs_do():
    """Adam's second moment is of the absolute value in optax, of each part in torch: SGD."""
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4))).astype(np.complex64)
    x = (rng.normal(size=(32, 4)) + 1j * rng.normal(size=(32, 4))).astype(np.complex64)
    y = rng.normal(size=(32, 3)).astype(np.float32)
    ours, _ = feedax.fit(
        lambda w, x: jnp.abs(w @ x), jnp.asarray(w), feedax.NumpyLoader(ArrayDataset(x, y), 8),
        loss=lambda p, t: jnp.sum((p - t) ** 2), epochs=2,
        optimizer=optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.02, momentum=0.9)),
    )  # fmt: skip
    theirs = torch.tensor(w, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], 0.02, momentum=0.9, weight_decay=0.01)
    for start in 2 * list(range(0, 32, 8)):
        optimizer.zero_grad()
        predictions = (torch.tensor(x[start : start + 8]) @ theirs.T).abs()
        wanted = torch.tensor(y[start : start + 8])
        ((predictions - wanted) ** 2).sum(1).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("others_mix")
def test_a_complex_parameter_is_optaxs_pair_of_real_ones():
    trained, _ = fit(optax.contrib.split_real_and_imaginary(optax.adam(0.1)), 7)
    pair, _ = feedax.fit(
        lambda w, x: w[0] + 1j * w[1], jnp.array([0.5, 0.5]), ONES, loss=distance,
        optimizer=optax.adam(0.1), epochs=7,
    )  # fmt: skip
    assert trained == pytest.approx(complex(*np.asarray(pair)), rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        slow(optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15))),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
        slow(optax.polyak_sgd()),
    ],
)
def test_line_searches_find_a_complex_minimum(optimizer):
    """In three dimensions that pull differently, so that a wrong slope ends the search early."""
    goal, pull = jnp.array([1 + 2j, -3j, 0.5]), jnp.array([1.0, 4.0, 0.3])
    trained, rows = feedax.fit(
        constant, jnp.zeros(3, jnp.complex64), ONES, epochs=60, optimizer=optimizer,
        loss=lambda p, _: jnp.sum(pull * jnp.abs(p - goal) ** 2),
    )  # fmt: skip
    np.testing.assert_allclose(trained, goal, atol=1e-2)
    assert rows[0]["loss"] > rows[20]["loss"] > rows[-1]["loss"] - 1e-9


@pytest.mark.parametrize("together", [slow(1), 2])
def test_a_sweep_trains_complex_parameters(together):
    found = feedax.sweep(
        constant, lambda key: jax.random.normal(key, (), jnp.complex64), ONES, loss=distance,
        optimizer=optax.sgd(1.0), learning_rate=[0.1, 0.2], epochs=60, together=together,
    )  # fmt: skip
    for network in found.networks:
        assert complex(network.params) == pytest.approx(GOAL, abs=1e-4)


def test_complex_parameters_go_on_and_are_evaluated_in_half_precision_too(tmp_path):
    left_alone, _ = fit(optax.adam(0.1), 6)
    for epochs in (3, 6):
        resumed, _ = fit(optax.adam(0.1), epochs, checkpoints=feedax.Checkpoints(tmp_path))
    assert resumed == left_alone
    _, rows = fit(optax.sgd(0.1), 30, precision="bfloat16", evaluate={"same": ONES})
    assert rows[-1]["same_loss"] < 1e-4


def test_a_params_file_holds_complex_numbers(tmp_path):
    params = {"w": jnp.array([1j, 2.0])}
    save_params(tmp_path / "p.safetensors", params)
    assert load_params(tmp_path / "p.safetensors", params)["w"].tolist() == [1j, 2.0]
    with jax.enable_x64(True), pytest.raises(feedax.errors.RunFolderError) as caught:
        save_params(tmp_path / "q.safetensors", {"w": jnp.array([1j, 2.0])})
    assert str(caught.value) == (
        "save_params: every array must have a dtype that safetensors holds, and w is complex128; "
        "convert it, to complex64 say"
    )
    assert not (tmp_path / "q.safetensors").exists()


def test_a_complex_loss_or_metric_is_refused():
    def square(prediction, target):
        return (prediction - GOAL) ** 2

    def step(**scores):
        params, batch = jnp.asarray(HALF), feedax.Batch(*ONES[0], np.ones(len(ONES[0][0])))
        state = feedax.init_state(params, optax.sgd(0.1), jax.random.key(0))
        model = feedax.Model(constant)
        feedax.train_step(state, batch, model=model, optimizer=optax.sgd(0.1), **scores)

    def distance(prediction, target):
        return jnp.abs(prediction - GOAL)

    calls = [
        ("train_step", lambda: step(loss=square)),
        ("train_step", lambda: step(loss=distance, metrics={"square": square})),
        ("fit", lambda: feedax.fit(constant, jnp.asarray(HALF), ONES, loss=square)),
        ("fit", lambda: fit(optax.sgd(0.1), 1, metrics={"square": square})),
        ("evaluate", lambda: feedax.evaluate(constant, jnp.asarray(HALF), ONES, loss=square)),
    ]
    for who, call in calls:
        with pytest.raises(ModelError) as caught:
            call()
        assert str(caught.value) == (
            f"{who}: a loss or a metric must return a real number, and square returns complex64; "
            "take jnp.abs of it, or its real part"
        )


# What is not trained.

X = np.linspace(-1, 1, 16, dtype=np.float32)
LINE = [(X, 3 * X + 1)]


def line(params, x):
    return params["slope"] * x + params["offset"]


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"slope": 0.0, "offset": 0.0}, "params['offset'], params['slope'] cannot"),
        ({"slope": jnp.array(0), "offset": True}, "params['offset'], params['slope'] cannot"),
        (0.0, "params cannot"),
        ([torch.zeros(2)], "params[0] cannot"),
        (None, "there is none"),
        ([jnp.tanh, "name", jax.random.key(0)], "there is none"),
    ],
)
def test_params_without_anything_to_train_are_refused(params, found):
    calls = {
        "fit": lambda: feedax.fit(line, params, LINE, loss=squared),
        "sweep": lambda: feedax.sweep(line, lambda key: params, LINE, loss=squared, seeds=2),
    }
    for who, call in calls.items():
        with pytest.raises(ModelError) as caught:
            call()
        assert str(caught.value) == (
            f"{who}: params must hold an array of floating point or complex numbers, which can be "
            f"trained, and {found}; give arrays, jnp.array(0.0) for 0.0 say"
        )


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "feedax"]


@pytest.mark.parametrize("together", [None, 2])
def test_numbers_that_are_not_trained_are_named_once(together, caplog):
    params = {"slope": jnp.zeros(()), "offset": 0.0, "kept": np.arange(2), "f": jnp.tanh, "s": "a"}
    feedax.sweep(line, lambda key: params, LINE, loss=squared, seeds=2, epochs=2, together=together)
    assert said(caplog) == [
        "sweep: arrays of floating point or complex numbers are trained, and params['kept'], "
        "params['offset'] are not; make such an array of what is to be trained, jnp.array(0.0) of "
        "0.0 say"
    ]


def test_one_number_that_is_not_trained_is_named(caplog):
    params = {"slope": jnp.zeros(()), "offset": 1}
    trained, _ = feedax.fit(line, params, LINE, loss=squared, optimizer=optax.sgd(0.1), epochs=2)
    assert trained["offset"] == 1
    assert said(caplog) == [
        "fit: arrays of floating point or complex numbers are trained, and params['offset'] is "
        "not; make such an array of what is to be trained, jnp.array(0.0) of 0.0 say"
    ]
    caplog.clear()
    feedax.evaluate(line, {"slope": 3.0, "offset": 1}, LINE, loss=squared)
    assert said(caplog) == []


@pytest.mark.usefixtures("others_mix")
def test_every_kind_of_inexact_array_is_trained(caplog):
    params = {
        "slope": np.float64(0), "offset": jnp.zeros((), jnp.bfloat16), "c": np.complex64(0),
        "h": np.float16(1), "key": jax.random.key(0),
    }  # fmt: skip

    def predict(params, x):
        return line(params, x) + jnp.abs(params["c"] - 1) ** 2 + params["h"]

    trained, _ = feedax.fit(predict, params, LINE, loss=squared, optimizer=optax.sgd(0.1))
    assert said(caplog) == []
    assert all(trained[name] != params[name] for name in ("slope", "offset", "c", "h"))


class Net(eqx.Module):
    layers: eqx.nn.Sequential
    depth: int

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.depth = 2
        self.layers = eqx.nn.Sequential([
            eqx.nn.Linear(1, 4, key=keys[0]), eqx.nn.LayerNorm(4), eqx.nn.Dropout(0.1),
            eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(4, 1, key=keys[1]),
        ])  # fmt: skip


class Scaled(eqx.Module):
    inner: eqx.nn.MLP
    depth: int = 2
    scale: float = 1.0

    def __call__(self, x):
        return self.scale * self.inner(x)


def test_settings_of_layers_are_not_named_and_numbers_of_ones_own_modules_are(caplog):
    def apply(model, x, key):
        return model(x[None])[0]

    mlp = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
    feedax.fit(apply, mlp, LINE, loss=squared)
    feedax.fit(lambda net, x, key: net.layers(x[None], key=key)[0], Net(), LINE, loss=squared)
    assert said(caplog) == []
    feedax.fit(apply, Scaled(mlp), LINE, loss=squared)
    (sentence,) = said(caplog)
    assert "are trained, and params.scale is not" in sentence
