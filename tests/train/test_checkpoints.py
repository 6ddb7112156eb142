"""`fit` with checkpoints: a run that goes on has the bits of one that never stopped."""

import functools
import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import sweep_jobs
import torch
from helpers import batches, bits, problem, slow, slow_but, timeless
from sweep_jobs import COUNT, SIZE, STEPS, Noisy
from sweep_jobs import predict as with_dropout
from torch.utils.data import BatchSampler, SequentialSampler

import feedax
from feedax.data import ArrayDataset, NumpyLoader
from feedax.errors import BatchError, CheckpointError, ModelError, PositionError
from feedax.machine import usable_cpus
from feedax.storage.checkpoint_file import read_checkpoint
from feedax.train.training import Training

WHOLE = "must be a whole number from 1 on, and it is"
loader = functools.partial(sweep_jobs.loader, seed=3)


PARAMS = {
    "w": jax.random.normal(jax.random.key(1), (16, 6)) / 3,
    "v": jax.random.normal(jax.random.key(2), (3, 16)) / 3,
}


def train(source, checkpoints=None, stop_at=None, **options):
    """Two epochs, or fewer: a callback stops them at the first event after so many steps."""
    done = []

    def stop(event):
        if isinstance(event, feedax.Stepped) and 7 * event.epoch + event.step >= stop_at:
            raise feedax.StopTraining

    options = {"optimizer": optax.adam(0.01), "epochs": 2, **options}
    if "steps" in options:
        del options["epochs"]
    callbacks = [done.append, *([stop] if stop_at is not None else [])]
    params, history = feedax.fit(
        options.pop("predict", with_dropout),
        PARAMS,
        source,
        evaluate={"test": [problem(1)]},
        key=jax.random.key(5),
        checkpoints=checkpoints,
        callbacks=callbacks,
        **options,
    )
    return params, history, done


SOURCES = {
    "resident": lambda: loader("resident"),
    "vectorised": lambda: loader("vectorised"),
    "streamed": lambda: loader("streamed"),
    "a list": lambda: [
        (problem()[0][i : i + SIZE], problem()[1][i : i + SIZE]) for i in range(0, COUNT, SIZE)
    ],
}


@pytest.mark.parametrize("kind", slow_but(["resident"], SOURCES))
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bits(kind, tmp_path, tells_of_every_step):
    make = SOURCES[kind]
    whole, rows, _ = train(make())
    for stop_at in (3, 7, 8):
        folder = tmp_path / str(stop_at)
        train(make(), feedax.Checkpoints(folder), stop_at)
        _, about = read_checkpoint(max(folder.iterdir()))
        assert about["step"] == stop_at
        params, history, events = train(make(), feedax.Checkpoints(folder))
        assert (events[0].step, len(events[0].history)) == (stop_at, about["epoch"])
        assert bits(params) == bits(whole)
        assert timeless(history) == timeless(rows)


def test_a_run_stopped_after_the_last_step_of_an_epoch_resumes_with_its_end(tmp_path, monkeypatch):
    """A chunk that reaches the end has found that out, and so has the loader."""
    monkeypatch.setattr(Training, "report_seconds", 0.0)
    whole, rows, _ = train(loader("resident"), epochs=3)
    for stop_at in (7, 14):
        folder = tmp_path / str(stop_at)
        train(loader("resident"), feedax.Checkpoints(folder), stop_at, epochs=3)
        _, about = read_checkpoint(max(folder.iterdir()))
        assert (about["step"], about["epoch_step"]) == (stop_at, 7)
        params, history, _ = train(loader("resident"), feedax.Checkpoints(folder), epochs=3)
        assert bits(params) == bits(whole)
        assert timeless(history) == timeless(rows)


