"""`sweep`, networks side by side: close to what `fit` trains, group by group, device by device."""

import logging
import os
import pickle
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sweep_jobs
from helpers import bits, problem, slow, timeless
from sweep_jobs import (
    JOBS,
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
from feedax.errors import BatchError, CheckpointError, ModelError
from feedax.train import NetworkEnded, NetworksStarted, StopTraining


def assert_close(ours, theirs, tolerance):
    """Networks of two sweeps: parameters, and every number of every row but times."""
    assert [network.name for network in ours] == [network.name for network in theirs]
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
        for a, b in pairs:
            assert np.asarray(a).dtype == np.asarray(b).dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=one.name)
        rows, wanted = timeless(one.history), timeless(other.history)
        assert len(rows) == len(wanted), one.name
        for row, like in zip(rows, wanted, strict=True):
            assert list(row) == list(like)
            assert row == pytest.approx(like, rel=10 * tolerance, abs=10 * tolerance), one.name


def both(tolerance, together, **options):
    """The same sweep side by side and one by one."""
    many = train(together=together, **options)
    assert_close(many.networks, train(together=1, **options).networks, tolerance)
    return many


@pytest.mark.parametrize(
    "plan",
    [
        "resident",
        pytest.param("vectorised", marks=pytest.mark.slow),
        pytest.param("streamed", marks=pytest.mark.slow),
    ],
)
def test_fifty_steps_are_those_of_fit(plan):
    """Groups of 3 and 1: the last one has more places than networks."""
    found = both(
        1e-5, 3, source=loader(plan), epochs=None, steps=50,
        augment=sweep_jobs.noisy, hyperparams={"smoothing": 0.1, "weight_decay": 0.01},
        loss=sweep_jobs.smoothed, optimizer=sweep_jobs.decayed,
    )  # fmt: skip
    assert [len(network.history) for network in found.networks] == [8] * 4


def test_an_epoch_in_float64_is_that_of_fit():
    x, y = problem(1)
    with jax.enable_x64(True):
        found = both(
            1e-9, 3, source=loader(dtype=np.float64), epochs=8,
            evaluate={"test": [(np.float64(x), y)]},
            hyperparams={"dropout": [0.0, 0.3]}, augment=sweep_jobs.noisy,
        )  # fmt: skip
        assert {leaf.dtype for leaf in jax.tree.leaves(found.networks[0].params)} == {
            np.dtype(np.float64)
        }


def test_models_with_a_state_are_trained_side_by_side():
    both(
        1e-5, 3, predict=sweep_jobs.normed, state=np.zeros(16, np.float32), best="test_loss",
        epochs=4,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"predict": sweep_jobs.batched, "batched": True},
        {"predict": sweep_jobs.conv},
        {"mixup": 0.4, "epochs": 1},
    ],
)
def test_so_are_others(options):
    both(1e-5, 3, **options)


def test_each_network_has_its_own_best_and_its_own_patience():
    found = both(
        1e-5, 3, seeds=3, learning_rate=[0.001, 0.1], epochs=9, best="test_accuracy", patience=1
    )
    lengths = {len(network.history) for network in found.networks}
    assert len(lengths) > 1
    for network in found.networks:
        accuracies = [row["test_accuracy"] for row in network.history]
        best = int(np.argmax(accuracies))
        assert len(accuracies) == min(9, best + 2)
        given = feedax.evaluate(predict, network.params, [problem(1)])
        assert given["accuracy"] == accuracies[best]


def test_more_places_than_networks_and_no_epochs():
    found = train(together=99, epochs=0)
    assert [bits(network.params) for network in found.networks] == [
        bits(init(jax.random.key(seed))) for seed in (0, 1, 0, 1)
    ]
    assert [network.history for network in found.networks] == [[]] * 4


