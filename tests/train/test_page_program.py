"""A page computes what JAX computes."""

import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import opened
from flax import nnx
from helpers import slow, slow_but
from jax import lax

import feedax
from feedax.errors import ModelError, ProgramError
from feedax.train.page_program import network_program
from feedax.train.predictions import predictions, softmax
from feedax.web import content_of

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(0, 1, (4, 6, 3)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)


@pytest.fixture(scope="module")
def page(browser):
    with opened(browser) as page:
        page.set_content("<title>networks</title>")
        page.add_script_tag(content="const feedax = {};")
        page.add_script_tag(content=content_of("network.js"))
        yield page


def run(page, program, x):
    """What a page makes of an example, with numbers that JSON has no letters for."""
    script = "([program, x]) => Array.from(feedax.network(program)(x))"
    return np.array(page.evaluate(script, [program, np.ravel(x).tolist()]), np.float32)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1 / 3, shape).astype(np.float32)


@jax.custom_vjp
def doubled(x):
    return x * 2


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (g * 2,))

OPERATIONS = {
    "arithmetic": lambda p, x: (x + 1) * (x - 2) / (x * x + 1) - x**3 + x % 2,
    "powers": lambda p, x: jnp.sqrt(jnp.abs(x)) + lax.rsqrt(x * x + 1) + jnp.cbrt(x) + 2.0**x,
    "exponentials": lambda p, x: jnp.exp(x) + jnp.log1p(jnp.abs(x)) + jnp.expm1(x) + jnp.exp2(x),
    "trigonometry": lambda p, x: jnp.sin(x) + jnp.cos(x) * jnp.tan(x) + jnp.arctan2(x, x + 9),
    "rounding": lambda p, x: jnp.round(x) + jnp.floor(x * 2) + jnp.ceil(x) + jnp.sign(x),
    "comparisons": lambda p, x: jnp.where((x > 0) & ~(x >= 1) | (x < -1), x, -x) + (x == x),
    "activations": lambda p, x: (
        jax.nn.gelu(x) + jax.nn.gelu(x, approximate=False) + jax.nn.silu(x) + jax.nn.elu(x)
        + jax.nn.softplus(x) + jax.nn.leaky_relu(x) + jnp.tanh(x) + jax.nn.sigmoid(x)
        + jax.nn.relu6(x)
    ),
    "softmax": lambda p, x: jax.nn.log_softmax(x, 0) + jax.nn.softmax(x),
    "reductions": lambda p, x: jnp.concatenate(
        [x.sum(1).ravel(), x.max((0, 2)), x.min(0).ravel(), x.mean()[None], x.prod(2).ravel(),
         x.std(1).ravel(), (x > 1).any(0).ravel(), (x < 2).all(1).ravel()]
    ),
    "places": lambda p, x: jnp.concatenate([x.argmax(0).ravel(), x.argmin(1).ravel()]) * 1.0,
    "moves": lambda p, x: jnp.transpose(x, (2, 0, 1))[::-1, 1:4:2, jnp.array([5, 0, 2])],
    "slices": lambda p, x: jnp.stack(jnp.split(x[..., 0], 3, axis=1)[1:]) + x[1, 2, 0],
    "copies": lambda p, x: jnp.tile(x, (2, 1, 3)) + jnp.repeat(x, 3, axis=2)[:1, :1],
    "concatenation": lambda p, x: jnp.concatenate([x, x[:, :2] * 2, x[:, 1:]], 1),
    "calls": lambda p, x: jax.checkpoint(jax.jit(doubled))(x) + lax.stop_gradient(x),
    "choices of three": lambda p, x: lax.select_n(jnp.argmax(x[..., :1] < x, -1), *3 * [x[..., 0]])
    + lax.select_n((x[..., 0] > 0).astype(int), x[..., 1], x[..., 2]) + jnp.clip(x[..., 0], 0, 1),
    "padding": lambda p, x: lax.pad(x, 7.0, ((1, -1, 2), (-2, 3, 0), (0, 1, 1))),
    "one hot": lambda p, x: jax.nn.one_hot(x[0, :, 0].argmax(), 6) + x[0, :, 0],
    "products": lambda p, x: jnp.einsum("abc,abd->acd", x, x @ weights(3, 5)),
    "attention": lambda p, x: (
        jax.nn.softmax(jnp.einsum("hqd,hkd->hqk", x, x)) @ (x @ p["v"]) + p["b"]
    ),
}  # fmt: skip


@pytest.mark.usefixtures("others_mix")
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_jax(page, name):
    params = {"v": weights(3, 3), "b": jnp.arange(3.0)}
    predict = OPERATIONS[name]
    found = run(page, network_program(predict, params, X), X)
    expected = np.asarray(jax.jit(predict)(params, X), np.float32).ravel()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