def test_a_run_resumed_just_before_a_short_batch_pads_it_to_the_size_of_the_others(tmp_path):
    x, y = np.random.default_rng(1).normal(size=(37, 6)).astype(np.float32), np.arange(37) % 3
    options = {"optimizer": optax.adam(0.05), "key": jax.random.key(5)}

    def predict(params, x):
        return params["v"] @ jnp.tanh(params["w"] @ x)

    data = ArrayDataset(x, y)
    sampled = {"batch_sampler": BatchSampler(SequentialSampler(data), 8, drop_last=False)}
    shuffled = {"batch_size": 8, "shuffle": True, "seed": 3}
    sources = [
        functools.partial(NumpyLoader, data, plan=plan, **how)
        for plan, how in (("resident", shuffled), ("resident", sampled), ("streamed", sampled))
    ]
    for number, source in enumerate([*sources, lambda: batches(x, y, 8)]):

        def train(source=source, **more):
            return feedax.fit(predict, PARAMS, source(), **options, **more)[0]

        whole = train(epochs=1)
        checkpoints = feedax.Checkpoints(tmp_path / str(number))
        train(steps=4, checkpoints=checkpoints)
        assert bits(train(epochs=1, checkpoints=checkpoints)) == bits(whole)


def test_every_step_is_one_to_go_on_from_with_a_model_that_sees_the_batch(tmp_path):
    """A state, a short last batch of its own shape, and a checkpoint after each step."""

    def centred(params, state, x, train):
        mean = jax.lax.pmean(x, "batch") if train else state
        return params["v"] @ jnp.tanh(params["w"] @ (x - mean)), 0.9 * state + 0.1 * mean

    options = {"predict": centred, "state": jnp.zeros(6)}
    whole, rows, _ = train(loader(), **options)
    every = feedax.Checkpoints(tmp_path / "all", every_steps=1, keep=100)
    train(loader(), every, **options)
    paths = sorted((tmp_path / "all").iterdir())
    assert [int(path.stem.removeprefix("step-")) for path in paths] == list(range(1, 15))
    for path in paths[4:8]:  # the short batch is the 7th
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        result, history, _ = train(loader(), feedax.Checkpoints(folder), **options)
        assert bits(result) == bits(whole)
        assert timeless(history) == timeless(rows)


def test_saving_changes_no_bit_and_the_last_few_are_kept(tmp_path):
    whole, rows, _ = train(loader())
    params, history, events = train(
        loader(), feedax.Checkpoints(tmp_path, every_steps=3, every_epochs=1, keep=2)
    )
    assert bits(params) == bits(whole)
    assert timeless(history) == timeless(rows)
    assert [event.step for event in events if isinstance(event, feedax.Saved)] == [
        3,
        6,
        7,
        9,
        12,
        14,
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000012.safetensors",
        "step-000000014.safetensors",
    ]


def test_the_best_epoch_is_returned_kept_and_gone_on_with(tmp_path):
    options = {"best": "test_loss", "optimizer": optax.adam(0.03), "epochs": 6}
    params, rows, events = train(loader(), feedax.Checkpoints(tmp_path, keep=1), **options)
    ended = [event for event in events if isinstance(event, feedax.EpochEnded)]
    best = min(rows, key=lambda row: row["test_loss"])["epoch"]
    assert 0 < best < 5  # neither the first nor the last, or the test shows little
    assert max(event.epoch for event in ended if event.is_best) == best
    only, _, _ = train(loader(), **{**options, "epochs": best + 1})
    assert bits(params) == bits(only)
    steps = {int(path.stem.removeprefix("step-")) for path in tmp_path.iterdir()}
    assert steps == {7 * (best + 1), 42}
    again, history, _ = train(loader(), feedax.Checkpoints(tmp_path, keep=1), **options)
    assert bits(again) == bits(params)
    assert timeless(history) == timeless(rows)


def test_patience_ends_a_run_that_gets_no_better_and_so_does_the_run_that_goes_on(tmp_path):
    options = {"best": "test_loss", "optimizer": optax.adam(0.03), "epochs": 30, "patience": 2}
    params, rows, _ = train(loader(), **options)
    losses = [row["test_loss"] for row in rows]
    assert len(rows) == int(np.argmin(losses)) + 1 + 2 < 30
    for epochs in (2, 3):
        train(loader(), feedax.Checkpoints(tmp_path), **{**options, "epochs": epochs})
    again, history, _ = train(loader(), feedax.Checkpoints(tmp_path), **options)
    assert bits(again) == bits(params)
    assert timeless(history) == timeless(rows)


