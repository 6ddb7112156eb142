"""`fit`, `sweep` of one network, and a group with a place for it: one engine, which agrees."""

import logging
import os
import threading
import time

import jax
import numpy as np
import optax
import pytest
from helpers import bits, problem, slow, timeless
from sweep_jobs import init, loader, predict

import feedax
from feedax.errors import NotANumberError, RunFolderError
from feedax.storage.checkpoint_file import read_checkpoint
from feedax.train import Ended, EpochEnded, Saved, Started, Stepped, Stopped, StopTraining
from feedax.train.specification import FitSpecification
from feedax.train.steps import Steps
from feedax.train.training import Training

SEED = 3
OPTIONS = {"epochs": 2, "learning_rate": 0.03}


pytestmark = pytest.mark.usefixtures("tells_of_every_step")


def given(options):
    return OPTIONS | {"evaluate": {"test": [problem(1)]}} | options


def by_fit(folder=None, **options):
    key = jax.random.key(SEED)
    checkpoints = folder and feedax.Checkpoints(folder, every_steps=3)
    return feedax.fit(
        predict, init(key), loader(seed=SEED), key=key, checkpoints=checkpoints, **given(options)
    )


def by_sweep(folder=None, **options):
    checkpoints = folder and feedax.Checkpoints(folder, every_steps=3)
    found = feedax.sweep(
        predict, init, loader(), seeds=[SEED], checkpoints=checkpoints, **given(options)
    )
    if not found.networks:
        return None, None
    (network,) = found.networks
    if network.error is not None:
        raise network.error
    return network.params, network.history


def by_a_group(folder=None, **options):
    """As `sweep` trains networks side by side: here one, and a place that repeats it."""
    key = jax.random.key(SEED)
    checkpoints = folder and feedax.Checkpoints(folder, every_steps=3)
    asked = FitSpecification(
        predict,
        init(key),
        loader(seed=SEED),
        key=key,
        checkpoints=checkpoints,
        **given(options),
        who="sweep",
    )
    (network,) = Training([asked], names=[f"seed={SEED}"], size=2).run()
    if network.error is not None:
        raise network.error
    return network.params, network.history


WAYS = [by_fit, by_sweep, by_a_group]