CONVOLUTIONS = {
    "plain": {"padding": "SAME"},
    "strided": {"window_strides": (2, 3), "padding": ((1, 2), (0, 3))},
    "dilated": {"padding": "VALID", "rhs_dilation": (2, 1)},
    "transposed": {"padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 2)},
    "in groups": {"padding": "SAME", "feature_group_count": 2},
    "channels last": {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")},
    "several images": {"padding": "SAME"},
    "of one axis": {"padding": "SAME", "dimension_numbers": ("NHC", "HIO", "NHC")},
}


@pytest.mark.parametrize(
    "name", slow_but(["in groups", "channels last", "transposed"], CONVOLUTIONS)
)
def test_convolutions_are_those_of_jax(page, name):
    given = {"window_strides": (1, 1), **CONVOLUTIONS[name]}
    shape, kernel = (1, 4, 9, 8), (6, 4, 3, 2)
    match name:
        case "in groups":
            kernel = (6, 2, 3, 2)
        case "channels last":
            shape, kernel = (1, 9, 8, 4), (3, 2, 4, 6)
        case "several images":
            shape = (3, 4, 9, 8)
        case "of one axis":
            shape, kernel, given["window_strides"] = (1, 9, 4), (3, 4, 6), (2,)
    x = np.asarray(weights(*shape, seed=1))

    def predict(w, x):
        return lax.conv_general_dilated(x, w, **given)

    w = weights(*kernel)
    found = run(page, network_program(predict, w, x), x)
    np.testing.assert_allclose(found, np.ravel(jax.jit(predict)(w, x)), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("others_mix")
def test_pooling_is_that_of_jax(page):
    x = np.asarray(weights(1, 9, 8, 4))

    def predict(_, x):
        # A window of max that is padded sees -inf, and no 0.
        return jnp.concatenate([
            jnp.ravel(part) for part in (
                nn.max_pool(x - 3, (3, 2), strides=(2, 2), padding="SAME"),
                nn.avg_pool(x, (2, 2), strides=(2, 1)),
                lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 1, 1, 1), "VALID",
                                  window_dilation=(1, 2, 1, 1)),
            )
        ])  # fmt: skip

    found = run(page, network_program(predict, None, x), x)
    np.testing.assert_allclose(found, jax.jit(predict)(None, x), rtol=1e-5, atol=1e-6)


class Pooling(eqx.Module):
    layers: list
    out: eqx.nn.Linear

    def __init__(self):
        self.layers = [
            eqx.nn.Conv2d(1, 4, 5, stride=2, key=KEY), eqx.nn.MaxPool2d(2, 2), jax.nn.gelu,
            eqx.nn.Conv2d(4, 8, 3, groups=2, padding=1, key=KEY), eqx.nn.GroupNorm(2, 8),
            eqx.nn.AvgPool2d(2, 2),
        ]  # fmt: skip
        self.out = eqx.nn.Linear(72, 10, key=KEY)

    def __call__(self, x):
        x = x.reshape(1, 28, 28) / 255
        for layer in self.layers:
            x = layer(x)
        return self.out(x.ravel())


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=2)(x[..., None] / 255)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.log_softmax(nn.Dense(10)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (5, 5), strides=3, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(400, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x[..., None] / 255)))
        return self.out(x.reshape(len(x), -1))


def of_haiku(x):
    x = hk.Conv2D(4, 5, stride=2)(x[..., None] / 255)
    x = hk.LayerNorm(-1, True, True)(x)
    x = hk.avg_pool(jax.nn.relu(x), (2, 2, 1), (2, 2, 1), "VALID")
    return hk.nets.MLP([16, 10])(x.ravel())


def networks(name):
    """A network of one 28 x 28 image of each library, as `network_program` takes it."""
    match name:
        case "tutorial":
            params = feedax.init_mlp([784, 64, 32, 10], KEY)
            return {"predict": lambda p, x: feedax.mlp(p, x, divisor=255.0), "params": params}
        case "equinox":
            return {"predict": lambda model, x: model(x), "params": Pooling()}
        case "linen":
            module = LinenNet()
            variables = module.init(KEY, jnp.ones((1, 28, 28)), train=False)
            return dict(feedax.from_linen(module, variables))
        case "nnx":
            return dict(feedax.from_nnx(NnxNet(nnx.Rngs(0))))
        case "haiku":
            net = hk.without_apply_rng(hk.transform(of_haiku))
            return {"predict": net.apply, "params": net.init(KEY, jnp.ones((28, 28)))}


def predicted(net, inputs):
    """What feedax makes of examples by vmap or in a batch, as in evaluation."""
    found = predictions(
        net["predict"], net["params"], [(inputs, np.zeros(len(inputs), int))],
        state=net.get("state"), batched=net.get("batched", False),
    )  # fmt: skip
    return found.outputs