def test_steps_end_in_the_middle_of_an_epoch_and_more_can_follow(tmp_path):
    whole, rows, _ = train(loader(), steps=13)
    assert [row["epoch"] for row in rows] == [0, 1]
    shorter, first, events = train(loader(), feedax.Checkpoints(tmp_path), steps=10)
    assert [row["epoch"] for row in first] == [0, 1]
    assert isinstance(events[-1], feedax.Ended)
    assert events[-2].is_last or isinstance(events[-2], feedax.Saved)
    same, again, _ = train(loader(), feedax.Checkpoints(tmp_path), steps=10)
    assert (bits(same), timeless(again)) == (bits(shorter), timeless(first))
    params, history, _ = train(loader(), feedax.Checkpoints(tmp_path), steps=13)
    assert bits(params) == bits(whole)
    assert timeless(history) == timeless(rows)


def test_a_finished_run_does_nothing_and_more_epochs_extend_it(tmp_path):
    whole, rows, _ = train(loader(), epochs=3)
    train(loader(), feedax.Checkpoints(tmp_path), epochs=2)
    _, history, events = train(loader(), feedax.Checkpoints(tmp_path), epochs=2)
    assert [type(event) for event in events] == [feedax.Started, feedax.Ended]
    assert timeless(history) == timeless(rows[:2])
    params, history, _ = train(loader(), feedax.Checkpoints(tmp_path), epochs=3)
    assert (bits(params), timeless(history)) == (bits(whole), timeless(rows))


