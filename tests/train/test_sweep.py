"""`sweep`, one network after another: what `fit` would have trained, to the bit."""

import logging
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sweep_jobs
from helpers import bits, problem, slow, timeless
from sweep_jobs import (
    SIZE,
    STEPS,
    init,
    is_step,
    loader,
    numbers,
    predict,
    stopper,
    train,
    uninterrupted,
)

import feedax
from feedax.data import ArrayDataset
from feedax.errors import (
    BatchError,
    CheckpointError,
    ModelError,
    NotANumberError,
    PlanError,
    RunFolderError,
)
from feedax.train import NetworkEnded, NetworksStarted, Stepped, StopTraining
from feedax.train.specification import FitSpecification
from feedax.train.sweep import network_bytes, networks_that_fit


def fitted(network, source, predict=predict, init=init, hyperparams=None, **options):
    """The same network, trained by `fit`."""
    key = jax.random.key(network.seed)
    setting = dict(network.setting)
    rate = setting.pop("learning_rate", options.pop("learning_rate", None))
    return feedax.fit(
        predict, init(key), source, key=key, learning_rate=rate,
        hyperparams={**(hyperparams or {}), **setting} or None, **options,
    )  # fmt: skip


def assert_is_fitted(network, source, **options):
    params, history = fitted(network, source, **options)
    assert bits(network.params) == bits(params)
    assert timeless(network.history) == timeless(history)
    assert network.error is None
    assert network.history[0].keys() == history[0].keys()


SOURCES = {
    "resident": {"plan": "resident"},
    "vectorised": {"plan": "vectorised"},
    "streamed": {"plan": "streamed"},
    "workers": {"plan": "streamed", "num_workers": 2, "persistent_workers": True},
}
EVERYTHING = {
    "epochs": 2,
    "augment": sweep_jobs.noisy,
    "mixup": 0.4,
    "loss": sweep_jobs.smoothed,
    "optimizer": sweep_jobs.decayed,
}


@pytest.mark.parametrize(
    "kind",
    [
        "resident",
        pytest.param("workers", marks=pytest.mark.slow),
        pytest.param("vectorised", marks=pytest.mark.slow),
        pytest.param("streamed", marks=pytest.mark.slow),
    ],
)
def test_every_network_is_the_one_that_fit_trains(kind):
    few = kind == "workers"
    options = EVERYTHING | {"evaluate": {"test": [problem(1)]}}
    found = feedax.sweep(
        predict, init, loader(**SOURCES[kind]), seeds=[4, 1],
        learning_rate=0.01 if few else [0.01, 0.03],
        hyperparams={
            "dropout": 0.5 if few else [0.0, 0.5], "smoothing": 0.1, "noise": 0.2,
            "weight_decay": 0.01,
        },
        **options,
    )  # fmt: skip
    assert found.is_complete
    assert len(found.networks) == (2 if few else 8)
    fixed = {"dropout": 0.5, "smoothing": 0.1, "noise": 0.2, "weight_decay": 0.01}
    for network in found.networks[-2:]:
        source = loader(**SOURCES[kind], seed=network.seed)
        assert_is_fitted(network, source, hyperparams=fixed, **options, learning_rate=0.01)
    names = [one.name for one in found.networks]
    assert len(set(names)) == len(names)
    assert names[-2:] == (
        ["seed=4", "seed=1"]
        if few
        else ["learning_rate=0.03,dropout=0.5,seed=4", "learning_rate=0.03,dropout=0.5,seed=1"]
    )


MODELS = {
    "batch norm": {"predict": sweep_jobs.normed, "state": np.zeros(16, np.float32)},
    "batched": {"predict": sweep_jobs.batched, "batched": True},
    "convolution": {"predict": sweep_jobs.conv},
}


@pytest.mark.parametrize(
    "kind", ["batch norm", slow("convolution"), pytest.param("batched", marks=pytest.mark.slow)]
)
def test_so_are_models_of_all_kinds(kind):
    options = {
        "epochs": 4, "evaluate": {"test": [problem(1)]}, "best": "test_accuracy", "patience": 1,
        "augment": sweep_jobs.noisy, **MODELS[kind],
    }  # fmt: skip
    given = {name: value for name, value in options.items() if name != "predict"}
    found = feedax.sweep(
        options["predict"], init, loader(), seeds=2, learning_rate=[0.03, 0.3], **given
    )
    for network in found.networks:
        assert_is_fitted(network, loader(seed=network.seed), **options)
    assert len({len(network.history) for network in found.networks}) > 1, "patience ends some"


