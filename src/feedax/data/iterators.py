"""Batches that are loaded example by example, in this process or in workers.

Thin classes over torch's own iterators. What they add: an account of what was handed over, errors
that say which example, and workers that are ours.
"""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections import deque
from typing import Any

import torch
from torch.utils.data import IterableDataset, IterDataPipe, MapDataPipe
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL
from torch.utils.data.dataloader import (
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from feedax.data.columns import Columns, why_whole
from feedax.data.loading import ALL, NOTE, Loading, Task
from feedax.data.position import Tasks
from feedax.data.randomness import OwnStates, seeded_generator
from feedax.errors import FeedaxError, WorkerError
from feedax.random_states import random_states_restored

HAS_OWN_WORKERS = sys.platform.startswith("linux")
"""Whether workers are ours: elsewhere torch's own way is taken, and its default start method."""

if HAS_OWN_WORKERS:
    from feedax.data.workers.channel import Gone, Refused
    from feedax.data.workers.server import WorkerContext


def start_method(loader: Any) -> str:
    """How a loader's workers start: where it does not say, from our server if there is one."""
    if loader.multiprocessing_context is None and HAS_OWN_WORKERS:
        return "forkserver"
    method: str = (loader.multiprocessing_context or torch.multiprocessing).get_start_method()
    return method


def has_own_workers(loader: Any) -> bool:
    """Whether a loader's workers are forked from our server."""
    return HAS_OWN_WORKERS and start_method(loader) == "forkserver"


def loaded_iterator(loader: Any) -> Any:
    """An iterator over batches that torch loads example by example."""
    progress = loader._progress
    # Where not only its columns are loaded, the account cuts them from the whole.
    tasks = Tasks(loader, progress, loader._columns if why_whole(loader) is None else Columns())
    loading = Loading(
        loader.dataset,
        loader.user_collate_fn,
        loader.worker_init_fn,
        converts=loader.batch_sampler is None,
        seed=loader.seed,
        epoch=progress.epoch,
        resume=(progress.resume or {}).get("streams"),
    )
    changed: dict[str, Any] = {"collate_fn": loading.collate}
    if not isinstance(loader.dataset, IterDataPipe | MapDataPipe):  # torch's to take apart
        changed["sampler" if loader.batch_sampler is None else "batch_sampler"] = tasks
        changed |= {"dataset": loading.dataset, "worker_init_fn": loading.init_worker}
    view = changed_view(loader, **changed)
    if loader.num_workers == 0:
        return LocalIter(view, loader)
    context = None
    if has_own_workers(loader):
        heavy = [view.dataset, view.collate_fn, view.worker_init_fn]
        context = WorkerContext(loader, heavy, _named(loader))
        view.__dict__["_DataLoader__multiprocessing_context"] = context
    return WorkersIter(view, loader, tasks, context)


def changed_view(loader: Any, **changed: Any) -> Any:
    """A loader as torch's iterators are to see it; they alone do."""
    changed["pin_memory"] = False
    if loader.seed is not None:
        # What torch draws for its workers comes from the seed, not from the caller's state.
        changed["generator"] = seeded_generator(loader.seed, loader._progress.epoch)
    view = object.__new__(type(loader))
    vars(view).update(vars(loader) | changed)  # torch forbids to assign some of these
    return view


def _named(loader: Any) -> dict[str, Any]:
    """What a worker needs of the user's, for messages."""
    return {
        "dataset": loader.dataset,
        "collate_fn": loader.user_collate_fn,
        "worker_init_fn": loader.worker_init_fn,
    }


class LocalIter(_SingleProcessDataLoaderIter):
    """torch's iterator that loads in this process."""

    def __init__(self, view: Any, loader: Any) -> None:
        self._progress = loader._progress
        self._account = loader._account
        self._apart: Any = contextlib.nullcontext
        with contextlib.ExitStack() as stack:
            if loader.seed is not None:
                # An example has its own random states, and the caller's are put back after a batch.
                self._apart = random_states_restored
                if isinstance(loader.dataset, IterableDataset):
                    own = OwnStates(loader.seed, self._progress.epoch, 0, "stream")
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
            self._account.epoch_ended(self._progress)
            raise
        finally:
            self._account.stats.waited += time.perf_counter() - began
        return self._account.loaded(self._progress, loaded, task)


class WorkersIter(_MultiProcessingDataLoaderIter):
    """torch's iterator over worker processes.

    Args:
        view: the loader as torch is to see it.
        loader: the user's.
        tasks: its sampler as torch sees it.
        context: where our workers come from, or None for torch's way.
    """

    def __init__(
        self, view: Any, loader: Any, tasks: Tasks, context: "WorkerContext | None"
    ) -> None:
        self._tasks = tasks
        self._context = context
        self._account = loader._account
        self._is_stream = isinstance(loader.dataset, IterableDataset)
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
        self._progress = self._tasks.progress = loader._progress
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
            self._account.epoch_ended(self._progress)
            raise
        finally:
            self._account.stats.waited += time.perf_counter() - began
        self._account_for_start()
        return self._account.loaded(
            self._progress, loaded, self._task, self._worker, self._num_workers
        )

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        self._worker = worker_idx
        if self._context is not None and self._context.channels[worker_idx].has_jax:
            self._account.brings_jax = True
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

    def _shutdown_workers(self) -> None:
        if os.getpid() == self._owner:  # a forked copy of the trainer goes without a word
            super()._shutdown_workers()

    def _account_for_start(self) -> None:
        if self._is_starting and self._context is not None:
            self._is_starting = False
            words = [channel.ready for channel in self._context.channels if channel.ready]
            since = max(word.since for word in words)
            self._account.stats.starting += since - self._context.launched

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
        if channel.ready is None:
            return " starting"
        if not isinstance(task, Task):
            return " idle"
        if self._is_stream:
            return " loading from its stream"
        indices = list(task.indices) if task.is_batch else [task.indices]
        place = channel.ring.position()
        if place == ALL:
            return f" loading examples {indices!r}"
        return f" loading example {indices[min(place, len(indices) - 1)]!r}"
