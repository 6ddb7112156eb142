"""The table of layers says what can be counted by hand."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import feedax
from feedax.errors import ModelError

KEY = jax.random.key(0)
IMAGE = np.zeros((28, 28, 1), np.float32)


def rows(found):
    """Name, output, parameters and FLOPs of each layer."""
    return [(row.name, row.output, row.parameters, row.flops) for row in found.rows]


def count(params):
    return ravel_pytree(eqx.filter(params, eqx.is_inexact_array))[0].size


def flops_of_xla(function, *arguments):
    """What XLA itself counts, element by element functions too."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_the_tutorials_network_prints_as_a_table():
    params = feedax.init_mlp([784, 512, 512, 10], KEY)
    found = feedax.summary(feedax.predict, params, np.zeros(784, np.float32))
    assert (
        str(found)
        == repr(found)
        == """\
layer  shapes          output  parameters      FLOPs
----------------------------------------------------
0      512 x 784, 512  512        401,920    802,816
1      512 x 512, 512  512        262,656    524,288
2      10 x 512, 10    10           5,130     10,240
----------------------------------------------------
total                             669,706  1,337,344"""
    )
    assert found.rows[0].shapes == {"0": (512, 784), "1": (512,)}
    assert found.parameters == count(params)
    counted = flops_of_xla(feedax.predict, params, np.zeros(784, np.float32))
    assert found.flops == pytest.approx(counted, rel=0.01)


def test_a_notebook_shows_it_as_html():
    params = {"<w>": jnp.ones((2, 3))}
    shown = feedax.summary(lambda p, x: p["<w>"] @ x, params, np.zeros(3))._repr_html_()
    assert '<td style="text-align: left">&lt;w&gt; 2 x 3</td>' in shown
    assert '<tfoot><tr><th style="text-align: left">total</th>' in shown


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 5), strides=2)(x / 255)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


CONVOLUTION = 2 * 14 * 14 * 8 * 25  # places, filters, and terms of one channel
DENSE = 2 * 1568 * 10


def test_a_linen_network():
    variables = LinenNet().init(KEY, IMAGE[None], train=False)
    found = feedax.summary(**feedax.from_linen(LinenNet(), variables), example=IMAGE)
    assert rows(found) == [
        ("Conv_0", (14, 14, 8), 208, CONVOLUTION),
        ("BatchNorm_0", (14, 14, 8), 16, 0),
        ("Dense_0", (10,), 15690, DENSE),
    ]
    assert found.rows[0].shapes == {"bias": (8,), "kernel": (5, 5, 1, 8)}
    assert found.parameters == count(variables["params"])


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List(
            [nnx.Conv(1, 8, (5, 5), strides=2, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(1568, 10, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(self.dropout(nnx.relu(x).reshape(len(x), -1)))


def test_an_nnx_network():
    found = feedax.summary(**feedax.from_nnx(NnxNet(nnx.Rngs(0))), example=IMAGE)
    assert rows(found) == [
        ("blocks.0", (14, 14, 8), 208, CONVOLUTION),
        ("blocks.1", (14, 14, 8), 16, 0),
        ("out", (10,), 15690, DENSE),
    ]


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 8, 5, stride=2, padding=2, groups=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(1568, 10, key=keys[1])

    def __call__(self, x, state, key):
        x, state = self.norm(self.conv(x.reshape(1, 28, 28)), state)
        return self.out(self.dropout(jax.nn.relu(x).ravel(), key=key)), state


def of_equinox(model, state, x, key, train):
    return eqx.nn.inference_mode(model, not train)(x, state, key)


def test_an_equinox_network_with_state_and_key():
    model, state = eqx.nn.make_with_state(EquinoxNet)(KEY)
    found = feedax.summary(of_equinox, model, IMAGE, state=state)
    assert rows(found) == [
        ("conv", (8, 14, 14), 208, CONVOLUTION),
        ("norm", (8, 14, 14), 16, 0),
        ("out", (10,), 15690, DENSE),
    ]
    assert found.parameters == count(model)


def test_a_haiku_network():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 10])(x.ravel())))
    found = feedax.summary(net.apply, net.init(KEY, IMAGE), IMAGE)
    assert rows(found) == [
        ("mlp/~/linear_0", (32,), 25120, 2 * 784 * 32),
        ("mlp/~/linear_1", (10,), 330, 2 * 32 * 10),
    ]


def test_filters_in_groups_see_their_channels_only():
    conv = eqx.nn.Conv2d(4, 6, 3, padding=1, groups=2, key=KEY)
    x = np.zeros((4, 5, 5), np.float32)
    found = feedax.summary(lambda model, x: model(x), conv, x)
    assert found.flops == 2 * 25 * 6 * 2 * 9


def test_parameters_that_are_used_twice_are_counted_once():
    w, v = jnp.ones((3, 3)), jnp.ones((2, 3))
    shared = feedax.summary(lambda p, x: p["w"] @ (p["w"] @ x), {"w": w}, np.ones(3, np.float32))
    assert rows(shared) == [("w", (3,), 9, 36)]
    # The same array in two places, and one that nothing uses.
    params = {"a": {"w": w}, "b": {"w": w}, "c": {"v": v}}
    found = feedax.summary(lambda p, x: p["b"]["w"] @ (p["a"]["w"] @ x), params, np.ones(3))
    assert rows(found) == [("a", (3,), 9, 18), ("b", (3,), 0, 18), ("c", None, 6, 0)]
    assert (found.parameters, found.flops) == (15, 36)


def test_what_is_made_of_parameters_belongs_to_their_layer():
    def predict(p, x):
        w = p["v"] / jnp.linalg.norm(p["v"])
        return w @ x * jnp.exp(p["scale"])

    params = {"scale": jnp.ones(()), "v": jnp.ones((2, 3))}
    found = feedax.summary(predict, params, np.ones(3, np.float32))
    assert rows(found) == [("v", (2,), 6, 12), ("scale", (2,), 1, 0)]  # in the order of use


def test_loops_are_counted_with_their_length():
    cell = eqx.nn.GRUCell(3, 5, key=KEY)

    def predict(params, x):
        cell = params["cell"]
        state, _ = jax.lax.scan(lambda h, row: (cell(row, h), None), jnp.zeros(5), x)
        return jax.lax.cond(state[0] > 0, lambda: state, lambda: cell(x[0], state))

    found = feedax.summary(predict, {"cell": cell}, np.ones((7, 3), np.float32))
    assert rows(found) == [("cell", (5,), 3 * 5 * (3 + 5 + 1) + 5, 8 * 2 * 15 * (3 + 5))]


def test_products_without_parameters_have_a_row():
    def predict(w, x):
        return (x @ x.T) @ (x @ w)

    found = feedax.summary(predict, jnp.ones((3, 2)), np.ones((5, 3), np.float32))
    assert rows(found) == [
        ("(without parameters)", None, 0, 2 * 25 * 3 + 2 * 25 * 2),
        ("params", (5, 2), 6, 2 * 5 * 3 * 2),
    ]


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(ModelError) as caught:
        feedax.summary(lambda w, x: w @ x, jnp.ones((2, 3)), np.ones((7, 4), np.float32))
    assert str(caught.value).startswith(
        "summary: predict must take params and the example, and it fails on an example of "
        "float32[7, 4] (TypeError: dot_general requires contracting dimensions"
    )
    assert str(caught.value).endswith(
        "; give one example of the data, without a batch's axis, and state= and batched= as in fit"
    )