def test_what_is_not_trained_may_depend_on_the_key():
    def init(key):
        return {"w": jax.random.normal(key, (3, 6)), "order": np.asarray(key_order(key))}

    def key_order(key):
        return jax.random.permutation(key, 6)

    def predict(params, x):
        return params["w"] @ x[params["order"]]

    found = feedax.sweep(predict, init, loader(), seeds=3, learning_rate=0.1)
    for network in found.networks:
        source = loader(seed=network.seed)
        assert_is_fitted(network, source, predict=predict, init=init, learning_rate=0.1)
        np.testing.assert_array_equal(
            network.params["order"], key_order(jax.random.key(network.seed))
        )


def test_so_may_shapes():
    def init(key):
        return jnp.ones((3, 6)) if key_number(key) else {"a": jnp.ones((3, 6))}

    def key_number(key):
        return int(jax.random.key_data(key)[1])

    def predict(params, x):
        return (params["a"] if isinstance(params, dict) else params) @ x

    found = feedax.sweep(predict, init, loader(), seeds=3)
    for network in found.networks:
        assert_is_fitted(network, loader(seed=network.seed), predict=predict, init=init)


def compiled(caplog):
    """How often which function was compiled."""
    lines = (record.getMessage() for record in caplog.records)
    start = "Finished XLA compilation of jit("
    return Counter(line[len(start) :].split(")")[0] for line in lines if line.startswith(start))


def test_all_networks_are_trained_by_one_program(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        feedax.sweep(
            predict, init, loader(), seeds=3, learning_rate=[0.01, 0.02],
            hyperparams={"smoothing": [0.0, 0.1], "weight_decay": [0.0, 0.1]},
            loss=sweep_jobs.smoothed, optimizer=sweep_jobs.decayed,
            evaluate={"test": loader(seed=0)}, best="test_loss",
        )  # fmt: skip
    counts = compiled(caplog)
    ours = "_first_state", "_train_chunk", "_score_block"
    assert {name: counts[name] for name in ours} == dict.fromkeys(ours, 1)
    # What an earlier test has compiled is not compiled again.
    assert counts["_epoch_begun"] <= 1 >= counts["_copied"]


def test_the_examples_are_put_on_the_device_once_and_let_go(monkeypatch):
    # Each network's loader shares them, and another seed's data set takes the place of the last.
    whole = (COUNT_ODD, 6)

    def held():
        return sum(array.shape == whole for array in jax.live_arrays())

    counts = []

    def look(event):
        if isinstance(event, NetworkEnded):
            counts.append(held())

    def data(seed):
        rng = np.random.default_rng(seed)
        return ArrayDataset(rng.normal(size=whole).astype(np.float32), np.arange(COUNT_ODD) % 3)

    source = feedax.NumpyLoader(data(0), SIZE, shuffle=True)
    options = {"seeds": 3, "epochs": 2, "callbacks": [look]}
    feedax.sweep(predict, init, source, evaluate={"train": source}, **options)
    feedax.sweep(
        predict, init, lambda seed: feedax.NumpyLoader(data(seed), SIZE, seed=seed), **options
    )
    assert counts == [1] * 6


COUNT_ODD = 47


def test_a_function_of_a_seed_gives_each_network_its_own_examples():
    def source(seed):
        x, y = problem(seed)
        return feedax.NumpyLoader(ArrayDataset(x, y), SIZE, shuffle=True, seed=seed)

    found = feedax.sweep(predict, init, source, seeds=3, learning_rate=0.03)
    for network in found.networks:
        assert_is_fitted(network, source(network.seed), learning_rate=0.03)


def test_another_iterable_is_the_same_for_all():
    x, y = problem()
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    found = feedax.sweep(predict, init, batches, seeds=2, learning_rate=0.03, epochs=2)
    for network in found.networks:
        assert_is_fitted(network, batches, learning_rate=0.03, epochs=2)


# --- What is asked for ---


@pytest.mark.parametrize(
    "seeds", [3, slow(np.int64(3)), slow(range(3)), np.arange(3), iter([0, 1, 2])]
)
def test_seeds_and_values_are_numbers_of_every_kind(seeds):
    found = feedax.sweep(
        predict, init, [problem()], seeds=seeds, learning_rate=(x / 4 for x in (1, 2)),
        hyperparams={"dropout": np.array([0.0, 0.5], np.float32), "noise": np.float32(0.5)},
        augment=sweep_jobs.noisy, steps=0,
    )  # fmt: skip
    assert [network.name for network in found.networks] == [
        f"learning_rate={rate},dropout={dropout},seed={seed}"
        for rate in (0.25, 0.5)
        for dropout in (0.0, 0.5)
        for seed in range(3)
    ]
    assert all(network.history == [] for network in found.networks)
    assert bits(found.networks[-1].params) == bits(init(jax.random.key(2)))


VALUES = "must be numbers, one or more, each once, and they are"
SEEDS = (
    "sweep: seeds must be whole numbers from 0 to below 2**32, each once, or how many, and they "
    "are {}; give 5, say"
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 0}, SEEDS.format(0)),
        ({"seeds": []}, SEEDS.format([])),
        ({"seeds": [1, 1]}, SEEDS.format([1, 1])),
        ({"seeds": [-1]}, SEEDS.format([-1])),
        ({"seeds": [2**32]}, SEEDS.format([2**32])),
        ({"seeds": 1.5}, SEEDS.format(1.5)),
        ({"seeds": "all"}, SEEDS.format("'all'")),
        ({"learning_rate": []}, f"sweep: the values of learning_rate {VALUES} []"),
        ({"learning_rate": [1, 1.0]}, f"sweep: the values of learning_rate {VALUES} [1, 1.0]"),
        ({"learning_rate": "slow"}, f"sweep: the values of learning_rate {VALUES} ['slow']"),
        (
            {"hyperparams": {"dropout": [0.1, "b"]}},
            f"sweep: the values of dropout {VALUES} [0.1, 'b']",
        ),
        (
            {"key": jax.random.key(0)},
            "sweep: key must not be given, since every network has one of its own; give seeds and "
            "init",
        ),
        *(
            (
                {"together": value},
                f"sweep: together must be a whole number from 1 on, and it is {value!r}; leave it "
                "out",
            )
            for value in (0, 2.0, True)
        ),
        (
            {"hyperparams": {"dropuot": [0.1]}},
            "sweep: a hyperparameter must be a parameter of predict, loss, augment, a metric or a "
            "function that makes the optimizer, and 'dropuot' is one of none; add it there, or "
            "leave it out",
        ),
    ],
)
def test_what_is_none_is_refused(options, said):
    with pytest.raises(ModelError) as caught:
        feedax.sweep(predict, init, loader(), **options)
    remedy = "; leave it out, or give others" if VALUES in said else ""
    assert str(caught.value) == said + remedy


