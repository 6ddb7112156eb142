"""`fit` on 2, 3 and 8 devices of one process beside `fit` on one.

Devices must be asked for before JAX starts, so what has many of them runs in one process that is
started for all tests together; what has one runs here.
"""

import gc
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import device_jobs
import jax
import pytest
from device_jobs import Job, Kept, assert_close, compilations, train_alone
from kill_jobs import SIDE, TRAIN

from feedax.errors import BatchError

# No number of devices divides 27, and the last of 12 batches has 3 examples.
JOBS = {
    "resident": (Job(steps=26, batch=27), [8]),
    "streamed": (Job(steps=26, batch=27, plan="streamed", augments=True), [8]),
    "small budget": (Job(steps=100, budget=100_000), [8]),
}
SLOW_JOBS = {
    "streamed": (Job(steps=50, batch=27, plan="streamed", augments=True), [8]),
    "batch norm": (
        Job("norm", epochs=1, batch=27, plan="streamed", augments=True, x64=True),
        [3],
    ),
    "interrupted": (Job(epochs=2, rests=True), [8]),
    "vectorised": (Job(steps=50, batch=27, plan="vectorised"), [2, 3, 8]),
    "vectorised, workers": (Job(steps=50, plan="vectorised", workers=2), [2, 3, 8]),
    "streamed, workers": (
        Job(steps=50, batch=27, plan="streamed", augments=True, workers=2),
        [2, 3, 8],
    ),
    "streamed, even": (Job(steps=50, plan="streamed", augments=True), [2, 3, 8]),
    "resident, even": (Job(steps=50), [2, 3, 8]),
    "resident, uneven": (Job(steps=50, batch=27), [2, 3, 8]),
    "resident, float64": (Job(epochs=1, batch=27, x64=True), [2, 3, 8]),
    "vectorised, float64": (Job(epochs=1, plan="vectorised", x64=True), [2, 3, 8]),
    "streamed, float64": (
        Job(epochs=1, batch=27, plan="streamed", augments=True, workers=2, x64=True),
        [2, 3, 8],
    ),
    "convolution, resident": (Job("conv", steps=50, batch=27), [2, 3, 8]),
    "convolution, streamed, workers": (
        Job("conv", steps=50, batch=27, plan="streamed", augments=True, workers=2),
        [8],
    ),
    "convolution, float64": (Job("conv", epochs=1, batch=27, x64=True), [2, 3, 8]),
    "convolution, 500 steps": (Job("conv", steps=500, batch=30, plan="vectorised"), [8]),
    "convolution, 500 resident steps": (Job("conv", steps=500, batch=30), [8]),
    "small budget, 500 steps": (Job(steps=500, budget=100_000), [8]),
}


