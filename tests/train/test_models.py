"""Models of every library train on real MNIST, and do what the library itself does."""

import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import slow
from torch.utils.data import Subset

import feedax
from feedax.errors import ModelError

KEY = jax.random.key(0)
OF_ARRAYS = nnx.Not(nnx.RngState)
ADAM = optax.adam(3e-3)


@pytest.fixture(scope="module")
def train(mnist_train):
    return feedax.NumpyLoader(Subset(mnist_train, range(12000)), 100, shuffle=True, seed=0)


@pytest.fixture(scope="module")
def test(mnist_test):
    return feedax.NumpyLoader(mnist_test, 1000)


@pytest.fixture(scope="module")
def batch(train):
    x, y = next(iter(train))
    return x, y


def accuracy(history):
    return history[-1]["test_accuracy"]


def close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a, b)


def mean_loss(predictions, y):
    return optax.softmax_cross_entropy_with_integer_labels(predictions, y).mean()


def stepped(params, grads):
    """What one step of ``optax.sgd(0.1)`` makes of parameters."""
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


# The models: each as its library's users write it.


class NnxConv(nnx.Module):
    def __init__(self, rngs, dropout=0.2):
        self.conv = nnx.Conv(1, 8, (5, 5), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(14 * 14 * 8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x.reshape(-1, 28, 28, 1) / 255)))
        return self.out(self.dropout(x.reshape(len(x), -1)))


class NnxMLP(nnx.Module):
    def __init__(self, rngs, dropout):
        self.hidden = nnx.Linear(784, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x / 255)))))


class LinenConv(nn.Module):
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 5), strides=2)(x.reshape(-1, 28, 28, 1) / 255)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


@pytest.fixture(scope="module")
def linen_variables():
    return LinenConv().init(KEY, jnp.ones((1, 784)), train=False)


class EquinoxConv(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key, dropout=0.2):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 8, 5, stride=2, padding=2, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch", momentum=0.9)
        self.dropout = eqx.nn.Dropout(dropout)
        self.out = eqx.nn.Linear(14 * 14 * 8, 10, key=keys[1])

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(x.reshape(1, 28, 28) / 255), state)
        return self.out(self.dropout(jax.nn.relu(x).ravel(), key=key)), state


def equinox_predict(model, state, x, key, train):
    return eqx.nn.inference_mode(model, not train)(x, state, key)


# Each learns.


def test_a_plain_function_learns(train, test):
    def predict(params, x):
        w1, b, w2 = params
        return w2 @ jax.nn.relu(w1 @ (x / 255) + b)

    params = (
        jax.random.normal(KEY, (64, 784)) / 28,
        jnp.zeros(64),
        jnp.zeros((10, 64)),
    )
    _, history = feedax.fit(
        predict, params, train, optimizer=ADAM, epochs=2, evaluate={"test": test}
    )
    assert accuracy(history) > 0.9


def test_an_equinox_mlp_learns_as_it_is(train, test):
    model = eqx.nn.MLP(784, 10, 64, 1, key=KEY)
    fitted, history = feedax.fit(
        lambda model, x: model(x / 255),
        model,
        train,
        optimizer=ADAM,
        epochs=2,
        evaluate={"test": test},
    )
    assert isinstance(fitted, eqx.nn.MLP)
    assert accuracy(history) > 0.9


@pytest.mark.slow
def test_an_equinox_conv_net_with_batch_norm_and_dropout_learns(train, test):
    model, state = eqx.nn.make_with_state(EquinoxConv)(KEY)
    (fitted, _), history = feedax.fit(
        equinox_predict, model, train, state=state, optimizer=ADAM, epochs=2,
        evaluate={"test": test},
    )  # fmt: skip
    assert isinstance(fitted, EquinoxConv)
    assert accuracy(history) > 0.93


