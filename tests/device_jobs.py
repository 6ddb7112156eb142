"""What the tests of several devices and several processes train, and what they keep of it.

JAX is imported in functions only: worker processes import this module too.
"""

import contextlib
import functools
import logging
import pickle
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from kill_jobs import CLASSES, SIDE, TRAIN, Images

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One call of `fit`.

    Args:
        model: "mlp" with dropout; "norm" with batch norm too; "conv", which is convolutional too.
        plan: of the training loader.
        workers: of the training loader.
        augments: whether examples draw random numbers; only streamed.
        batch: examples in one; there are 300.
        steps, epochs: how long it trains.
        x64: whether in float64.
        budget: memory_budget of the loaders.
        seed: of the loaders.
        rests: how often it is interrupted after an epoch, and goes on from the checkpoint.
    """

    model: str = "mlp"
    plan: str = "auto"
    workers: int = 0
    augments: bool = False
    batch: int = 32
    steps: int | None = None
    epochs: int | None = None
    x64: bool = False
    budget: int = 2**30
    seed: int | None = 3
    rests: bool = False


@dataclass
class Kept:
    """What a job leaves.

    Attributes:
        arrays: of the last checkpoint; empty where another process has it.
        params: what `fit` has returned, by number.
        rows: the history.
        compiled: how often which function was compiled.
        said: warnings of feedax.
        loaded: the training examples that this process loaded itself, by index.
        how: how batches reached the devices.
        holders: how many devices held all training examples at once.
        in_flight: the most programs that were dispatched and not done.
    """

    arrays: Arrays = field(default_factory=dict)
    params: list[np.ndarray] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    compiled: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    how: str = ""
    holders: int = 0
    in_flight: int = 0


class Counted(Images):
    """Images that tell which of them were loaded in this process."""

    loaded: ClassVar[list[int]] = []

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        Counted.loaded.append(index)
        return super().__getitem__(index)


def train(job: Job, devices: int) -> Kept:
    """Train as the job says, on so many devices of this process."""
    import jax
    import optax

    import feedax
    from feedax.storage.checkpoint_file import read_checkpoint

    kept, heard = Kept(), _Heard()
    Counted.loaded.clear()

    def look(event: Any) -> None:
        if isinstance(event, feedax.train.Started):
            kept.how = event.how
        if isinstance(event, feedax.train.EpochEnded) and event.is_last:
            whole = [a for a in jax.live_arrays() if a.shape == (TRAIN, SIDE, SIDE)]
            spread = [len(a.sharding.device_set) for a in whole if a.is_fully_replicated]
            kept.holders = max(spread, default=0)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        stack.enter_context(jax.enable_x64(job.x64))
        stack.enter_context(heard.listening())
        flights = stack.enter_context(_flights())
        predict, params, state = MODELS[job.model]()
        times = range(1, job.epochs + 1) if job.rests and job.epochs else [job.epochs]
        for epochs in times:
            trained, kept.rows = feedax.fit(
                predict,
                params,
                _loader(job, train=True),
                optimizer=optax.adam(0.003),
                epochs=epochs,
                steps=job.steps,
                evaluate={"test": _loader(job, train=False)},
                key=jax.random.key(5),
                state=state,
                checkpoints=feedax.Checkpoints(folder),
                devices=devices,
                callbacks=[look],
            )
        kept.params = [np.asarray(leaf) for leaf in jax.tree.leaves(trained)]
        if paths := sorted(Path(folder).iterdir()):
            arrays, _ = read_checkpoint(paths[-1])
            kept.arrays = {name: array.numbers for name, array in arrays.items()}
    kept.compiled, kept.said, kept.loaded = heard.compiled, heard.said, [*Counted.loaded]
    kept.in_flight = max(flights, default=0)
    return kept


@functools.cache
def train_alone(job: Job) -> Kept:
    """Train as the job says on one device of this process; once for all who ask."""
    return train(job, 1)


@contextlib.contextmanager
def _flights() -> Iterator[list[int]]:
    """Count, whenever a program was dispatched, those that are not done."""
    import jax

    from feedax.train.steps import Compiled

    counts: list[int] = []
    results: list[Any] = []
    call = Compiled.__call__

    def counted(self: Any, *arguments: Any) -> Any:
        result = call(self, *arguments)
        # Its last leaf is one that no other program takes over, or one that was waited for.
        results.append(jax.tree.leaves(result)[-1])
        results[:] = [one for one in results if not (one.is_deleted() or one.is_ready())]
        counts.append(len(results))
        return result

    Compiled.__call__ = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Compiled.__call__ = call  # type: ignore[method-assign]


class _Heard(logging.Handler):
    """Counts compilations, and keeps what feedax warns of."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: Counter[str] = Counter()
        self.said: list[str] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        loggers = {"feedax": logging.WARNING, "jax._src.interpreters.pxla": logging.DEBUG}
        with contextlib.ExitStack() as stack:
            for name, level in loggers.items():
                logger = logging.getLogger(name)
                stack.callback(logger.setLevel, logger.level)
                stack.callback(setattr, logger, "propagate", logger.propagate)
                stack.callback(logger.removeHandler, self)
                logger.setLevel(level)
                logger.propagate = False
                logger.addHandler(self)
            yield

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "feedax":
            # Advice on time depends on how busy the machine is.
            if "training should wait for data" not in record.getMessage():
                self.said.append(record.getMessage())
        elif found := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
            self.compiled[found[1]] += 1


