"""What `fit` was asked for, checked before any time is spent."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

from feedax.errors import BatchError, ModelError
from feedax.feed import Devices, Source
from feedax.storage.safetensors_file import listed
from feedax.train.adapters import refuse_nnx
from feedax.train.check import Scores
from feedax.train.checkpoints import Checkpoints, refuse_no_checkpoints
from feedax.train.events import Event
from feedax.train.history import Best
from feedax.train.losses import cross_entropy
from feedax.train.model import (
    Model,
    combine,
    compute_dtype,
    partition,
    refuse_hyperparams,
    refuse_mixup,
    refuse_no_function,
    refuse_no_loss,
    untrained,
)
from feedax.train.optimizers import Optimizer, build_optimizer, make_optimizer
from feedax.train.step import Score

LOGGER = logging.getLogger("feedax")


@dataclass(frozen=True, eq=False)
class FitSpecification:
    """The arguments of `fit`, by their names and with its defaults, checked and completed.

    Attributes:
        trained: the leaves of `params` that are trained.
        model: how `predict` is called, with the other leaves of `params`.
        who: the public function that was called; it speaks, in an error.
        run_on: what `devices` stands for.
        is_one_pass: steps alone were asked for, of batches that come once: the run is one epoch.

    Raises:
        BatchError, ModelError: one of them is wrong; see `fit`.
    """

    predict: Callable[..., Any]
    params: Any
    train: Source
    loss: Score = cross_entropy
    optimizer: Optimizer = None
    learning_rate: float = None  # type: ignore[assignment]
    epochs: int | None = None
    steps: int | None = None
    evaluate: Mapping[str, Source] = None  # type: ignore[assignment]
    metrics: Scores | None = None
    augment: Callable[..., Any] | None = None
    mixup: float = 0.0
    hyperparams: Mapping[str, float] = None  # type: ignore[assignment]
    key: Array = None  # type: ignore[assignment]
    callbacks: Iterable[Callable[[Event], None]] = ()
    state: Any = None
    batched: bool = False
    best: str | None = None
    patience: int | None = None
    checkpoints: Checkpoints | None = None
    devices: int | None = None
    precision: str | None = None
    who: str = "fit"

    trained: Any = field(init=False)
    model: Model = field(init=False)
    run_on: Devices = field(init=False)
    is_one_pass: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, count in {"epochs": self.epochs, "steps": self.steps}.items():
            if count is not None and (type(count) is not int or count < 0):
                raise BatchError(
                    f"{self.who}: {name} must be a whole number from 0 on, and it is {count!r}; "
                    "leave it out"
                )
        refuse_no_function(self.predict, self.params, self.who)
        refuse_no_loss(self.loss, self.who)
        refuse_no_checkpoints(self.checkpoints, self.who)
        train = Source.of(self.train, f"{self.who}: train")
        is_one_pass = self.epochs is None and self.steps is not None and train.comes_once
        if (self.epochs is None and self.steps is None) or is_one_pass:
            self._set(epochs=1)
        if self.optimizer is None:
            rate = 1e-3 if self.learning_rate is None else self.learning_rate
            self._set(optimizer=build_optimizer("adam"), learning_rate=rate)
        train = Source.of(train, f"{self.who}: train", again=self.epochs != 1)
        sets = _sets(self.evaluate, self.who, again=self.epochs != 1)
        Best(self.best, self.patience, self.who).check(sets, self.metrics or ())
        refuse_nnx(self.params, self.who)
        trained, static = partition(self.params)
        if not jax.tree.leaves(trained):
            found = untrained(static)
            there_is = f"{listed(found)} cannot" if found else "there is none"
            raise ModelError(
                f"{self.who}: params must hold an array of floating point or complex numbers, "
                f"which can be trained, and {there_is}; give arrays, jnp.array(0.0) for 0.0 say"
            )
        scalars = dict(self.hyperparams or {})
        takers = (self.predict, self.loss, self.augment, self.optimizer)
        refuse_hyperparams(scalars, *takers, *(self.metrics or {}).values(), who=self.who)
        make_optimizer(self.optimizer, scalars, self.who)
        refuse_mixup(self.mixup, self.who)
        dtype = compute_dtype(self.precision, self.who)
        is_stateful = self.state is not None
        self._set(
            train=train,
            trained=trained,
            model=Model(self.predict, self.batched, is_stateful, static, dtype, self.augment),
            learning_rate=1.0 if self.learning_rate is None else self.learning_rate,
            hyperparams=scalars,
            mixup=float(self.mixup),
            evaluate=sets,
            key=random_key(0) if self.key is None else self.key,
            callbacks=tuple(self.callbacks),
            run_on=Devices(self.devices, who=self.who),
            is_one_pass=is_one_pass,
        )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def whole(self, params: Any, model_state: Any) -> Any:
        """What `fit` returns as a network's parameters."""
        params = combine(params, self.model.static)
        return (params, model_state) if self.model.stateful else params

    def warn_of_an_early_end(self, done: int) -> None:
        """Say it where batches that come once are fewer than the steps that were asked for."""
        if self.is_one_pass and self.steps is not None and done < self.steps:
            LOGGER.warning(
                f"{self.who}: train must yield a batch for each of the {self.steps} steps, and it "
                f"ended after {done}, which ended training; give more batches, or a NumpyLoader or "
                "a list, which can be iterated again"
            )


def random_key(seed: int) -> Array:
    """The random key of a seed, also where ``jax.transfer_guard("disallow")`` holds."""
    with jax.transfer_guard("allow"):
        return jax.random.key(seed)


def _sets(evaluate: Any, who: str, again: bool) -> Mapping[str, Source]:
    """The evaluation sets by name.

    Raises:
        BatchError: they are something else.
    """
    if evaluate is None:
        return {}
    if not isinstance(evaluate, Mapping):
        raise BatchError(
            f"{who}: evaluate must be a dict of sets by name, and it is a "
            f"{type(evaluate).__name__}; give evaluate={{'test': ...}}"
        )
    return {
        name: Source.of(batches, f"{who}: evaluate[{name!r}]", again=again)
        for name, batches in evaluate.items()
    }