def test_an_option_that_is_none_is_refused_by_its_name():
    with pytest.raises(TypeError) as caught:
        feedax.sweep(predict, init, loader(), epoch=3)
    assert str(caught.value) == "sweep() got an unexpected keyword argument 'epoch'"


def test_an_iterator_is_for_one_network():
    found = feedax.sweep(predict, init, iter([problem()]), seeds=[3])
    assert len(found.networks[0].history) == 1
    with pytest.raises(BatchError) as caught:
        feedax.sweep(predict, init, iter([problem()]), seeds=2)
    assert str(caught.value) == (
        "sweep: train must be there for each of 2 networks, and it is a list_iterator, which "
        "comes once; give a NumpyLoader or a list, or a function of a seed that makes one"
    )
    with pytest.raises(BatchError, match=r"^sweep: train must be there for each of 2 networks"):
        feedax.sweep(predict, init, iter([problem()]), seeds=2, evaluate={"train": [problem()]})


# --- Not a number ---


@pytest.mark.parametrize("saves", [slow(False), True])
def test_a_network_that_turns_not_a_number_is_told_and_the_others_go_on(saves, tmp_path):
    folder = feedax.Checkpoints(tmp_path) if saves else None
    options = {"seeds": 2, "epochs": 3, "optimizer": optax.sgd(1.0), "checkpoints": folder}
    heard = []
    for _ in range(1 + saves):  # what is read again is as it was told
        found = feedax.sweep(
            sweep_jobs.conv, init, loader(), learning_rate=[0.1, 1e30],
            callbacks=[heard.append], **options,
        )  # fmt: skip
        alone = feedax.sweep(
            sweep_jobs.conv, init, loader(), learning_rate=[0.1],
            **options | {"checkpoints": None},
        )  # fmt: skip
        assert found.is_complete
        assert list(map(numbers, found.networks[:2])) == list(map(numbers, alone.networks))
        for network in found.networks[2:]:
            with pytest.raises(NotANumberError) as caught:
                fitted(network, loader(seed=network.seed), predict=sweep_jobs.conv, epochs=3,
                       optimizer=optax.sgd(1.0))  # fmt: skip
            theirs = caught.value
            assert isinstance(network.error, NotANumberError)
            said = (
                "the loss and the parameters must be finite numbers, and they were not in epoch 0 "
                f"at step {theirs.step}; lower the step size, or look at that batch's examples"
            )
            assert (str(network.error), str(theirs)) == (f"sweep: {said}", f"fit: {said}")
            assert (network.error.epoch, network.error.step) == (0, theirs.step)
            assert bits(network.params) == bits(theirs.params) == bits(network.error.params)
            assert bits(network.params) == bits(init(jax.random.key(network.seed)))
            assert network.history == theirs.history == network.error.history == []
        good, bad = found.summaries("loss")
        losses = [network.history[-1]["loss"] for network in found.networks[:2]]
        assert good == (
            {"learning_rate": 0.1}, 2, np.mean(losses), pytest.approx(np.std(losses, ddof=1)),
            min(losses), max(losses), 0,
        )  # fmt: skip
        assert (bad.setting, bad.count, bad.failed) == ({"learning_rate": 1e30}, 0, 2)
        assert np.isnan([bad.mean, bad.sd, bad.minimum, bad.maximum]).all()
    assert [event.network.name for event in heard if isinstance(event, NetworkEnded)] == [
        network.name for network in found.networks
    ]
    with pytest.raises(ModelError) as refused:
        found.summaries("test_loss")
    assert str(refused.value).startswith(
        "sweep: a summary must be of a column of the rows, and it is of 'test_loss'; they have "
        "epoch, seconds, compile_seconds, "
    )