@pytest.mark.slow
@pytest.mark.usefixtures("others_mix")
def test_a_haiku_mlp_with_dropout_learns(train, test):
    def forward(x, train):
        x = jax.nn.relu(hk.Linear(64)(x / 255))
        return hk.Linear(10)(hk.dropout(hk.next_rng_key(), 0.1, x) if train else x)

    net = hk.transform(forward)
    params = net.init(KEY, jnp.ones(784), True)
    _, history = feedax.fit(
        lambda params, x, key, train: net.apply(params, key, x, train), params, train,
        optimizer=ADAM, epochs=2, evaluate={"test": test},
    )  # fmt: skip
    assert accuracy(history) > 0.9


@pytest.mark.slow
def test_a_linen_conv_net_with_batch_norm_and_dropout_learns(train, test, linen_variables):
    module = LinenConv()
    net = feedax.from_linen(module, linen_variables)
    (params, state), history = feedax.fit(
        **net, train=train, optimizer=ADAM, epochs=2, evaluate={"test": test}
    )
    assert accuracy(history) > 0.93
    # Linen's own evaluation of what came out agrees.
    variables = net.merge(params, state)
    x, y = next(iter(test))
    own = (module.apply(variables, x, train=False).argmax(1) == y).mean()
    ours = feedax.evaluate(net.predict, params, [(x, y)], state=state, batched=True)["accuracy"]
    assert ours == pytest.approx(float(own), abs=1e-3)


@pytest.mark.slow
def test_an_nnx_conv_net_with_batch_norm_and_dropout_learns(train, test):
    model = NnxConv(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, OF_ARRAYS)))
    net = feedax.from_nnx(model)
    (params, state), history = feedax.fit(
        **net, train=train, optimizer=ADAM, epochs=2, evaluate={"test": test}
    )
    assert accuracy(history) > 0.93
    # NNX's own evaluation of what came out agrees.
    fitted = net.merge(params, state)
    fitted.eval()
    x, y = next(iter(test))
    own = (fitted(x).argmax(1) == y).mean()
    ours = feedax.evaluate(net.predict, params, [(x, y)], state=state, batched=True)["accuracy"]
    assert ours == pytest.approx(float(own), abs=1e-3)
    # The model that was given is as it was.
    after = nnx.to_pure_dict(nnx.state(model, OF_ARRAYS))
    jax.tree.map(np.testing.assert_array_equal, after, before)


# One step is the library's own step: gradients and running statistics.


def one_step(batch, **net):
    return feedax.fit(**net, train=[batch], optimizer=optax.sgd(0.1), epochs=1)[0]


def test_a_step_of_an_nnx_model_is_nnx_own(batch):
    x, y = batch
    model = NnxConv(nnx.Rngs(0), dropout=0.0)
    net = feedax.from_nnx(model)
    params, state = one_step(batch, **net)

    own = nnx.clone(model)
    own.train()
    # It updates the running means of the model.
    grads = nnx.jit(nnx.grad(lambda model, x: mean_loss(model(x), y)))(own, x)
    close(params, stepped(net.params, nnx.to_pure_dict(grads)))
    close(state, nnx.to_pure_dict(nnx.state(own, nnx.BatchStat)))
    assert np.abs(state["norm"]["mean"]).min() > 0


@pytest.mark.slow
def test_a_step_of_a_linen_model_is_linens_own(batch, linen_variables):
    x, y = batch
    module, variables = LinenConv(dropout=0.0), linen_variables
    params, state = one_step(batch, **feedax.from_linen(module, variables))

    def own_loss(params):
        predictions, state = module.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"]
        )
        return mean_loss(predictions, y), state

    grads, own_state = jax.jit(jax.grad(own_loss, has_aux=True))(variables["params"])
    close(params, stepped(variables["params"], grads))
    close(state, own_state)
    assert np.abs(state["batch_stats"]["BatchNorm_0"]["mean"]).min() > 0


