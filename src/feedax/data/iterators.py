"""The iterators over one epoch of a loader: gathered from arrays, loaded here, or by workers.

Thin classes over torch's own iterators. They add a log of what was handed over, errors that say
which example failed, and worker processes of our own.
"""

import contextlib
import copy
import os
import signal
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from feedax.data.order import Progress, Task, Tasks
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


class BatchLog:
    """What a loader learns from the batches that it hands over.

    Args:
        cache: keeps the examples, if there is one.
        shard: the share of each batch that is handed over.

    Attributes:
        stats: where the time went.
        notes: what the first batch says about the way to a device; None before it.
        brings_jax: whether the dataset made a worker import JAX.
        repeats: whether an iterable dataset came whole in more than one worker.
        gave_part: whether the batch handed over last was only a part of one.
    """

    def __init__(self, cache: Cache | None, shard: Shard) -> None:
        self.cache = cache
        self.shard = shard
        self.gave_part = False
        self.stats = LoaderStats()
        self.notes: tuple[str, ...] | None = None
        self.brings_jax = False
        self.repeats = False

    def renewed(self) -> "BatchLog":
        """The log of another loader of the same examples: it knows what was learned of them."""
        log = copy.copy(self)
        log.stats, log.gave_part = LoaderStats(), False
        return log

    def gathered(self, progress: Progress, task: Task, count: int) -> None:
        """So many examples of a batch that was gathered from arrays are handed over."""
        progress.hand_over(task)
        self.stats.batches += 1
        self.stats.examples += count
        self.gave_part = count < task.count

    def loaded(
        self, progress: Progress, loaded: Any, task: Any, worker: int = 0, workers: int = 1
    ) -> Any:
        """A batch that was loaded is handed over: the one that this returns."""
        if not isinstance(loaded, Loaded):  # a data pipe's
            batch, self.gave_part = self.shard.cut(loaded)
            return batch
        is_known = isinstance(task, Task)  # a data pipe's is torch's own
        before = progress.examples
        if loaded.stream is not None:
            progress.hand_over_stream(loaded.stream, loaded.first, worker, workers)
            if not self.repeats and (other := progress.repeats(worker)) is not None:
                self.repeats = True
                warnings.warn(_REPEATED.format(other, worker), UserWarning, stacklevel=2)
        elif is_known:
            progress.hand_over(task)
        if self.notes is None:
            self.notes = batch_notes(loaded.batch)
        if self.cache is not None and is_known:
            self.cache.keep(task, loaded.batch)
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
    whatever shares these random states sees no difference, also after a break. The array form is
    asked for when an epoch begins.

    Args:
        view: the loader as torch is to see it.
        tasks: its sampler as torch sees it.
        log: of the loader.
        form: gives the array form of the dataset as it is now; a weak reference, since an iterator
            that is kept must not keep its loader alive.
    """

    has_shut_down = False

    def __init__(
        self,
        view: Any,
        tasks: Tasks,
        log: BatchLog,
        form: "weakref.WeakMethod[Callable[[], ArrayForm]]",
    ) -> None:
        self._tasks = tasks
        self._progress = tasks.progress
        self._log = log
        self._current_form = form
        super().__init__(view)
        self._form = self._form_now()
        self._ahead: deque[Task] = deque()
        if view.num_workers > 0:
            self._reset(view)  # torch's iterator with workers does, and so asks its sampler twice

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self._progress = self._tasks.progress
        super()._reset(loader, first_iter)
        self._form = self._form_now()
        self._ahead.clear()
        for _ in range((loader.prefetch_factor or 0) * loader.num_workers):
            self._draw_ahead()

    def _form_now(self) -> ArrayForm:
        current = self._current_form()
        assert current is not None, "the loader begins each epoch, so it is alive"
        return current()

    def _draw_ahead(self) -> None:
        try:
            self._ahead.append(self._next_index())
        except StopIteration:
            return

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
        indices = self._checked(task)[shard.of(task.count)]
        self._log.gathered(self._progress, task, len(indices))
        return indices

    def _checked(self, task: Task) -> np.ndarray:
        numbers = task.numbers
        refuse_empty(task)
        count = len(self._form)
        if numbers is None:
            wrong: Any = task.indices
        elif numbers.min() < -count or numbers.max() >= count:
            wrong = next(i for i in numbers if not -count <= i < count)
        else:
            return np.where(numbers < 0, numbers + count, numbers)
        raise IndexError(
            f"NumpyLoader: the sampler must yield indices below {count}, the length of the "
            f"dataset, and it yielded {wrong}; give it the dataset that the loader has"
        )

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

    def __init__(self, view: Any, tasks: Tasks, log: BatchLog) -> None:
        self._progress = tasks.progress
        self._log = log
        self._apart: Any = contextlib.nullcontext
        with contextlib.ExitStack() as stack:
            if (seed := tasks.order.seed) is not None:
                # An example has its own random states, and the caller's are put back after a batch.
                self._apart = random_states_restored
                if isinstance(tasks.order.dataset, IterableDataset):
                    own = OwnStates(seed, self._progress.epoch, 0, "stream")
                    self._apart = own.in_use
                stack.enter_context(self._apart())
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
    """torch's iterator over worker processes.

    Args:
        view: the loader as torch is to see it.
        tasks: its sampler as torch sees it.
        log: of the loader.
        context: where our workers come from, or None for torch's way.
    """

    def __init__(
        self, view: Any, tasks: Tasks, log: BatchLog, context: "WorkerContext | None"
    ) -> None:
        self._tasks = tasks
        self._context = context
        self._log = log
        self._is_stream = isinstance(tasks.order.dataset, IterableDataset)
        self._is_starting = True
        self._owner = os.getpid()
        with warnings.catch_warnings():
            # torch warns of what WorkerError says better.
            warnings.filterwarnings("ignore", "Got pickle error when attempting to start a worker")
            try:
                super().__init__(view)
            except (OSError, EOFError) as error:
                if hasattr(self, "_workers_status"):
                    raise  # from the sampler
                self._abandon()
                raise WorkerError(
                    f"NumpyLoader: {view.num_workers} worker processes must be started, and the "
                    f"system refused ({type(error).__name__}: {error}); use fewer, or raise the "
                    "limits on open files and processes"
                ) from error
            except BaseException:
                if not hasattr(self, "_workers_status"):
                    self._abandon()
                raise

    def _abandon(self) -> None:
        """Let the workers end that were started before one could not be."""
        self._shutdown = True
        for channel in self._context.channels if self._context else []:
            channel.close()

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self._progress = self._tasks.progress
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
        self._log_start()
        return self._log.loaded(self._progress, loaded, self._task, self._worker, self._num_workers)

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        self._worker = worker_idx
        if self._context is not None and self._context.channels[worker_idx].has_jax:
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

    def _log_start(self) -> None:
        if self._is_starting and self._context is not None:
            self._is_starting = False
            since = [c.ready_since for c in self._context.channels if c.ready_since is not None]
            self._log.stats.starting += max(since) - self._context.launched

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
        channels = self._context.channels if self._context else []
        return next((channel.worker_id for channel in channels if channel.tasks), 0)

    def _try_get_data(self, timeout: float = MP_STATUS_CHECK_INTERVAL) -> Any:
        try:
            return super()._try_get_data(timeout)
        except WorkerError:
            raise
        except Exception as error:
            refused = error if isinstance(error, Refused) else error.__cause__
            if self._context is not None and isinstance(refused, Refused):
                self._shutdown_workers()
                raise self._context.cannot_arrive(str(refused)) from None
            lost = self._lost_worker(error)
            if lost is None:
                raise
            sentence = (
                f"NumpyLoader: worker {lost} must live as long as it has work, and it "
                f"{self._end_of(lost)} while{self._at_work_on(lost)}; look at what that example "
                "needs (memory, most often), or use fewer workers or smaller batches"
            )
            self._shutdown_workers()
            raise WorkerError(sentence) from error

    def _lost_worker(self, error: Exception) -> int | None:
        """Which worker has ended too early, if that is what an error tells."""
        if self._context is not None:
            gone = error if isinstance(error, Gone) else error.__cause__
            return int(gone.args[0]) if isinstance(gone, Gone) else None
        if "exited unexpectedly" in str(error):
            dead = [i for i, worker in enumerate(self._workers) if not worker.is_alive()]
            return dead[0] if dead else None
        return None

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
        channel = self._context.channels[worker]
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
