"""`fit` with augmentations, mixup and hyperparameters."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sweep_jobs
from helpers import bits, linear, problem, slow, timeless
from sweep_jobs import COUNT, SIZE, STEPS, init, loader, predict

import feedax
from feedax.data import ArrayDataset
from feedax.errors import AugmentError, CheckpointError, ModelError, OptimizerError
from feedax.train.specification import FitSpecification


def fit(source, predict=predict, params=None, **options):
    params = init(jax.random.key(1)) if params is None else params
    options = {"key": jax.random.key(5), "learning_rate": 0.03, **options}
    return feedax.fit(predict, params, source, **options)


# --- Augmentations ---


def test_every_example_of_every_epoch_is_changed_on_its_own_and_none_in_evaluation():
    """The loss is what the model is given: a random number of each example, or else one."""
    x, y = np.ones((COUNT, 1), np.float32), np.zeros(COUNT, np.int64)
    key, drawn = jax.random.key(7), []

    def random(key, x):
        return x * jax.random.uniform(key)

    for step in range(3 * STEPS):
        _, augment_key, _ = jax.random.split(jax.random.fold_in(key, step), 3)
        # The last batch is filled up with copies, which do not count.
        keys = jax.random.split(augment_key, SIZE)[: SIZE if (step + 1) % STEPS else COUNT % SIZE]
        drawn += np.asarray(jax.vmap(jax.random.uniform)(keys)).tolist()
    assert len(set(drawn)) == 3 * COUNT
    data = [(x[i : i + SIZE], y[i : i + SIZE]) for i in range(0, COUNT, SIZE)]
    _, history = fit(
        data, lambda w, x: x + w, jnp.zeros(1), loss=lambda p, t: p[0], metrics={}, key=key,
        augment=random, epochs=3, evaluate={"test": [(x, y)]}, optimizer=optax.sgd(0.0),
    )  # fmt: skip
    means = np.reshape(drawn, (3, COUNT)).mean(1)
    np.testing.assert_allclose([row["loss"] for row in history], means, rtol=1e-6)
    assert [row["test_loss"] for row in history] == [1.0] * 3


EVERYTHING = {
    "augment": sweep_jobs.noisy,
    "mixup": 0.4,
    "hyperparams": {"dropout": 0.3, "noise": 0.2},
}


class Plain(sweep_jobs.torch.utils.data.Dataset):
    """The same examples, of a kind that must be loaded one by one."""

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        x, y = problem()
        return x[i], y[i]


def test_the_same_key_gives_the_same_bits_whatever_the_plan():
    found = {}
    for plan in ("resident", "vectorised", "streamed"):
        data = Plain() if plan == "streamed" else ArrayDataset(*problem())
        source = feedax.NumpyLoader(data, SIZE, shuffle=True, seed=3, plan=plan)
        found[plan] = fit(source, epochs=2, **EVERYTHING)
    params, history = found["resident"]
    for others, rows in found.values():
        assert bits(others) == bits(params)
        assert timeless(rows) == timeless(history)
    source = loader(seed=3)
    other, _ = fit(source, epochs=2, **EVERYTHING, key=jax.random.key(6))
    assert bits(other) != bits(params)
    plain, _ = fit(loader(seed=3), epochs=2)
    assert bits(plain) != bits(params)


def noisy_by(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


def by_hand(w, x, y, key, step, rate, augment=None, alpha=None):
    """One step of a linear model with cross-entropy, its gradient written out; NumPy, float64."""
    step_key = jax.random.fold_in(key, step)
    _, augment_key, mixup_key = jax.random.split(step_key, 3)
    if augment is not None:
        keys = jax.random.split(augment_key, len(x))
        x = np.stack([augment(k, one) for k, one in zip(keys, x, strict=True)])
    partners, shares = np.arange(len(x)), np.ones(len(x))
    if alpha is not None:
        mixed = feedax.augment.mixup(mixup_key, x, alpha=alpha)
        partners, shares = np.asarray(mixed.partners), np.asarray(mixed.shares, np.float64)
        x = shares[:, None] * x + (1 - shares[:, None]) * x[partners]
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    scores = x @ w.T
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = shares[:, None] * np.eye(3)[y] + (1 - shares[:, None]) * np.eye(3)[y[partners]]
    losses = -(labels * np.log(chances)).sum(1)
    rights = np.argmax(scores, 1)
    right = shares * (rights == y) + (1 - shares) * (rights == y[partners])
    gradient = (chances - labels).T @ x / len(x)
    return w - rate * gradient, losses.sum(), right.sum()


@pytest.mark.parametrize(("augment", "alpha"), [slow(noisy_by, None), (noisy_by, 0.7)])
def test_steps_are_those_of_a_computation_by_hand(augment, alpha):
    """Two batches of 8 and one of 5; what `fit` fills it up with changes nothing."""
    x, y = (part[:21] for part in problem(2))
    key, w = jax.random.key(9), 0.1 * jax.random.normal(jax.random.key(8), (3, 6))
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 21, 8)]
    ours, (row,) = fit(
        batches, linear, w, augment=augment, mixup=alpha or 0.0, key=key, learning_rate=0.5,
        optimizer=optax.sgd(1.0),
    )  # fmt: skip
    total = right = 0.0
    for step, (inputs, targets) in enumerate(batches):
        w, losses, rights = by_hand(w, inputs, targets, key, step, 0.5, augment, alpha)
        total, right = total + losses, right + rights
    np.testing.assert_allclose(ours, w, rtol=0, atol=1e-6)
    assert row["loss"] == pytest.approx(total / 21, rel=1e-5)
    assert row["accuracy"] == pytest.approx(right / 21, rel=1e-5)


def test_a_run_with_all_of_it_goes_on_to_the_same_bits(tmp_path):
    whole, rows = fit(loader(seed=3), epochs=2, **EVERYTHING)
    checkpoints = feedax.Checkpoints(tmp_path)
    for steps in (4, 9, 14):
        params, history = fit(loader(seed=3), steps=steps, checkpoints=checkpoints, **EVERYTHING)
    assert bits(params) == bits(whole)
    assert timeless(history) == timeless(rows)


def failing(key, x):
    raise ValueError("no such image")


AUGMENTS = {
    "fails": (
        failing,
        "fit: augment must take a key and the input of one example, and it fails on inputs of "
        "float32[6]: no such image",
    ),
    "takes one argument": (
        lambda x: x,
        "fit: augment must take a key and the input of one example, and it fails on inputs of "
        "float32[6]: ",
    ),
    "cuts": (
        lambda key, x: x[:5],
        "fit: predict must take one example of the data, and it fails on inputs of float32[5], "
        "which augment returns: ",
    ),
}


@pytest.mark.parametrize("kind", AUGMENTS)
def test_an_augmentation_that_does_not_fit_is_refused(kind):
    augment, said = AUGMENTS[kind]
    for evaluate in (None, {"test": [problem()]}):
        with pytest.raises(ModelError) as caught:
            fit([problem()], augment=augment, evaluate=evaluate)
        assert str(caught.value).startswith(said)
        assert said.endswith(": ") or str(caught.value) == said
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mixup", [-0.1, float("inf"), float("nan"), "0.2", None, True])
def test_an_alpha_that_is_none_is_refused(mixup):
    with pytest.raises(ModelError) as caught:
        fit([problem()], mixup=mixup)
    assert str(caught.value) == (
        f"fit: mixup must be a finite number from 0 on, and it is {mixup!r}; give 0.2, say, or "
        "leave it out"
    )


def test_numbers_of_other_kinds_are_alphas():
    for alpha in (1, 1.0, np.float32(1), np.int64(1)):
        asked = FitSpecification(predict, init(jax.random.key(0)), [problem()], mixup=alpha)
        assert (asked.mixup, type(asked.mixup)) == (1.0, float)


def test_words_cannot_be_mixed():
    x, y = problem()
    with pytest.raises(AugmentError) as caught:
        fit([(np.int32(x), y)], lambda w, x: w["w"][:3] @ x.astype(jnp.float32), mixup=0.2)
    assert str(caught.value).startswith("mixup: the inputs must be uint8 or floating, and one is")


# --- Hyperparameters ---


def test_hyperparameters_are_given_by_name():
    """Each function gets those that it has parameters for; the numbers tell which."""
    x, y = np.ones((4, 1), np.float32), np.zeros(4, np.float32)
    values = {"shift": 1.0, "factor": 2.0, "offset": 3.0, "power": 4.0, "slope": 5.0}

    def predict(w, x, shift):
        return w * x[0] + shift

    def loss(prediction, target, factor):
        return factor * prediction

    def metric(prediction, target, shift, power):
        return prediction + 100 * shift + 1000 * power

    def augment(key, x, offset):
        return x + offset

    def optimizer(slope):
        return optax.scale(-slope)

    options = {"loss": loss, "metrics": {"metric": metric}, "hyperparams": values}
    w, (row,) = feedax.fit(
        predict, jnp.zeros(()), [(x, y)], augment=augment, optimizer=optimizer,
        evaluate={"test": [(x, y)]}, **options,
    )  # fmt: skip
    assert row["loss"] == 2.0 * 1.0
    assert row["metric"] == 1.0 + 100 + 4000
    assert float(w) == -5.0 * 2.0 * (1 + 3.0)
    # Evaluation sees plain inputs.
    assert row["test_loss"] == 2.0 * (-40.0 + 1.0)
    assert row["test_metric"] == -39.0 + 4100
    alone = feedax.evaluate(predict, w, [(x, y)], **options)
    assert alone == {"loss": row["test_loss"], "metric": row["test_metric"]}


def test_a_value_that_is_given_takes_the_place_of_a_default():
    default, _ = fit(loader(seed=3), epochs=1)
    given, _ = fit(loader(seed=3), epochs=1, hyperparams={"dropout": 0.2})
    other, _ = fit(loader(seed=3), epochs=1, hyperparams={"dropout": np.float64(0.0)})
    for a, b in zip(jax.tree.leaves(default), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert bits(other) != bits(given)


UNKNOWN = (
    "fit: a hyperparameter must be a parameter of predict, loss, augment, a metric or a function "
    "that makes the optimizer, and {!r} is one of none; add it there, or leave it out"
)
RESERVED = (
    "fit: a hyperparameter must not be named key, train or learning_rate, and one is {!r}; rename "
    "it, or give learning_rate= itself"
)
NUMBER = "fit: a hyperparameter must be a finite number, and 'dropout' is {}; give a number"


@pytest.mark.parametrize(
    ("hyperparams", "said"),
    [
        ({"droupout": 0.1}, UNKNOWN.format("droupout")),
        ({"noise": 0.1}, UNKNOWN.format("noise")),
        ({"key": 0.1}, RESERVED.format("key")),
        ({"train": 1}, RESERVED.format("train")),
        ({"learning_rate": 1}, RESERVED.format("learning_rate")),
        ({"dropout": float("nan")}, NUMBER.format("nan")),
        ({"dropout": float("inf")}, NUMBER.format("inf")),
        ({"dropout": "high"}, NUMBER.format("'high'")),
        ({"dropout": [0.1, 0.2]}, NUMBER.format("[0.1, 0.2]")),
        ({"dropout": None}, NUMBER.format("None")),
    ],
)
def test_hyperparameters_that_are_none_are_refused(hyperparams, said):
    with pytest.raises(ModelError) as caught:
        fit([problem()], hyperparams=hyperparams)
    assert str(caught.value) == said


def test_an_optimizer_that_is_none_is_refused():
    for optimizer, said in (
        (
            sweep_jobs.decayed,
            "fit: a function optimizer must make an optax transformation of hyperparameters alone, "
            "and it fails: decayed() missing 1 required positional argument: 'weight_decay'; give "
            "hyperparams= too, or the transformation itself",
        ),
        (
            lambda: "adam",
            "fit: optimizer must be an optax transformation, or a function that makes one, and it "
            "makes a str; give optax.sgd(0.1), say",
        ),
        (
            "adam",
            "fit: optimizer must be an optax transformation, or a function that makes one, and it "
            "is a str; give optax.sgd(0.1), say",
        ),
    ):
        with pytest.raises(ModelError) as caught:
            fit([problem()], optimizer=optimizer)
        assert str(caught.value) == said
    with pytest.raises(OptimizerError, match="weight_decay must be"):
        fit([problem()], optimizer=sweep_jobs.decayed, hyperparams={"weight_decay": -1.0})


def test_other_values_need_no_other_program(caplog):
    model = feedax.Model(predict, augment=sweep_jobs.noisy)
    x, y = problem()
    batch = feedax.Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(COUNT))

    @jax.jit
    def first(rate, hyperparams):
        return feedax.init_state(
            init(jax.random.key(0)), sweep_jobs.decayed, jax.random.key(1), learning_rate=rate,
            hyperparams=hyperparams,
        )  # fmt: skip

    @jax.jit
    def one_step(state, batch):
        return feedax.train_step(
            state, batch, model=model, loss=sweep_jobs.smoothed, optimizer=sweep_jobs.decayed
        )

    names = "dropout", "noise", "smoothing", "weight_decay"
    found = set()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for changed in (None, *names):
            values = {name: jnp.float32(0.1 + 0.3 * (name == changed)) for name in names}
            state = one_step(first(jnp.float32(0.1), values), batch)
            found.add(tuple(bits(state.params)))
    said = [record.getMessage() for record in caplog.records]
    compiled = [line for line in said if line.startswith("Finished XLA compilation of jit(")]
    assert sum("jit(one_step)" in line for line in compiled) == 1
    assert sum("jit(first)" in line for line in compiled) == 1
    assert len(found) == 5, "each of them matters"


def test_a_run_goes_on_with_its_own_values_only(tmp_path):
    checkpoints = feedax.Checkpoints(tmp_path)
    fit(loader(seed=3), epochs=1, hyperparams={"dropout": 0.5}, checkpoints=checkpoints)
    file = tmp_path / f"step-{STEPS:09}.safetensors"
    for hyperparams, said in (
        (
            {"dropout": 0.25},
            f"fit: a resumed run must have the dropout= that it began with, and in {file} it was "
            "0.5 but is 0.25; give the same, or another folder",
        ),
        (
            None,
            f"restore: {file} must hold the arrays of the state, and it also "
            "holds state.hyperparams.dropout; resume with the model, the optimizer and the "
            "settings that it was saved with",
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            fit(loader(seed=3), epochs=2, hyperparams=hyperparams, checkpoints=checkpoints)
        assert str(caught.value) == said


def test_a_checkpoint_without_hyperparameters_has_no_trace_of_them(tmp_path):
    """So those from before there were any are the same."""
    from feedax.storage.checkpoint_file import read_checkpoint

    checkpoints = feedax.Checkpoints(tmp_path)
    fit(loader(seed=3), epochs=1, checkpoints=checkpoints)
    arrays, _ = read_checkpoint(checkpoints.newest().path)
    assert not [name for name in arrays if "hyperparams" in name]
    whole, _ = fit(loader(seed=3), epochs=2)
    again, _ = fit(loader(seed=3), epochs=2, checkpoints=checkpoints)
    assert bits(again) == bits(whole)