def test_a_step_of_an_equinox_model_is_equinoxs_own(batch):
    x, y = batch
    model, state = eqx.nn.make_with_state(EquinoxConv)(KEY, dropout=0.0)
    fitted, new = one_step(batch, predict=equinox_predict, params=model, state=state)

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def own_grad(model):
        of_batch = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
        predictions, new = of_batch(jnp.asarray(x), state, KEY)
        return mean_loss(predictions, y), new

    grads, own_state = own_grad(model)
    own = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))
    close(*(eqx.filter(tree, eqx.is_inexact_array) for tree in (fitted, own)))
    close(jax.tree.leaves(new), jax.tree.leaves(own_state))
    assert not all(map(np.array_equal, jax.tree.leaves(new), jax.tree.leaves(state)))


@pytest.mark.slow
@pytest.mark.usefixtures("others_mix")
def test_a_step_of_a_haiku_model_with_state_is_haikus_own(batch):
    x, y = batch

    def forward(x, train):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x / 255), train)
        return hk.Linear(10)(jax.nn.relu(x))

    net = hk.transform_with_state(forward)
    params, state = net.init(KEY, x, True)
    fitted, new = one_step(
        batch,
        predict=lambda params, state, x, key, train: net.apply(params, state, key, x, train),
        params=params, state=state, batched=True,
    )  # fmt: skip

    def own_loss(params):
        predictions, new = net.apply(params, state, None, x, True)
        return mean_loss(predictions, y), new

    grads, own_state = jax.jit(jax.grad(own_loss, has_aux=True))(params)
    close(fitted, stepped(params, grads))
    close(new, own_state)


# Modes and randomness.


class NnxDrop(nnx.Module):
    """What it does to ones shows its mode: dropout that halves, and a mean of its inputs."""

    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(64, use_bias=False, use_scale=False, rngs=rngs)
        self.weight = nnx.Param(jnp.ones(64))

    def __call__(self, x):
        return self.norm(x), self.first(x) * self.weight, self.second(x)