def _loader(job: Job, train: bool) -> Any:
    import feedax
    from feedax.data import ArrayDataset

    images: Any = (Counted if train else Images)(train, augments=job.augments and train, seconds=0)
    if job.plan != "streamed":
        images = ArrayDataset((images.images / 255).astype(np.float32), images.targets)
    plan: Any = job.plan
    return feedax.NumpyLoader(
        images,
        job.batch if train else 32,
        shuffle=train,
        seed=job.seed,
        num_workers=job.workers if train else 0,
        plan=plan,
        memory_budget=job.budget,
    )


def _mlp() -> tuple[Any, Any, None]:
    import jax
    import jax.numpy as jnp

    first, second = jax.random.split(jax.random.key(11))
    params = {
        "first": 0.1 * jax.random.normal(first, (32, SIDE * SIDE)),
        "second": 0.1 * jax.random.normal(second, (CLASSES, 32)),
    }

    def predict(params: Any, x: Any, key: Any, train: bool) -> Any:
        x = jax.nn.relu(params["first"] @ jnp.ravel(x).astype(params["first"].dtype))
        if train:
            x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
        return params["second"] @ x

    return predict, params, None


def _norm() -> tuple[Any, Any, Any]:
    import jax
    import jax.numpy as jnp

    first, second = jax.random.split(jax.random.key(12))
    params = {
        "first": 0.1 * jax.random.normal(first, (8, SIDE * SIDE)),
        "scale": jnp.ones(8),
        "dense": 0.1 * jax.random.normal(second, (CLASSES, 8)),
    }

    def features(params: Any, x: Any) -> Any:
        return (params["first"] @ jnp.ravel(x).astype(params["first"].dtype))[None, None]

    return _normalised(features), params, {"mean": jnp.zeros(8), "var": jnp.ones(8)}


def _conv() -> tuple[Any, Any, Any]:
    import jax
    import jax.numpy as jnp
    from jax import lax

    first, second = jax.random.split(jax.random.key(12))
    params = {
        "kernel": 0.3 * jax.random.normal(first, (3, 3, 1, 8)),
        "scale": jnp.ones(8),
        "dense": 0.1 * jax.random.normal(second, (CLASSES, 8)),
    }

    def features(params: Any, x: Any) -> Any:
        kernel, forms = params["kernel"], ("NHWC", "HWIO", "NHWC")
        x = x[None, :, :, None].astype(kernel.dtype)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=forms)[0]

    return _normalised(features), params, {"mean": jnp.zeros(8), "var": jnp.ones(8)}


