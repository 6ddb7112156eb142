"""The step as a function, what `fit` keeps and tells, and what it computes in."""

import logging

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import bits, problem
from sweep_jobs import init, predict

import feedax
from feedax.errors import ModelError
from feedax.train.optimizers import build_optimizer


def batches(count=40):
    return helpers.batches(*problem(count=count), 8)


def test_train_step_maps_over_seeds_and_learning_rates():
    """The same function, unchanged: what is mapped together is what is trained alone."""
    optimizer = build_optimizer("adam", schedule="cosine", steps=5, warmup_steps=2)
    model = feedax.Model(predict)
    data = [
        feedax.Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(x), jnp.float32))
        for x, y in batches()
    ]
    keys, rates = jax.random.split(jax.random.key(0), 3), jnp.float32([0.1, 0.01, 0.001])

    def step(state, batch):
        return feedax.train_step(
            state, batch, model=model, loss=feedax.cross_entropy, optimizer=optimizer
        )

    def first(key, rate):
        return feedax.init_state(init(key), optimizer, key, learning_rate=rate)

    together = jax.vmap(first)(keys, rates)
    for batch in data:
        together = jax.jit(jax.vmap(step, in_axes=(0, None)))(together, batch)
    for i in range(3):
        alone = first(keys[i], rates[i])
        for batch in data:
            alone = jax.jit(step)(alone, batch)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert int(mine.metrics["loss"].count) == int(alone.metrics["loss"].count) == 40
        assert float(mine.learning_rate) == float(rates[i])


def test_the_learning_rate_in_the_state_is_the_optimizers_to_the_bit():
    ours, _ = feedax.fit(
        predict, init(jax.random.key(1)), batches(), optimizer=optax.sgd(1.0), learning_rate=0.05
    )
    theirs, _ = feedax.fit(predict, init(jax.random.key(1)), batches(), optimizer=optax.sgd(0.05))
    assert bits(ours) == bits(theirs)


def test_metrics_are_means_over_the_examples_as_they_were_trained_on():
    """Sums and counts, so a short last batch weighs what it holds: by hand, at learning rate 0."""

    def margin(prediction, target):
        return prediction[target] - jnp.max(prediction)

    def plain(params, x):
        return params["v"] @ jax.nn.relu(params["w"] @ x)

    params = init(jax.random.key(2))
    x, y = problem(count=37)
    scores = np.asarray(jax.vmap(plain, (None, 0))(params, x))
    _, (row,) = feedax.fit(
        plain,
        params,
        batches(count=37),
        optimizer=optax.sgd(0.0),
        metrics={"margin": margin, "right": lambda p, t: jnp.argmax(p) == t},
    )
    assert row["margin"] == pytest.approx((scores[np.arange(37), y] - scores.max(1)).mean(), 1e-5)
    assert row["right"] == np.float32((scores.argmax(1) == y).sum()) / 37
    log_sums = np.log(np.exp(scores.astype(np.float64)).sum(1))
    assert row["loss"] == pytest.approx((log_sums - scores[np.arange(37), y]).mean(), rel=1e-5)


def test_bfloat16_computes_in_it_and_keeps_everything_in_float32(caplog):
    seen = {}

    def looked_at(params, state, x, train):
        seen.setdefault(train, {"w": params["w"].dtype, "x": x.dtype, "state": state.dtype})
        mean = jax.lax.pmean(x.astype(jnp.float32), "batch") if train else state
        prediction = params["v"] @ jax.nn.relu(params["w"] @ (x - mean.astype(x.dtype)))
        seen["prediction"] = prediction.dtype
        return prediction, 0.9 * state + 0.1 * mean

    kinds = []

    def loss(prediction, target):
        kinds.append(prediction.dtype)
        return feedax.cross_entropy(prediction, target)

    with caplog.at_level(logging.INFO, logger="feedax"):
        (params, state), history = feedax.fit(
            looked_at, init(jax.random.key(3)), batches(), loss=loss, state=jnp.zeros(6),
            precision="bfloat16", epochs=3, evaluate={"test": batches()},
            metrics={"accuracy": lambda p, t: jnp.argmax(p) == t},
        )  # fmt: skip
    half, single = jnp.bfloat16, jnp.float32
    assert seen[True] == seen[False] == {"w": half, "x": half, "state": single}
    assert seen["prediction"] == half
    assert set(kinds) == {np.dtype(single)}
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {np.dtype(single)}
    assert history[-1]["test_loss"] < history[0]["test_loss"]
    assert caplog.messages[0] == (
        "fit: the model computes in bfloat16, with 8 bits of precision, and on this CPU more "
        "slowly; parameters, losses, the optimizer and batch statistics stay in float32"
    )
    again = feedax.evaluate(
        looked_at, params, batches(), loss=loss, state=state, precision="bfloat16",
        metrics={"accuracy": lambda p, t: jnp.argmax(p) == t},
    )  # fmt: skip
    assert again["loss"] == history[-1]["test_loss"]
    assert abs(again["loss"] - feedax.evaluate(looked_at, params, batches(), loss=loss, state=state,
               metrics={})["loss"]) > 0  # fmt: skip


