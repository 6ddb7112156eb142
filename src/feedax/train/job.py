"""What `fit` was asked for, looked at and in order."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from feedax.errors import BatchError, ModelError
from feedax.feed import Devices, refuse_no_batches
from feedax.storage.safetensors_file import listed
from feedax.train.adapters import refuse_nnx
from feedax.train.best import Best
from feedax.train.check import Scores
from feedax.train.checkpoints import Checkpoints
from feedax.train.events import Event
from feedax.train.hyperparams import refuse_hyperparams, refuse_mixup
from feedax.train.losses import cross_entropy
from feedax.train.model import Model, compute_dtype, partition, untrained
from feedax.train.optimizers import build_optimizer
from feedax.train.step import Optimizer, Score, built

LOGGER = logging.getLogger("feedax")


@dataclass
class Job:
    """The arguments of `fit`; `params` are the trained leaves alone, `sets` what is evaluated."""

    model: Model
    params: Any
    model_state: Any
    train: Iterable[Any]
    loss: Score
    optimizer: Optimizer
    learning_rate: float
    hyperparams: dict[str, float]
    mixup: float
    epochs: int | None
    steps: int | None
    sets: Mapping[str, Iterable[Any]]
    metrics: Scores | None
    key: Array
    callbacks: tuple[Callable[[Event], None], ...]
    best: Best
    checkpoints: Checkpoints | None
    devices: Devices
    is_one_pass: bool = False
    """Steps alone were asked for, of batches that come once: the run is one epoch."""

    def tell_of_an_early_end(self, done: int) -> None:
        """Say it where batches that come once are fewer than the steps that were asked for."""
        if self.is_one_pass and self.steps is not None and done < self.steps:
            LOGGER.warning(
                f"fit: train must yield a batch for each of the {self.steps} steps, and it ended "
                f"after {done}, and training with it; give more batches, or a NumpyLoader or a "
                "list, which is gone through again"
            )

    def most_steps(self, done: int, most: int) -> int:
        """How many steps may follow before something is to be done after an exact one.

        Args:
            done: steps done in all.
            most: what may follow at the most.
        """
        due = None if self.checkpoints is None else self.checkpoints.due_in(done)
        left = None if self.steps is None else self.steps - done
        return min([most, *(count for count in (due, left) if count is not None)])


def random_key(seed: int) -> Array:
    """The random key of a seed, also where ``jax.transfer_guard("disallow")`` holds."""
    with jax.transfer_guard("allow"):
        return jax.random.key(seed)


def plan_job(
    predict: Callable[..., Any],
    params: Any,
    train: Iterable[Any],
    *,
    loss: Callable[..., Any] = cross_entropy,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate: Mapping[str, Iterable[Any]] | None = None,
    metrics: Scores | None = None,
    augment: Callable[..., Any] | None = None,
    mixup: float = 0.0,
    hyperparams: Mapping[str, float] | None = None,
    key: Array | None = None,
    callbacks: Iterable[Callable[[Event], None]] = (),
    state: Any = None,
    batched: bool = False,
    best: str | None = None,
    patience: int | None = None,
    checkpoints: Checkpoints | None = None,
    devices: int | None = None,
    precision: str | None = None,
) -> Job:
    """Look at the arguments of `fit` before any time is spent.

    Raises:
        BatchError, ModelError: one of them is wrong; see `fit`.
    """
    for name, count in {"epochs": epochs, "steps": steps}.items():
        if count is not None and (type(count) is not int or count < 0):
            raise BatchError(
                f"fit: {name} must be a whole number from 0 on, and it is {count!r}; leave it out"
            )
    is_one_pass = epochs is None and steps is not None and isinstance(train, Iterator)
    if (epochs is None and steps is None) or is_one_pass:
        epochs = 1
    if optimizer is None:
        optimizer = build_optimizer("adam")
        learning_rate = 1e-3 if learning_rate is None else learning_rate
    refuse_no_batches(train, "fit: train", again=epochs != 1)
    sets = _sets(evaluate, again=epochs != 1)
    best_of = Best(best, patience)
    best_of.check(sets, metrics or ())
    refuse_nnx(params)
    trained, static = partition(params)
    if not jax.tree.leaves(trained):
        found = untrained(static)
        raise ModelError(
            "fit: params must hold an array of floating point or complex numbers, which can be "
            f"trained, and {listed(found) + ' cannot' if found else 'there is none'}; give arrays, "
            "jnp.array(0.0) for 0.0 say"
        )
    scalars = dict(hyperparams or {})
    refuse_hyperparams(scalars, predict, loss, augment, optimizer, *(metrics or {}).values())
    built(optimizer, scalars)
    refuse_mixup(mixup)
    dtype = compute_dtype(precision)
    return Job(
        model=Model(predict, batched, state is not None, static, dtype, augment),
        params=trained,
        model_state=state,
        train=train,
        loss=loss,
        optimizer=optimizer,
        learning_rate=1.0 if learning_rate is None else learning_rate,
        hyperparams=scalars,
        mixup=float(mixup),
        epochs=epochs,
        steps=steps,
        sets=sets,
        metrics=metrics,
        key=random_key(0) if key is None else key,
        callbacks=tuple(callbacks),
        best=best_of,
        checkpoints=checkpoints,
        devices=Devices(devices),
        is_one_pass=is_one_pass,
    )


def _sets(evaluate: Any, again: bool) -> Mapping[str, Iterable[Any]]:
    """The evaluation sets, looked at before any time is spent on training."""
    if evaluate is None:
        return {}
    if not isinstance(evaluate, Mapping):
        raise BatchError(
            "fit: evaluate must be a dict of sets by name, and it is a "
            f"{type(evaluate).__name__}; give evaluate={{'test': ...}}"
        )
    for name, batches in evaluate.items():
        refuse_no_batches(batches, f"fit: evaluate[{name!r}]", again=again)
    return evaluate