# --- Going on ---


@pytest.mark.parametrize("plan", ["resident", pytest.param("streamed", marks=pytest.mark.slow)])
def test_a_sweep_that_is_stopped_goes_on_to_the_same_bits(plan, tmp_path, tells_of_every_step):
    options = {"source": loader(plan), "best": "test_loss"}
    whole = train(**options)
    events = []
    # In the first network, after its last step, in the second, in the last.
    for after, left in ((5, 0), (9, 0), (10, 1), (23, 3)):
        found = train(tmp_path, callbacks=[stopper(after), events.append], **options)
        assert not found.is_complete
        assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks[:left]))
    found = train(tmp_path, callbacks=[events.append], **options)
    assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks))
    # No step twice.
    assert sum(is_step(event) for event in events) == 4 * 2 * STEPS
    assert [e.network.name for e in events if isinstance(e, NetworkEnded)] == [
        network.name for network in whole.networks
    ]
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n.name}.safetensors" for n in whole.networks)
    events.clear()
    again = train(tmp_path, callbacks=[events.append], **options)
    assert list(map(numbers, again.networks)) == list(map(numbers, whole.networks))
    assert (events, again.is_complete) == ([], True)


def test_only_networks_that_are_new_are_trained(tmp_path):
    train(tmp_path, seeds=[0])
    events = []
    found = train(tmp_path, seeds=[2, 0], learning_rate=[0.01, 0.1], callbacks=[events.append])
    assert list(map(numbers, found.networks)) == list(
        map(numbers, train(seeds=[2, 0], learning_rate=[0.01, 0.1]).networks)
    )
    begun = [e for e in events if isinstance(e, NetworksStarted)]
    assert begun == [
        NetworksStarted([name], ended, 4, 2, STEPS)
        for ended, name in enumerate(
            ["learning_rate=0.01,seed=2", "learning_rate=0.1,seed=2", "learning_rate=0.1,seed=0"], 1
        )
    ]


@pytest.mark.parametrize("error", [StopTraining, slow(KeyboardInterrupt), slow(ZeroDivisionError)])
def test_a_callback_may_raise_at_the_end_of_a_network(error, tmp_path):
    def end(event):
        if isinstance(event, NetworkEnded):
            raise error

    if error is StopTraining:
        assert len(train(tmp_path, callbacks=[end]).networks) == 1
    else:
        with pytest.raises(error):
            train(tmp_path, callbacks=[end])
    events = []
    found = train(tmp_path, callbacks=[events.append])
    assert sum(isinstance(event, NetworkEnded) for event in events) == 3
    assert list(map(numbers, found.networks)) == uninterrupted()
    assert len(os.listdir(tmp_path)) == 4, "results alone"


