"""Runs to be shown: small, of a network that was not trained."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import feedax
from feedax.report.run_folder import RunFolder

PORT = 8642


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": epoch, "seconds": 0.5, "loss": 0.9, "accuracy": 0.1,
        "train_loss": 0.5 / (1 + epoch), "train_accuracy": 0.8,
        "test_loss": 0.6 / (1 + epoch), "test_accuracy": 0.7 + epoch / 100,
    } | changes  # fmt: skip


def make_run(folder: Path, epochs: int = 0, planned: int = 3, **config: Any) -> RunFolder:
    """A run of MNIST, with a network of one layer."""
    layers = (784, 10)
    settings = {
        "run": folder.name, "dataset": "mnist", "layers": layers, "image_shape": (28, 28),
        "class_names": [f"{i}" for i in range(10)], "started": "2026-01-31T14:25:01+0000",
        "arguments": ["--epochs", f"{planned}", "--learning-rate", "0.01", "--no-shuffle"],
    }  # fmt: skip
    run = RunFolder.create(settings | config, path=folder)
    for epoch in range(epochs):
        run.append_row(row(epoch))
    run.save_params(feedax.init_mlp(layers, jax.random.key(0)))
    run.checkpoints_path.mkdir()
    return run


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of ``feedax show``, and the address that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "feedax", "show", str(folder), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        yield process, address
    finally:
        process.kill()
        process.communicate()
