"""What a loader remembers of the batches that it handed over."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

from feedax.data.cache import Cache
from feedax.data.columns import WHOLE, Columns
from feedax.data.loading import Loaded, Task
from feedax.data.notes import batch_notes
from feedax.data.position import Progress

_REPEATED = (
    "NumpyLoader: with more than one worker an iterable dataset must share out its examples, and "
    "workers {} and {} begin with the same ones, so that these come once for each worker; let "
    "__iter__ or a worker_init_fn ask torch.utils.data.get_worker_info() for this worker's share, "
    "or use num_workers=1"
)


@dataclass
class LoaderStats:
    """Where a loader's time went since it was made.

    Attributes:
        waited: seconds that whoever iterates waited for batches.
        loading: seconds spent loading and collating, summed over all workers.
        starting: seconds until workers were ready, summed over the epochs that started some.
        batches: how many were handed over.
        examples: how many were in them.
    """

    waited: float = 0.0
    loading: float = 0.0
    starting: float = 0.0
    batches: int = 0
    examples: int = 0


class Account:
    """A loader's memory of its own batches.

    Args:
        cache: keeps the examples, if there is one.
        columns: the part of each batch that is handed over.

    Attributes:
        stats: where time went.
        notes: what the first batch told about the way to a device; None before it.
        brings_jax: whether the dataset made a worker import JAX.
        repeats: whether an iterable dataset came whole in more than one worker.
        gave_part: whether the batch handed over last was a part of one.
    """

    def __init__(self, cache: Cache | None, columns: Columns) -> None:
        self.cache = cache
        self.columns = columns
        self.gave_part = False
        self.stats = LoaderStats()
        self.notes: tuple[str, ...] | None = None
        self.brings_jax = False
        self.repeats = False

    def renewed(self) -> "Account":
        """One of another loader of the same examples: what was learned of them is known there."""
        account = copy.copy(self)
        account.stats, account.gave_part = LoaderStats(), False
        return account

    def gathered(self, progress: Progress, task: Task, count: int) -> None:
        """So many examples of a batch of arrays are handed over."""
        progress.hand_over(task)
        self.stats.batches += 1
        self.stats.examples += count
        self.gave_part = count < task.count

    def loaded(
        self, progress: Progress, loaded: Any, task: Any, worker: int = 0, workers: int = 1
    ) -> Any:
        """A batch that was loaded is handed over: this one, which is returned."""
        if not isinstance(loaded, Loaded):  # a data pipe's
            return self._cut(loaded)
        is_known = isinstance(task, Task)  # a data pipe's is torch's own
        before = progress.examples
        if loaded.stream is not None:
            progress.hand_over_stream(loaded, worker, workers)
            if not self.repeats and (other := progress.repeats(worker)) is not None:
                self.repeats = True
                warnings.warn(_REPEATED.format(other, worker), UserWarning, stacklevel=2)
        elif is_known:
            progress.hand_over(task)
        if self.notes is None:
            self.notes = batch_notes(loaded.batch)
        if self.cache is not None and is_known:
            self.cache.keep(task, loaded.batch)
        self.gave_part = is_known and task.columns != WHOLE
        batch = loaded.batch if self.gave_part else self._cut(loaded.batch)
        parts = self.columns.parts if self.gave_part else 1
        self.stats.batches += 1
        self.stats.examples += -(-(progress.examples - before) // parts)
        self.stats.loading += loaded.seconds
        return batch

    def _cut(self, batch: Any) -> Any:
        batch, self.gave_part = self.columns.cut(batch)
        return batch

    def epoch_ended(self, progress: Progress) -> None:
        progress.is_over = True
        if self.cache is not None:
            self.cache.fill_up()
