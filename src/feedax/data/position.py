"""Where in which epoch a loader stands, and the order of that epoch.

Everything that decides an epoch's order is drawn here: torch's iterators see a sampler that yields
`Task`s, and each task knows its place. So a position is known for the batch that was handed over,
however many were drawn ahead, and another process can go on from there.
"""

import contextlib
import copy
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import _InfiniteConstantSampler
from torch.utils.data.distributed import DistributedSampler

from feedax.data import randomness
from feedax.data.columns import Columns
from feedax.data.loading import Loaded, Task, keeps_state, state_of
from feedax.errors import PositionError
from feedax.random_states import random_states

_NOT_RANDOM = (SequentialSampler, DistributedSampler, _InfiniteConstantSampler)
"""torch's samplers that draw from no random state but their own."""

_RANDOM_ONCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""torch's samplers that draw from a random state once, before their first index."""


class Progress:
    """How far one epoch of a loader has come: what was handed over, not what was drawn ahead.

    Args:
        epoch: counted from 0.
        resume: the state to go on from, as `state_dict` gave it, or None.
    """

    def __init__(self, epoch: int, resume: dict[str, Any] | None = None) -> None:
        self.epoch = epoch
        self.resume = resume
        self.batches = resume["batches"] if resume else 0
        self.examples = resume["examples"] if resume else 0
        self.checksum = resume["checksum"] if resume else 0
        self.random: dict[str, Any] | None = None  # what the order began with, once it has begun
        self.sampler: Any = resume.get("sampler") if resume else None
        self.streams: dict[str, Any] = dict(resume.get("streams", {})) if resume else {}
        self.next_worker: int = resume.get("next_worker", 0) if resume else 0
        self.workers: int = resume.get("workers", 1) if resume else 1  # that share the streams
        self.first: dict[int, tuple[bytes, ...]] = {}  # what each worker's stream began with
        self.is_over = False

    def hand_over(self, task: Task) -> None:
        """A batch of a dataset with indices goes to whoever iterates."""
        self.batches = task.number + 1
        self.examples = task.start + task.count
        self.checksum = task.checksum
        self.sampler = task.sampler

    def hand_over_stream(self, loaded: Loaded, worker: int, workers: int) -> None:
        """A batch of an iterable dataset goes to whoever iterates."""
        assert loaded.stream is not None
        self.batches += 1
        self.examples += loaded.stream[0] - self.streams.get(str(worker), (0,))[0]
        self.streams[str(worker)] = list(loaded.stream)
        self.workers = max(workers, 1)
        self.next_worker = (worker + 1) % self.workers
        self.first[worker] = loaded.first

    def repeats(self, worker: int) -> int | None:
        """Another worker whose stream began with the same examples, if these are not all alike."""
        for other, first in self.first.items():
            both = list(zip(first, self.first[worker], strict=False))
            if other != worker and len(set(both)) > 1 and all(a == b for a, b in both):
                return other
        return None

    def state(self) -> dict[str, Any]:
        saved: dict[str, Any] = {
            "epoch": self.epoch,
            "batches": self.batches,
            "examples": self.examples,
            "checksum": self.checksum,
        }
        random = (self.resume or {}).get("random") if self.random is None else self.random
        if random:
            saved["random"] = random
        if self.sampler is not None:
            saved["sampler"] = self.sampler
        if self.streams:
            saved |= {"streams": self.streams, "next_worker": self.next_worker}
            saved["workers"] = self.workers
        return saved


class Tasks:
    """A loader's sampler as torch's iterators see it: each `iter()` draws one epoch's tasks.

    Args:
        loader: the `NumpyLoader`.
        progress: of the epoch to draw; the iterator puts another one here for its next epoch.
        columns: which indices of each batch are to be loaded.
    """

    def __init__(self, loader: Any, progress: Progress, columns: Columns) -> None:
        self.columns = columns
        self.sampler = loader._index_sampler
        self.batches = loader.batch_sampler is not None
        self.generator = order_generator(loader)
        self.length = dataset_length(loader)
        self.seed = loader.seed
        self.progress = progress
        if progress.streams:
            _check_workers(loader, progress.workers)

    def __iter__(self) -> "EpochTasks":
        return EpochTasks(self)

    def __len__(self) -> int:
        return len(self.sampler)


