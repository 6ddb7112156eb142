"""`fit`: what it trains, how often it compiles, and that it leaves alone what is the user's."""

import contextlib
import logging
import re
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batches, bits, linear, problem, slow, slow_but, transfer_threads
from torch.utils.data import Sampler

import feedax
from feedax.data import ArrayDataset
from feedax.feed import Devices, Source
from feedax.train.training import Training
from feedax.train.waiting import Advice, Waiting


def digits(count=300, **options):
    return problem(count=count, features=8, shift=3, **options)


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


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), "streamed"])
def test_one_compilation_for_a_short_last_batch_and_unequal_chunks(plan, compilations, monkeypatch):
    monkeypatch.setattr(Training, "report_seconds", 0.0)  # tell of every piece
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


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), slow("streamed")])
def test_evaluation_does_not_move_the_training_order(plan):
    import torch

    x, y = digits(120)

    def train(evaluated):
        torch.manual_seed(5)
        loader = feedax.NumpyLoader(ArrayDataset(x, y), 50, shuffle=True, plan=plan)
        sets = {"train": loader} if evaluated else {}
        return feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=3, evaluate=sets)[0]

    assert bits(train(True)) == bits(train(False))


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), slow("streamed")])
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


@pytest.mark.parametrize("plan", ["resident", slow("streamed")])
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


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), "streamed"])
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


@pytest.mark.parametrize("name", slow_but(["a line search", "a schedule and clipping"], OPTIMIZERS))
def test_any_optax_transformation(name):
    optimizer = OPTIMIZERS[name]
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
    assert (int(state.step), int(state.metrics["loss"].count)) == (3, 48)


@pytest.mark.parametrize("dtype", [slow(jnp.float32), jnp.bfloat16])
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


@pytest.mark.parametrize("plan", ["resident", slow("streamed")])
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


def test_arrays_in_another_byte_order_are_the_same_numbers():
    x, y = digits(64)
    swapped = [(a.astype(">f4"), b.astype(">i8")) for a, b in batches(x, y, 16)]
    found, _ = feedax.fit(linear, jnp.zeros((3, 8)), swapped, epochs=2)
    wanted, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 16), epochs=2)
    assert bits(found) == bits(wanted)


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
        "epoch", "seconds", "compile_seconds", "evaluate_seconds", "wait_seconds", "load_seconds",
        "transfer_seconds", "start_seconds", "examples_per_second", "loss", "accuracy",
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
    assert events[0] == feedax.Started(
        2, 4, "batches of an iterable, one by one", history=[], checkpoint=None, step=0
    )
    assert [type(e) for e in events if not isinstance(e, feedax.Stepped)] == [
        feedax.Started, feedax.EpochEnded, feedax.EpochEnded, feedax.Ended,
    ]  # fmt: skip


def test_no_epochs_change_nothing():
    x, y = digits(64)
    w = jnp.ones((3, 8))
    fitted, history = feedax.fit(linear, w, batches(x, y, 16), epochs=0)
    assert (bits(fitted), history) == (bits(w), [])


class Told:
    """Batches from a source that says how it loads, and how far training is when it is asked."""

    def __init__(self, batches, num_workers, steps_done):
        self.batches = batches
        self.num_workers = num_workers
        self.steps_done = steps_done
        self.asked, self.threads, self.left = [], [], False

    def __iter__(self):
        try:
            for batch in self.batches:
                self.asked.append(self.steps_done())
                self.threads.append(transfer_threads())
                yield batch
        finally:
            self.left = True

    def stats(self):
        return SimpleNamespace(loading=0.25 * len(self.asked), starting=2.0 * bool(self.asked))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_fetched_ahead_only_where_workers_load(num_workers, monkeypatch):
    monkeypatch.setattr(Training, "report_seconds", 0.0)  # tell of every step
    x, y = digits(60)
    done = 0

    def count(event):
        nonlocal done
        done += isinstance(event, feedax.Stepped)

    source = Told(batches(x, y, 10), num_workers, lambda: done)
    fitted, history = feedax.fit(linear, jnp.zeros((3, 8)), source, callbacks=[count], epochs=2)
    ahead = 1 if num_workers else 0
    assert source.asked == [max(0, i - ahead) + 6 * epoch for epoch in (0, 1) for i in range(6)]
    assert any(source.threads) == (num_workers > 0)
    assert transfer_threads() == []
    plain, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 10), epochs=2)
    assert bits(fitted) == bits(plain)
    # What it says of itself, by epoch.
    assert [row["load_seconds"] for row in history] == [1.5, 1.5]
    assert [row["start_seconds"] for row in history] == [2.0, 0.0]
    assert all(0 < row["transfer_seconds"] < row["seconds"] for row in history)
    assert all(0 < row["wait_seconds"] < row["seconds"] for row in history)


