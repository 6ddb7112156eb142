"""The time of one epoch, and its row."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from feedax.feed import CHUNK_STEPS
from feedax.train import processes
from feedax.train.events import Row
from feedax.train.step import TrainState
from feedax.train.steps import CHUNK_SECONDS, Steps


class EpochClock:
    """The clock of one epoch: it stands still while something is compiled.

    Args:
        epoch: counted from 0.
        steps: runs the steps.
        seconds: of this epoch before the run went on from a checkpoint.
    """

    def __init__(self, epoch: int, steps: Steps, seconds: float = 0.0) -> None:
        self.epoch = epoch
        self._steps = steps
        self._compiled_before = steps.compile_seconds
        self._told = time.perf_counter()
        self._started = self._told - seconds

    @property
    def compile_seconds(self) -> float:
        return self._steps.compile_seconds - self._compiled_before

    @property
    def seconds(self) -> float:
        """Of training, in this epoch so far."""
        return time.perf_counter() - self._started - self.compile_seconds

    def is_due(self) -> bool:
        """Whether callbacks have heard nothing for a while."""
        return time.perf_counter() - self._told >= CHUNK_SECONDS

    def told(self) -> None:
        self._told = time.perf_counter()

    def row(self, state: TrainState, columns: Mapping[str, float] | None = None) -> Row:
        """The row of the epoch so far."""
        columns = {"compile_seconds": self.compile_seconds, **(columns or {})}
        return epoch_row(self.epoch, self.seconds, sums_of(state), columns)


def sums_of(state: TrainState) -> tuple[dict[str, Any], Any]:
    """The metrics of an epoch so far, and how many steps were skipped or None, on the host."""
    sums: tuple[dict[str, Any], Any] = jax.device_get((state.metrics, state.skipped))
    return sums


def epoch_row(
    epoch: int,
    seconds: float,
    sums: tuple[Mapping[str, Any], Any],
    columns: Mapping[str, float],
) -> Row:
    """The row of an epoch, from what `sums_of` tells of it."""
    metrics, skipped = sums
    means = {
        name: float(metric.sum) / int(metric.count) if metric.count else math.nan
        for name, metric in metrics.items()
    }
    return {
        "epoch": epoch,
        "seconds": seconds,
        **columns,
        **({} if skipped is None else {"skipped_steps": int(skipped)}),
        "examples_per_second": int(metrics["loss"].count) / seconds,
        "loss": means.pop("loss"),
        **means,
    }


class ReportInterval:
    """When a run reports: a few times a second, on all processes after the same step.

    One process looks at its clock. Several cannot: process 0 tells the other processes how many
    steps to do until the next report.

    Args:
        steps: runs the steps.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._length = self._left = 1
        self._since = time.perf_counter()

    def most_steps(self) -> int:
        """How many steps may be done before the next report."""
        return self._steps.chunk_length if processes.count() == 1 else self._left

    def is_due(self, count: int, clock: EpochClock) -> bool:
        """Whether to report after so many more steps."""
        self._left -= count
        return clock.is_due() if processes.count() == 1 else self._left <= 0

    def next(self, save: bool) -> bool:
        """Agree on the steps until the next report; whether process 0 wants to save now."""
        if processes.count() == 1:
            return save
        done, now = max(1, self._length - self._left), time.perf_counter()
        fitting = int(done * CHUNK_SECONDS / (now - self._since))
        length = max(1, min(fitting, 2 * self._length, CHUNK_STEPS))
        save, self._length = processes.broadcast([save, length])
        self._left, self._since = self._length, now
        return save
