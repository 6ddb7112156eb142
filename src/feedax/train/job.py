"""What `fit` was asked for, looked at and in order."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optax
from jax import Array

from feedax.feed import Devices
from feedax.train.best import Best
from feedax.train.check import Scores
from feedax.train.checkpoints import Checkpoints
from feedax.train.events import Event
from feedax.train.model import Model
from feedax.train.step import Score


@dataclass
class Job:
    """The arguments of `fit`; `params` are the trained leaves alone, `sets` what is evaluated."""

    model: Model
    params: Any
    model_state: Any
    train: Iterable[Any]
    loss: Score
    optimizer: optax.GradientTransformation
    learning_rate: float
    epochs: int | None
    steps: int | None
    sets: Mapping[str, Iterable[Any]]
    metrics: Scores | None
    key: Array
    callbacks: tuple[Callable[[Event], None], ...]
    best: Best
    checkpoints: Checkpoints | None
    devices: Devices
