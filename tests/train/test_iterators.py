"""Batches that come once: endless generators, and a number of steps."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import slow

import feedax
from feedax.errors import BatchError

START = jnp.zeros((2, 2))


def predict(w, x):
    return w @ x


def batch(i):
    x = np.random.default_rng(i).normal(size=(16, 2)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32)


class Endless:
    """Counts what was taken of it."""

    def __init__(self, start=0):
        self.taken = start

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return batch(self.taken - 1)


def generator(start=0, count=None):
    for i in itertools.islice(itertools.count(start), count):
        yield batch(i)


def fit(train, steps, **options):
    return feedax.fit(predict, START, train, optimizer=optax.sgd(0.5), steps=steps, **options)


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "feedax"]


def test_steps_of_an_endless_iterator_are_those_of_a_list():
    expected, _ = fit([batch(i) for i in range(30)], 30)
    endless = Endless()
    trained, (row,) = fit(endless, 30)
    assert trained.tobytes() == expected.tobytes()
    assert endless.taken == 30  # one more might never come
    assert row["epoch"] == 0
    assert row["accuracy"] > 0.8
    # What is left of it can be trained on afterwards.
    source = generator()
    first, _ = fit(source, 10)
    second, _ = feedax.fit(predict, first, source, optimizer=optax.sgd(0.5), steps=20)
    assert second.tobytes() == expected.tobytes()


def test_no_step_takes_no_batch():
    endless = Endless()
    trained, rows = fit(endless, 0)
    assert (trained.tolist(), rows, endless.taken) == (START.tolist(), [], 0)


def test_events_checkpoints_and_sets_take_no_batch_more(tmp_path):
    seen = []
    endless, held_out = Endless(), generator(100, 3)
    _, (row,) = fit(
        endless, 7, callbacks=[seen.append], evaluate={"held_out": held_out},
        checkpoints=feedax.Checkpoints(tmp_path, every_steps=2),
    )  # fmt: skip
    assert endless.taken == 7
    assert seen[0].epochs == 1
    assert row["held_out_loss"] > 0
    assert next(held_out, None) is None


def test_an_iterator_that_is_made_again_goes_on(tmp_path):
    """Of an iterator that is made anew the batches that were trained on are left out."""
    expected, _ = fit(generator(), 12)
    for steps in (5, 12):
        endless = Endless()
        trained, rows = fit(endless, steps, checkpoints=feedax.Checkpoints(tmp_path))
        assert endless.taken == steps
    assert trained.tobytes() == expected.tobytes()
    assert len(rows) == 1
    again = Endless()
    assert (
        fit(again, 12, checkpoints=feedax.Checkpoints(tmp_path))[0].tobytes() == trained.tobytes()
    )
    assert again.taken == 0


def test_one_that_ends_early_says_how_many_came(caplog):
    trained, rows = fit(generator(count=12), 30)
    expected, _ = fit(generator(), 12)
    assert trained.tobytes() == expected.tobytes()
    assert len(rows) == 1
    assert said(caplog) == [
        "fit: train must yield a batch for each of the 30 steps, and it ended after 12, "
        "which ended training; give more batches, or a NumpyLoader or a list, which can be "
        "iterated again"
    ]
    caplog.clear()
    fit(generator(count=12), 12)
    fit(generator(count=12), 30, epochs=1)  # whichever comes first
    assert said(caplog) == []


def test_one_that_is_empty_or_needed_again_is_refused():
    with pytest.raises(BatchError, match="it yielded none in epoch 0"):
        fit(generator(count=0), 3)
    with pytest.raises(BatchError) as caught:
        fit(generator(), 3, epochs=2)
    assert str(caught.value) == (
        "fit: train must be there again in the next epoch, and it is a generator, which ends; give "
        "a NumpyLoader or a list"
    )


@pytest.mark.parametrize("together", [slow(1), 2])
def test_each_network_of_a_sweep_has_an_iterator_of_its_own(together, caplog):
    found = feedax.sweep(
        predict, lambda key: START, lambda seed: generator(count=9), seeds=2, steps=8,
        optimizer=optax.sgd(0.5), together=together,
    )  # fmt: skip
    expected, _ = fit(generator(), 8)
    for network in found.networks:
        np.testing.assert_allclose(network.params, expected, rtol=1e-5)
    assert said(caplog) == []
    feedax.sweep(
        predict, lambda key: START, lambda seed: generator(count=9), seeds=2, steps=10,
        together=together,
    )  # fmt: skip
    assert len(said(caplog)) == (2 if together == 1 else 1)
    assert "it ended after 9," in said(caplog)[0]


def test_networks_that_would_share_an_iterator_are_refused():
    shared, sets = generator(), {"held_out": generator(count=2)}
    cases = [
        (shared, {}, "train", ", or a function of a seed that makes one"),
        (lambda seed: shared, {}, "train", ", or a function of a seed that makes one"),
        ([batch(0)], {"evaluate": sets, "epochs": 1}, "evaluate['held_out']", ""),
    ]
    for train, options, what, more in cases:
        with pytest.raises(BatchError) as caught:
            feedax.sweep(predict, lambda key: START, train, seeds=3, **({"steps": 4} | options))
        assert str(caught.value) == (
            f"sweep: {what} must be there for each of 3 networks, and it is a generator, which "
            f"comes once; give a NumpyLoader or a list{more}"
        )
    assert next(shared)[0].tolist() == batch(0)[0].tolist()  # nothing was taken of it
    one = feedax.sweep(predict, lambda key: START, generator(), steps=4)
    assert one.is_complete