@pytest.mark.parametrize("raised", [feedax.StopTraining, slow(ZeroDivisionError)])
def test_a_run_that_ends_early_lets_its_source_go(raised, monkeypatch):
    monkeypatch.setattr(Training, "report_seconds", 0.0)
    x, y = digits(60)
    source = Told(batches(x, y, 10), 2, lambda: 0)

    def stop(event):
        if isinstance(event, feedax.Stepped):
            assert len(transfer_threads()) == 1
            raise raised

    with contextlib.suppress(ZeroDivisionError):
        feedax.fit(linear, jnp.zeros((3, 8)), source, callbacks=[stop])
    assert source.left
    assert transfer_threads() == []


def test_loading_while_the_device_computes_is_not_waiting(monkeypatch):
    """Steps take longer than batches: of an epoch, only the first one is waited for."""
    monkeypatch.setattr(Training, "report_seconds", 1000.0)  # no events
    x, y = digits(8)

    def predict(w, x):
        start = jax.lax.stop_gradient(jnp.full((300, 300), x[0]))
        end = jax.lax.fori_loop(0, 12, lambda _, m: jnp.tanh(m @ m), start)
        return w @ x + end[0, 0]

    class Slow:
        def __iter__(self):
            for _ in range(8):
                time.sleep(0.01)
                yield x, y

    _, (_, row) = feedax.fit(predict, jnp.zeros((3, 8)), Slow(), epochs=2)
    assert row["load_seconds"] >= 0.08
    assert 0.01 <= row["wait_seconds"] < row["load_seconds"] / 2
    assert row["seconds"] > row["load_seconds"]


def test_a_run_that_waits_for_data_is_told_once(caplog):
    x, y = digits(6)

    class Slow:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            time.sleep(0.25)
            return x[i], y[i]

    loader = feedax.NumpyLoader(Slow(), 2, plan="streamed")
    _, history = feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=2)
    for row in history:
        assert row["load_seconds"] >= 1.5
        assert row["seconds"] >= row["wait_seconds"] >= 0.2 * row["seconds"]
    (record,) = [record for record in caplog.records if record.name == "feedax"]
    assert record.levelname == "WARNING"
    said = re.fullmatch(
        r"fit: training should wait for data less than 20% of its time, and in epoch (\d) it "
        r"waited (\d+)%, (.*) of (.*) seconds; give num_workers=2 or more, or "
        r"cache=True if an example is the same every time, or use a transform that feedax knows",
        record.getMessage(),
    )
    epoch = int(said[1])  # the first one, unless the machine took long to compile
    seconds, waited = history[epoch]["seconds"], history[epoch]["wait_seconds"]
    assert said.groups()[1:] == (f"{100 * waited / seconds:.0f}", f"{waited:.1f}", f"{seconds:.1f}")


def loader_of(plan, num_workers=0):
    x, y = digits(20)
    return feedax.NumpyLoader(ArrayDataset(x, y), 4, plan=plan, num_workers=num_workers)


WAITED = "fit: training should wait for data less than 20% of its time, and in epoch 1 it waited "


@pytest.mark.parametrize(
    ("source", "start", "remedy"),
    [
        (lambda: [1], 0, "give a NumpyLoader with num_workers=2 or more"),
        (lambda: loader_of("streamed", 2), 0, "give num_workers=3 or more, or cache=True "
         "if an example is the same every time, or use a transform that feedax knows"),
        (lambda: loader_of("streamed", 2), 2, "keep the workers from epoch to epoch with "
         "persistent_workers=True"),
        (lambda: loader_of("vectorised", 2), 0, "raise the loader's memory_budget if the device "
         "has room for all examples"),
        (lambda: loader_of("resident"), 0, "give the loader a sampler that draws faster"),
    ],
)  # fmt: skip
def test_what_to_change_depends_on_the_source(source, start, remedy, caplog):
    advice, epoch = Advice(), Waiting(Source(source()), None)
    row = {"epoch": 1, "seconds": 4.0, "start_seconds": start}
    advice.after(row | {"wait_seconds": 0.8}, epoch)  # a fifth, and no more
    advice.after(row | {"seconds": 1.0, "wait_seconds": 0.9}, epoch)
    epoch.lost_seconds = 2.8  # the machine was busy with something else
    advice.after(row | {"wait_seconds": 3.0}, epoch)
    assert caplog.records == []
    epoch.lost_seconds = 2.7
    advice.after(row | {"wait_seconds": 3.0}, epoch)
    advice.after(row | {"wait_seconds": 3.0}, epoch)
    assert [r.getMessage() for r in caplog.records] == [
        f"{WAITED}75%, 3.0 of 4.0 seconds; {remedy}"
    ]


