"""`fit`: what it trains, how often it compiles, and that it leaves alone what is the user's."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import feedax
from feedax.data import ArrayDataset
from feedax.train import loop


def linear(w, x):
    return w @ x


def digits(count=300, features=8, classes=3, seed=0):
    """A small problem that can be learned: classes are shifted clouds."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.normal(0, 1, (count, features)).astype(np.float32)
    x[np.arange(count), y] += 3
    return x, y


def batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def compilations(caplog):
    """Counts how often JAX itself says that it compiled a function of this name."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):

        def count(name):
            said = f"Finished XLA compilation of jit({name})"
            return sum(said in record.getMessage() for record in caplog.records)

        yield count


def test_fit_is_gradient_descent_by_hand():
    x, y = digits(10)
    w = np.zeros((3, 8))
    for start in range(0, 10, 4):  # batches of 4, 4 and 2
        xb, yb = x[start : start + 4].astype(np.float64), y[start : start + 4]
        logits = xb @ w.T
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p[np.arange(len(yb)), yb] -= 1
        w = w - 0.5 * p.T @ xb / len(yb)
    fitted, history = feedax.fit(
        linear, jnp.zeros((3, 8)), batches(x, y, 4), optimizer=optax.sgd(0.5)
    )
    np.testing.assert_allclose(fitted, w, rtol=1e-5, atol=1e-6)
    assert len(history) == 1


@pytest.mark.parametrize("plan", ["resident", "vectorised", "streamed"])
def test_one_compilation_for_a_short_last_batch_and_unequal_chunks(plan, compilations, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)  # tell of every piece
    x, y = digits(1000)
    loader = feedax.NumpyLoader(ArrayDataset(x, y), 16, plan=plan)  # 62 batches of 16, one of 8
    lengths, last = [], 0

    def note(event):
        nonlocal last
        if isinstance(event, feedax.Stepped):
            lengths.append(event.step - last if event.step > last else event.step)
            last = event.step

    _, history = feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=3, callbacks=[note])
    assert compilations("_train_chunk") + compilations("_train_batch") == 1
    assert compilations("_train_row") == 0
    if plan == "resident":
        assert len(set(lengths)) > 1
    assert sum(lengths) == 3 * 63
    assert history[0]["compile_seconds"] > 0
    assert [row["compile_seconds"] for row in history[1:]] == [0, 0]


def test_every_plan_trains_on_the_same_examples():
    x, y = digits(300)
    fitted = {}
    for plan in ("resident", "vectorised", "streamed"):
        loader = feedax.NumpyLoader(
            ArrayDataset(x, y), 32, shuffle=True, generator=_seeded(3), plan=plan
        )
        fitted[plan] = feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=3)
    # One form of execution, so the same bits; the compiled loop may round otherwise.
    assert bits(fitted["vectorised"][0]) == bits(fitted["streamed"][0])
    np.testing.assert_allclose(fitted["resident"][0], fitted["streamed"][0], rtol=1e-5, atol=1e-6)


def _seeded(seed):
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("plan", ["resident", "vectorised", "streamed"])
def test_evaluation_does_not_move_the_training_order(plan):
    import torch

    x, y = digits(120)

    def train(evaluated):
        torch.manual_seed(5)
        loader = feedax.NumpyLoader(ArrayDataset(x, y), 50, shuffle=True, plan=plan)
        sets = {"train": loader} if evaluated else {}
        return feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=3, evaluate=sets)[0]

    assert bits(train(True)) == bits(train(False))


@pytest.mark.parametrize("plan", ["resident", "vectorised", "streamed"])
def test_evaluation_is_the_same_to_the_bit_for_every_batch_size(plan):
    x, y = digits(2500)
    w = jax.random.normal(jax.random.key(0), (3, 8))
    rows = [
        feedax.evaluate(linear, w, feedax.NumpyLoader(ArrayDataset(x, y), size, plan=plan))
        for size in (1, 7, 128, 1024, 2500)
    ]
    assert rows == [rows[0]] * 5
    logits = x.astype(np.float64) @ np.asarray(w, np.float64).T
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(2500), y]
    assert rows[0]["accuracy"] == np.mean(logits.argmax(1) == y)
    assert rows[0]["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_evaluation_is_the_same_for_every_plan():
    x, y = digits(2500)
    w = jax.random.normal(jax.random.key(0), (3, 8))
    rows = [
        feedax.evaluate(linear, w, feedax.NumpyLoader(ArrayDataset(x, y), 100, plan=plan))
        for plan in ("resident", "vectorised", "streamed")
    ] + [feedax.evaluate(linear, w, batches(x, y, 300))]
    assert rows == [rows[0]] * 4


def test_a_sampler_that_picks_decides_what_is_evaluated():
    import torch

    x, y = digits(100)
    sampler = torch.utils.data.SubsetRandomSampler([3, 5, 8], generator=_seeded(0))
    w = jax.random.normal(jax.random.key(0), (3, 8))
    for plan in ("resident", "streamed"):
        loader = feedax.NumpyLoader(ArrayDataset(x, y), 2, sampler=sampler, plan=plan)
        picked = feedax.evaluate(linear, w, loader)
        assert picked == feedax.evaluate(linear, w, [(x[[3, 5, 8]], y[[3, 5, 8]])])


def test_the_users_parameters_stay_theirs():
    x, y = digits()
    mine = {"w": jnp.ones((3, 8)), "numpy": np.zeros(3, np.float32)}
    before = bits(mine)
    fitted, _ = feedax.fit(lambda p, x: p["w"] @ x + p["numpy"], mine, batches(x, y, 32), epochs=2)
    assert bits(mine) == before
    assert not np.array_equal(fitted["w"], mine["w"])
    assert not np.array_equal(fitted["numpy"], mine["numpy"])


def test_only_inexact_arrays_are_trained():
    x, y = digits()
    params = {"w": jnp.zeros((3, 8)), "order": jnp.arange(8), "act": jnp.tanh, "note": "hello"}
    fitted, _ = feedax.fit(
        lambda p, x: p["w"] @ p["act"](x[p["order"]]), params, batches(x, y, 32), epochs=2
    )
    assert fitted["w"].any()
    assert fitted["act"] is jnp.tanh
    assert fitted["note"] == "hello"
    assert bits(fitted["order"]) == bits(params["order"])


def test_an_equinox_module_trains_as_it_is(mnist_train):
    import equinox as eqx

    model = eqx.nn.MLP(784, 10, 64, 1, key=jax.random.key(0))
    subset = feedax.data.ArrayDataset(
        mnist_train.data[:6000].numpy().reshape(-1, 784) / np.float32(255),
        mnist_train.targets[:6000].numpy(),
    )
    loader = feedax.NumpyLoader(subset, 64, shuffle=True, generator=_seeded(0))
    fitted, history = feedax.fit(
        lambda model, x: model(x), model, loader, epochs=4, evaluate={"train": loader}
    )
    assert isinstance(fitted, eqx.nn.MLP)
    assert history[-1]["train_accuracy"] > 0.93


def test_keys_differ_between_examples_and_steps_and_are_the_runs():
    seen = []

    def noisy(w, x, key, train):
        if train:
            jax.debug.callback(lambda n: seen.append(float(n)), jax.random.uniform(key))
        return w @ x

    x, y = digits(8)

    def keys(seed):
        seen.clear()
        feedax.fit(noisy, jnp.zeros((3, 8)), batches(x, y, 4), epochs=2, key=jax.random.key(seed))
        jax.effects_barrier()
        return sorted(seen)

    first = keys(0)
    assert len(first) == len(set(first)) == 16
    assert keys(0) == first
    assert keys(1) != first


def test_evaluation_is_not_training():
    x, y = digits(64)

    def predict(w, x, train):
        return (w @ x) * (1.0 if train else 0.0)

    _, history = feedax.fit(
        predict, jnp.ones((3, 8)), [(x, y)], evaluate={"same": [(x, y)]}, epochs=1
    )
    assert history[0]["same_loss"] == pytest.approx(np.log(3), rel=1e-6)


def test_batch_statistics_are_those_of_the_true_short_batch(compilations):
    """A running mean over the batch axis: 10 examples in batches of 4, 4 and 2."""
    x, y = digits(10)

    def predict(w, state, x, train):
        mean = jax.lax.pmean(x, "batch")
        state = 0.5 * state + 0.5 * mean if train else state
        return w @ (x - mean), state

    loader = feedax.NumpyLoader(ArrayDataset(x, y), 4)
    (_, state), _ = feedax.fit(predict, jnp.zeros((3, 8)), loader, state=jnp.zeros(8), epochs=1)
    expected = np.zeros(8)
    for start in (0, 4, 8):
        expected = 0.5 * expected + 0.5 * x[start : start + 4].mean(0)
    np.testing.assert_allclose(state, expected, rtol=1e-5)
    assert compilations("_train_chunk") == 2


@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_a_batched_model_gets_whole_batches_of_their_true_size(plan):
    x, y = digits(10)
    sizes = []

    def predict(w, xs):
        sizes.append(len(xs))
        return xs @ w.T

    loader = feedax.NumpyLoader(ArrayDataset(x, y), 4, plan=plan)
    batched, _ = feedax.fit(predict, jnp.zeros((3, 8)), loader, batched=True, epochs=2)
    assert {4, 2} <= set(sizes) <= {4, 2}  # 2 is also what the check of shapes uses
    one, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 4), epochs=2)
    np.testing.assert_allclose(batched, one, rtol=1e-5, atol=1e-6)


def test_convolutions_run_step_by_step_on_the_cpu(compilations):
    x = np.random.default_rng(0).normal(0, 1, (20, 1, 6, 6)).astype(np.float32)
    y = np.arange(20) % 3

    def predict(w, x):
        maps = jax.lax.conv(x[None], w, (1, 1), "VALID")
        return maps.mean((0, 2, 3))

    w = 0.1 * jax.random.normal(jax.random.key(0), (3, 1, 3, 3))
    resident = feedax.NumpyLoader(ArrayDataset(x, y), 8)
    assert resident.plan().name == "resident"
    fitted, _ = feedax.fit(predict, w, resident, epochs=2)
    assert (compilations("_train_row"), compilations("_train_chunk")) == (1, 0)
    streamed, _ = feedax.fit(predict, w, batches(x, y, 8), epochs=2)
    np.testing.assert_allclose(fitted, streamed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", ["resident", "vectorised", "streamed"])
def test_a_dataset_that_changes_between_epochs_is_seen(plan):
    """Its labels are swapped in place after the first epoch, and it grows after the second."""
    import torch
    from torch.utils.data import TensorDataset

    x, y = digits(64, classes=2)
    x, y = torch.tensor(x), torch.tensor(y)
    dataset = TensorDataset(x, y)
    loader = feedax.NumpyLoader(dataset, 16, plan=plan)

    def change(event):
        match event:
            case feedax.EpochEnded(epoch=0):
                y[:] = 1 - y
            case feedax.EpochEnded(epoch=1):
                dataset.tensors = (torch.cat([x, 5 * x]), torch.cat([y, y]))

    _, history = feedax.fit(
        linear, jnp.zeros((2, 8)), loader, optimizer=optax.sgd(0.5), epochs=3,
        evaluate={"same": loader}, callbacks=[change],
    )  # fmt: skip
    told = [(row["loss"], row["same_loss"]) for row in history]
    a, b = (x.numpy(), y.numpy()), (x.numpy(), 1 - y.numpy())
    c = (torch.cat([x, 5 * x]).numpy(), torch.cat([y, y]).numpy())
    w, expected = jnp.zeros((2, 8)), []
    for data in (b, a, c):
        w, (row,) = feedax.fit(
            linear, w, batches(*data, 16), optimizer=optax.sgd(0.5), evaluate={"same": [data]}
        )
        expected.append((row["loss"], row["same_loss"]))
    np.testing.assert_allclose(told, expected, rtol=1e-4)


def test_a_batch_size_above_the_dataset_is_the_dataset(compilations):
    x, y = digits(20)
    loader = feedax.NumpyLoader(ArrayDataset(x, y), batch_size=10**9)
    whole, _ = feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=2)
    listed, _ = feedax.fit(linear, jnp.zeros((3, 8)), [(x, y)], epochs=2)
    np.testing.assert_allclose(whole, listed, rtol=1e-5, atol=1e-6)


OPTIMIZERS = {
    "adam by default": None,
    "a line search": optax.lbfgs(),
    "one that keeps the parameters": optax.contrib.prodigy(),
    "one that waits for a plateau": optax.chain(
        optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)
    ),
    "gradients added up": optax.MultiSteps(optax.adam(0.1), 2),
    "a schedule and clipping": optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(0.5, 100))
    ),
    "hyperparameters in the state": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optax_transformation(optimizer):
    x, y = digits(64)
    loader = feedax.NumpyLoader(ArrayDataset(x, y), 16)
    _, history = feedax.fit(linear, jnp.zeros((3, 8)), loader, optimizer=optimizer, epochs=3)
    assert history[-1]["loss"] < history[0]["loss"]


def test_train_step_is_pure_and_can_be_donated_to():
    x, y = digits(16)
    optimizer = optax.adam(0.1)
    state = feedax.init_state(jnp.zeros((3, 8)), optimizer, jax.random.key(0))
    step = jax.jit(
        lambda state, batch: feedax.train_step(
            state, batch, model=feedax.Model(linear), loss=feedax.cross_entropy, optimizer=optimizer
        ),
        donate_argnums=0,
    )
    batch = feedax.Batch(x, y, np.ones(16, np.float32))
    for _ in range(3):
        state = step(state, batch)
    fitted, _ = feedax.fit(
        linear, jnp.zeros((3, 8)), [(x, y)] * 3, optimizer=optimizer, key=jax.random.key(0)
    )
    np.testing.assert_allclose(state.params, fitted, rtol=1e-5, atol=1e-6)
    assert (int(state.step), int(state.seen)) == (3, 48)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_type_is_promoted_in_silence(dtype):
    x, y = digits(20)
    x = np.asarray(x, dtype)
    with jax.numpy_dtype_promotion("strict"):
        for loss in (feedax.cross_entropy, feedax.tutorial_loss):
            fitted, _ = feedax.fit(
                lambda w, x: jax.nn.log_softmax(w @ x),
                jnp.zeros((3, 8), dtype),
                batches(x, y, 8),
                loss=loss,
                optimizer=optax.sgd(0.1),
            )
            assert fitted.dtype == dtype
            assert fitted.any()


@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_jit_can_be_switched_off(plan):
    x, y = digits(20)
    loader = feedax.NumpyLoader(ArrayDataset(x, y), 8, plan=plan)
    compiled, _ = feedax.fit(linear, jnp.zeros((3, 8)), loader, optimizer=optax.sgd(0.1))
    with jax.disable_jit():
        plain, _ = feedax.fit(linear, jnp.zeros((3, 8)), loader, optimizer=optax.sgd(0.1))
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)


def test_inputs_may_be_a_tree():
    x, y = digits(40)
    tree = [({"a": x[:20], "b": x[20:]}, y[:20])]
    fitted, _ = feedax.fit(
        lambda w, x: w @ (x["a"] + x["b"]), jnp.zeros((3, 8)), tree, optimizer=optax.sgd(0.1)
    )
    plain, _ = feedax.fit(
        linear, jnp.zeros((3, 8)), [(x[:20] + x[20:], y[:20])], optimizer=optax.sgd(0.1)
    )
    assert bits(fitted) == bits(plain)


def test_a_source_may_use_its_arrays_again():
    """JAX shares memory with NumPy on the CPU where it can; a batch in use must not change."""
    x, y = digits(64)

    class Reusing:
        def __iter__(self):
            a, b = np.empty((16, 8), np.float32), np.empty(16, np.int64)
            for i in range(0, 64, 16):
                a[:], b[:] = x[i : i + 16], y[i : i + 16]
                yield a, b

    reused, _ = feedax.fit(linear, jnp.zeros((3, 8)), Reusing(), epochs=5)
    fresh, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=5)
    assert bits(reused) == bits(fresh)


def test_float64_trains_in_float64():
    x, y = digits(64)
    with jax.enable_x64(True):
        fitted, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x.astype(np.float64), y, 16))
        assert fitted.dtype == np.float64


def test_rows_are_plain_and_in_order():
    x, y = digits(64)
    _, history = feedax.fit(
        linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=2, evaluate={"test": [(x, y)]}
    )
    assert list(history[1]) == [
        "epoch", "seconds", "compile_seconds", "examples_per_second", "loss",
        "test_loss", "test_accuracy",
    ]  # fmt: skip
    assert {type(value) for row in history for value in row.values()} == {int, float}
    assert [row["epoch"] for row in history] == [0, 1]
    assert all(row["seconds"] > 0 for row in history)
    assert history[1]["examples_per_second"] == pytest.approx(64 / history[1]["seconds"])


def test_metrics_of_ones_own():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    y = x.sum(1)
    _, history = feedax.fit(
        lambda w, x: w @ x,
        jnp.zeros(2),
        [(x, y)],
        loss=lambda p, t: (p - t) ** 2,
        metrics={"error": lambda p, t: jnp.abs(p - t)},
        optimizer=optax.sgd(0.0),
        evaluate={"test": [(x, y)]},
    )
    assert history[0]["test_error"] == np.abs(y).mean()
    assert history[0]["loss"] == pytest.approx(np.mean(y**2))
    assert "test_accuracy" not in history[0]


def test_a_callback_can_stop_the_run():
    x, y = digits(64)

    def stop(event):
        if isinstance(event, feedax.EpochEnded) and event.epoch == 1:
            raise feedax.StopTraining

    fitted, history = feedax.fit(
        linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=9, callbacks=[stop]
    )
    two, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=2)
    assert len(history) == 2
    assert bits(fitted) == bits(two)


def test_callbacks_hear_of_the_start():
    x, y = digits(64)
    events = []
    feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=2, callbacks=[events.append])
    assert events[0] == feedax.Started(2, 4, "batches of an iterable, one by one")
    assert [type(e) for e in events if not isinstance(e, feedax.Stepped)] == [
        feedax.Started, feedax.EpochEnded, feedax.EpochEnded,
    ]  # fmt: skip


def test_no_epochs_change_nothing():
    x, y = digits(64)
    w = jnp.ones((3, 8))
    fitted, history = feedax.fit(linear, w, batches(x, y, 16), epochs=0)
    assert (bits(fitted), history) == (bits(w), [])