def _normalised(features: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Batch norm and dropout on features `(height, width, 8)`."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def row(features: Any) -> Any:
        return features[None, None]

    def predict(params: Any, state: Any, x: Any, key: Any, train: bool) -> Any:
        x = features(params, x)
        now = state
        if train:
            mean = lax.pmean(x.mean((0, 1)), "batch")
            var = lax.pmean(((x - row(mean)) ** 2).mean((0, 1)), "batch")
            now = {"mean": mean, "var": var}
            state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state, now)
        x = (x - row(now["mean"])) / jnp.sqrt(row(now["var"]) + 1e-5) * row(params["scale"])
        x = jax.nn.relu(x).mean((0, 1))
        if train:
            x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)
        return params["dense"] @ x, state

    return predict


MODELS = {"mlp": _mlp, "norm": _norm, "conv": _conv}


class Failing(Images):
    """Images of which process 1 cannot load any more at some time."""

    left = 450

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        from feedax.train import processes

        self.left -= processes.index()
        if self.left < 0:
            raise ValueError(f"image {index} is broken")
        return super().__getitem__(index)


def failing(train: bool) -> Failing:
    return Failing(train, augments=False, seconds=0.0005)


def train_all(wanted: list[tuple[str, Job, int]], out: Path) -> None:
    """Train one job after the other, and keep what each leaves, or how it failed."""
    kept: dict[tuple[str, int], Any] = {}
    for name, job, devices in wanted:
        try:
            kept[name, devices] = train(job, devices)
        except Exception:
            kept[name, devices] = traceback.format_exc()
        out.with_suffix(".part").write_bytes(pickle.dumps(kept))
    out.with_suffix(".part").rename(out)


PROGRAMS = ("_first_state", "_train_chunk", "_train_batch", "_train_row", "_score_block")


def compilations(kept: Kept) -> dict[str, int]:
    """How often the programs of `fit` were compiled; those apart that calls of it share."""
    assert all(kept.compiled[name] <= 1 for name in ("_epoch_begun", "are_finite", "pick"))
    return {name: kept.compiled[name] for name in PROGRAMS if kept.compiled[name]}


def assert_close(kept: Kept, one: Kept, tolerance: float) -> None:
    """Parameters, optimizer state, model state and metrics."""
    import pytest

    assert kept.arrays.keys() == one.arrays.keys()
    for name, array in one.arrays.items():
        assert kept.arrays[name].dtype == array.dtype
        # Sums of metrics are as large as the examples are many.
        np.testing.assert_allclose(
            kept.arrays[name], array, rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert len(kept.params) == len(one.params)
    for array, wanted in zip(kept.params, one.params, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance)
    assert [row.keys() for row in kept.rows] == [row.keys() for row in one.rows]
    for row, wanted in zip(kept.rows, one.rows, strict=True):
        for name in ("epoch", "loss", "accuracy", "test_loss", "test_accuracy"):
            assert row[name] == pytest.approx(wanted[name], rel=tolerance, abs=tolerance), name


def main(wanted: str, out: str, count: str, port: str = "", me: str = "") -> None:
    """Train what is written in one file, on so many devices of each process, into another."""
    import jax

    from feedax.train import processes

    jax.config.update("jax_num_cpu_devices", int(count))
    if port:
        processes.keep_stdout_clean()
        processes.join(f"localhost:{port}", 2, int(me), timeout=60)
    train_all(pickle.loads(Path(wanted).read_bytes()), Path(out))


if __name__ == "__main__":
    # Under its own name, so that what is pickled here can be loaded anywhere.
    import device_jobs

    device_jobs.main(*sys.argv[1:])
