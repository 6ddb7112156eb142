"""Batches that are loaded example by example, in this process or in workers.

Thin classes over torch's own iterators. What they add: an example that fails is named by its
index, errors keep their type and their sentence on the way back from a worker, and workers leave
Ctrl-C to the process that trains.
"""

import copy
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils import worker as torch_worker
from torch.utils.data.dataloader import (
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from feedax.data.collate import Examples
from feedax.errors import FeedaxError, WorkerError

_PRELOADED = ["torch", "torchvision", "feedax.data"]


def start_method() -> Any:
    """The multiprocessing context for workers: a fork server on Linux, torch's choice elsewhere.

    The server imports what every worker needs once, and never JAX, whose threads do not survive
    a fork.
    """
    if not sys.platform.startswith("linux"):
        return None
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def loaded_iterator(loader: Any) -> Any:
    """An iterator over batches that torch loads example by example."""
    view = _view(loader)
    if loader.num_workers == 0:
        return _SingleProcessDataLoaderIter(view)
    context = loader.multiprocessing_context
    if context is not None and context.get_start_method() == "forkserver":
        _start_server()
    with warnings.catch_warnings():
        # torch warns of what WorkerError says better.
        warnings.filterwarnings("ignore", "Got pickle error when attempting to start a worker")
        try:
            return _WorkersIter(view)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            if _can_travel(view):
                raise  # not from the start of a worker: from the sampler, say
            raise WorkerError(
                "NumpyLoader: dataset, collate_fn and worker_init_fn must be picklable to travel "
                f"to a worker, and one is not ({error}); define it at the top level of a module, "
                "or use num_workers=0 or multiprocessing_context='fork'"
            ) from error


def _start_server() -> None:
    """Start the fork server deaf to Ctrl-C, as `_WorkerInit` makes the workers.

    The server hands its signal mask on, so a worker is deaf from its first moment on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _can_travel(view: DataLoader[Any]) -> bool:
    try:
        ForkingPickler.dumps((view.dataset, view.collate_fn, view.worker_init_fn))
    except Exception:
        return False
    return True


def _view(loader: Any) -> DataLoader[Any]:
    """The loader as its iterator sees it: its dataset tells `numpy_collate` which example is which.

    A collate_fn of the user's own gets what the dataset gives, as in torch.
    """
    view = copy.copy(loader)
    indexed = loader.collates_itself and loader.batch_sampler is not None
    # torch forbids to assign a loader's dataset: the view is seen by its iterator alone.
    if indexed and not isinstance(loader.dataset, IterableDataset):
        view.__dict__["dataset"] = _Indexed(loader.dataset)
    view.__dict__["worker_init_fn"] = _WorkerInit(loader.worker_init_fn)
    return view


class _Indexed(Dataset[Any]):
    """A map-style dataset that loads a batch's examples and remembers their indices."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Any) -> Any:
        whole_batch = getattr(self.dataset, "__getitems__", None)
        if not whole_batch:
            indices = list(indices)
            return Examples([self.dataset[index] for index in indices], indices)
        examples = whole_batch(indices)
        # One that leaves examples out, say, leaves the others without their indices.
        told = isinstance(examples, list) and isinstance(indices, Sequence)
        return Examples(examples, indices) if told and len(examples) == len(indices) else examples


class _WorkerInit:
    """Runs first in a worker: the user's worker_init_fn, with torch's worker info as documented."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        # Ctrl-C reaches the whole process group; the trainer decides what becomes of its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        info = torch_worker._worker_info
        if info is not None and isinstance(info.dataset, _Indexed):
            # The info is frozen, and its dataset must be the user's own.
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


class _WorkersIter(_MultiProcessingDataLoaderIter):
    """torch's iterator over worker processes, with feedax's errors as they were raised."""

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        kind = getattr(data, "exc_type", None)
        if not (isinstance(kind, type) and issubclass(kind, FeedaxError)):
            return super()._process_data(data, worker_idx)
        try:
            return super()._process_data(data, worker_idx)
        except FeedaxError as error:
            # torch sends the traceback as text; its last line is the error's own sentence.
            sentence = str(error).rstrip().rsplit(f"{kind.__name__}: ", 1)[-1]
            raise kind(sentence) from error
