"""Runs that are killed or stopped end with the bits of the run that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import kill_jobs
import numpy as np
import pytest
from helpers import slow, slow_but, timeless
from kill_harness import Harness, Job
from kill_outcome import Outcome, assert_equal, checkpoint_names

import feedax
from feedax.report.run_folder import RunFolder
from feedax.storage.checkpoint_file import read_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")

ADAM = "--optimizer adam --learning-rate 0.003 --loss cross_entropy --shuffle --batch-size 32"
COSINE = "--schedule cosine --warmup-steps 5"
NPZ = "train --dataset npz:images.npz --hidden 32"
CODE = "train --dataset kill_jobs:{} --hidden 32"

# 300 examples are 10 batches of 32, the last one of 12; 270 are 9, the last one of 14.
JOBS = [
    Job(
        "resident",
        f"{NPZ} {ADAM} {COSINE} --epochs 4 --validation 0.1 --checkpoint-every-steps 3",
        epoch_steps=9,
        rows=4,
        moments=(
            "at the start",
            "while it compiles",
            "while it trains",
            "while it evaluates, from nothing",
            "before the next checkpoint",
            "anywhere",
        ),
    ),
    Job(
        "vectorised",
        "train --dataset npz:images.npz --hidden 256 256 --plan vectorised --batch-size 32 "
        "--optimizer momentum --clip-norm 1 --steps 37 --checkpoint-every-steps 1",
        epoch_steps=10,
        rows=4,
        moments=(
            "while it saves",
            "while it evaluates",
            "anywhere, from nothing",
            "while it saves",
            "at the end",
        ),
    ),
    Job(
        "vectorised-workers",
        f"{NPZ} {ADAM} --plan vectorised --num-workers 2 --schedule one_cycle --epochs 4 "
        "--checkpoint-every-steps 5 --keep-checkpoints 1",
        epoch_steps=10,
        rows=4,
        moments=(
            "while it trains",
            "before the next checkpoint, from nothing",
            "while it evaluates",
        ),
    ),
    Job(
        "streamed",
        f"{CODE.format('augmented')} {ADAM} {COSINE} --epochs 4 --checkpoint-every-steps 2",
        epoch_steps=10,
        rows=4,
        moments=(
            "while it compiles",
            "while it saves",
            "before the next checkpoint",
            "while it evaluates",
            "anywhere",
        ),
    ),
    Job(
        "streamed-workers",
        f"{CODE.format('augmented')} {ADAM} {COSINE} --epochs 4 --num-workers 2 "
        "--checkpoint-every-seconds 0.05",
        epoch_steps=10,
        rows=4,
        moments=(
            "anywhere, from nothing",
            "while it trains",
            "before the next checkpoint",
            "while it saves",
            "while it trains",
            "at the end",
        ),
    ),
    Job(
        "whole-epochs",
        f"{CODE.format('augmented')} {ADAM} --epochs 4 --num-workers 2 --drop-last "
        "--checkpoint-every-epochs 1",
        epoch_steps=9,
        rows=4,
        moments=("while it trains", "anywhere", "while it saves"),
    ),
    Job(
        "cached",
        f"{CODE.format('deterministic')} {ADAM} --epochs 4 --cache --validation 0.1 "
        "--best validation_loss --checkpoint-every-steps 3",
        epoch_steps=9,
        rows=4,
        moments=(
            "while it trains",
            "while it evaluates",
            "while it trains, from nothing",
            "while it saves",
        ),
    ),
    Job(
        "cached-workers",
        f"{CODE.format('deterministic')} {ADAM} --epochs 4 --cache --num-workers 2 "
        "--checkpoint-every-steps 2",
        epoch_steps=10,
        rows=4,
        moments=("while it trains", "while it saves", "while it trains"),
    ),
    Job(
        "dropout",
        "fit dropout",
        epoch_steps=10,
        rows=4,
        moments=("while it saves", "while it compiles", "while it trains", "while it evaluates"),
    ),
    Job(
        "batch-norm",
        "fit batch_norm",
        epoch_steps=10,
        rows=4,
        moments=(
            "while it trains",
            "before the next checkpoint",
            "while it evaluates",
            "while it saves",
        ),
    ),
]
BY_NAME = {job.name: job for job in JOBS}

SHORT = {
    "resident": ["while it saves, from nothing"],
    "dropout": ["while it trains"],
}


@pytest.fixture(scope="module")
def seed():
    """Of the random moments."""
    return int(os.environ.get("FEEDAX_KILL_SEED", random.randrange(10**6)))


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    kill_jobs.save_npz(folder / "images.npz")
    harness = Harness(folder)
    yield harness
    harness.close()


def kill_and_resume(harness, job, moments, seed):
    print(f"{job.name}: FEEDAX_KILL_SEED={seed} repeats these moments")
    began, kills = time.monotonic(), 0
    for kill in harness.kill_and_resume(job, moments, random.Random(f"{seed} {job.name}")):
        kills += 1
        print(f"{job.name}: killed {kill}")
    print(f"{job.name}: {kills} kills in {time.monotonic() - began:.0f} s, the same bits")
    assert kills >= len(moments)


@pytest.mark.parametrize("name", slow_but(["dropout"], SHORT))
def test_a_killed_and_resumed_run_ends_with_the_bits_of_one_left_alone(harness, seed, name):
    kill_and_resume(harness, BY_NAME[name], SHORT[name], seed)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_kills_at_all_moments_leave_the_bits_alone(harness, seed, capsys, job):
    with capsys.disabled():
        print()
        kill_and_resume(harness, job, job.moments, seed)


def test_the_long_form_has_more_than_thirty_kills():
    assert sum(len(job.moments) for job in JOBS) > 30


def test_sigterm_and_ctrl_c_save_say_where_and_the_bits_stay(harness):
    job = BY_NAME["streamed"]
    run = harness.folder / "stopped"
    for number, by in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        trainer = harness.start(job.go_on(run), run)
        assert trainer.wait_for(lambda t=trainer: bool(t.new_checkpoints()))
        trainer.signal(number)
        assert trainer.ends() == 128 + number, trainer.said()
        about = read_checkpoint(run / "checkpoints" / checkpoint_names(run)[-1])[1]
        if about["epoch_step"]:
            where = f"in epoch {about['epoch']} after {about['epoch_step']} steps"
        else:
            where = f"after epoch {about['epoch'] - 1}"
        assert trainer.said().splitlines()[-1] == (
            f"feedax train: stopped by {by} {where}; the checkpoint and the parameters are in "
            f"{run}; resume it with: feedax train --resume {run} --dataset kill_jobs:augmented"
        )
    trainer = harness.start(job.go_on(run), run)
    assert trainer.ends() == 0, trainer.said()
    assert_equal(Outcome.of(run), harness.reference(job), str(run))


def test_a_run_is_resumed_by_one_process_at_a_time(harness):
    job = BY_NAME["streamed"]
    run = harness.folder / "twice"
    first = harness.start(job.begin(run), run)
    assert first.wait_for(lambda: bool(first.new_checkpoints()))
    first.signal(signal.SIGSTOP)  # so that it still trains when the second one comes
    second = harness.start(job.go_on(run), run)
    assert second.ends() == 1
    first.signal(signal.SIGCONT)
    assert second.said().splitlines()[-1] == (
        f"feedax train: fit: only one run at a time may save checkpoints in {run}/checkpoints, and "
        "another process does; wait for its end, or choose another folder"
    )
    assert first.ends() == 0, first.said()
    assert_equal(Outcome.of(run), harness.reference(job), str(run))


@pytest.mark.parametrize("step", [2, slow(4)])
def test_a_run_on_a_list_goes_on_within_an_epoch_and_before_its_evaluation(tmp_path, rng, step):
    batches = [(rng.normal(size=(8, 5)).astype(np.float32), np.arange(8) % 3) for _ in range(4)]

    def train(folder, *callbacks):
        return feedax.fit(
            lambda w, x: w @ x,
            jnp.zeros((3, 5)),
            batches,
            epochs=2,
            evaluate={"train": batches},
            checkpoints=feedax.Checkpoints(tmp_path / folder, every_steps=step),
            callbacks=callbacks,
        )

    def stop(event):
        if isinstance(event, feedax.train.Stepped) and event.step == step:
            raise feedax.train.StopTraining

    assert train("stopped", stop)[1] == []
    (alone, rows), (resumed, rows_again) = train("alone"), train("stopped")
    assert alone.tobytes() == resumed.tobytes()
    assert [timeless(row) for row in rows] == [timeless(row) for row in rows_again]


KILLED = """
import os, signal, sys
from pathlib import Path
from feedax.report.run_folder import RunFolder
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
RunFolder.create({"some": "thing"}, path=Path(sys.argv[1]))
"""


def test_a_run_that_is_killed_while_its_folder_is_made_can_begin_there_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert RunFolder.create({}, path=tmp_path).rows() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]
