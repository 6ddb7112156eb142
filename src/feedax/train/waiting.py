"""How long training waits for data, and what would help."""

import logging
import time
from pathlib import Path
from typing import Any

import jax

from feedax.errors import FeedaxError
from feedax.feed import Batch, Chunk, Feed, Source
from feedax.train.steps import Steps

LOGGER = logging.getLogger("feedax")
SHARE = 0.2
"""Training is warned if it waits for more than this share of an epoch."""


class Waiting:
    """The time of one epoch in which training waited for the next piece of it.

    While a batch is loaded, the device computes the steps before it. That is not waiting. Where
    the device runs out of steps meanwhile, waiting is only what loading takes longer than a step.

    Attributes:
        seconds: in which training waited.
        first_seconds: of these, the wait for the first piece.
        lost_seconds: of these, what no other source would save, as the machine was busy with
            something else. Known once `columns` was called.
    """

    def __init__(self, source: Source, steps: Steps) -> None:
        self.seconds = self.first_seconds = self.lost_seconds = 0.0
        self.source = source
        self._idle_seconds = 0.0  # of the waiting, this thread did not run on a CPU
        self._delays = self.cpu_delay()
        self._steps = steps
        self._before = source.times()
        self._shortages = 0
        self._step_seconds = 0.0
        self._measure = False

    def take(self, feed: Feed, most: int) -> Batch | Chunk | None:
        """The feed's next piece, of at most so many steps."""
        # The device is idle after a step that was measured, but only because of that.
        was_busy = self._steps.are_under_way() or self._measure
        started, worked = time.perf_counter(), time.thread_time()
        piece = feed.take(most)
        seconds, worked = time.perf_counter() - started, time.thread_time() - worked
        was_measured, self._measure = self._measure, False
        if not self._steps.are_under_way():
            waited = max(0.0, seconds - self._step_seconds) if was_busy else seconds
            self.seconds += waited
            self._idle_seconds += max(0.0, waited - worked)
            self.first_seconds = self.first_seconds or seconds
            self._shortages += not was_measured
            # Measured seldom, as nothing is loaded meanwhile: after 1, 2, 4, 8 ... shortages.
            self._measure = not was_measured and self._shortages.bit_count() == 1
        return piece

    def run(self, state: Any, piece: Batch | Chunk) -> Any:
        """Run the piece's steps; now and then, measure how long one takes."""
        started = time.perf_counter() - self._steps.compile_seconds
        state = self._steps.run(state, piece)
        if self._measure and isinstance(piece, Batch):
            jax.block_until_ready(state)
            self._step_seconds = time.perf_counter() - self._steps.compile_seconds - started
        return state

    def columns(self, feed: Feed) -> dict[str, float]:
        """The times of the epoch, once it is trained, by the columns of its row."""
        before, now = self._before, self.source.times()
        self.lost_seconds = self._lost(feed)
        return {
            "wait_seconds": self.seconds,
            "load_seconds": now.loading - before.loading if now and before else feed.load_seconds,
            "transfer_seconds": feed.transfer_seconds,
            "start_seconds": now.starting - before.starting if now and before else 0.0,
        }

    def _lost(self, feed: Feed) -> float:
        delays = self.cpu_delay()
        if delays is not None and self._delays is not None:
            delays -= self._delays
        drawing = feed.drawing_seconds
        if drawing is None:
            return min(self._idle_seconds, delays or 0.0)
        # A sampler is blamed for drawing only; where delays are not counted, for its CPU time.
        delays = self._idle_seconds if delays is None else delays
        return max(0.0, self.seconds - max(0.0, drawing - delays))

    @staticmethod
    def cpu_delay() -> float | None:
        """Seconds in which this thread was ready but had no CPU; None where nobody counts them."""
        try:
            return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return None


class Advice:
    """Warns once in a run, after the first epoch that waits for data too long."""

    long_enough = 1.0
    """Seconds; a shorter epoch is not worth a warning."""

    def __init__(self, who: str = "fit") -> None:
        self._who = who
        self._given = False

    def after(self, row: dict[str, float], waiting: Waiting) -> None:
        """Look at an epoch's row."""
        seconds, waited = row["seconds"], row["wait_seconds"]
        source = waiting.source
        if row["epoch"] == 0 and source.num_workers:
            # Workers must start once. It counts only where every epoch starts them again.
            seconds, waited = seconds - waiting.first_seconds, waited - waiting.first_seconds
        lost = waiting.lost_seconds
        free = seconds - lost  # what an idle machine would have taken
        if self._given or free <= self.long_enough or waited - lost <= SHARE * free:
            return
        self._given = True
        LOGGER.warning(
            FeedaxError(  # not raised: the command line has other words for the remedy
                who=self._who,
                rule=f"training should wait for data less than {SHARE:.0%} of its time",
                found=f"in epoch {row['epoch']:.0f} it waited {waited / seconds:.0%}, "
                f"{waited:.1f} of {seconds:.1f} seconds",
                remedy=_remedy(source, row),
            )
        )


def _remedy(source: Source, row: dict[str, float]) -> str:
    plan, workers = source.plan(), source.num_workers
    if plan is not None and plan.is_vectorised:
        return "raise the loader's memory_budget if the device has room for all examples"
    if plan is not None and plan.is_resident:
        return "give the loader a sampler that draws faster"
    if workers and not source.persistent_workers and row["start_seconds"] > row["wait_seconds"] / 2:
        return "keep the workers from epoch to epoch with persistent_workers=True"
    if plan is None and workers is None:
        return "give a NumpyLoader with num_workers=2 or more"
    return (
        f"give num_workers={workers + 1 if workers else 2} or more, or cache=True if an example is "
        "the same every time, or use a transform that feedax knows"
    )