def test_all_groups_are_trained_by_one_program(caplog):
    events = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train(together=3, seeds=4, callbacks=[events.append])
    start = "Finished XLA compilation of jit("
    lines = (record.getMessage() for record in caplog.records)
    counts = Counter(line[len(start) :].split(")")[0] for line in lines if line.startswith(start))
    assert [counts[name] for name in ("_first_state", "_train_chunk", "_score_block")] == [
        1, 1, 1
    ]  # fmt: skip
    names = [f"learning_rate={rate},seed={seed}" for rate in (0.01, 0.03) for seed in range(4)]
    assert [event for event in events if isinstance(event, NetworksStarted)] == [
        NetworksStarted(names[i : i + 3], i, 8, 2, STEPS) for i in (0, 3, 6)
    ]
    assert [e.network.name for e in events if isinstance(e, NetworkEnded)] == names


def test_a_function_of_a_seed_gives_each_network_its_own_examples():
    def source(seed):
        data = ArrayDataset(*problem(seed))
        return feedax.NumpyLoader(data, 8, shuffle=True, seed=seed)

    both(1e-5, 3, source=source)


def test_sources_of_several_networks_may_use_one_memory():
    """int64 and float64 are converted on their way, and must be read in time all the same."""
    a, b = np.empty((8, 6)), np.empty(8, np.int64)

    class Reusing:
        def __init__(self, seed):
            self.examples = problem(seed)

        def __iter__(self):
            for i in range(0, 40, 8):
                a[:], b[:] = (part[i : i + 8] for part in self.examples)
                yield a, b

    def fresh(seed):
        return [(x.copy(), y.copy()) for x, y in Reusing(seed)]

    found, wanted = (train(together=4, source=source).networks for source in (Reusing, fresh))
    assert [bits(one.params) for one in found] == [bits(one.params) for one in wanted]


def test_networks_with_other_numbers_of_batches_are_refused():
    def source(seed):
        x, y = problem()
        return feedax.NumpyLoader(ArrayDataset(x[: 32 + seed], y[: 32 + seed]), 8, seed=seed)

    def batches(seed):
        return list(source(seed))

    for one in (source, batches):
        with pytest.raises(BatchError) as caught:
            train(together=3, source=one)
        assert str(caught.value) == (
            "sweep: networks trained side by side must get the same number of batches, of the "
            "same sizes, and their loaders differ; give together=1"
        )
        assert len(train(together=1, source=one).networks) == 4


@pytest.mark.parametrize(
    "init",
    [
        lambda key: {"w": jax.random.normal(key, (3, 6)), "n": int(jax.random.bits(key))},
        lambda key: {"w": jnp.ones((3, 6 + int(jax.random.key_data(key)[1])))},
    ],
)
def test_networks_that_differ_in_more_than_numbers_are_refused(init):
    with pytest.raises(ModelError) as caught:
        train(together=2, init=init, predict=lambda params, x: params["w"][:, :6] @ x)
    assert str(caught.value) == (
        "sweep: networks trained side by side may differ only in the values of their parameters, "
        "and init makes other leaves or shapes from another key; give together=1"
    )


# --- Not a number ---


def test_a_network_that_turns_not_a_number_leaves_the_others_alone():
    options = {"predict": sweep_jobs.conv, "optimizer": optax.sgd(1.0), "epochs": 3}
    heard = []
    many = train(together=3, learning_rate=[0.1, 1e30], callbacks=[heard.append], **options)
    one = train(together=1, learning_rate=[0.1, 1e30], **options)
    assert_close(many.networks, one.networks, 1e-5)
    for ours, theirs in zip(many.networks[2:], one.networks[2:], strict=True):
        assert str(ours.error) == str(theirs.error)
        assert (ours.error.epoch, ours.error.step) == (theirs.error.epoch, theirs.error.step)
        assert bits(ours.params) == bits(init(jax.random.key(ours.seed))) == bits(ours.error.params)
        assert ours.history == ours.error.history == []
    assert [(one.count, one.failed) for one in many.summaries("loss")] == [(2, 0), (0, 2)]
    good = train(together=3, learning_rate=[0.1], **options)
    assert_close(many.networks[:2], good.networks, 1e-5)


