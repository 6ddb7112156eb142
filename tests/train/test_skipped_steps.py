"""Optimizers that skip a step whose gradient is no number: training goes on, and counts it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import bits, slow, slow_but, squared, timeless

import feedax
from feedax.data import ArrayDataset
from feedax.errors import NotANumberError

X = np.linspace(-1, 1, 64, dtype=np.float32)
Y = 3 * X + 1
BROKEN = 10
START = (jnp.zeros(()), jnp.zeros(()))


def line(params, x):
    return params[0] * x + params[1]


def data(*broken, plan="auto", **options):
    y = Y.copy()
    y[list(broken)] = np.nan
    return feedax.NumpyLoader(ArrayDataset(X, y), 8, plan=plan, **options)


def without_broken(*broken):
    """The batches that have no broken example."""
    starts = [s for s in range(0, 64, 8) if not any(s <= i < s + 8 for i in broken)]
    return [(X[s : s + 8], Y[s : s + 8]) for s in starts]


def fit(train, optimizer, epochs=3, **options):
    return feedax.fit(
        line, START, train, loss=squared, optimizer=optimizer, epochs=epochs, **options
    )


def adam():
    return optax.adam(0.05)


WRAPPED = {
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), 5),
    "within a chain": lambda: optax.chain(optax.identity(), optax.apply_if_finite(adam(), 5)),
    "injected": lambda: optax.apply_if_finite(
        optax.inject_hyperparams(optax.adam)(learning_rate=0.05), 5
    ),
    "masked": lambda: optax.masked(optax.apply_if_finite(adam(), 5), (True, True)),
    "partition": lambda: optax.partition(
        {"a": optax.apply_if_finite(adam(), 5), "b": optax.apply_if_finite(adam(), 5)}, ("a", "b")
    ),
    "MultiSteps": lambda: optax.MultiSteps(
        adam(), 1, should_skip_update_fn=optax.skip_not_finite
    ),
    "MultiSteps within apply_if_finite": lambda: optax.apply_if_finite(
        optax.MultiSteps(adam(), 1, should_skip_update_fn=optax.skip_not_finite), 5
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "plan"),
    slow_but(
        [("apply_if_finite", "streamed"), ("MultiSteps within apply_if_finite", "resident")],
        ((name, "resident") for name in WRAPPED),
    ),
)
def test_a_skipped_step_is_as_if_its_batch_were_not_there(name, plan):
    trained, rows = fit(data(BROKEN, plan=plan), WRAPPED[name]())
    expected, wanted = fit(without_broken(BROKEN), adam())
    np.testing.assert_allclose(trained, expected, rtol=1e-5)
    assert [row["skipped_steps"] for row in rows] == [1, 1, 1]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)


def test_steps_that_add_gradients_up_are_not_skipped():
    optimizer = optax.MultiSteps(adam(), 2, should_skip_update_fn=optax.skip_not_finite)
    trained, rows = fit(data(BROKEN), optimizer, epochs=2)
    expected, _ = fit(2 * without_broken(BROKEN), optax.MultiSteps(adam(), 2), epochs=1)
    np.testing.assert_allclose(trained, expected, rtol=1e-6)
    assert [row["skipped_steps"] for row in rows] == [1, 1]


def test_a_gradient_that_is_skipped_for_its_size_is_counted_too():
    large = functools.partial(optax.skip_large_updates, max_squared_norm=1e-9)
    optimizer = optax.MultiSteps(adam(), 1, should_skip_update_fn=large)
    trained, (row,) = fit(data(), optimizer, epochs=1)
    assert bits(trained) == bits(START)
    assert row["skipped_steps"] == 8
    assert math.isnan(row["loss"])  # of no example


def test_gradients_whose_nans_become_zeros_leave_a_step_out():
    trained, rows = fit(data(BROKEN), optax.chain(optax.zero_nans(), optax.sgd(0.2)), epochs=10)
    expected, _ = fit(without_broken(BROKEN), optax.sgd(0.2), epochs=10)
    np.testing.assert_allclose(trained, expected, rtol=1e-6)
    assert {row["skipped_steps"] for row in rows} == {1}


def test_only_optimizers_that_skip_have_the_column():
    for optimizer in (adam(), optax.MultiSteps(adam(), 2)):
        _, (row,) = fit(data(), optimizer, epochs=1)
        assert "skipped_steps" not in row
        with pytest.raises(NotANumberError) as caught:
            fit(data(BROKEN), optimizer)
        assert (caught.value.epoch, caught.value.step) == (0, 1)
    _, (row,) = fit(data(), optax.apply_if_finite(adam(), 5), epochs=1)
    assert row["skipped_steps"] == 0


@pytest.mark.parametrize("plan", ["resident", slow("streamed")])
def test_an_optimizer_that_gives_up_ends_the_run(plan):
    """Two steps in a row are left out; the third, step 4 of the epoch, is done."""
    broken = (16, 24, 32)
    with pytest.raises(NotANumberError) as caught:
        fit(data(*broken, plan=plan), optax.apply_if_finite(adam(), 2))
    assert (caught.value.epoch, caught.value.step) == (0, 4)
    assert bits(caught.value.params) == bits(START)
    _, rows = fit(data(*broken, plan=plan), optax.apply_if_finite(adam(), 3))
    assert [row["skipped_steps"] for row in rows] == [3, 3, 3]


def test_a_loss_that_is_no_number_with_a_gradient_that_is_one_ends_the_run():
    def loss(prediction, target):
        return jax.lax.stop_gradient(jnp.where(target > 3.9, jnp.inf, 0)) + prediction**2

    with pytest.raises(NotANumberError):
        feedax.fit(line, START, data(), loss=loss, optimizer=optax.apply_if_finite(adam(), 5))


def test_the_models_state_and_metrics_do_not_see_a_skipped_step():
    x = X.copy()
    x[BROKEN] = np.nan

    def predict(params, mean, x):
        new = jax.lax.pmean(x, "batch")
        return line(params, x - mean), 0.9 * mean + 0.1 * new

    def trained(batches):
        return feedax.fit(
            predict, START, batches, loss=squared, optimizer=optax.apply_if_finite(adam(), 5),
            metrics={"off": lambda p, t: abs(p - t)}, state=jnp.zeros(()), epochs=3,
        )  # fmt: skip

    (params, mean), rows = trained([(x[s : s + 8], Y[s : s + 8]) for s in range(0, 64, 8)])
    (expected, wanted), like = trained(without_broken(BROKEN))
    assert bits((params, mean)) == bits((expected, wanted))
    assert [row["off"] for row in rows] == [row["off"] for row in like]


@pytest.mark.parametrize("plan", [slow("resident"), "streamed"])
def test_the_count_goes_on_where_it_was(plan, tmp_path):
    def run(folder, **more):
        train = data(BROKEN, 40, plan=plan, shuffle=True, seed=0)
        checkpoints = feedax.Checkpoints(folder, every_steps=3)
        return fit(train, optax.apply_if_finite(adam(), 9), checkpoints=checkpoints, **more)

    def stop(event):
        if isinstance(event, feedax.Saved) and event.step == 12:  # in the second epoch
            raise OSError("no power")

    params, rows = run(tmp_path / "left_alone")
    with pytest.raises(OSError, match="no power"):
        run(tmp_path / "cut", callbacks=[stop])
    resumed, again = run(tmp_path / "cut")
    assert bits(resumed) == bits(params)
    assert timeless(again) == timeless(rows)
    assert all(row["skipped_steps"] in (1, 2) for row in rows)


@pytest.mark.parametrize("together", [slow(1), 3])
def test_networks_of_a_sweep_skip_their_own_steps(together, tmp_path):
    """One has no bad step, one has one in each epoch, one has nothing else and ends."""

    def loss(prediction, target, limit):
        return squared(prediction, target) * jnp.where(target > limit, jnp.nan, 1.0)

    found = feedax.sweep(
        line, lambda key: START, data(), loss=loss, together=together, epochs=2,
        optimizer=optax.apply_if_finite(adam(), 3), hyperparams={"limit": [9.0, 3.9, -9.0]},
        checkpoints=feedax.Checkpoints(tmp_path, every_steps=3),
    )  # fmt: skip
    whole, part, none = found.networks
    assert [row["skipped_steps"] for row in whole.history] == [0, 0]
    assert [row["skipped_steps"] for row in part.history] == [1, 1]
    assert (whole.error, part.error) == (None, None)
    assert (none.error.epoch, none.error.step, none.history) == (0, 3, [])
    _, rows = fit(data(), adam(), epochs=2)
    assert whole.history[1]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_an_epoch_that_is_skipped_as_a_whole_is_never_the_best(tmp_path):
    def run(epochs):
        return fit(
            data(*range(0, 64, 8), seed=0), optax.apply_if_finite(adam(), 99), epochs, best="loss",
            checkpoints=feedax.Checkpoints(tmp_path),
        )  # fmt: skip

    for epochs in (1, 2):  # the second one goes on
        trained, rows = run(epochs)
        assert bits(trained) == bits(START)
        found = [(row["skipped_steps"], math.isnan(row["loss"])) for row in rows]
        assert found == epochs * [(8, True)]
