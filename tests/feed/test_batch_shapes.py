"""Batches of several shapes, as those are that are padded to their own longest example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import slow
from torch.utils.data import Dataset

import feedax
from feedax.errors import ModelError
from feedax.feed import Devices, Source, device_blocks
from feedax.feed.batch import pair

COUNT = 50


class Words(Dataset):
    """Sequences of 2 to 7 tokens from 1 to 9; the label says whether their mean is above 5."""

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        tokens = np.random.default_rng(i).integers(1, 10, size=2 + i % 6).astype(np.int32)
        return tokens, int(tokens.mean() > 5)


def padded(examples):
    width = max(len(tokens) for tokens, _ in examples)
    rows = [np.pad(tokens, (0, width - len(tokens))) for tokens, _ in examples]
    return np.stack(rows), np.array([label for _, label in examples])


def loader(size=4, **options):
    return feedax.NumpyLoader(Words(), size, collate_fn=padded, **options)


def predict(params, tokens):
    table, w = params
    seen = (tokens > 0)[:, None].astype(table.dtype)
    return w @ ((table[tokens] * seen).sum(0) / jnp.maximum(seen.sum(), 1))


def init(key):
    keys = jax.random.split(key)
    return jax.random.normal(keys[0], (10, 4)), jax.random.normal(keys[1], (2, 4))


PARAMS = init(jax.random.key(0))


def one_by_one(params):
    """The mean loss and the accuracy, each sequence by itself, with its own length."""
    losses, right = [], []
    for tokens, label in map(Words().__getitem__, range(COUNT)):
        logits = np.asarray(predict(params, tokens), np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        right.append(logits.argmax() == label)
    return {"loss": np.mean(losses), "accuracy": np.mean(right)}


@pytest.mark.parametrize(("size", "workers"), [(1, 0), slow(4, 1)])
def test_a_score_is_that_of_each_example_by_itself(size, workers):
    found = feedax.evaluate(predict, PARAMS, loader(size, num_workers=workers))
    assert found == pytest.approx(one_by_one(PARAMS), rel=1e-6)


def test_a_model_of_a_batch_is_scored_too():
    def of_batch(params, tokens):
        return jax.vmap(predict, in_axes=(None, 0))(params, tokens)

    found = feedax.evaluate(of_batch, PARAMS, loader(), batched=True)
    assert found == pytest.approx(one_by_one(PARAMS), rel=1e-6)


def by_hand(optimizer, batches):
    def loss(params, tokens, labels):
        logits = jax.vmap(predict, in_axes=(None, 0))(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params, state = PARAMS, optimizer.init(PARAMS)
    for batch in batches:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("batched", [slow(False), True])
def test_fit_trains_on_them_as_a_loop_by_hand_and_evaluates_them(batched):
    """50 examples: the last batch is short, and of its own width."""

    def of_batch(params, tokens):
        return jax.vmap(predict, in_axes=(None, 0))(params, tokens)

    trained, (row,) = feedax.fit(
        of_batch if batched else predict, PARAMS, loader(), optimizer=optax.sgd(0.1),
        evaluate={"same": loader(7)}, batched=batched,
    )  # fmt: skip
    expected = by_hand(optax.sgd(0.1), list(loader()))
    for ours, theirs in zip(trained, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    wanted = one_by_one(trained)
    assert row["same_loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert row["same_accuracy"] == wanted["accuracy"]


def test_a_run_on_them_goes_on_to_the_same_bits(tmp_path):
    def run(folder, **options):
        return feedax.fit(
            predict, PARAMS, loader(shuffle=True, seed=0), optimizer=optax.adam(0.05),
            augment=lambda key, tokens: jnp.where(jax.random.bernoulli(key), tokens, tokens[::-1]),
            evaluate={"same": loader()}, epochs=2, **options,
            checkpoints=feedax.Checkpoints(folder, every_steps=5),
        )  # fmt: skip

    def stop(event):
        if isinstance(event, feedax.Saved) and event.step == 15:
            raise OSError("no power")

    left_alone, rows = run(tmp_path / "left_alone")
    with pytest.raises(OSError, match="no power"):
        run(tmp_path / "cut", callbacks=[stop])
    resumed, again = run(tmp_path / "cut")
    for ours, theirs in zip(resumed, left_alone, strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert [row["same_loss"] for row in again] == [row["same_loss"] for row in rows]


@pytest.mark.slow
def test_a_sweep_evaluates_them_and_says_where_networks_cannot_share_steps():
    same = list(loader())
    found = feedax.sweep(
        predict, init, same, seeds=2, epochs=1, evaluate={"same": loader()}, together=2
    )
    for network in found.networks:
        wanted = one_by_one(network.params)
        assert network.history[0]["same_loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    with pytest.raises(feedax.errors.BatchError, match=r"; give together=1$"):
        feedax.sweep(predict, init, loader(shuffle=True), seeds=2, epochs=1, together=2)


def blocks(batches, size, **options):
    """How device_blocks cuts them: shapes, and how many examples count."""
    with_checks = device_blocks(
        Source(batches), lambda leaves: size, lambda *_: None, Devices(1), **options
    )
    on_device = [(jax.device_put(block.inputs), count) for block, count in with_checks]
    return [(inputs.shape, inputs.dtype, count) for inputs, count in on_device]


def of_width(*widths, count=4, dtype=np.float32):
    return [(np.ones((count, width), dtype), np.ones(count, np.float32)) for width in widths]


def test_each_width_is_cut_into_blocks_of_its_own():
    """Widths that alternate fill up blocks as widths in a row do, and few of these are short."""
    found = blocks(of_width(2, 3, 2, 3, 2, 3, 2, 5), 8)
    floats = np.dtype(np.float32)
    assert found == [
        ((8, 2), floats, 8), ((8, 3), floats, 8), ((8, 2), floats, 8),
        ((4, 3), floats, 4), ((4, 5), floats, 4),
    ]  # fmt: skip
    # One width alone: blocks of one size, whatever the batches.
    assert blocks(of_width(2, 2, 2, count=3), 8) == [((8, 2), floats, 8), ((8, 2), floats, 1)]
    # A short one is filled up to a power of two.
    assert blocks(of_width(2, 3, count=5), 16) == [((8, 2), floats, 5), ((8, 3), floats, 5)]


def test_other_dtypes_are_other_shapes_where_the_device_tells_them_apart():
    ints, floats = np.dtype(np.int32), np.dtype(np.float32)
    mixed = [*of_width(2), *of_width(2, dtype=np.int64), *of_width(2, dtype=np.float64)]
    assert blocks(mixed, 8) == [((8, 2), floats, 8), ((4, 2), ints, 4)]


def test_what_waits_takes_bounded_memory():
    """Where there is too much, the fullest of the piles is scored as it is."""
    found = blocks(of_width(*[1] * 3, 2, 3), 64, waiting_bytes=3 * 4 * (4 + 4))
    shapes = [(shape, count) for shape, _, count in found]
    assert shapes == [((16, 1), 12), ((4, 3), 4), ((4, 2), 4)]


def test_a_batch_that_the_model_cannot_take_is_refused_in_a_sentence():
    """It was the first batch alone that was looked at."""
    fitting = [(np.ones((4, 3), np.float32), np.zeros(4, np.int64))]
    wide = [(np.ones((4, 5), np.float32), np.zeros(4, np.int64))]

    def linear(w, x):
        return w @ x

    for call in (feedax.fit, feedax.evaluate):
        with pytest.raises(ModelError) as caught:
            call(linear, jnp.ones((2, 3)), fitting + wide)
        assert str(caught.value).startswith(
            f"{call.__name__}: predict must take one example of the data, and it fails on inputs "
            "of float32[5]: "
        )


def test_labels_of_each_shape_are_looked_at():
    narrow, wide = list(loader())[:2]
    wrong = (np.ones((4, 9), np.int32), np.array([0, 1, 2, 0]))
    with pytest.raises(feedax.errors.LabelError, match="example 2 of a batch has label 2"):
        feedax.evaluate(predict, PARAMS, [narrow, wide, wrong])
    assert pair(narrow)[0].shape != wrong[0].shape
