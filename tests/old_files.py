"""Runs that stop in their middle, whose files `tests/old_files/` keeps as version 0.1.0 wrote them.

``python tests/old_files.py FOLDER`` writes them anew, and the parameters that such runs end with.
"""

import contextlib
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import feedax
from feedax.cli import main
from feedax.data import ArrayDataset
from feedax.train import Checkpoints, Stepped

FOLDER = Path(__file__).parent / "old_files"
COUNT = 52


def examples():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, COUNT)
    inputs = rng.normal(0, 1, (COUNT, 6)).astype(np.float32)
    inputs[np.arange(COUNT), targets] += 2
    return inputs, targets


def init(key):
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (16, 6)) / 3,
        "v": jax.random.normal(second, (3, 16)) / 3,
    }


def predict(params, x):
    return params["v"] @ jnp.tanh(params["w"] @ x)


def loader(plan="auto"):
    return feedax.NumpyLoader(ArrayDataset(*examples()), 8, shuffle=True, seed=3, plan=plan)


def stop_after(count):
    """A callback that stops at the event after so many steps were told of; None never stops."""
    told = []

    def callback(event):
        if isinstance(event, Stepped):
            told.append(event)
            if len(told) == count:
                raise feedax.train.StopTraining

    return callback


def run(folder, plan, stop=None):
    """`fit`, saved every three steps; the parameters and the history."""
    return feedax.fit(
        predict,
        init(jax.random.key(0)),
        loader(plan),
        epochs=4,
        learning_rate=0.01,
        evaluate={"test": feedax.NumpyLoader(ArrayDataset(*examples()), 10)},
        best="test_loss",
        key=jax.random.key(7),
        checkpoints=Checkpoints(folder, every_steps=3, keep=1),
        callbacks=[stop_after(stop)],
    )


def grid(folder, together, stop=None):
    """`sweep` of two seeds and two learning rates; the networks."""
    swept = feedax.sweep(
        predict,
        init,
        loader(),
        seeds=2,
        learning_rate=[0.01, 0.02],
        epochs=4,
        together=together,
        checkpoints=Checkpoints(folder, every_steps=3, keep=1),
        callbacks=[stop_after(stop)],
    )
    return swept.networks


def save_examples(path):
    rng = np.random.default_rng(0)
    np.savez(
        path,
        x_train=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8),
        y_train=rng.integers(0, 3, 200),
        x_test=rng.integers(0, 256, (50, 8, 8), dtype=np.uint8),
        y_test=rng.integers(0, 3, 50),
    )


def train(folder, epochs):
    """`feedax train` on an npz file in this folder, with dropout and mixup."""
    flags = ["--hidden", "16", "--batch-size", "32", "--dropout", "0.2", "--mixup", "0.2"]
    flags += ["--optimizer", "adam", "--learning-rate", "0.001", "--loss", "cross_entropy"]
    flags += ["--validation", "0.2"]
    with contextlib.chdir(folder):
        save_examples("examples.npz")
        command = ["train", "--dataset", "npz:examples.npz", "--epochs", str(epochs)]
        assert main([*command, *flags, "--out", "run"]) == 0


def write(folder):
    """Stopped runs, and the parameters of those that were left alone."""
    whole = {}
    for plan in ("resident", "vectorised", "streamed"):
        run(folder / plan, plan, stop=4)
        params, history = run(folder / "whole" / plan, plan)
        whole |= {f"{plan}/{name}": leaf for name, leaf in params.items()}
        whole[f"{plan}/loss"] = [row["loss"] for row in history]
    for together, stop in ((1, 9), (4, 4)):
        grid(folder / f"together_{together}", together, stop)
        for network in grid(folder / "whole" / f"together_{together}", together):
            name = f"together_{together}/{network.setting['learning_rate']}/{network.seed}"
            whole |= {f"{name}/{leaf}": value for leaf, value in network.params.items()}
    train(folder, epochs=2)
    (folder / "run" / "curves.png").unlink()
    np.savez_compressed(folder / "whole.npz", **whole)


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    write(Path(sys.argv[1]).resolve())