@pytest.mark.parametrize("error", [KeyboardInterrupt, slow(ZeroDivisionError)])
def test_or_in_the_middle_of_one(error, tmp_path, tells_of_every_step):
    def end(event):
        if isinstance(event, Stepped) and (event.epoch, event.step) == (1, 2):
            raise error

    with pytest.raises(error):
        train(tmp_path, callbacks=[end])
    steps = []
    found = train(tmp_path, callbacks=[lambda e: steps.append(e) if is_step(e) else None])
    assert list(map(numbers, found.networks)) == uninterrupted()
    assert len(steps) == 4 * 2 * STEPS - 9  # saved after 3, 6 and 9


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"learning_rate": 0.1}, {"learning_rate": 0.2}, "learning_rate was 0.1 but is 0.2"),
        ({}, {"epochs": 3}, "epochs was 2 but is 3"),
        slow({}, {"steps": 3}, "steps was None but is 3"),
        slow({}, {"mixup": 0.5}, "mixup was 0.0 but is 0.5"),
        slow({}, {"best": "test_loss"}, "best was None but is 'test_loss'"),
        (
            {"hyperparams": {"dropout": 0.1}},
            {"hyperparams": {"dropout": 0.2}},
            "hyperparams was {'dropout': 0.1} but is {'dropout': 0.2}",
        ),
        ({}, {"run": "b"}, "run was '' but is 'b'"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(before, after, said, tmp_path):
    def run(run="", **options):
        checkpoints = feedax.Checkpoints(tmp_path, run=run)
        options = {"learning_rate": 0.1, **options, "checkpoints": checkpoints}
        return train(seeds=1, **options)

    run(**before)
    file = tmp_path / "seed=0.safetensors"
    content = file.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run(**after)
    assert str(caught.value) == (
        f"sweep: a resumed sweep must have what it began with, and in {file} {said}; give the "
        "same, or another folder"
    )
    assert file.read_bytes() == content


def test_another_learning_rate_is_refused_in_the_middle_too(tmp_path, tells_of_every_step):
    train(tmp_path, seeds=1, learning_rate=0.5, callbacks=[stopper(4)])
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, seeds=1, learning_rate=0.25)
    assert str(caught.value) == (
        "sweep: a resumed run must have the learning_rate= that it began with, and in "
        f"{tmp_path / 'seed=0' / 'step-000000004.safetensors'} it was 0.5 but is 0.25; give the "
        "same, or another folder"
    )


def test_a_sweep_speaks_for_itself_as_long_as_it_runs(tmp_path, tells_of_every_step, caplog):
    def batches(seed):
        x, y = problem(64)
        return feedax.NumpyLoader(
            [({"x": a, "name": "a"}, b) for a, b in zip(x, y, strict=True)], batch_size=SIZE
        )

    def run(**options):
        folder = feedax.Checkpoints(tmp_path, every_steps=2)
        options = {"epochs": 1, "checkpoints": folder, **options}
        return feedax.sweep(lambda p, x: p["v"] @ (p["w"] @ x["x"]), init, batches, **options)

    with caplog.at_level(logging.INFO, logger="feedax"):
        run(callbacks=[stopper(4)])
        newest = tmp_path / "seed=0" / "step-000000004.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
        size = newest.stat().st_size
        with pytest.raises(ModelError) as caught:
            run(best="loss")
        run()
    assert str(caught.value) == (
        "sweep: a resumed run must have the best= that it began with, and it was None but is "
        "'loss'; give the same, or another folder"
    )
    new_order = (
        "sweep: a loader without a seed begins a new random order when a run is resumed; give "
        "NumpyLoader(seed=...) to get the same bits"
    )
    damaged = (
        f"read_checkpoint: {newest} must be a whole checkpoint, and it ends after {size} bytes "
        f"instead of {size + 1}; use an earlier one, as sweep does now"
    )
    text = "sweep: text stays on the host, and the model gets no inputs['name']"
    assert caplog.messages == [new_order, *[damaged, new_order] * 2, text]


