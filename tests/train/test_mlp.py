"""The tutorial's parts: shapes, values, and PyTorch's autograd as the oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers import slow

import feedax
from feedax.train import step as steps

SIZES = [784, 512, 512, 10]


def torch_mlp(params, x):
    """The same network in PyTorch: log-probabilities of a batch."""
    for w, b in params[:-1]:
        x = torch.relu(x @ w.T + b)
    w, b = params[-1]
    return torch.log_softmax(x @ w.T + b, dim=1)


def torch_gradients(params, x, y):
    """PyTorch's gradients of the tutorial's loss, and one update with step size 0.01."""
    leaves = [(torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True))
              for w, b in params]  # fmt: skip
    log_p = torch_mlp(leaves, torch.tensor(x))
    one_hot = torch.nn.functional.one_hot(torch.tensor(y), 10).to(log_p.dtype)
    (-(log_p * one_hot).mean()).backward()
    grads = [(w.grad.numpy(), b.grad.numpy()) for w, b in leaves]
    new = [(w - 0.01 * dw, b - 0.01 * db)
           for (w, b), (dw, db) in zip(params, grads, strict=True)]  # fmt: skip
    return grads, new


def relative_error(tree, oracle):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(oracle), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


def case(dtype, mnist, count=128):
    """Weights large enough that every layer matters, and real digits."""
    rng = np.random.default_rng(0)
    params = [(rng.normal(0, m**-0.5, (n, m)).astype(dtype), rng.normal(0, 0.1, n).astype(dtype))
              for m, n in itertools.pairwise(SIZES)]  # fmt: skip
    x = (mnist.data[:count].numpy().reshape(count, -1) / 255).astype(dtype)
    return params, x, mnist.targets[:count].numpy()


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_gradient_and_update_are_pytorchs(dtype, bound, mnist_train):
    params, x, y = case(dtype, mnist_train)
    grads, updated = torch_gradients(params, x, y)
    with jax.enable_x64(dtype == np.float64):
        ours = [tuple(map(jnp.asarray, pair)) for pair in params]
        targets = feedax.one_hot(y, 10, dtype)
        assert relative_error(jax.grad(feedax.loss)(ours, x, targets), grads) < bound
        assert relative_error(feedax.update(ours, x, targets), updated) < bound
        assert feedax.update(ours, x, targets)[0][0].dtype == dtype


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), slow(np.float32, 1e-5)])
@pytest.mark.parametrize("filled_to", [slow(96), 128])
def test_train_step_on_a_short_batch_is_pytorchs_step_on_it(dtype, bound, filled_to, mnist_train):
    params, x, y = case(dtype, mnist_train, count=96)
    _, updated = torch_gradients(params, x, y)
    fill = np.zeros(filled_to, int)
    fill[:96] = np.arange(96)  # copies of the first example behind the 96
    with jax.enable_x64(dtype == np.float64):
        optimizer = optax.sgd(0.01)
        state = steps.init_state(jax.tree.map(jnp.asarray, params), optimizer, jax.random.key(0))
        batch = feedax.feed.Batch(x[fill], y[fill], (np.arange(filled_to) < 96).astype(np.float32))
        state = feedax.train_step(
            state,
            batch,
            model=steps.Model(feedax.predict),
            loss=feedax.tutorial_loss,
            optimizer=optimizer,
        )
        assert relative_error(state.params, updated) < bound
        assert int(state.metrics["loss"].count) == 96
        assert int(state.step) == 1


def test_shapes_and_scale_of_the_parameters():
    params = feedax.init_network_params(SIZES, jax.random.key(0))
    assert [(w.shape, b.shape) for w, b in params] == [
        ((512, 784), (512,)),
        ((512, 512), (512,)),
        ((10, 512), (10,)),
    ]
    assert float(params[0][0].std()) == pytest.approx(0.01, rel=0.01)
    w, b = feedax.random_layer_params(3, 2, jax.random.key(0), scale=0.0)
    assert not w.any()
    assert not b.any()


def test_predict_by_hand():
    # hidden = relu([1*1 + 2*2 + 0, -1*1 + 0*2 + 0.5]) = [5, 0]
    # logits = [1*5 + 9*0 - 3, 0*5 + 9*0] = [2, 0]
    params = [
        (jnp.array([[1.0, 2.0], [-1.0, 0.0]]), jnp.array([0.0, 0.5])),
        (jnp.array([[1.0, 9.0], [0.0, 9.0]]), jnp.array([-3.0, 0.0])),
    ]
    expected = np.array([2.0, 0.0]) - np.log(np.exp(2.0) + 1)
    np.testing.assert_allclose(feedax.predict(params, jnp.array([1.0, 2.0])), expected, rtol=1e-6)


def test_predict_says_what_to_do_with_a_batch():
    params = feedax.init_network_params([784, 10], jax.random.key(0))
    with pytest.raises(TypeError) as error:
        feedax.predict(params, jnp.zeros((10, 784)))
    assert str(error.value) == (
        "predict: image must be one example of shape (784,), and its shape is (10, 784); predict a "
        "batch with batched_predict, or with jax.vmap(predict, in_axes=(None, 0))"
    )
    assert feedax.batched_predict(params, jnp.zeros((10, 784))).shape == (10, 10)


@pytest.mark.parametrize("shape", [(28, 28), (783,), ()])
def test_predict_refuses_other_shapes(shape):
    params = feedax.init_network_params([784, 10], jax.random.key(0))
    with pytest.raises(TypeError) as error:
        feedax.predict(params, jnp.zeros(shape))
    assert str(error.value) == (
        f"predict: image must be one example of shape (784,), and its shape is {shape}; flatten "
        "it, or make the first layer fit it"
    )


def test_predictions_are_log_probabilities():
    params = feedax.init_network_params(SIZES, jax.random.key(1))
    images = jax.random.uniform(jax.random.key(2), (5, 784), maxval=255.0)
    sums = jnp.exp(feedax.batched_predict(params, images)).sum(1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_losses_and_accuracy_by_hand():
    p = np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], np.float32)
    y = np.array([1, 0, 1])
    # The network hands its input through: its log-softmax of a log-probability is itself.
    params = [(jnp.eye(2), jnp.zeros(2))]
    targets = feedax.one_hot(y, 2)
    by_hand = -(np.log(0.75) + np.log(0.5) + np.log(0.1)) / 6
    assert float(feedax.loss(params, np.log(p), targets)) == pytest.approx(by_hand, rel=1e-6)
    assert float(feedax.accuracy(params, np.log(p), targets)) == pytest.approx(2 / 3)
    each = [float(feedax.tutorial_loss(np.log(a), b)) for a, b in zip(p, y, strict=True)]
    assert np.mean(each) == pytest.approx(by_hand, rel=1e-6)
    each = [float(feedax.cross_entropy(np.log(a), b)) for a, b in zip(p, y, strict=True)]
    assert np.mean(each) == pytest.approx(2 * by_hand, rel=1e-6)


def test_one_hot():
    np.testing.assert_array_equal(
        feedax.one_hot(np.array([2, 0, 5]), 3, jnp.int32), [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    )
    assert feedax.one_hot(np.array([2, 0]), 3).dtype == jnp.float32


def test_relu():
    np.testing.assert_array_equal(feedax.relu(np.array([-2.0, 0.0, 3.0])), [0, 0, 3])


def test_update_takes_a_step_size():
    params = feedax.init_network_params([4, 3], jax.random.key(0))
    x, y = np.ones((2, 4), np.float32), feedax.one_hot(np.array([0, 1]), 3)
    still = feedax.update(params, x, y, step_size=0.0)
    assert all(jnp.array_equal(a, b) for a, b in zip(still[0], params[0], strict=True))
    small = feedax.update(params, x, y, 0.1)[0][1] - params[0][1]
    large = feedax.update(params, x, y, 0.2)[0][1] - params[0][1]
    np.testing.assert_allclose(large, 2 * small, rtol=1e-4)