def test_another_precision_is_refused():
    with pytest.raises(ModelError) as caught:
        feedax.fit(predict, init(jax.random.key(0)), batches(), precision="float16")
    assert str(caught.value) == (
        "fit: precision must be 'float32' or 'bfloat16', and it is 'float16'; leave it out"
    )


def test_float64_works_when_jax_is_told_to_use_it(tmp_path):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: a.astype(jnp.float64), init(jax.random.key(4)))
        data = [(x.astype(np.float64), y) for x, y in batches()]
        options = {"optimizer": optax.adam(0.01), "epochs": 2}
        whole, rows = feedax.fit(predict, params, data, **options)
        assert {leaf.dtype for leaf in jax.tree.leaves(whole)} == {np.dtype(np.float64)}
        feedax.fit(
            predict, params, data, checkpoints=feedax.Checkpoints(tmp_path),
            **options | {"epochs": 1},
        )  # fmt: skip
        again, _ = feedax.fit(
            predict, params, data, checkpoints=feedax.Checkpoints(tmp_path), **options
        )
        assert bits(again) == bits(whole)
        # A sum of float64 is one too.
        assert rows[0]["loss"] != float(np.float32(rows[0]["loss"]))


def test_a_run_is_a_handful_of_programs(caplog):
    """Neither the first state nor the start of an epoch is made of many small ones."""
    params = jax.block_until_ready(init(jax.random.key(5)))
    key = jax.random.key(6)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        feedax.fit(
            predict, params, batches(), key=key, epochs=2, optimizer=optax.adam(0.01),
            evaluate={"test": batches()}, best="test_loss",
        )  # fmt: skip
    finished = (r.getMessage() for r in caplog.records)
    said = [line for line in finished if line.startswith("Finished XLA compilation of jit(")]
    names = [line.split("(")[1].split(")")[0] for line in said]
    # What an earlier test has compiled is not compiled again.
    assert set(names) <= {
        "_first_state", "_epoch_begun", "_train_batch", "are_finite", "_score_block", "_copied",
        "_threefry_seed",
    }  # fmt: skip
    assert len(names) == len(set(names))
    assert "_train_batch" in names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"best": "validation_loss"},
            "fit: best=COLUMN must name a column of the rows, of one of the sets ['test'], and it "
            "is 'validation_loss'; give evaluate={'validation': ...} and best='validation_loss', "
            "say",
        ),
        (
            {"patience": 3},
            "fit: patience=N must be 1 or more epochs in which best=COLUMN gets no better, and "
            "patience is 3 and best is None; give both, best='validation_loss' and patience=3 say",
        ),
        (
            {"best": "test_loss", "patience": 0},
            "fit: patience=N must be 1 or more epochs in which best=COLUMN gets no better, and "
            "patience is 0 and best is 'test_loss'; give both, best='validation_loss' and "
            "patience=3 say",
        ),
    ],
)
def test_a_column_that_no_row_has_is_refused_before_training(options, said):
    events = []
    with pytest.raises(ModelError) as caught:
        feedax.fit(
            predict, init(jax.random.key(0)), batches(), evaluate={"test": batches()},
            callbacks=[events.append], **options,
        )  # fmt: skip
    assert (str(caught.value), events) == (said, [])


def test_a_callback_that_stops_is_told_where():
    events = []

    def stop(event):
        events.append(event)
        if isinstance(event, feedax.EpochEnded):
            raise feedax.StopTraining

    _, history = feedax.fit(predict, init(jax.random.key(0)), batches(), epochs=5, callbacks=[stop])
    assert len(history) == 1
    assert events[-2] == feedax.Stopped(epoch=1, step=0, preempted=False)
    assert isinstance(events[-1], feedax.Ended)