def late_failure(**options):
    """Of the networks of one seed, one turns not-a-number in the second epoch, at step 3."""

    def loss(prediction, target, limit):
        # It falls below the limit when it is trained for a while.
        value = feedax.cross_entropy(prediction, target)
        return jnp.where(value < limit, jnp.nan, value)

    return train(
        seeds=1, learning_rate=[0.03, 0.031], hyperparams={"limit": [0.0, 0.03]}, loss=loss,
        epochs=6, **options,
    )  # fmt: skip


# --- Going on ---


@pytest.mark.parametrize(
    "kind",
    [
        "resident",
        pytest.param("streamed", marks=pytest.mark.slow),
        pytest.param("patience", marks=pytest.mark.slow),
        "failure",
    ],
)
def test_groups_that_are_stopped_go_on_to_the_same_bits(kind, tmp_path, tells_of_every_step):
    """In mid-epoch, at the end of one, after a network has failed or had its last epoch."""
    run = {
        "resident": lambda *a, **more: train(*a, together=3, **more),
        "streamed": lambda *a, **more: train(*a, together=3, source=loader("streamed"), **more),
        "patience": lambda *a, **more: train(
            *a, together=3, epochs=6, best="test_accuracy", patience=1, **more
        ),
        "failure": lambda folder=None, **more: late_failure(folder=folder, together=3, **more),
    }[kind]
    events = []
    whole = run(callbacks=[events.append])
    count = sum(is_step(event) for event in events)
    if kind == "failure":
        errors = [network.error for network in whole.networks]
        assert [error is None for error in errors] == [True, False, True, False]
        assert errors[1].epoch > 0
        assert len(whole.networks[1].history) == errors[1].epoch
    if kind == "patience":
        assert len({len(network.history) for network in whole.networks}) > 1
    done = 0
    for after in (4, 7, 9, 3, 8, 6):
        if done + after >= count:
            break
        found = run(tmp_path, callbacks=[stopper(after)])
        assert not found.is_complete
        done += after
    events.clear()
    found = run(tmp_path, callbacks=[events.append])
    assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks))
    assert sum(is_step(event) for event in events) == count - done, "no step twice"
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n.name}.safetensors" for n in whole.networks)
    again = run(tmp_path)
    assert list(map(numbers, again.networks)) == list(map(numbers, whole.networks))
    for ours, theirs in zip(again.networks, whole.networks, strict=True):
        if theirs.error is not None:
            assert bits(ours.error.params) == bits(theirs.error.params)
            assert timeless(ours.error.history) == timeless(theirs.error.history)


def test_a_group_that_was_begun_goes_on_beside_networks_that_are_new(tmp_path, tells_of_every_step):
    whole = train(together=3, learning_rate=[0.01], seeds=3)
    train(tmp_path, together=3, learning_rate=[0.01], seeds=3, callbacks=[stopper(9)])
    events = []
    found = train(
        tmp_path, together=3, learning_rate=[0.02, 0.01], seeds=4, callbacks=[events.append]
    )
    started = [event.names for event in events if isinstance(event, NetworksStarted)]
    assert started == [
        ["learning_rate=0.01,seed=0", "learning_rate=0.01,seed=1", "learning_rate=0.01,seed=2"],
        ["learning_rate=0.02,seed=0", "learning_rate=0.02,seed=1", "learning_rate=0.02,seed=2"],
        ["learning_rate=0.02,seed=3", "learning_rate=0.01,seed=3"],
    ]
    assert list(map(numbers, found.networks[4:7])) == list(map(numbers, whole.networks))
    assert sum(is_step(event) for event in events) == 3 * 2 * STEPS - 9
    assert len(os.listdir(tmp_path)) == 8


