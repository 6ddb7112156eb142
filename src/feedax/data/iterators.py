"""The iterators over one epoch of a loader: gathered from arrays, loaded here, or by workers.

Thin classes over torch's own iterators. They add a log of what was handed over, errors that say
which example failed, and worker processes of our own.
"""

import contextlib
import os
import signal
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from feedax.data import workers
from feedax.data.array_form import ArrayForm
from feedax.data.cache import Cache
from feedax.data.collate import refuse_empty
from feedax.data.loading import ALL, NOTE, Loaded
from feedax.data.order import Order, Progress, Task
from feedax.data.plan import batch_notes
from feedax.data.randomness import OwnStates
from feedax.data.shard import WHOLE, Shard
from feedax.errors import FeedaxError, WorkerError
from feedax.random_states import random_states_restored

if workers.HAS_OWN_WORKERS:
    from feedax.data.workers.channel import Gone, Refused
    from feedax.data.workers.server import WorkerContext

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
        waited: seconds that the caller waited for batches.
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


@dataclass
class BatchLog:
    """What a loader learns from the batches that it hands over."""

    cache: Cache | None
    shard: Shard  # the share of each batch that is handed over
    stats: LoaderStats = field(default_factory=LoaderStats)
    notes: tuple[str, ...] | None = None  # what the first batch says about the way to a device
    brings_jax: bool = False  # the dataset made a worker import JAX
    repeats: bool = False  # an iterable dataset came whole in more than one worker
    gave_part: bool = False  # the batch handed over last was only a part of one

    def renewed(self) -> "BatchLog":
        """The log of another loader of the same examples: it knows what was learned of them."""
        return replace(self, stats=LoaderStats(), gave_part=False)

    def gathered(self, progress: Progress, task: Task, count: int) -> None:
        """Count a batch that was gathered from arrays; `count` of its examples are handed over."""
        progress.hand_over(task)
        self.stats.batches += 1
        self.stats.examples += count
        self.gave_part = count < task.count

    def loaded(
        self, progress: Progress, loaded: Loaded, task: Any, worker: int = 0, workers: int = 1
    ) -> Any:
        """Count a batch that was loaded, and return what of it is handed over."""
        is_known = isinstance(task, Task)  # a data pipe's is torch's own
        before = progress.examples
        if loaded.stream is not None:
            progress.hand_over_stream(loaded.stream, worker, workers)
            other = None if self.repeats else progress.repeated(worker, loaded.first)
            if other is not None:
                self.repeats = True
                warnings.warn(_REPEATED.format(other, worker), UserWarning, stacklevel=2)
        elif is_known:
            progress.hand_over(task)
        if self.notes is None:
            self.notes = batch_notes(loaded.batch)
        if self.cache is not None and is_known:
            self.cache.keep(task.indices, task.numbers, loaded.batch)
        if is_known and task.rows != WHOLE:
            batch, self.gave_part = loaded.batch, True
        else:
            batch, self.gave_part = self.shard.cut(loaded.batch)
        shards = self.shard.count if self.gave_part else 1
        self.stats.batches += 1
        self.stats.examples += -(-(progress.examples - before) // shards)
        self.stats.loading += loaded.seconds
        return batch

    def epoch_ended(self, progress: Progress) -> None:
        progress.is_over = True
        if self.cache is not None:
            self.cache.fill_up()


class GatheringIter(_BaseDataLoaderIter):
    """Batches gathered from arrays, many examples at once.

    It draws from the sampler and the generator when torch's own iterators draw: at once for the
    batches that workers would be given ahead, then one for each batch that is handed over. So
    whatever shares these random states sees no difference, also after a break.

    When an epoch begins, `form` gives the array form of the dataset as it is then. It is a weak
    reference, since an iterator that is kept must not keep its loader alive.
    """

    has_shut_down = False

    def __init__(
        self,
        view: Any,
        order: Order,
        log: BatchLog,
        form: "weakref.WeakMethod[Callable[[], ArrayForm]]",
    ) -> None:
        self._order = order
        self._log = log
        self._current_form = form
        super().__init__(view)
        if view.num_workers > 0:
            self._reset(view)  # torch's iterator with workers does, and so asks its sampler twice
        else:
            self._begin(view)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._begin(loader)

    def _begin(self, loader: Any) -> None:
        form = self._current_form()
        assert form is not None, "the loader begins each epoch, so it is alive"
        self._form = form()
        self._progress = self._order.progress
        self._ahead: deque[Task] = deque()
        for _ in range((loader.prefetch_factor or 0) * loader.num_workers):
            self._draw_ahead()

    def _draw_ahead(self) -> None:
        with contextlib.suppress(StopIteration):
            self._ahead.append(self._next_index())

    def _next_task(self) -> Task:
        if self._num_workers == 0:
            return self._next_index()
        if not self._ahead:
            raise StopIteration
        task = self._ahead.popleft()
        self._draw_ahead()
        return task

    def _next_indices(self, shard: Shard) -> np.ndarray:
        """A shard of the indices of the next batch, which is counted as handed over."""
        try:
            task = self._next_task()
        except StopIteration:
            self._log.epoch_ended(self._progress)
            raise
        refuse_empty(task)
        count = len(self._form)
        numbers: Any = task.numbers
        wrong = [task.indices]
        if numbers is not None:
            wrong = numbers[(numbers < -count) | (numbers >= count)]
        if len(wrong) > 0:
            raise IndexError(
                f"NumpyLoader: the sampler must yield indices below {count}, the length of the "
                f"dataset, and it yielded {wrong[0]}; give it the dataset that the loader has"
            )
        indices = np.where(numbers < 0, numbers + count, numbers)[shard.of(task.count)]
        self._log.gathered(self._progress, task, len(indices))
        return indices

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = self._form.take(self._next_indices(self._log.shard))
        seconds = time.perf_counter() - began
        self._log.stats.waited += seconds
        self._log.stats.loading += seconds
        return batch

    def index_batches(self) -> Iterator[np.ndarray]:
        """The indices of whole batches: where all examples are on the device, it cuts its shard."""
        while True:
            try:
                yield self._next_indices(Shard())
            except StopIteration:
                return


class LocalIter(_SingleProcessDataLoaderIter):
    """torch's iterator that loads in this process."""

    def __init__(self, view: Any, order: Order, log: BatchLog) -> None:
        self._progress = order.progress
        self._log = log
        self._apart: Any = contextlib.nullcontext
        if order.seed is not None:
            # An example has its own random states, and the caller's are put back after a batch.
            self._apart = random_states_restored
            if isinstance(order.dataset, IterableDataset):
                self._apart = OwnStates(order.seed, self._progress.epoch, 0, "stream").in_use
        with self._apart():
            super().__init__(view)

    def _next_data(self) -> Any:
        began = time.perf_counter()
        try:
            task = self._next_index()
            with self._apart():
                loaded = self._dataset_fetcher.fetch(task)
        except StopIteration:
            self._log.epoch_ended(self._progress)
            raise
        finally:
            self._log.stats.waited += time.perf_counter() - began
        return self._log.loaded(self._progress, loaded, task)


class WorkersIter(_MultiProcessingDataLoaderIter):
    """torch's iterator over worker processes; `context` is where ours come from, if they do."""

    def __init__(
        self, view: Any, order: Order, log: BatchLog, context: "WorkerContext | None"
    ) -> None:
        self._order = order
        self._context = context
        self._channels = context.channels if context else []
        self._log = log
        self._is_stream = isinstance(order.dataset, IterableDataset)
        self._is_starting = True
        self._owner = os.getpid()
        with warnings.catch_warnings():
            # torch warns of what WorkerError says better.
            warnings.filterwarnings("ignore", "Got pickle error when attempting to start a worker")
            try:
                super().__init__(view)
            except BaseException as error:
                if hasattr(self, "_workers_status"):
                    raise  # all workers have started: it is the sampler's
                self._shutdown = True
                for channel in self._channels:
                    channel.close()
                if not isinstance(error, OSError | EOFError):
                    raise
                raise WorkerError(
                    f"NumpyLoader: {view.num_workers} worker processes must be started, and the "
                    f"system refused ({type(error).__name__}: {error}); use fewer, or raise the "
                    "limits on open files and processes"
                ) from error

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self._progress = self._order.progress
        self._drawn: deque[Task] = deque()
        self._worker = 0
        self._had_their_turn = self._progress.next_worker
        super()._reset(loader, first_iter)

    def _next_index(self) -> Any:
        task = super()._next_index()
        if not self._is_stream:
            self._drawn.append(task)
        return task

    def _try_put_index(self) -> None:
        for _ in range(self._had_their_turn):
            next(self._worker_queue_idx_cycle)  # workers that came before, in a resumed epoch
        self._had_their_turn = 0
        super()._try_put_index()

    def _next_data(self) -> Any:
        began = time.perf_counter()
        try:
            loaded = super()._next_data()
        except StopIteration:
            self._log.epoch_ended(self._progress)
            raise
        finally:
            self._log.stats.waited += time.perf_counter() - began
        if self._is_starting and self._context is not None:
            self._is_starting = False
            ready = max(c.ready_since for c in self._channels if c.ready_since is not None)
            self._log.stats.starting += ready - self._context.launched
        return self._log.loaded(self._progress, loaded, self._task, self._worker, self._num_workers)

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        self._worker = worker_idx
        if self._channels and self._channels[worker_idx].has_jax:
            self._log.brings_jax = True
        self._task = self._drawn.popleft() if self._drawn else None
        kind = getattr(data, "exc_type", None)
        if not (isinstance(kind, type) and issubclass(kind, FeedaxError)):
            return super()._process_data(data, worker_idx)
        # torch sends the traceback as text; it ends with the error's own sentence.
        sentence, *notes = data.exc_msg.rstrip().rsplit(f"{kind.__name__}: ", 1)[-1].split(NOTE)
        again = kind(sentence.rstrip())
        for note in notes:
            again.add_note(NOTE + note)
        try:
            return super()._process_data(data, worker_idx)
        except FeedaxError as error:
            raise again from error

    @property
    def has_shut_down(self) -> bool:
        return bool(self._shutdown)

    def _shutdown_workers(self) -> None:
        if os.getpid() == self._owner:  # a forked copy of the trainer goes without a word
            super()._shutdown_workers()

    def _get_data(self) -> Any:
        try:
            return super()._get_data()
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            worker = self._awaited_worker()
            raise WorkerError(
                f"NumpyLoader: a batch must come within timeout={self._timeout} seconds, and "
                f"worker {worker} is still{self._at_work_on(worker)}; see what keeps it, or raise "
                "the timeout"
            ) from error

    def _awaited_worker(self) -> int:
        """The worker that is to make the next batch, or that is to begin a new epoch."""
        if self._rcvd_idx in self._task_info:
            return int(self._task_info[self._rcvd_idx][0])
        return next((channel.worker_id for channel in self._channels if channel.tasks), 0)

    def _try_get_data(self, timeout: float = MP_STATUS_CHECK_INTERVAL) -> Any:
        try:
            return super()._try_get_data(timeout)
        except WorkerError:
            raise
        except Exception as error:
            if self._context is None:
                dead = [i for i, worker in enumerate(self._workers) if not worker.is_alive()]
                lost = dead[0] if dead and "exited unexpectedly" in str(error) else None
            else:
                cause = error if isinstance(error, Refused | Gone) else error.__cause__
                if isinstance(cause, Refused):
                    self._shutdown_workers()
                    raise self._context.cannot_arrive(str(cause)) from None
                lost = int(cause.args[0]) if isinstance(cause, Gone) else None
            if lost is None:
                raise
            sentence = (
                f"NumpyLoader: worker {lost} must live as long as it has work, and it "
                f"{self._end_of(lost)} while{self._at_work_on(lost)}; look at what that example "
                "needs (memory, most often), or use fewer workers or smaller batches"
            )
            self._shutdown_workers()
            raise WorkerError(sentence) from error

    def _end_of(self, worker: int) -> str:
        process = self._workers[worker]
        process.join(MP_STATUS_CHECK_INTERVAL)
        code = process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _at_work_on(self, worker: int) -> str:
        """What a worker is doing, as far as it is known from outside."""
        if self._context is None:
            return " loading"
        channel = self._channels[worker]
        task = next(iter(channel.tasks.values()), None)
        if channel.ready_since is None:
            return " starting"
        if not isinstance(task, Task):
            return " idle"
        if self._is_stream:
            return " loading from its stream"
        indices = list(task.indices) if task.is_batch else [task.indices]
        place = channel.slots.position()
        if place == ALL:
            return f" loading examples {indices!r}"
        return f" loading example {indices[min(place, len(indices) - 1)]!r}"