def dataset_length(loader: Any) -> int | None:
    """How many examples the loader's dataset has, if it has indices and says so."""
    if isinstance(loader.dataset, IterableDataset | MapDataPipe):
        return None
    try:
        return len(loader.dataset)
    except Exception:
        return None


def order_generator(loader: Any) -> torch.Generator | None:
    """The generator that the loader's order is drawn from, if it is not the global one."""
    sampler = _inner(loader._index_sampler)
    own = getattr(sampler, "generator", None)
    if isinstance(own, torch.Generator):
        return own
    return None if type(sampler) in _RANDOM_ONCE else loader.generator


def stateful_sampler(sampler: Any) -> Any:
    """The user's own sampler, where it can save its position."""
    return next((each for each in (sampler, _inner(sampler)) if keeps_state(each)), None)


def _inner(sampler: Any) -> Any:
    return sampler.sampler if type(sampler) is BatchSampler else sampler


class EpochTasks(Iterator[Task]):
    """One epoch's tasks, drawn when torch draws its indices."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._progress = tasks.progress
        self._kind = type(_inner(tasks.sampler))
        self._stateful = stateful_sampler(tasks.sampler)
        # With a seed, samplers draw from random states that depend on nothing else.
        self._drawing: Any = contextlib.nullcontext
        if tasks.seed is not None:
            own = randomness.OwnStates(tasks.seed, self._progress.epoch, 0, "sampler")
            self._drawing = own.in_use
        self._has_begun = False
        self._number = self._start = self._checksum = 0
        self._saved = (self._progress.resume or {}).get("random", {})
        resume = self._progress.resume
        if self._stateful is not None and resume and "sampler" in resume:
            self._stateful.load_state_dict(copy.deepcopy(resume["sampler"]))
        if tasks.seed is None and "global" in self._saved:
            # The sampler goes on from its own time; what the caller draws now stays as it is.
            states = randomness.states_from_json(self._saved["global"])
            self._drawing = randomness.OwnStates(states=states).in_use
        with self._drawing():
            self._set_epoch(_inner(tasks.sampler))
            self._rows = iter(tasks.sampler)

    def _set_epoch(self, sampler: Any) -> None:
        """Tell a sampler that counts epochs itself, as DistributedSampler does."""
        if hasattr(sampler, "set_epoch"):
            if self._tasks.seed is not None:
                sampler.set_epoch(self._progress.epoch)
            elif "epoch" in self._saved:
                sampler.set_epoch(self._saved["epoch"])

    def __next__(self) -> Task:
        if not self._has_begun:
            self._has_begun = True
            row = self._first_row()
        elif self._kind in (*_NOT_RANDOM, *_RANDOM_ONCE):
            row = next(self._rows)
        else:
            with self._drawing():
                row = next(self._rows)
        return self._task(row)

    def _task(self, row: Any) -> Task:
        if self._tasks.batches and not hasattr(row, "__len__"):
            row = list(row)
        task = Task(row, self._progress.epoch, self._start)
        task.number = self._number
        task.numbers = _numbers(row, self._tasks.batches)
        self._checksum = task.checksum = _checksum(row, task.numbers, self._checksum)
        task.is_batch = self._tasks.batches
        task.count = len(row) if task.is_batch else 1
        task.columns = self._tasks.columns.of(task.count)
        task.sampler = None
        if self._stateful is not None:
            task.sampler = state_of(self._stateful)
        self._number += 1
        self._start += task.count
        return task

    def _first_row(self) -> Any:
        """Skip what was handed over before, and draw; from the random state of that time."""
        generator = self._tasks.generator
        saved = self._saved
        drawn_from: dict[str, Any] = {}
        self._progress.random = drawn_from
        sampler = _inner(self._tasks.sampler)
        if self._tasks.seed is None and hasattr(sampler, "set_epoch"):
            epoch = getattr(sampler, "epoch", None)
            drawn_from |= {"epoch": epoch} if type(epoch) is int else {}
        if generator is not None:
            if "generator" in saved:
                generator.set_state(randomness.tensor_from_json(saved["generator"]))
            drawn_from["generator"] = randomness.tensor_to_json(generator.get_state())
        if self._tasks.seed is not None:
            with self._drawing():
                return self._skip()
        if self._kind in _RANDOM_ONCE and generator is None:
            before = torch.get_rng_state()
            if "torch" in saved:
                torch.set_rng_state(randomness.tensor_from_json(saved["torch"]))
            drawn_from["torch"] = randomness.tensor_to_json(torch.get_rng_state())
            try:
                return self._skip()
            finally:
                if "torch" in saved:  # the caller's examples may draw from it: they go on
                    torch.set_rng_state(before)
        if self._kind not in (*_NOT_RANDOM, *_RANDOM_ONCE) and self._stateful is None:
            with self._drawing():
                drawn_from["global"] = randomness.states_to_json(random_states())
                return self._skip()
        return self._skip()

    def _skip(self) -> Any:
        """Draw again what was handed over, see that it is the same, and draw the next row."""
        resume = self._progress.resume
        count = resume["batches"] if resume and "streams" not in resume else 0
        if not count or resume is None:
            return next(self._rows)
        self._number, self._start = count, resume["examples"]
        if self._stateful is not None:
            self._checksum = resume["checksum"]
            self._refuse_other_length(resume.get("length"))
            return next(self._rows)
        sampler = self._tasks.sampler
        size = sampler.batch_size if type(sampler) is BatchSampler else None
        if size is not None and self._start == count * size:
            # Whole batches need not be made one by one.
            each = iter(sampler.sampler)
            skipped = list(islice(each, self._start))
            is_whole = len(skipped) == self._start
            self._checksum = _checksum_of_whole(skipped, size)
            self._rows = iter(BatchSampler(each, size, sampler.drop_last))
        else:
            rows = list(islice(self._rows, count))
            is_whole = len(rows) == count
            self._checksum = _checksum_of_all(rows, self._tasks.batches)
        if not is_whole or self._checksum != resume["checksum"]:
            raise PositionError(
                "NumpyLoader: to go on from a saved position the sampler must yield the indices "
                f"that it yielded then, and its first {count} batches are others; give the loader "
                "the same dataset and arguments, or the sampler a state_dict of its own"
            )
        self._refuse_other_length(resume.get("length"))
        return next(self._rows)

    def _refuse_other_length(self, then: int | None) -> None:
        """A longer dataset begins as the shorter one did, if its order is that of the indices."""
        now = self._tasks.length
        if None not in (then, now) and then != now:
            raise PositionError(
                "NumpyLoader: to go on within an epoch the dataset must be as long as it was when "
                f"the position was saved, {then}, and it has {now} examples; give the loader the "
                "same dataset"
            )


def _check_workers(loader: Any, workers: int) -> None:
    if not isinstance(loader.dataset, IterableDataset):
        raise PositionError(
            "NumpyLoader: a position in a stream belongs to an IterableDataset, and this loader's "
            f"is a {type(loader.dataset).__name__}; give the loader the same dataset"
        )
    if max(loader.num_workers, 1) != workers:
        raise PositionError(
            "NumpyLoader: each worker goes on with its own share of an IterableDataset, and the "
            f"position was saved with {workers} of them but this loader has "
            f"num_workers={loader.num_workers}; make the loader with the same number"
        )


def _numbers(row: Any, of_batch: bool) -> np.ndarray | None:
    """Indices as int64 `(examples,)`, or None if they are no integers."""
    try:
        numbers = np.asarray(row)
        if of_batch and numbers.ndim == 0:  # a set of indices, say
            numbers = np.asarray(list(row))
    except Exception:
        return None
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        return None
    return numbers.astype(np.int64, copy=False).reshape(-1)


def _checksum(row: Any, numbers: np.ndarray | None, before: int) -> int:
    return zlib.crc32(repr(row).encode() if numbers is None else numbers.tobytes(), before)


def _checksum_of_all(rows: list[Any], of_batches: bool) -> int:
    """What `_checksum` comes to, row by row; a million indices take a tenth of a second."""
    flat = chain.from_iterable(rows) if of_batches else rows
    try:
        numbers = np.asarray(list(flat))
        if numbers.dtype.kind in "iu" and numbers.ndim == 1:
            return zlib.crc32(numbers.astype(np.int64, copy=False).tobytes())
    except Exception:
        pass
    checksum = 0
    for row in rows:
        checksum = _checksum(row, _numbers(row, of_batches), checksum)
    return checksum


def _checksum_of_whole(indices: list[Any], size: int) -> int:
    """`_checksum_of_all` of batches of one size, given as one list."""
    if (numbers := _numbers(indices, False)) is not None:
        return _checksum(None, numbers, 0)
    rows = [indices[i : i + size] for i in range(0, len(indices), size)]
    return _checksum_of_all(rows, True)