def test_a_group_half_of_whose_results_were_written_is_finished(tmp_path, tells_of_every_step):
    """The process was lost between two results, and the checkpoint is there still."""
    options = {"together": 3, "learning_rate": [0.01], "seeds": 3}
    whole = train(tmp_path / "whole", **options)
    (tmp_path / "half").mkdir()
    train(tmp_path / "half", callbacks=[stopper(2 * STEPS)], **options)
    (group,) = (tmp_path / "half").iterdir()
    name = "learning_rate=0.01,seed=1.safetensors"
    os.rename(tmp_path / "whole" / name, tmp_path / "half" / name)
    events = []
    found = train(tmp_path / "half", callbacks=[events.append], **options)
    assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks))
    assert sum(is_step(event) for event in events) == 0
    assert sum(isinstance(event, NetworkEnded) for event in events) == 2
    assert not group.exists()


def test_a_list_of_batches_begins_again_after_an_epoch(tmp_path, tells_of_every_step):
    """It cannot say where it stands, and the process is lost after an epoch was saved."""

    def lose(event):
        if is_step(event) and event.epoch == 1:
            raise KeyboardInterrupt

    x, y = problem()
    source = [(x[i : i + 13], y[i : i + 13]) for i in range(0, len(x), 13)]
    options = {"together": 2, "learning_rate": 0.1, "source": source}
    whole = train(**options)
    epochly = {"checkpoints": feedax.Checkpoints(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[lose], **options, **epochly)
    found = train(**options, **epochly)
    assert list(map(numbers, found.networks)) == list(map(numbers, whole.networks))


def test_another_size_begins_again(tmp_path, tells_of_every_step):
    train(tmp_path, together=4, callbacks=[stopper(3)])
    found = train(tmp_path, together=3)
    assert list(map(numbers, found.networks)) == uninterrupted(3)


def test_another_learning_rate_is_refused_in_the_middle_too(tmp_path, tells_of_every_step):
    options = {"together": 3, "seeds": 3, "learning_rate": 0.5}
    train(tmp_path, callbacks=[stopper(4)], **options)
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, **options | {"learning_rate": 0.25})
    (group,) = tmp_path.iterdir()
    assert str(caught.value) == (
        "sweep: a resumed run must have the learning_rate= that it began with, and in "
        f"{group / 'step-000000004.safetensors'} it was [0.5 0.5 0.5] but is [0.25 0.25 0.25]; "
        "give the same, or another folder"
    )


@pytest.mark.parametrize("error", [slow(KeyboardInterrupt), slow(ZeroDivisionError), StopTraining])
def test_a_callback_may_raise_at_the_end_of_a_group(error, tmp_path):
    """What all networks of the group have learned is kept."""

    def end(event):
        if isinstance(event, NetworkEnded):
            raise error

    if error is StopTraining:
        assert len(train(tmp_path, together=3, callbacks=[end]).networks) == 3
    else:
        with pytest.raises(error):
            train(tmp_path, together=3, callbacks=[end])
    events = []
    found = train(tmp_path, together=3, callbacks=[events.append])
    assert sum(isinstance(event, NetworkEnded) for event in events) == 1
    assert list(map(numbers, found.networks)) == uninterrupted(3)


# --- Devices ---


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "resident")) for name in JOBS]
)
def test_devices_share_the_networks(name, tmp_path):
    """10 networks in groups of 8, 3 being asked for; and 12 on 8 devices at once."""
    out = tmp_path / "kept"
    ended = subprocess.run(
        [sys.executable, sweep_jobs.__file__, "on_eight_devices", name, out],
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    kept, given = pickle.loads(out.read_bytes()), dict(JOBS[name])
    given.pop("together")
    one = train(source=loader(given.pop("plan")), **given).networks
    assert [name for name, _, _ in kept] == [network.name for network in one]
    networks = [
        feedax.train.Network(network.seed, network.setting, params, history)
        for network, (_, params, history) in zip(one, kept, strict=True)
    ]
    assert_close(networks, one, 1e-5)
