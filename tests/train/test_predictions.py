"""What `predictions` says is what the model says of each example alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batches, linear, problem

import feedax
from feedax.errors import BatchError, ModelError

W = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


@pytest.mark.parametrize("size", [52, 16, 1])
def test_each_example_is_as_if_it_were_alone(size: int) -> None:
    x, y = problem()
    found = feedax.predictions(linear, W, batches(x, y, size))
    alone = np.stack([W @ one for one in x])
    np.testing.assert_allclose(found.outputs, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.targets, y)
    np.testing.assert_array_equal(found.predicted, alone.argmax(1))
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(alone), rtol=1e-5, atol=1e-6)
    # Mistakes by their confidence, and the examples that are right by their doubt.
    wrong = np.flatnonzero(alone.argmax(1) != y)
    assert sorted(found.mistakes) == wrong.tolist()
    sure = found.probabilities.max(1)
    assert (np.diff(sure[found.mistakes]) <= 0).all()
    assert (np.diff(sure[found.least_certain]) >= 0).all()
    assert len(found.mistakes) + len(found.least_certain) == len(x)


def test_the_inputs_worth_a_look_are_kept_and_no_others() -> None:
    x, y = problem(count=200)
    found = feedax.predictions(linear, W, batches(x, y, 16), mistakes=5, least_certain=3)
    assert list(found.inputs) == [*found.mistakes[:5], *found.least_certain[:3]]
    for i, example in found.inputs.items():
        np.testing.assert_array_equal(example, x[i])


def test_it_agrees_with_evaluate_on_every_plan(mnist_test) -> None:
    params = feedax.init_mlp([784, 10], jax.random.key(0))
    asked = feedax.evaluate(feedax.mlp, params, feedax.NumpyLoader(mnist_test, batch_size=100))
    for plan in ("resident", "vectorised"):
        loader = feedax.NumpyLoader(mnist_test, batch_size=100, shuffle=True, plan=plan, seed=0)
        found = feedax.predictions(feedax.mlp, params, loader)
        assert (found.predicted == found.targets).mean() == asked["accuracy"]


def test_a_short_batch_is_no_second_program() -> None:
    x, y = problem()
    traced = []

    def predict(w, x):
        traced.append(x.shape)
        return w @ x

    feedax.predictions(predict, W, batches(x, y, 16))
    before = len(traced)
    assert before <= 3, "the check, and one program"


def test_numbers_have_errors_and_no_classes() -> None:
    x = np.arange(6, dtype=np.float32)
    y = np.array([0, 2, 4, 6, 8, 20], np.float32)
    found = feedax.predictions(lambda w, x: w * x, jnp.float32(2), [(x, y)], mistakes=1)
    assert not found.is_of_classes
    assert found.errors.tolist() == [0, 0, 0, 0, 0, 10]
    assert found.mistakes[0] == 5
    assert found.inputs == {5: 5.0}
    assert found.least_certain.size == 0


def test_batched_models_and_models_with_a_state() -> None:
    x, y = problem()
    plain = feedax.predictions(linear, W, batches(x, y, 16))
    batched = feedax.predictions(lambda w, x: x @ w.T, W, batches(x, y, 16), batched=True)
    stateful = feedax.predictions(
        lambda w, s, x, train: (w @ x + s * float(train), s),
        W,
        batches(x, y, 16),
        state=jnp.ones(3),
    )
    for other in (batched, stateful):
        np.testing.assert_allclose(other.outputs, plain.outputs, rtol=1e-5, atol=1e-6)


def test_random_numbers_of_a_data_set_are_put_back() -> None:
    x, y = problem()
    loader = feedax.NumpyLoader(list(zip(x, y, strict=True)), batch_size=16, shuffle=True, seed=3)
    before = loader.state_dict()
    feedax.predictions(linear, W, loader)
    assert loader.state_dict() == before


def test_errors_say_what_to_do() -> None:
    x, y = problem()
    with pytest.raises(BatchError) as none:
        feedax.predictions(linear, W, [])
    assert str(none.value) == (
        "predictions: batches must yield a batch, and it yielded none; give a NumpyLoader or a "
        "list that is not empty, not an iterator that ends"
    )
    with pytest.raises(ModelError) as two:
        feedax.predictions(lambda w, x: (x, x), W, [(x, y)])
    assert str(two.value) == (
        "predictions: the outputs of an example must be one array, and they are 2; give a predict "
        "or batches with the one to look at"
    )
    with pytest.raises(ModelError, match="predictions: predict must take one"):
        feedax.predictions(lambda w, x: w @ x[:3], W, [(x, y)])
