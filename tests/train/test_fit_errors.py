"""Bad input gets one sentence: who, the rule, the value, the remedy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers import linear, slow

import feedax
from feedax.data import ArrayDataset
from feedax.errors import (
    BatchError,
    CheckpointError,
    FeedaxError,
    LabelError,
    ModelError,
    NotANumberError,
)

X = np.ones((6, 8), np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
W = jnp.zeros((3, 8))


def message(kind, batches, predict=linear, params=W, **options):
    with pytest.raises(kind) as error:
        feedax.fit(predict, params, batches, **options)
    assert isinstance(error.value, FeedaxError)
    return str(error.value)


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), "streamed"])
def test_a_label_out_of_range(plan):
    labels = Y.copy()
    labels[4] = 3
    loader = feedax.NumpyLoader(ArrayDataset(X, labels), 6, plan=plan)
    where = "the dataset" if plan == "resident" else "a batch"
    assert message(LabelError, loader) == (
        "fit: labels must lie in 0 to 2, for the 3 classes that the model predicts, and example 4 "
        f"of {where} has label 3; give the last layer one output per class, or mend the labels"
    )


def test_a_negative_label_in_an_evaluation_set():
    assert message(LabelError, [(X, Y)], evaluate={"test": [(X, Y - 1)]}) == (
        "fit: labels must lie in 0 to 2, for the 3 classes that the model predicts, and example 0 "
        "of a batch has label -1; give the last layer one output per class, or mend the labels"
    )


ORDER = "predict must come before params, and they are given the other way round; call"
NO_INIT = "sweep: init must be a function of a random key, which makes parameters, and it is"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: feedax.fit(W, linear, [(X, Y)]), f"fit: {ORDER} fit(predict, params, ...)"),
        (
            lambda: feedax.evaluate([(W, 0)], linear, [(X, Y)]),
            f"evaluate: {ORDER} evaluate(predict, params, ...)",
        ),
        (
            lambda: feedax.fit(eqx.nn.Linear(8, 3, key=jax.random.key(0)), linear, [(X, Y)]),
            f"fit: {ORDER} fit(predict, params, ...)",
        ),
        (
            lambda: feedax.fit([(X, Y)], W, linear),
            "fit: predict must be a function of (params, x), and it is a list; call "
            "fit(predict, params, ...)",
        ),
        (
            lambda: feedax.sweep(lambda key: W, linear, [(X, Y)]),
            f"{NO_INIT} one of (w, x); call sweep(predict, init, train)",
        ),
        (
            lambda: feedax.sweep(linear, [W], [(X, Y)]),
            f"{NO_INIT} a list; call sweep(predict, init, train)",
        ),
    ],
)
def test_arguments_in_another_order(call, sentence):
    with pytest.raises(ModelError) as caught:
        call()
    assert str(caught.value) == sentence


def test_no_batches():
    assert message(BatchError, []) == (
        "fit: train must yield a batch in every epoch, and it yielded none in epoch 0; give a "
        "NumpyLoader or a list that is not empty, not an iterator that ends"
    )


def test_an_empty_dataset():
    loader = feedax.NumpyLoader(ArrayDataset(X[:0], Y[:0]), 4)
    assert message(BatchError, loader) == (
        "fit: train must yield a batch in every epoch, and it yielded none in epoch 0; give a "
        "NumpyLoader or a list that is not empty, not an iterator that ends"
    )


def test_an_iterator_ends_after_one_epoch():
    assert message(BatchError, iter([(X, Y)]), epochs=2) == (
        "fit: train must be there again in the next epoch, and it is a list_iterator, which ends; "
        "give a NumpyLoader or a list"
    )
    feedax.fit(linear, W, iter([(X, Y)]), epochs=1)


def test_an_evaluation_iterator_ends_too():
    once = iter([(X, Y)])
    assert message(BatchError, [(X, Y)], epochs=2, evaluate={"test": once}) == (
        "fit: evaluate['test'] must be there again in the next epoch, and it is a list_iterator, "
        "which ends; give a NumpyLoader or a list"
    )


def test_an_empty_evaluation_set():
    assert message(BatchError, [(X, Y)], evaluate={"test": []}) == (
        "fit: evaluate['test'] must yield a batch each time it is iterated, and it yielded "
        "none; give a NumpyLoader or a list that is not empty, not an iterator that ends"
    )


def test_evaluation_sets_without_names():
    assert message(BatchError, [(X, Y)], evaluate=[(X, Y)]) == (
        "fit: evaluate must be a dict of sets by name, and it is a list; give evaluate={'test': "
        "...}"
    )


def test_bad_labels_of_a_resident_evaluation_set_are_found_before_training():
    events = []
    bad = feedax.NumpyLoader(ArrayDataset(X, Y + 1), 3)
    message(LabelError, [(X, Y)], evaluate={"test": bad}, callbacks=[events.append])
    assert events == []


def test_a_metric_named_loss():
    assert message(ModelError, [(X, Y)], metrics={"loss": lambda p, t: 7.0}) == (
        "fit: a metric must have a name of its own, and one is named 'loss'; rename it"
    )


def test_a_state_that_changes_its_type():
    def predict(w, state, x):
        return w @ x, state.astype(jnp.float32)

    assert message(ModelError, [(X, Y)], predict, state=jnp.zeros(2, jnp.int32)) == (
        "fit: predict must return a state of the structure, shapes and dtypes of the one that it "
        "gets, and it gets int32[2] and returns float32[2]; give state= what predict returns"
    )


def test_integers_that_the_device_would_cut():
    big = np.array([0, 1, 2**33, 0, 1, 2])
    assert message(BatchError, [(X, big)], loss=lambda p, t: (p.sum() - t) ** 2) == (
        "fit: integers must fit into the int32 that the device holds, and a batch has 8589934592; "
        "make them smaller, or set jax_enable_x64"
    )


def test_a_gradient_that_is_no_number_while_the_loss_is_one():
    said = message(NotANumberError, [(X, Y)] * 3, lambda w, x: jnp.sqrt(w * 0.0) @ x)
    assert said == (
        "fit: the loss and the parameters must be finite numbers, and they were not in epoch 0 at "
        "step 1; lower the step size, or look at that batch's examples"
    )


def test_batches_that_are_no_batches():
    assert message(BatchError, 3) == (
        "fit: train must be a loader or another iterable of NumPy batches, and it is a int; give a "
        "NumpyLoader or a list"
    )


@pytest.mark.parametrize(
    ("batch", "got"), [({"x": X}, "dict of 1"), ((X, Y, Y), "tuple of 3"), (X, "ndarray of 6")]
)
def test_a_batch_that_is_no_pair(batch, got):
    assert message(BatchError, [batch]) == (
        f"fit: a batch must be a pair (inputs, targets), and this one is a {got}; let the dataset "
        "yield such pairs, or make them in a collate_fn"
    )


@pytest.mark.parametrize(
    ("x", "y", "shapes"),
    [(X, Y[:5], "(6, 8), (5,)"), (X[:0], Y[:0], "(0, 8), (0,)"), (X, np.int64(1), "(6, 8), ()")],
)
def test_arrays_of_different_lengths(x, y, shapes):
    assert message(BatchError, [(x, y)]) == (
        "fit: all arrays of a batch must have one number of examples, above 0, as their first "
        f"dimension, and their shapes are {shapes}; see what the dataset or collate_fn returns"
    )


def test_text_is_no_number():
    said = (
        "fit: field inputs of a batch must be made of numbers, and it holds values of type <U1; "
        "leave that field out of the dataset's examples, or turn it into numbers"
    )
    assert message(BatchError, [(np.array(["a", "b"]), Y[:2])]) == said
    with pytest.raises(BatchError) as error:
        feedax.evaluate(linear, W, [(np.array(["a", "b"]), Y[:2])])
    assert str(error.value) == said.replace("fit:", "evaluate:")


def test_a_model_that_does_not_fit_the_data():
    said = message(ModelError, [(X[:, :5], Y)])
    assert said.startswith(
        "fit: predict must take one example of the data, and it fails on inputs of float32[5]: "
    )
    assert "\n" not in said


def test_a_model_that_wants_what_stays_on_the_host():
    batch = ({"x": X, "name": ["a"] * 6}, Y)
    assert message(ModelError, [batch], lambda w, e: w @ e["x"] + len(e["name"])) == (
        "fit: predict must take one example of the data, and it fails on inputs of float32[8]: "
        "there is no 'name'"
    )


def test_a_network_that_does_not_fit_the_data():
    params = feedax.init_network_params([7, 3], jax.random.key(0))
    assert message(ModelError, [(X, Y)], feedax.predict, params) == (
        "fit: predict must take one example of the data, and it fails on inputs of float32[8]: "
        "predict: image must be one example of shape (7,), and its shape is (8,); flatten it, or "
        "make the first layer fit it"
    )


def test_a_loss_of_more_than_one_number():
    assert message(ModelError, [(X, Y)], loss=lambda p, t: p - t.astype(p.dtype)) == (
        "fit: the loss function must return one number for one example, and it returns float32[3]; "
        "take a mean or a sum in it"
    )


def test_a_loss_that_fails():
    said = message(ModelError, [(X, X)], loss=lambda p, t: jnp.dot(p, t))
    assert said.startswith(
        "fit: the loss function must take one example's prediction and target, and it fails on "
        "float32[3] and float32[8]: "
    )


@pytest.mark.parametrize("who", ["fit", "evaluate", "sweep"])
@pytest.mark.parametrize(
    ("batch", "predict", "options", "said"),
    [
        (
            (X, Y + 1), linear, {},
            "labels must lie in 0 to 2, for the 3 classes that the model predicts, and example 2 "
            "of a batch has label 3; give the last layer one output per class, or mend the labels",
        ),
        (
            (X, Y), linear, {"metrics": {"loss": lambda p, t: 0.0}},
            "a metric must have a name of its own, and one is named 'loss'; rename it",
        ),
        (
            (X, Y), lambda w, s, x: (w @ x, s.astype(jnp.int32)), {"state": jnp.zeros(2)},
            "predict must return a state of the structure, shapes and dtypes of the one that it "
            "gets, and it gets float32[2] and returns int32[2]; give state= what predict returns",
        ),
        (
            ({"x": X}, Y), lambda w, e: w @ e["y"], {},
            "predict must take one example of the data, and it fails on inputs of float32[8]: "
            "there is no 'y'",
        ),
        (
            (X, Y), lambda w, x: jnp.mean(x @ w.T, 0), {"batched": True},
            "predict must return a prediction for each example of a batch, and of 2 examples it "
            "returns float32[3]; let its first axis be the batch's",
        ),
        (
            (X, Y), linear, {"loss": lambda p, t: {}["weight"]},
            "the loss function must take one example's prediction and target, and it fails on "
            "float32[3] and int32[]: there is no 'weight'",
        ),
        (
            (X, Y), linear, {"loss": lambda p, t: p},
            "the loss function must return one number for one example, and it returns float32[3]; "
            "take a mean or a sum in it",
        ),
        (
            (X, Y), linear, {"precision": "float16"},
            "precision must be 'float32' or 'bfloat16', and it is 'float16'; leave it out",
        ),
    ],
)  # fmt: skip
def test_the_function_that_was_called_speaks(who, batch, predict, options, said):
    calls = {
        "fit": lambda: feedax.fit(predict, W, [batch], **options),
        "evaluate": lambda: feedax.evaluate(predict, W, [batch], **options),
        "sweep": lambda: feedax.sweep(predict, lambda key: W, [batch], seeds=1, **options),
    }
    with pytest.raises(FeedaxError) as error:
        calls[who]()
    assert str(error.value) == f"{who}: {said}"


def test_targets_that_are_no_labels():
    assert message(ModelError, [(X, X[:, :3])]) == (
        "cross_entropy: an example must have an integer label and a vector of predictions, and its "
        "target is float32[3] and its prediction float32[3]; let the dataset give the label "
        "itself, argmax() of a one-hot target, or give loss=optax.softmax_cross_entropy"
    )


def of_one(w, x):
    return w @ jnp.ravel(x)


def of_a_batch(w, x):
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2]) @ w.T


def square(prediction, target):
    return (prediction - target) ** 2


IMAGES, ONE, HOT = X.reshape(-1, 4, 2), np.ones(len(X), np.float32), np.eye(3, dtype=np.float32)[Y]


@pytest.mark.parametrize(
    ("batch", "predict", "options", "ending"),
    [
        (
            (X, ONE), lambda w, x: (w @ x)[:1], {"loss": square},
            "it returns float32[1] of the prediction float32[1] and the target float32[]; return "
            "prediction[0] from predict",
        ),
        (
            (X, ONE[:, None]), lambda w, x: (w @ x)[0], {"loss": square},
            "it returns float32[1] of the prediction float32[] and the target float32[1]; let the "
            "dataset give target[0]",
        ),
        (
            (X, ONE[:, None]), lambda w, x: (w @ x)[:1], {"loss": square},
            "it returns float32[1] of the prediction float32[1] and the target float32[1]; end it "
            "with [0]",
        ),
        (
            (X, HOT), of_one, {"loss": lambda p, t: jnp.mean(jnp.sum(square(p, t), axis=1))},
            "; it works on a batch: write it for one example, without the batch's axis",
        ),
        (
            (X, Y), of_one, {"metrics": {"m": lambda p, t: jnp.mean(jnp.argmax(p, axis=1) == t)}},
            "; it works on a batch: write it for one example, without the batch's axis",
        ),
        (
            (IMAGES, Y), of_a_batch, {},
            "; it works on a batch: write it for one example, or give batched=True",
        ),
        (
            (IMAGES, Y), of_one, {"batched": True},
            "; it works on one example: leave batched=True out",
        ),
        (
            (IMAGES, Y), lambda w, x: jnp.mean(of_a_batch(w, x), 0), {"batched": True},
            "and of 2 examples it returns float32[3]; let its first axis be the batch's",
        ),
        (
            (Y, X), of_one, {},
            "; it works on the targets: let the batches be (inputs, targets)",
        ),
        (
            (X, Y[:, None]), of_one, {},
            "its target is int32[1] and its prediction float32[3]; let the dataset give the label "
            "itself, target[0]",
        ),
        (
            (X, ONE), of_one, {},
            "its target is float32[] and its prediction float32[3]; let the dataset give the label "
            "as an integer, int(target)",
        ),
        (
            (X, Y), lambda w, x: (w @ x)[0], {},
            "its prediction float32[]; give the last layer one output per class, or "
            "another loss",
        ),
    ],
)  # fmt: skip
def test_the_line_to_change_is_named(batch, predict, options, ending):
    assert message(ModelError, [batch], predict, **options).endswith(ending)


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), "streamed"])
def test_not_a_number(plan):
    """Examples 8 to 11 are infinite: step 2 of every epoch, from the first on."""
    x = np.ones((40, 8), np.float32)
    x[8:12] = np.inf
    loader = feedax.NumpyLoader(ArrayDataset(x, np.arange(40) % 3), 4, plan=plan)
    with pytest.raises(NotANumberError) as error:
        feedax.fit(linear, W, loader, optimizer=optax.sgd(0.1), epochs=2)
    assert str(error.value) == (
        "fit: the loss and the parameters must be finite numbers, and they were not in epoch 0 at "
        "step 2; lower the step size, or look at that batch's examples"
    )
    assert (error.value.epoch, error.value.step, error.value.history) == (0, 2, [])
    np.testing.assert_array_equal(error.value.params, W)


def test_not_a_number_keeps_the_parameters_of_the_epochs_start():
    """A batch turns bad in the third epoch; what the second one reached is kept."""

    class TurnsBad:
        epoch = -1

        def __iter__(self):
            self.epoch += 1
            yield X, Y
            yield X * (np.nan if self.epoch == 2 else 1), Y

    with pytest.raises(NotANumberError) as error:
        feedax.fit(linear, W, TurnsBad(), optimizer=optax.sgd(0.1), epochs=5)
    kept, history = feedax.fit(linear, W, [(X, Y)] * 2, optimizer=optax.sgd(0.1), epochs=2)
    assert (error.value.epoch, error.value.step) == (2, 1)
    np.testing.assert_array_equal(error.value.params, kept)
    assert [row["loss"] for row in error.value.history] == [row["loss"] for row in history]


def test_an_exploding_run_says_so():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1e4, (64, 8)).astype(np.float32)
    said = message(
        NotANumberError,
        [(x, x.sum(1))] * 50,
        predict=lambda w, x: w @ x,
        params=jnp.zeros(8),
        loss=lambda p, t: (p - t) ** 2,
        optimizer=optax.sgd(1.0),
    )
    assert said.startswith(
        "fit: the loss and the parameters must be finite numbers, and they were not in epoch"
    )


def test_a_loss_without_a_gradient():
    examples = [(np.ones((3, 8), np.float32), np.arange(3))]
    assert message(ModelError, examples, loss=lambda p, t: jnp.argmax(p) != t) == (
        "fit: the loss must be a floating point number, which has a gradient, and it is bool; "
        "leave out what compares, rounds or casts in it"
    )


def test_the_variables_of_a_linen_module_are_no_parameters():
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.zeros(2)}}
    assert message(ModelError, [], params=variables) == (
        "fit: params must hold what is trained alone, and they hold a Linen module's batch_stats "
        "too; write net = feedax.from_linen(module, variables) and feedax.fit(**net, train=...)"
    )


def test_a_folder_with_the_checkpoints_of_a_much_larger_model_is_kept(tmp_path):
    def fit(size):
        return feedax.fit(
            lambda w, x: w[:2] * x, jnp.ones(size), [(np.ones((4, 2), np.float32),) * 2],
            loss=lambda p, t: ((p - t) ** 2).sum(), optimizer=optax.sgd(0.1),
            checkpoints=feedax.Checkpoints(tmp_path),
        )  # fmt: skip

    fit(40_000_000)
    (saved,) = tmp_path.glob("*.safetensors")
    size = saved.stat().st_size
    with pytest.raises(CheckpointError) as error:
        fit(2)
    assert str(error.value).startswith(
        f"fit: {saved} must be a checkpoint of this model and optimizer, which takes at most"
    )
    assert saved.stat().st_size == size


def test_torchs_optimizers_and_losses_and_names_are_met_with_ours():
    weight = torch.zeros(1, requires_grad=True)
    for optimizer in (torch.optim.Adam, torch.optim.Adam([weight])):
        with pytest.raises(ModelError) as error:
            feedax.fit(lambda w, x: w @ x, jnp.zeros((2, 2)), [], optimizer=optimizer)
        assert str(error.value) == (
            "fit: optimizer must be an optax transformation, and it is torch's Adam; give "
            "optax.adam(1e-3), say"
        )
    losses = {
        "'mse'": "mse",
        "torch's CrossEntropyLoss": torch.nn.CrossEntropyLoss(),
        "torch's cross_entropy": torch.nn.functional.cross_entropy,
    }
    for found, loss in losses.items():
        with pytest.raises(ModelError) as error:
            feedax.fit(lambda w, x: w @ x, jnp.zeros((2, 2)), [], loss=loss)
        assert str(error.value) == (
            "fit: loss must be a function of one example's prediction and target as JAX arrays, "
            f"and it is {found}; give feedax.cross_entropy, or lambda prediction, target: "
            "((prediction - target) ** 2).mean(), say"
        )


@pytest.mark.parametrize(
    ("predict", "batched", "remedy"),
    [
        (lambda w, x: w @ x, False, "x.ravel()"),
        (lambda w, x: x @ w.T, True, "x.reshape(len(x), -1)"),
    ],
)
def test_a_model_that_does_not_flatten_is_told_how(predict, batched, remedy):
    batch = np.zeros((4, 3, 5), np.float32), np.arange(4)
    with pytest.raises(ModelError) as error:
        feedax.fit(predict, jnp.zeros((4, 15)), [batch], batched=batched)
    assert str(error.value).endswith(f"; it works on flat inputs: begin it with x = {remedy}")