def assert_rows_agree(ours, theirs, way):
    ours, theirs = timeless(ours), timeless(theirs)
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    tolerance = 1e-4 if way is by_a_group else 0  # a mapped step takes its sums in another order
    for row, wanted in zip(ours, theirs, strict=True):
        assert row == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def spoken(event):
    """An event without its times and parameters."""
    match event:
        case Started():
            return "started", event.epochs, event.steps, event.how, event.step
        case Stepped():
            return "stepped", event.epoch, event.step, round(event.loss, 3)
        case EpochEnded():
            return "ended", event.epoch, list(event.row), event.is_best, event.is_last
        case Saved():
            return "saved", event.step, event.path.name
        case Stopped():
            return "stopped", event.epoch, event.step


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize(
    "options", [slow({}), {"best": "test_accuracy", "patience": 1, "epochs": 9}]
)
def test_rows_and_parameters_agree(way, options):
    params, rows = by_fit(**options)
    found, ours = way(**options)
    assert_rows_agree(ours, rows, way)
    if way is by_sweep:
        assert bits(found) == bits(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("steps", [slow(None), 7])
def test_events_agree(steps, tmp_path):
    heard = {way: [] for way in WAYS}
    for way, events in heard.items():
        way(tmp_path / way.__name__, callbacks=[events.append], steps=steps)
    assert [type(event) for event in heard[by_fit]].count(Ended) == 1
    assert isinstance(last := heard[by_fit].pop(), Ended)  # a group has `NetworkEnded`
    assert last.total_steps == heard[by_fit][-1].total_steps
    fit, group = ([spoken(event) for event in heard[way]] for way in (by_fit, by_a_group))
    assert {event[0] for event in fit} == {"started", "stepped", "ended", "saved"}
    assert group == fit
    stepped = [
        spoken(event) if isinstance(event, Stepped) else ("stepped", event.epoch + 1, 0)
        for event in heard[by_fit]
        if isinstance(event, Stepped) or (isinstance(event, EpochEnded) and not event.is_last)
    ]
    sweep = [spoken(event) for event in heard[by_sweep] if isinstance(event, Stepped)]
    assert [event[:3] for event in sweep] == [event[:3] for event in stepped]


def stop_after(steps):
    def stop(event):
        if isinstance(event, Stepped) and event.step == steps:
            raise StopTraining

    return stop


def test_checkpoints_agree(tmp_path):
    """All that they hold, but the axis of a group and that it holds the epoch's start."""
    held = {}
    for way in WAYS:
        way(tmp_path / way.__name__, callbacks=[stop_after(4)])
        (*_, path) = sorted((tmp_path / way.__name__).rglob("step-*.safetensors"))
        held[way] = path.name, *read_checkpoint(path)
    name, arrays, about = held[by_fit]
    own = {"position", "best", "history"}
    shared = about.keys() - own - {"seconds"}
    assert shared >= {"epoch", "step", "epoch_step", "metrics", "environment", "form", "run"}
    for way in WAYS[1:]:
        other_name, other_arrays, other = held[way]
        assert other_name == name
        assert {key: other[key] for key in shared} == {key: about[key] for key in shared}
        if way is by_sweep:
            assert {key: other[key] for key in own} == {key: about[key] for key in own}
        else:
            assert (other["positions"], other["best"]) == ([about["position"]], [about["best"]])
            assert (other["histories"], other["ended"]) == ([about["history"]], [])
        more = {leaf for leaf in other_arrays.keys() - arrays.keys() if "start" in leaf}
        assert other_arrays.keys() - more == arrays.keys()


def test_warnings_agree(tmp_path, monkeypatch, caplog):
    """Of another environment, and of another form of the steps."""
    said = {}
    for way in WAYS:
        folder = tmp_path / way.__name__
        way(folder, callbacks=[stop_after(4)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda pid: range(77))
            patch.setattr(Steps, "_is_slow_in_a_loop", lambda *_: True)
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="feedax"):
                way(folder)
        said[way] = caplog.messages
    assert len(said[by_fit]) == 2
    assert "usable CPUs" in said[by_fit][0]
    assert "compiled loop and is step by step" in said[by_fit][1]
    by_sweep_too = [text.replace("fit:", "sweep:", 1) for text in said[by_fit]]
    assert said[by_sweep] == said[by_a_group] == by_sweep_too


def test_not_a_number_agrees():
    caught = {}
    for way in WAYS:
        with pytest.raises(NotANumberError) as error:
            way(optimizer=optax.sgd(1.0), learning_rate=1e30)
        caught[way] = error.value
    fit = caught[by_fit]
    for way in WAYS[1:]:
        error = caught[way]
        assert str(error) == str(fit).replace("fit:", "sweep:", 1)
        assert (error.epoch, error.step) == (fit.epoch, fit.step)
        assert_rows_agree(error.history, fit.history, way)
        assert bits(error.params) == bits(fit.params)


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_that_cannot_be_written_ends_training_before_the_next_one(
    way, tmp_path, monkeypatch
):
    tried, steps = threading.Event(), []

    def fails(*_):
        tried.set()
        raise RunFolderError("no room")

    def wait(event):
        if isinstance(event, Stepped) and event.step:
            steps.append(event.step)
            if event.step == 3:
                assert tried.wait(60)
                time.sleep(0.2)  # the writer's thread has handed the error over

    monkeypatch.setattr(feedax.Checkpoints, "write", fails)
    with pytest.raises(RunFolderError, match="no room"):
        way(tmp_path, callbacks=[wait])
    assert steps[-1] < 6