def on_eight_devices(jobs: dict[str, tuple[Job, list[int]]], folder: Path) -> dict:
    """What jobs leave on devices of a process that has eight."""
    wanted, out = folder / "wanted", folder / "kept"
    wanted.write_bytes(pickle.dumps([(n, job, d) for n, (job, many) in jobs.items() for d in many]))
    ended = subprocess.run(
        [sys.executable, device_jobs.__file__, wanted, out, "8"],
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return on_eight_devices(JOBS, tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def eight_slowly(tmp_path_factory):
    return on_eight_devices(SLOW_JOBS, tmp_path_factory.mktemp("slowly"))


def found(results: dict, name: str, devices: int) -> Kept:
    kept = results[name, devices]
    assert isinstance(kept, Kept), kept
    return kept


def assert_like_one_device(results: dict, name: str, job: Job, devices: int) -> None:
    # Trajectories in float32 part after some hundred steps: chaos, not error.
    assert_close(found(results, name, devices), train_alone(job), 1e-9 if job.x64 else 1e-5)


def test_steps_on_several_devices_are_those_of_one(eight):
    assert_like_one_device(eight, "resident", JOBS["resident"][0], 8)


def test_augmented_batches_on_several_devices_are_those_of_one(eight):
    assert_like_one_device(eight, "streamed", JOBS["streamed"][0], 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices"),
    [(n, d) for n, (job, many) in SLOW_JOBS.items() for d in many if job.steps != 500],
)
def test_every_plan_on_several_devices_trains_as_on_one(eight_slowly, name, devices):
    assert_like_one_device(eight_slowly, name, SLOW_JOBS[name][0], devices)


def test_every_device_has_all_resident_examples(eight):
    kept = found(eight, "resident", 8)
    assert kept.how.startswith("resident: ")
    assert kept.holders == 8
    assert kept.said == []


def test_resident_examples_leave_the_device_with_the_end_of_training():
    gc.collect()
    gc.disable()
    try:
        kept = device_jobs.train(Job(epochs=1), 1)
        after = [a for a in jax.live_arrays() if a.shape == (TRAIN, SIDE, SIDE)]
    finally:
        gc.enable()
    assert kept.holders == 1
    assert after == []


def test_a_budget_for_one_copy_is_too_small_for_eight_in_one_memory(eight):
    # 300 images of 64 float32 and a label of 8 bytes are 0.08 MB.
    one, kept = device_jobs.train(Job(epochs=1, budget=100_000), 1), found(eight, "small budget", 8)
    assert (one.how.split(":")[0], one.holders) == ("resident", 1)
    assert kept.holders == 0
    assert kept.how == (
        "vectorised: 8 devices of one memory would each hold all examples, 0.6 MB together, over "
        "the budget of 0.1 MB"
    )


def test_each_program_is_compiled_once_for_all_batches_and_epochs(eight):
    for name, step in (("resident", "_train_chunk"), ("streamed", "_train_batch")):
        kept = found(eight, name, 8)
        assert len(kept.rows) == 3
        assert compilations(kept) == {"_first_state": 1, step: 1, "_score_block": 1}


@pytest.mark.slow
def test_each_program_is_compiled_once_for_each_true_size_of_a_batch(eight_slowly):
    # Of 27 and of 3; for evaluation of 32 and of 26.
    batches = {"_train_batch": 2, "_score_block": 2}
    assert compilations(found(eight_slowly, "batch norm", 3)) == {"_first_state": 1} | batches


@pytest.mark.slow
def test_a_run_that_goes_on_compiles_its_steps_once(eight_slowly):
    # Twice `fit`, of which the second one begins with a checkpoint in place of a first state.
    kept = found(eight_slowly, "interrupted", 8)
    assert len(kept.rows) == 2
    assert compilations(kept) == {"_first_state": 1, "_train_chunk": 2, "_score_block": 2}


def test_a_hundred_streamed_steps_have_few_programs_in_flight(eight):
    # Of programs that wait for each other's parts, 50 in flight are a deadlock.
    kept = found(eight, "small budget", 8)
    assert int(kept.arrays["state.step"]) == 100
    assert kept.in_flight <= 8


@pytest.mark.slow
def test_five_hundred_streamed_steps_have_few_programs_in_flight(eight_slowly):
    kept = found(eight_slowly, "small budget, 500 steps", 8)
    assert int(kept.arrays["state.step"]) == 500
    assert kept.in_flight <= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolution, 500 steps", "convolution, 500 resident steps"])
def test_five_hundred_steps_one_by_one_have_few_programs_in_flight(eight_slowly, name):
    kept = found(eight_slowly, name, 8)
    assert int(kept.arrays["state.step"]) == 500
    assert kept.compiled["_train_chunk"] == 0
    assert kept.in_flight <= 8


def test_an_epoch_loads_every_example_once(eight):
    # 26 steps of 27 are two epochs of 300 and two steps of the third.
    loaded = Counter(found(eight, "streamed", 8).loaded)
    assert loaded.total() == 2 * TRAIN + 2 * 27
    assert set(loaded.values()) == {2, 3}


@pytest.mark.parametrize("devices", [0, 2, True, "all"])
def test_devices_that_are_not_there_are_refused(devices):
    with pytest.raises(BatchError) as raised:
        device_jobs.train(Job(epochs=1), devices)
    assert str(raised.value) == (
        f"fit: devices=N must be from 1 to the 1 that JAX has here, and it is {devices!r}; give "
        "devices=1, or JAX more (JAX_NUM_CPU_DEVICES)"
    )