def test_workers_that_start_once_are_nothing_to_change(caplog):
    advice, epoch = Advice(), Waiting(Source(loader_of("streamed", 2)), None)
    epoch.first_seconds = 2.5
    row = {"epoch": 0, "seconds": 4.0, "wait_seconds": 2.8, "start_seconds": 2.5}
    advice.after(row, epoch)
    assert caplog.records == []
    advice.after(row | {"epoch": 1}, epoch)
    assert len(caplog.records) == 1


class Slow(Sampler):
    """Works, or sleeps, before every index."""

    def __init__(self, count, seconds, works):
        self.count, self.seconds, self.works = count, seconds, works

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            until = time.thread_time() + self.seconds
            while self.works and time.thread_time() < until:
                pass
            time.sleep(0 if self.works else self.seconds)
            yield i


@pytest.mark.parametrize(
    ("seconds", "works", "busy", "is_told", "counts_delays"),
    [
        (0.004, True, 0, True, True),
        (0.004, True, 0, True, False),
        (0.004, False, 0, True, True),  # where nobody counts delays, it looks like one
        (0.0, True, 0.03, False, True),
        (0.0, True, 0.03, False, False),
    ],
)
def test_a_sampler_is_blamed_for_what_it_takes_and_not_for_a_busy_machine(
    seconds, works, busy, is_told, counts_delays, monkeypatch, caplog
):
    """Where the machine is busy, it is the indices on their way that take long."""
    monkeypatch.setattr(Advice, "long_enough", 0.01)
    if not counts_delays:
        monkeypatch.setattr(Waiting, "cpu_delay", lambda self: None)
    x, y = digits(24)
    replicate = Devices.replicate
    monkeypatch.setattr(Devices, "replicate", lambda *a: (time.sleep(busy), replicate(*a))[1])
    loader = feedax.NumpyLoader(ArrayDataset(x, y), 8, sampler=Slow(24, seconds, works))
    _, rows = feedax.fit(linear, jnp.zeros((3, 8)), loader, epochs=3)
    assert all(row["wait_seconds"] > 0.02 for row in rows)
    assert [r.getMessage().partition("; ")[2] for r in caplog.records if r.name == "feedax"] == [
        "give the loader a sampler that draws faster"
    ] * is_told


@pytest.mark.parametrize("together", [slow(1), 2])
def test_a_sweep_is_told_once(together, monkeypatch, caplog):
    monkeypatch.setattr(Advice, "long_enough", 0.01)
    x, y = digits(16)

    def slow(seed):
        return feedax.NumpyLoader(ArrayDataset(x, y), 8, sampler=Slow(16, 0.004, works=False))

    feedax.sweep(
        linear, lambda key: jnp.zeros((3, 8)), slow, seeds=2, epochs=2, together=together
    )  # fmt: skip
    assert len([r for r in caplog.records if "wait for data" in r.getMessage()]) == 1


def test_text_in_batches_stays_on_the_host(caplog):
    x, y = digits(20)
    named = [
        ({"x": x[i : i + 8], "name": ["a"] * len(x[i : i + 8])}, y[i : i + 8])
        for i in range(0, 20, 8)
    ]
    with caplog.at_level(logging.INFO, logger="feedax"):
        fitted, _ = feedax.fit(
            lambda w, e: w @ e["x"], jnp.zeros((3, 8)), named, epochs=2, evaluate={"same": named}
        )
    plain, _ = feedax.fit(linear, jnp.zeros((3, 8)), batches(x, y, 8), epochs=2)
    assert bits(fitted) == bits(plain)
    assert [record.getMessage() for record in caplog.records if record.name == "feedax"] == [
        "fit: text stays on the host, and the model gets no inputs['name']"
    ]


def test_evaluation_may_meet_arrays_that_are_used_again():
    x, y = digits(64)

    def reusing():
        a, b = np.empty((16, 8), np.float32), np.empty(16, np.int64)
        for i in range(0, 64, 16):
            a[:], b[:] = x[i : i + 16], y[i : i + 16]
            yield a, b

    w = jax.random.normal(jax.random.key(0), (3, 8))
    for batched in (False, True):
        predict = (lambda w, xs: xs @ w.T) if batched else linear
        reused = feedax.evaluate(predict, w, reusing(), batched=batched)
        assert reused == feedax.evaluate(predict, w, batches(x, y, 16), batched=batched)