def test_no_second_compilation_after_going_on(tmp_path, caplog):
    train(loader(), feedax.Checkpoints(tmp_path), epochs=1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train(loader(), feedax.Checkpoints(tmp_path), epochs=3)
    said = [r.getMessage() for r in caplog.records]
    assert sum("Finished XLA compilation of jit(_train_chunk)" in line for line in said) == 1
    assert sum("Finished XLA compilation of jit(_first_state)" in line for line in said) == 0


def test_a_checkpoint_is_plain_safetensors_and_says_what_it_is(tmp_path):
    params, _, _ = train(loader(), feedax.Checkpoints(tmp_path, run="mine"))
    path = tmp_path / "step-000000014.safetensors"
    arrays = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(arrays["state.params.w"], params["w"])
    assert {"state.key", "state.learning_rate", "state.step", "state.opt_state.0.mu.w"} <= set(
        arrays
    )
    _, about = read_checkpoint(path)
    assert (about["run"], about["step"], about["epoch"], about["epoch_step"]) == ("mine", 14, 2, 0)
    assert about["position"]["loader"]["epoch"] == 2
    assert about["environment"]["jax"] == jax.__version__
    json.dumps(about, allow_nan=False)


def test_what_is_another_run_is_refused(tmp_path, caplog):
    train(loader(), feedax.Checkpoints(tmp_path, run="a"), epochs=1)
    path = tmp_path / "step-000000007.safetensors"

    with pytest.raises(CheckpointError) as caught:
        train(loader(), feedax.Checkpoints(tmp_path, run="a"), learning_rate=0.5)
    assert str(caught.value) == (
        "fit: a resumed run must have the learning_rate= that it began with, and in "
        f"{path} it was 1.0 but is 0.5; give the same, or another folder"
    )
    with pytest.raises(CheckpointError, match="must hold the arrays of the state"):
        train(loader(), feedax.Checkpoints(tmp_path, run="a"), optimizer=optax.sgd(0.1))
    with pytest.raises(ModelError, match="must have the best= that it began with"):
        train(loader(), feedax.Checkpoints(tmp_path, run="a"), best="test_loss")
    with pytest.raises(PositionError, match="belongs to the seed it was saved with, 3"):
        train(
            feedax.NumpyLoader(ArrayDataset(*problem()), SIZE, shuffle=True, seed=4),
            feedax.Checkpoints(tmp_path, run="a"),
        )
    with pytest.raises(BatchError) as caught:
        train(SOURCES["a list"](), feedax.Checkpoints(tmp_path, run="a"))
    assert str(caught.value) == (
        "fit: to resume, train must have the load_state_dict of the loader that the checkpoint was "
        "saved with, and it is a list, which has none; give the same loader"
    )
    with pytest.raises(CheckpointError) as caught:
        train(loader(), feedax.Checkpoints(tmp_path, run="b"))
    assert str(caught.value) == (
        f"fit: a folder of checkpoints belongs to one run, and {tmp_path} has those of another "
        "one; choose another folder"
    )
    assert path.exists()


def test_another_runs_newest_is_named_and_the_one_before_it_used(tmp_path, caplog):
    whole, _, _ = train(loader(), feedax.Checkpoints(tmp_path / "a", run="a"))
    train(loader(), feedax.Checkpoints(tmp_path / "b", run="b", every_steps=3), epochs=1)
    foreign = tmp_path / "b" / "step-000000007.safetensors"
    foreign.write_bytes((tmp_path / "a" / "step-000000014.safetensors").read_bytes())
    with caplog.at_level(logging.WARNING, logger="feedax"):
        params, _, events = train(loader(), feedax.Checkpoints(tmp_path / "b", run="b"))
    assert (events[0].step, bits(params)) == (6, bits(whole))
    assert caplog.messages == [
        f"fit: {foreign} must be a checkpoint of this run, and it is of another one; use an "
        "earlier one, as fit does now"
    ]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        x, y = problem()
        return iter(zip(x + np.random.normal(0, 0.1, x.shape).astype(np.float32), y, strict=True))


@pytest.mark.parametrize("kind", ["stream", slow("picked")])
def test_evaluating_a_loader_that_picks_its_examples_moves_no_epoch(kind, tmp_path):
    def source():
        if kind == "stream":
            return feedax.NumpyLoader(Stream(), SIZE, seed=1)
        data = ArrayDataset(*problem())
        picked = torch.utils.data.RandomSampler(data, num_samples=40)
        return feedax.NumpyLoader(data, SIZE, sampler=picked, seed=1)

    def run(folder, epochs):
        loader = source()
        params, rows = feedax.fit(
            with_dropout, PARAMS, loader, epochs=epochs, evaluate={"train": loader},
            checkpoints=feedax.Checkpoints(tmp_path / folder),
        )  # fmt: skip
        return bits(params), timeless(rows)

    whole = run("whole", 4)
    for epochs in (1, 2):
        run("cut", epochs)
    assert run("cut", 4) == whole


def test_a_forked_child_keeps_no_folder(tmp_path):
    """PyTorch's workers may be forks that outlive the training that started them."""
    code = f"""
import os, signal
from feedax.train import Checkpoints
begun, begins = os.pipe()
with Checkpoints({str(tmp_path)!r}).in_use():
    child = os.fork()
    if child == 0:
        os.write(begins, b"x")
        signal.pause()
    os.read(begun, 1)
with Checkpoints({str(tmp_path)!r}).in_use():
    print("again")
os.kill(child, signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "again\n", done.stderr


def test_stopping_while_a_state_is_saved_stops_at_the_next_event(tmp_path):
    def stop(event):
        if isinstance(event, feedax.Saved):
            raise feedax.StopTraining

    _, rows = feedax.fit(
        with_dropout, PARAMS, loader(), epochs=3,
        checkpoints=feedax.Checkpoints(tmp_path), callbacks=[stop],
    )  # fmt: skip
    assert len(rows) == 1


def test_what_a_callback_does_to_a_row_is_its_own(tmp_path):
    def add(event):
        if isinstance(event, feedax.EpochEnded):
            event.row["mine"] = object()

    _, rows = feedax.fit(
        with_dropout, PARAMS, loader(), epochs=2,
        checkpoints=feedax.Checkpoints(tmp_path), callbacks=[add],
    )  # fmt: skip
    assert all("mine" not in row for row in rows)


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path, tells_of_every_step):
    """The step that ruins them has a finite loss, and a callback stops right after it."""

    def stop(event):
        if isinstance(event, feedax.Stepped):
            raise feedax.StopTraining

    ruined = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * jnp.inf, updates))
    feedax.fit(
        with_dropout, PARAMS, loader(), optimizer=ruined,
        checkpoints=feedax.Checkpoints(tmp_path), callbacks=[stop],
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_changes_bits_is_named(tmp_path, caplog, monkeypatch):
    train(loader(), feedax.Checkpoints(tmp_path), epochs=1)
    cpus = usable_cpus()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(77))
    with caplog.at_level(logging.WARNING, logger="feedax"):
        train(loader(), feedax.Checkpoints(tmp_path))
    assert [line.partition(", and ")[2] for line in caplog.messages] == [
        f"usable CPUs was {cpus} and is 77"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every_steps": 0}, f"every_steps {WHOLE} 0; leave it out"),
        ({"every_epochs": 1.5}, f"every_epochs {WHOLE} 1.5; leave it out"),
        ({"keep": True}, f"keep {WHOLE} True; leave it out"),
        ({"every_seconds": 0}, "every_seconds must be above 0, and it is 0; leave it out"),
        ({"every_seconds": np.nan}, "every_seconds must be above 0, and it is nan; leave it out"),
    ],
)  # fmt: skip
def test_intervals_are_checked(options, said):
    with pytest.raises(CheckpointError) as caught:
        feedax.Checkpoints("nowhere", **options)
    assert str(caught.value) == f"Checkpoints: {said}"


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    code = f"""
import sys
import time
from feedax.train import Checkpoints
with Checkpoints({str(tmp_path)!r}).in_use():
    print("taken", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "taken\n"
    with pytest.raises(CheckpointError) as caught:
        train(loader(), feedax.Checkpoints(tmp_path))
    assert str(caught.value) == (
        f"fit: only one run at a time may save checkpoints in {tmp_path}, and another process "
        "does; wait for its end, or choose another folder"
    )
    other.communicate()
    train(loader(), feedax.Checkpoints(tmp_path))


def test_seconds_between_checkpoints(tmp_path, tells_of_every_step):
    _, _, events = train(loader(), feedax.Checkpoints(tmp_path, every_seconds=1e-9, keep=1))
    assert [e.step for e in events if isinstance(e, feedax.Saved)][:6] == [1, 2, 3, 4, 5, 6]
    _, _, events = train(loader(), feedax.Checkpoints(tmp_path / "b", every_seconds=1e9))
    assert [e.step for e in events if isinstance(e, feedax.Saved)] == [14]  # the end is saved


def test_a_loader_that_cannot_say_where_it_stands_is_refused_before_training(tmp_path):
    events = []
    source = feedax.NumpyLoader(Noisy(), SIZE, num_workers=1, in_order=False)
    with pytest.raises(PositionError):
        feedax.fit(
            with_dropout, PARAMS, source,
            checkpoints=feedax.Checkpoints(tmp_path), callbacks=[events.append],
        )  # fmt: skip
    assert events == []


def test_an_epoch_that_began_ends_with_its_row_also_where_patience_got_shorter(tmp_path):
    """The patience ran out before the checkpoint in the middle of the fifth epoch."""

    def run(patience, stops=None):
        return feedax.fit(
            lambda w, x: w @ x,
            np.zeros((3, 6), np.float32),
            loader("resident"),
            learning_rate=0.01,
            epochs=9,
            evaluate={"test": loader("resident")},
            metrics={"same": lambda prediction, target: 1.0},
            best="test_same",
            patience=patience,
            checkpoints=feedax.Checkpoints(tmp_path, every_steps=1),
            callbacks=[] if stops is None else [stops],
        )

    def stops(event):
        if isinstance(event, feedax.Saved) and event.step == 4 * STEPS + 2:
            raise feedax.StopTraining

    run(8, stops)
    _, history = run(2)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    assert "test_same" in history[-1]


@pytest.mark.parametrize("who", ["fit", "sweep"])
def test_a_path_in_place_of_checkpoints_is_refused(who, tmp_path):
    calls = {
        "fit": lambda: feedax.fit(feedax.mlp, {}, [], checkpoints=str(tmp_path)),
        "sweep": lambda: feedax.sweep(
            feedax.mlp, lambda key: {}, [], seeds=1, checkpoints=str(tmp_path)
        ),
    }
    with pytest.raises(CheckpointError) as caught:
        calls[who]()
    assert str(caught.value) == (
        f"{who}: checkpoints must be a feedax.Checkpoints, and it is a str; give "
        "feedax.Checkpoints('runs/mine'), say"
    )