class NnxCallDrop(nnx.Module):
    """Streams and mode come with the call."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5)
        self.norm = nnx.BatchNorm(64, use_bias=False, use_scale=False, rngs=rngs)

    def __call__(self, x, *, train, rngs=None):
        drop = lambda x: self.dropout(x, deterministic=not train, rngs=rngs)  # noqa: E731
        return self.norm(x, use_running_average=not train), drop(x), drop(x)


class LinenDrop(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        norm = nn.BatchNorm(deterministic, use_bias=False, use_scale=False)
        self.param("weight", nn.initializers.ones, (64,))
        if deterministic:
            return norm(x), x, x
        keys = [self.make_rng(name) for name in ("dropout", "another")]
        return norm(x), *(2.0 * jax.random.bernoulli(key, 0.5, x.shape) for key in keys)


def dropping(kind):
    if kind == "linen":
        variables = LinenDrop().init(KEY, jnp.ones((2, 64)), deterministic=True)
        return feedax.from_linen(LinenDrop(), variables)
    return feedax.from_nnx({"nnx": NnxDrop, "nnx call": NnxCallDrop}[kind](nnx.Rngs(0)))


@pytest.mark.usefixtures("others_mix")
@pytest.mark.parametrize("kind", ["nnx", slow("nnx call"), slow("linen")])
def test_dropout_follows_the_key_and_is_off_in_evaluation(kind):
    net = dropping(kind)
    x = jnp.ones((8, 64))

    def drops(key, train):
        (_, first, second), _ = net.predict(net.params, net.state, x, jax.random.key(key), train)
        return np.stack([first, second])

    masks = drops(0, True)
    assert set(np.unique(masks)) == {0, 2}
    assert len(np.unique(masks.reshape(16, 64), axis=0)) == 16  # by example and by layer
    assert np.array_equal(drops(0, True), masks)
    assert (drops(1, True) != masks).any((1, 2)).all()
    for key in (0, 1):
        assert (drops(key, False) == 1).all()


@pytest.mark.usefixtures("others_mix")
@pytest.mark.parametrize("kind", [slow("nnx"), slow("nnx call"), "linen"])
def test_running_statistics_are_used_in_evaluation_and_moved_in_training_only(kind, rng):
    net = dropping(kind)
    x = jnp.asarray(3 + 2 * rng.normal(size=(256, 64)), jnp.float32)
    (normal, *_), moved = net.predict(net.params, net.state, x, KEY, True)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-4)
    (same, *_), kept = net.predict(net.params, net.state, x, KEY, False)
    np.testing.assert_allclose(same, x, rtol=1e-4)  # the first running mean is 0, and variance 1
    close(kept, net.state)
    means = [np.mean(a) for a in jax.tree.leaves(moved) if abs(np.mean(a)) < 0.5]
    np.testing.assert_allclose(means, [0.01 * 3], rtol=0.1)  # momentum 0.99
    # Nothing random has become state.
    assert jax.tree.structure(moved) == jax.tree.structure(net.state)
    assert sorted(a.shape for a in jax.tree.leaves(moved)) == [(64,), (64,)]


def test_steps_draw_their_own_dropout_and_evaluation_draws_none(batch):
    """Without dropout the loss of the same batch and parameters is the same in every epoch."""
    for dropout, distinct in ((0.5, 3), (0.0, 1)):
        net = feedax.from_nnx(NnxMLP(nnx.Rngs(0), dropout))
        _, history = feedax.fit(**net, train=[batch], optimizer=optax.sgd(0.0), epochs=3)
        assert len({round(row["loss"], 5) for row in history}) == distinct
    whole, without = (
        feedax.evaluate(net.predict, net.params, [batch], state=net.state, batched=True)
        for net in (feedax.from_nnx(NnxMLP(nnx.Rngs(0), dropout)) for dropout in (0.5, 0.0))
    )
    assert whole == without


def test_the_key_of_a_step_drives_an_nnx_model_and_not_its_own_streams(batch):
    def predictions(seed, model_seed):
        net = feedax.from_nnx(NnxMLP(nnx.Rngs(params=0, dropout=model_seed), 0.5))
        return np.array(net.predict(net.params, net.state, batch[0], jax.random.key(seed), True)[0])

    first = predictions(0, 0)
    assert np.array_equal(predictions(0, 1), first)
    assert not np.array_equal(predictions(1, 0), first)


# What NNX models may hold.


def test_shared_layers_lists_raw_arrays_and_counts_of_an_nnx_model_are_kept(batch):
    class Count(nnx.Variable):
        pass

    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(784, 10, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(10, 10, rngs=rngs), nnx.Linear(10, 10, rngs=rngs)])
            self.again = self.layers[0]
            self.scale = jnp.float32(1 / 255)
            self.calls = Count(jnp.int32(0))

        def __call__(self, x):
            self.calls[...] += 1
            self.seen = nnx.Intermediate(x)
            return self.again(self.layers[1](self.layers[0](self.first(x * self.scale))))

    model = Tied(nnx.Rngs(0))
    model(batch[0])
    net = feedax.from_nnx(model)
    assert model.seen.shape == (100, 784)  # what it noted is its own, and no state
    assert set(net.state) == {"calls", "scale"}
    assert set(net.params) == {"again", "first", "layers"}  # "again" has the shared layer
    params, state = one_step(batch, **net)
    assert (int(state["calls"]), float(state["scale"])) == (2, np.float32(1 / 255))
    fitted = net.merge(params, state)
    assert fitted.again is fitted.layers[0]
    assert not np.array_equal(fitted.again.kernel[...], model.again.kernel[...])


# Refusals.


@pytest.mark.parametrize(
    ("params", "held"),
    [
        (lambda: NnxMLP(nnx.Rngs(0), 0.5), "NnxMLP"),
        (lambda: {"net": nnx.state(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))}, "BatchStat"),
        (lambda: nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(0))), "RngCount"),
        # Its mode and its dropout's streams may come with the call.
        (lambda: [nnx.Linear(784, 10, rngs=nnx.Rngs(0))], "Linear"),
    ],
    ids=["module", "state", "streams", "only Param"],
)
def test_nnx_modules_as_plain_parameters_are_refused_with_the_line_to_write(params, held, batch):
    message = (
        "fit: params must hold no NNX module and no variable but Param, whose statistics it would "
        f"train and whose mode it cannot set, and they hold a {held}; write net = "
        "feedax.from_nnx(model) and feedax.fit(**net, train=...)"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        feedax.fit(lambda model, x: model(x), params(), [batch])


def test_param_variables_split_from_a_module_are_plain_parameters(batch):
    graph, params = nnx.split(nnx.Linear(784, 10, rngs=nnx.Rngs(0)), nnx.Param)
    fitted, _ = feedax.fit(lambda p, x: nnx.merge(graph, p)(x / 255), params, [batch])
    assert isinstance(fitted, nnx.State)
    assert (fitted["kernel"][...] != params["kernel"][...]).any()


def test_a_model_of_batches_is_not_called_on_one_example(batch, linen_variables):
    for net, who in (
        (feedax.from_nnx(NnxMLP(nnx.Rngs(0), 0.5)), "from_nnx"),
        (feedax.from_linen(LinenConv(), linen_variables), "from_linen"),
    ):
        message = (
            f"{who}: the model must be given whole batches, and it was given one example under "
            "vmap; write feedax.fit(**net, train=...), or give batched=True"
        )
        with pytest.raises(ModelError) as caught:
            feedax.fit(net.predict, net.params, [batch], state=net.state)
        assert str(caught.value) == message


def test_what_is_no_flax_model_is_refused(linen_variables):
    module, variables = LinenConv(), linen_variables
    cases = [
        (
            lambda: feedax.from_nnx(module),
            f"from_nnx: the model must be an nnx.Module, and it is {__name__}.LinenConv; give the "
            "module itself, not its state, and from_linen(module, variables) for a Linen module",
        ),
        (
            lambda: feedax.from_linen(NnxMLP(nnx.Rngs(0), 0.5), variables),
            f"from_linen: the module must be a flax.linen.Module, and it is {__name__}.NnxMLP; "
            "give from_linen(module, variables), and from_nnx(model) for an NNX module",
        ),
        (
            lambda: feedax.from_linen(module, variables["params"]),
            "from_linen: variables must have the collection 'params', and they are "
            "['Conv_0', 'BatchNorm_0', 'Dense_0']; give what module.init "
            "returned",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
            call()


def test_a_linen_model_that_cannot_be_told_its_mode_is_not_evaluated(batch):
    class Deaf(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            mode = {"rate": 0.5, "deterministic": False}
            if self.layer is nn.BatchNorm:
                mode = {"use_running_average": False}
            return nn.Dense(10)(self.layer(**mode)(x / 255))

    for layer in (nn.Dropout, nn.BatchNorm):
        module = Deaf(layer)
        keys = {"params": KEY, "dropout": KEY}
        net = feedax.from_linen(module, module.init(keys, jnp.ones((2, 784))))
        with pytest.raises(ModelError) as caught:
            feedax.evaluate(net.predict, net.params, [batch], state=net.state, batched=True)
        assert str(caught.value).startswith(
            "from_linen: Deaf.__call__ must have a parameter train, deterministic or "
            "use_running_average, and has none, so that evaluation fails: "
        )
        assert str(caught.value).endswith("; give it one")


def test_a_linen_model_that_does_not_fit_the_data_is_named(batch):
    module = nn.Dense(10)
    net = feedax.from_linen(module, module.init(KEY, jnp.ones((2, 28))))
    with pytest.raises(ModelError) as caught:
        feedax.fit(**net, train=[batch])
    assert str(caught.value).startswith("from_linen: Dense must take a batch of the data, and: ")
    assert "(784, 10)" in str(caught.value)
