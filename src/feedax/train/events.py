"""What `fit` tells its callbacks while it runs.

A callback is a function of one event. To look at one kind of event, match on its class::

    def report(event):
        match event:
            case EpochEnded(row=row):
                print(row["epoch"], row["loss"])

A callback that raises `StopTraining` ends the run in good order: `fit` saves a checkpoint if it
was given `Checkpoints`, and returns what it has.

>>> import jax.numpy as jnp
>>> import numpy as np
>>> from feedax.train import fit
>>> def until_it_fits(event):
...     if isinstance(event, EpochEnded) and event.row["accuracy"] == 1:
...         raise StopTraining
>>> batches = [(np.eye(2, dtype=np.float32), np.arange(2))]
>>> w, rows = fit(lambda w, x: w @ x, jnp.zeros((2, 2)), batches, epochs=100,
...               callbacks=[until_it_fits])
>>> [row["accuracy"] for row in rows]
[0.5, 1.0]
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedax.train.history import Row
from feedax.train.networks import Network


class StopTraining(Exception):
    """Raised by a callback to end a run after the steps that are done."""


@dataclass(frozen=True)
class Started:
    """Training begins, or is resumed.

    Attributes:
        epochs: how many epochs were asked for, or None where only steps were.
        steps: steps an epoch has, or None where the batches have no length.
        how: in words, how the batches reach the device and how the steps run.
        history: the rows of the epochs that were trained before, if the run is resumed.
        checkpoint: what the run is resumed from, or None at its first step.
        step: steps done before, in all.
    """

    epochs: int | None
    steps: int | None
    how: str
    history: list[Row]
    checkpoint: Path | None
    step: int


@dataclass(frozen=True)
class Stepped:
    """Some steps are done; comes a few times a second.

    Attributes:
        epoch: the epoch, counted from 0.
        step: steps done in this epoch.
        loss: mean training loss over this epoch's examples so far.
        examples_per_second: of this epoch so far, compilation apart.
        params: the parameters after that step. They are handed on to the next step:
            copy what is to be kept.
        total_steps: steps done in all.
    """

    epoch: int
    step: int
    loss: float
    examples_per_second: float
    params: Any
    total_steps: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is trained and evaluated.

    Attributes:
        epoch: the epoch, counted from 0.
        row: its row of the history.
        params: the parameters after it. They are handed on to the next step:
            copy what is to be kept.
        is_best: whether it is the best so far of the column that `fit` was given as `best`.
        is_last: whether training ends with it.
        total_steps: steps done in all.
    """

    epoch: int
    row: Row
    params: Any
    is_best: bool
    is_last: bool
    total_steps: int


@dataclass(frozen=True)
class Saved:
    """A checkpoint is being written, or is written.

    Attributes:
        step: the steps done in all.
        path: the file.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class Stopped:
    """Training ends before its time: a callback asked for it, or SIGTERM did.

    Attributes:
        epoch: the epoch, counted from 0.
        step: steps done in this epoch; 0 after the end of the epoch before.
        preempted: whether one of several processes got SIGTERM, and all stop for it.
    """

    epoch: int
    step: int
    preempted: bool


@dataclass(frozen=True)
class Ended:
    """Training has ended, at its end or because it was stopped; nothing follows.

    A run that an exception ends has no such event.

    Attributes:
        params: what `fit` returns.
        history: what `fit` returns.
        total_steps: steps done in all.
    """

    params: Any
    history: list[Row]
    total_steps: int


@dataclass(frozen=True)
class NetworksStarted:
    """Some networks of a sweep begin, or are resumed.

    Attributes:
        names: of the networks that are trained now, side by side if they are many.
        ended: how many were trained before.
        count: how many the sweep has.
        epochs: how many epochs each is trained for, or None where only steps were asked for.
        steps: steps an epoch has, or None where the batches have no length.
    """

    names: list[str]
    ended: int
    count: int
    epochs: int | None
    steps: int | None


@dataclass(frozen=True)
class NetworkEnded:
    """One network of a sweep is trained, or has turned not-a-number.

    Attributes:
        network: what came out.
    """

    network: Network


Event = Started | Stepped | EpochEnded | Saved | Stopped | Ended | NetworksStarted | NetworkEnded


def tell(callbacks: Iterable[Callable[[Any], None]], *events: Event) -> bool:
    """Tell all callbacks of all events; whether one of them asks to stop."""
    stops = False
    for event in events:
        for callback in callbacks:
            try:
                callback(event)
            except StopTraining:
                stops = True
    return stops