@pytest.mark.usefixtures("others_mix")
@pytest.mark.parametrize("name", ["tutorial", "equinox", slow("nnx"), slow("linen"), slow("haiku")])
def test_networks_of_every_library_run_in_a_page(page, name):
    net, image = networks(name), IMAGE.astype(np.float32)
    program = network_program(**net, example=image)
    (expected,) = predicted(net, image[None])
    np.testing.assert_allclose(run(page, program, IMAGE), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("others_mix")
def test_pixels_as_bytes_are_an_example_too(page):
    net = networks("tutorial")
    program = network_program(**net, example=IMAGE)
    (expected,) = predicted(net, IMAGE[None])
    np.testing.assert_allclose(run(page, program, IMAGE), expected, rtol=1e-4, atol=1e-5)


def dtypes(program):
    return [constant["dtype"] for constant in program["constants"]]


def test_large_constants_are_rounded_where_it_changes_nothing(page, mnist_test):
    net = networks("tutorial")
    x = np.stack([np.asarray(mnist_test[i][0]) for i in range(500)])
    exact = network_program(**net, example=x[0])
    rounded = network_program(**net, example=x[0], inputs=x)
    assert rounded == network_program(**net, example=x[0], inputs=x, outputs=predicted(net, x))
    assert set(dtypes(exact)) == {"float32"}
    assert dtypes(rounded).count("int16") == 2  # the last layer is small
    found = softmax(run(page, rounded, x[0]))
    expected = softmax(predicted(net, x[:1])[0])
    assert 0 < np.abs(found - expected).max() < 5e-4


def outlier(w):
    w[0, 0] = 1e6  # of an input that is always 0; beside it all others round to 0


def infinite(w):
    w[0, 0] = np.inf


@pytest.mark.parametrize("spoil", [outlier, infinite])
def test_constants_stay_as_they_are_where_rounding_changes_something(spoil):
    x = np.random.default_rng(0).normal(0, 1, (200, 400)).astype(np.float32)
    x[:, 0] = 0
    w = np.array(weights(10, 400))
    assert dtypes(network_program(lambda w, x: w @ x, w, x[0], inputs=x)) == ["int16"]
    spoil(w)
    assert dtypes(network_program(lambda w, x: w @ x, w, x[0], inputs=x)) == ["float32"]


def refused(predict, params=None, x=X, **more):
    with pytest.raises(ProgramError) as caught:
        network_program(predict, params, x, **more)
    return str(caught.value)


KNOWN = (
    "network_program: a network that runs in a page must be made of operations that a page knows, "
    "and this one has {}; let feedax show run it on this machine"
)


@pytest.mark.parametrize(
    ("predict", "what"),
    [
        (lambda p, x: jnp.sort(x), "sort"),
        (lambda p, x: lax.scan(lambda c, row: (c + row.sum(), None), 0.0, x)[0], "scan"),
        (lambda p, x: x.astype(jnp.bfloat16), "numbers of bfloat16"),
        (lambda p, x: x.astype(int) + 1, "add of int32"),
        (lambda p, x: (x > 0).sum(), "reduce_sum of int32"),
        (lambda p, x: x.astype(int).astype(jnp.uint8), "a conversion of int32 to uint8"),
        (
            lambda p, x: lax.dynamic_slice(
                jnp.arange(9.0), (x[0, 0].argmax(),), (1,), allow_negative_indices=False
            ),
            "dynamic_slice at places that depend on the example",
        ),
        (lambda p, x: jnp.fft.fft(x).real, "numbers of complex64"),
    ],
)
@pytest.mark.usefixtures("others_mix")
def test_an_operation_that_a_page_does_not_know_is_named(predict, what):
    assert refused(predict) == KNOWN.format(what)


def test_a_network_that_is_too_large_is_refused():
    assert refused(lambda w, x: w @ x, weights(50, 4), X[:, 0, 0], most_bytes=1000) == (
        "network_program: a network that runs in a page must take at most 0.001 MB of it, and "
        "this one takes 0.00117 MB; let feedax show run it on this machine"
    )


def test_several_inputs_or_outputs_are_refused():
    assert refused(lambda p, x: (x, x)) == (
        "network_program: a network that runs in a page must take one array and return one, and "
        "this one takes 1 and returns 2; let feedax show run it on this machine"
    )


def test_an_example_that_does_not_fit_is_the_models_error():
    with pytest.raises(ModelError, match=re.escape("it fails on an example of float32[3] (TypeE")):
        network_program(feedax.predict, feedax.init_mlp([4, 2], KEY), np.zeros(3, np.float32))
