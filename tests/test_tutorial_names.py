"""Somebody has the JAX tutorial open and imports its functions instead of defining them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import feedax

# What is left of the tutorial once its definitions are imported.
SCRIPT = """
import jax
import numpy as np
from jax import random

import feedax.datasets
from feedax import (
    FlattenAndCast, NumpyLoader, accuracy, batched_predict, init_network_params, loss,
    numpy_collate, one_hot, predict, random_layer_params, relu, update,
)

layer_sizes = [784, 512, 512, 10]
num_epochs = 1
batch_size = 128
n_targets = 10
with jax.threefry_partitionable(False):
    params = init_network_params(layer_sizes, random.PRNGKey(0))

noise = random.normal(random.PRNGKey(1), (10, 784))
assert predict(params, noise[0]).shape == (10,)
assert batched_predict(params, noise).shape == (10, 10)
try:
    predict(params, noise)
except TypeError:
    pass
else:
    raise AssertionError("predict took a batch")

mnist = feedax.datasets.mnist(transform=FlattenAndCast())
training_generator = NumpyLoader(mnist, batch_size=batch_size, num_workers=0)
train_images = np.array(mnist.data).reshape(len(mnist), -1)
train_labels = one_hot(np.array(mnist.targets), n_targets)
assert train_images.dtype == np.uint8

held_out = feedax.datasets.mnist(train=False)
test_images = np.array(held_out.data).reshape(len(held_out), -1).astype(np.float32)
test_labels = one_hot(np.array(held_out.targets), n_targets)

for epoch in range(num_epochs):
    for x, y in training_generator:
        y = one_hot(y, n_targets)
        params = update(params, x, y)
    train_acc = accuracy(params, train_images, train_labels)
    test_acc = accuracy(params, test_images, test_labels)
    print(float(train_acc), float(test_acc), float(loss(params, test_images, test_labels)))
"""


@pytest.mark.slow
def test_the_tutorials_other_cells_run_on_the_imported_names(tmp_path: Path) -> None:
    script = tmp_path / "tutorial.py"
    script.write_text(SCRIPT, encoding="utf-8")
    source = Path(feedax.__file__).parents[1]
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    train_accuracy, test_accuracy, test_loss = map(float, done.stdout.split())
    assert train_accuracy == pytest.approx(0.91575, abs=0.0015)
    assert test_accuracy == pytest.approx(0.92, abs=0.0015)
    assert test_loss == pytest.approx(0.0277, abs=0.0005)