def test_a_damaged_result_is_named_and_trained_again(tmp_path, caplog):
    whole = train(tmp_path)
    file = tmp_path / "learning_rate=0.01,seed=1.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    events = []
    with caplog.at_level(logging.WARNING, logger="feedax"):
        found = train(tmp_path, callbacks=[events.append])
    assert caplog.messages == [
        f"read_checkpoint: {file} must be a whole checkpoint, and its content is not what was "
        "written (SHA-256); use an earlier one; it is trained again"
    ]
    assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks))
    (ended,) = [event for event in events if isinstance(event, NetworkEnded)]
    assert ended.network.name == "learning_rate=0.01,seed=1"
    params, history = timeless_file(file), timeless(ended.network.history)
    assert (params, history) == (
        bits(whole.networks[1].params),
        timeless(whole.networks[1].history),
    )


def timeless_file(file):
    from feedax.storage.checkpoint_file import read_checkpoint

    arrays, _ = read_checkpoint(file)
    return bits([array.numbers for array in arrays.values()])


@pytest.mark.parametrize("together", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_full_disk_loses_nothing(together, tmp_path, tmp_path_factory):
    """A bound on the size of a file stands for the disk: a checkpoint does not fit."""
    # What is compiled lies in JAX's cache then, whose files the bound is not for.
    train(tmp_path_factory.mktemp("compiled"), together=together)
    found = train(tmp_path, together=together, seeds=2, learning_rate=[0.01])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found.networks[0].params))
    before = sorted(os.listdir(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(RunFolderError) as caught:
            train(tmp_path, together=together)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "must be writable, and the system says 'File too large'; free some" in str(caught.value)
    kept = [name for name in sorted(os.listdir(tmp_path)) if name.endswith(".safetensors")]
    assert kept == before
    assert list(Path(tmp_path).rglob("*.part")) == []
    found = train(tmp_path, together=together)
    if together == 1:
        assert list(map(numbers, found.networks)) == uninterrupted()
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("together", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sweep_that_is_killed_goes_on_to_the_same_bits(together, tmp_path):
    ended = subprocess.run(
        [sys.executable, sweep_jobs.__file__, "killed", tmp_path, str(together)],
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    results = {path.name for path in tmp_path.glob("*.safetensors")}
    assert results == ({"learning_rate=0.01,seed=0.safetensors"} if together == 1 else set())
    found = train(tmp_path, together=together)
    assert list(map(numbers, found.networks)) == uninterrupted(together)


# --- Loaders of other seeds, memory ---


def test_a_loader_with_another_seed_is_one_that_was_made_with_it():
    for plan in ("resident", "vectorised", "streamed"):
        source = loader(plan, seed=5)
        begun = iter(source)
        next(begun)
        for seed in (0, 7, np.int64(7)):
            other, made = source.with_seed(seed), loader(plan, seed=seed)
            for _ in range(2):
                for ours, theirs in zip(other, made, strict=True):
                    for a, b in zip(ours, theirs, strict=True):
                        np.testing.assert_array_equal(a, b)
            assert other.state_dict() == made.state_dict()
        assert other.plan() is source.plan() or plan == "streamed"
        assert len(list(begun)) == STEPS - 1, "the first one goes on where it was"
        assert source.seed == 5


def test_a_generator_leaves_no_place_for_a_seed():
    source = feedax.NumpyLoader(
        ArrayDataset(*problem()), SIZE, shuffle=True, generator=sweep_jobs.torch.Generator()
    )
    with pytest.raises(PlanError) as caught:
        source.with_seed(1)
    assert str(caught.value) == (
        "NumpyLoader: either seed or generator must decide the order, and both are given; leave "
        "one of them out"
    )


def test_a_network_has_room_for_what_a_step_works_with():
    def wide(key):
        return {"w": jax.random.normal(key, (512, 6)), "v": jnp.zeros((3, 512))}

    def bytes_of(**options):
        asked = FitSpecification(predict, wide(jax.random.key(0)), loader(seed=0), **options)
        assert networks_that_fit([asked], 100) == 1
        return network_bytes(asked)

    state = 3 * 9 * 512 * 4  # parameters and Adam's two moments
    assert 2 * state < bytes_of() < 6 * state
    # A block of an evaluation has 1024 examples, and a hidden layer for each.
    assert (
        1024 * 512 * 4 < bytes_of(evaluate={"test": [problem()]}) < 6 * state + 2 * 1024 * 512 * 4
    )
