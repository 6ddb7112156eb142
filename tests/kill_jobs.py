"""What the trainers train that the kill tests kill: datasets, and models for `fit`.

JAX is imported in functions only: worker processes import this module too.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

TRAIN, TEST, CLASSES, SIDE = 300, 90, 4, 8


class Images(Dataset):
    """Small images that differ by class; not one of the types that feedax knows.

    Args:
        train: which part.
        augments: whether an example draws from Python's, NumPy's and torch's random states.
        seconds: how long it takes to load an example.
    """

    def __init__(self, train: bool, augments: bool, seconds: float) -> None:
        rng = np.random.default_rng(1 + train)
        self.targets = np.arange(TRAIN if train else TEST) % CLASSES
        classes = np.random.default_rng(0).integers(0, 200, (CLASSES, SIDE, SIDE))
        noise = rng.integers(0, 56, (len(self.targets), SIDE, SIDE))
        self.images = (classes[self.targets] + noise).astype(np.uint8)
        self.augments = augments
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        time.sleep(self.seconds)
        image = self.images[index] / 255
        if self.augments:
            image = np.roll(image, int(torch.randint(-2, 3, ())), axis=0)
            image = image[:, ::-1] if random.random() < 0.5 else image
            image = image + np.random.normal(0, 0.1, image.shape)
        return image.astype(np.float32), int(self.targets[index])


def augmented(train: bool) -> Dataset:
    return Images(train, augments=train, seconds=0.0005)


def deterministic(train: bool) -> Dataset:
    return Images(train, augments=False, seconds=0.0005)


def save_npz(path: Path) -> None:
    """The same images as a file: arrays, so that every plan can be had."""
    parts = {}
    for name, train in (("train", True), ("test", False)):
        images = Images(train, augments=False, seconds=0)
        parts |= {f"x_{name}": images.images, f"y_{name}": images.targets}
    np.savez(path, **parts)


def main(words: list[str]) -> int:
    """`feedax train ...`, or `fit NAME RUN` for what has no command."""
    if words[0] == "fit":
        FITS[words[1]](Path(words[2]))
        return 0
    from feedax.cli import main as feedax

    return feedax(words)


def dropout(run: Path) -> None:
    """A resident network with dropout; Adam, and a cosine that falls from step to step."""
    import jax
    import jax.numpy as jnp

    from feedax.data import ArrayDataset, NumpyLoader

    first, second, key = jax.random.split(jax.random.key(11), 3)
    params = {
        "first": 0.1 * jax.random.normal(first, (32, SIDE * SIDE)),
        "second": 0.1 * jax.random.normal(second, (CLASSES, 32)),
    }

    def predict(params: Any, x: Any, key: Any, train: bool) -> Any:
        x = jax.nn.relu(params["first"] @ jnp.ravel(x) / 255)
        if train:
            x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
        return params["second"] @ x

    images, test = (Images(train, augments=False, seconds=0) for train in (True, False))
    _fit(
        run,
        predict,
        params,
        NumpyLoader(
            ArrayDataset(images.images.astype(np.float32), images.targets), 32, shuffle=True, seed=3
        ),
        NumpyLoader(ArrayDataset(test.images.astype(np.float32), test.targets), 32),
        every_steps=2,
        key=key,
    )


def batch_norm(run: Path) -> None:
    """A convolution with batch norm and dropout, which runs step by step on a CPU; two workers."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from feedax.data import NumpyLoader

    first, second, key = jax.random.split(jax.random.key(12), 3)
    params = {
        "kernel": 0.3 * jax.random.normal(first, (3, 3, 1, 8)),
        "scale": jnp.ones(8),
        "dense": 0.1 * jax.random.normal(second, (CLASSES, 8)),
    }
    state = {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    def predict(params: Any, state: Any, x: Any, key: Any, train: bool) -> Any:
        forms = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x[None, :, :, None], params["kernel"], (1, 1), "SAME", dimension_numbers=forms
        )[0]
        if train:
            mean = lax.pmean(x.mean((0, 1)), "batch")
            var = lax.pmean(((x - mean) ** 2).mean((0, 1)), "batch")
            now = {"mean": mean, "var": var}
            state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state, now)
        else:
            now = state
        x = (x - now["mean"]) / jnp.sqrt(now["var"] + 1e-5) * params["scale"]
        x = jax.nn.relu(x).mean((0, 1))
        if train:
            x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)
        return params["dense"] @ x, state

    _fit(
        run,
        predict,
        params,
        NumpyLoader(augmented(True), 32, shuffle=True, seed=3, num_workers=2),
        NumpyLoader(augmented(False), 32),
        every_steps=5,
        key=key,
        state=state,
    )


def _fit(
    run: Path, predict: Any, params: Any, train: Any, test: Any, *, every_steps: int, **rest: Any
) -> None:
    """Train, or go on, and leave the files that the command line leaves."""
    import optax

    import feedax
    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.report.recorder import Recorder
    from feedax.report.run_folder import RunFolder

    use_compilation_cache()
    goes_on: Any = None
    if (run / "config.json").exists():
        folder, goes_on = RunFolder.open(run), ([], {})
    else:
        folder = RunFolder.create({}, path=run)
    record = Recorder(folder, "validation_loss", lambda said: print(said, file=sys.stderr), goes_on)

    def started(event: Any) -> None:
        if isinstance(event, feedax.train.Started):
            print(event.how, file=sys.stderr)

    params, _ = feedax.fit(
        predict,
        params,
        train,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.01, 40)),
        epochs=4,
        evaluate={"validation": test},
        best="validation_loss",
        callbacks=(record, started),
        checkpoints=feedax.Checkpoints(folder.checkpoints_path, every_steps=every_steps, keep=2),
        **rest,
    )
    record.end(params, failed=False)


FITS = {"dropout": dropout, "batch_norm": batch_norm}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
