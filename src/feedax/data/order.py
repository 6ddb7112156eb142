"""The order of an epoch: which examples each batch holds, and how far an epoch has come.

Everything that decides the order is drawn here: torch's iterators see a sampler that yields tasks,
and each `Task` knows its place in the epoch. So the position of the batch that was handed over is
known, however many batches were drawn ahead, and another process can resume there.
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
    DataLoader,
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
from feedax.data.shard import Shard
from feedax.errors import PositionError
from feedax.random_states import random_states

_NOT_RANDOM = (SequentialSampler, DistributedSampler, _InfiniteConstantSampler)
"""torch's samplers that draw from no random state but their own."""

_RANDOM_ONCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""torch's samplers that draw from a random state once, before their first index."""


class Task:
    """What a sampler yields for one batch, and its place in the epoch.

    Attributes:
        indices: the sampler's own object.
        epoch: counted from 0.
        start: how many examples of the epoch come before.
        rows: which of the indices are to be loaded; all, unless a process loads a shard.
        is_batch: whether they are a batch's, not one single example's.
        count: how many examples these are.
        number: how many batches come before.
        numbers: the indices as int64 `(examples,)`, or None where they are no integers.
        checksum: of all indices of the epoch up to and including these.
        sampler: the sampler's own state after these, if it has one.
    """

    def __init__(self, indices: Any, epoch: int, start: int, rows: slice = slice(None)) -> None:
        self.indices = indices
        self.epoch = epoch
        self.start = start
        self.rows = rows

    is_batch: bool
    count: int
    number: int
    numbers: np.ndarray | None
    checksum: int
    sampler: Any

    def __reduce__(self) -> Any:  # a worker needs no more
        return Task, (self.indices, self.epoch, self.start, self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Progress:
    """How far one epoch of a loader has come: what was handed over, not what was drawn ahead.

    Args:
        epoch: counted from 0.
        resume: the state to resume from, as `state_dict` gave it, or None.
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
        """Count a batch of a dataset with indices as handed over."""
        self.batches = task.number + 1
        self.examples = task.start + task.count
        self.checksum = task.checksum
        self.sampler = task.sampler

    def hand_over_stream(
        self,
        stream: tuple[int, Any, bool],
        first: tuple[bytes, ...],
        worker: int,
        workers: int,
    ) -> None:
        """Count a batch of an iterable dataset as handed over.

        Args:
            stream: where that worker's stream stands after it, see `Loaded`.
            first: digests of the examples that the stream began with.
            worker: that loaded it.
            workers: how many there are.
        """
        self.batches += 1
        self.examples += stream[0] - self.streams.get(str(worker), (0,))[0]
        self.streams[str(worker)] = list(stream)
        self.workers = max(workers, 1)
        self.next_worker = (worker + 1) % self.workers
        self.first[worker] = first

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


class Position:
    """Where a loader stands: which epoch begins next, and how far the last one has come.

    Attributes:
        next_epoch: the number of the epoch that begins next.
        resume: the state that it resumes from, or None if it begins at its first batch.
        progress: of the epoch that began last, or None before the first.
    """

    def __init__(self, next_epoch: int = 0, resume: dict[str, Any] | None = None) -> None:
        self.next_epoch = next_epoch
        self.resume = resume
        self.progress: Progress | None = None

    def renewed(self) -> "Position":
        """The position of another loader, which begins where this one's next epoch begins."""
        return Position(self.next_epoch, self.resume)

    @property
    def is_between_epochs(self) -> bool:
        return self.progress is None or self.progress.is_over

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.next_epoch:
            self.resume = None  # a position in another epoch
        self.next_epoch = epoch

    def load(self, resume: dict[str, Any]) -> None:
        """Resume from a state, as `state_dict` gave it."""
        self.next_epoch, self.resume = resume["epoch"], resume

    def begin(self) -> None:
        """Begin the next epoch."""
        self.progress = Progress(self.next_epoch, self.resume)
        self.next_epoch += 1
        self.resume = None


class Order:
    """What decides the order of a loader's epochs.

    Args:
        loader: the loader, or another one with the same arguments.
        seed: fixes the order, or None for torch's randomness.

    Attributes:
        sampler: yields the indices of a batch, or of single examples.
        is_batched: which of the two.
        inner: the sampler of single examples.
        stateful: the user's own sampler, if it can save its position.
        generator: what the order is drawn from, if that is not the global random state.
        length: how many examples the dataset has, if it has indices and a length.
    """

    def __init__(self, loader: DataLoader[Any], seed: int | None) -> None:
        dataset: Any = loader.dataset
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self.seed = seed
        self.dataset = dataset
        self.num_workers = loader.num_workers
        self.is_batched = loader.batch_sampler is not None
        self.sampler = sampler
        self.inner: Any = sampler.sampler if type(sampler) is BatchSampler else sampler
        self.stateful: Any = next(filter(keeps_state, (self.sampler, self.inner)), None)
        self.generator: torch.Generator | None = getattr(self.inner, "generator", None)
        if not isinstance(self.generator, torch.Generator):
            self.generator = None if type(self.inner) in _RANDOM_ONCE else loader.generator
        self.length: int | None = None
        if not isinstance(dataset, IterableDataset | MapDataPipe):
            with contextlib.suppress(Exception):
                self.length = len(dataset)


class Tasks:
    """A loader's sampler as torch's iterators see it: each `iter()` draws the tasks of one epoch.

    Args:
        order: what decides the order.
        position: of the loader; an epoch has begun there.
        shard: which rows of each batch are to be loaded.
    """

    def __init__(self, order: Order, position: Position, shard: Shard) -> None:
        self.order = order
        self.shard = shard
        self._position = position
        if self.progress.streams:
            _check_workers(order, self.progress.workers)

    @property
    def progress(self) -> Progress:
        """Of the loader's current epoch."""
        assert self._position.progress is not None
        return self._position.progress

    def __iter__(self) -> "EpochTasks":
        return EpochTasks(self.order, self.progress, self.shard)

    def __len__(self) -> int:
        return len(self.order.sampler)


class EpochTasks(Iterator[Task]):
    """The tasks of one epoch, drawn when torch draws its indices."""

    def __init__(self, order: Order, progress: Progress, shard: Shard) -> None:
        self._order = order
        self._progress = progress
        self._shard = shard
        self._kind = type(order.inner)
        # With a seed, samplers draw from random states that depend on nothing else.
        self._drawing: Any = contextlib.nullcontext
        if order.seed is not None:
            own = randomness.OwnStates(order.seed, progress.epoch, 0, "sampler")
            self._drawing = own.in_use
        self._has_begun = False
        self._number = self._start = self._checksum = 0
        resume = progress.resume or {}
        self._saved = resume.get("random", {})
        if order.stateful is not None and "sampler" in resume:
            order.stateful.load_state_dict(copy.deepcopy(resume["sampler"]))
        if order.seed is None and "global" in self._saved:
            # The sampler resumes from the states of that time; the caller's stay as they are.
            states = randomness.states_from_json(self._saved["global"])
            self._drawing = randomness.OwnStates(states=states).in_use
        with self._drawing():
            self._set_epoch()
            self._rows = iter(order.sampler)

    def _set_epoch(self) -> None:
        """Tell the epoch to a sampler that counts epochs itself, as DistributedSampler does."""
        if hasattr(self._order.inner, "set_epoch"):
            if self._order.seed is not None:
                self._order.inner.set_epoch(self._progress.epoch)
            elif "epoch" in self._saved:
                self._order.inner.set_epoch(self._saved["epoch"])

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
        is_batch = self._order.is_batched
        if is_batch and not hasattr(row, "__len__"):
            row = list(row)
        task = Task(row, self._progress.epoch, self._start)
        task.number = self._number
        task.numbers = _numbers(row, is_batch)
        self._checksum = task.checksum = _checksum(row, task.numbers, self._checksum)
        task.is_batch = is_batch
        task.count = len(row) if is_batch else 1
        task.rows = self._shard.of(task.count)
        task.sampler = None if self._order.stateful is None else state_of(self._order.stateful)
        self._number += 1
        self._start += task.count
        return task

    def _first_row(self) -> Any:
        """Draw from the random state with which the epoch began, and skip what was handed over."""
        order, saved = self._order, self._saved
        drawn_from: dict[str, Any] = {}
        self._progress.random = drawn_from
        if order.seed is None and hasattr(order.inner, "set_epoch"):
            epoch = getattr(order.inner, "epoch", None)
            drawn_from |= {"epoch": epoch} if type(epoch) is int else {}
        if order.generator is not None:
            if "generator" in saved:
                order.generator.set_state(randomness.tensor_from_json(saved["generator"]))
            drawn_from["generator"] = randomness.tensor_to_json(order.generator.get_state())
        if order.seed is not None:
            with self._drawing():
                return self._skip()
        if self._kind in _RANDOM_ONCE and order.generator is None:
            before = torch.get_rng_state()
            if "torch" in saved:
                torch.set_rng_state(randomness.tensor_from_json(saved["torch"]))
            drawn_from["torch"] = randomness.tensor_to_json(torch.get_rng_state())
            try:
                return self._skip()
            finally:
                if "torch" in saved:  # the caller's examples may draw from it, undisturbed
                    torch.set_rng_state(before)
        if self._kind not in (*_NOT_RANDOM, *_RANDOM_ONCE) and order.stateful is None:
            with self._drawing():
                drawn_from["global"] = randomness.states_to_json(random_states())
                return self._skip()
        return self._skip()

    def _skip(self) -> Any:
        """Draw what was handed over again, check that it is the same, and draw the next row."""
        resume = self._progress.resume
        count = resume["batches"] if resume and "streams" not in resume else 0
        if not count or resume is None:
            return next(self._rows)
        self._number, self._start = count, resume["examples"]
        if self._order.stateful is not None:
            self._checksum = resume["checksum"]
            self._refuse_other_length(resume.get("length"))
            return next(self._rows)
        sampler = self._order.sampler
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
            self._checksum = _checksum_of_all(rows, self._order.is_batched)
        if not is_whole or self._checksum != resume["checksum"]:
            raise PositionError(
                "NumpyLoader: to resume from a saved position the sampler must yield the indices "
                f"that it yielded then, and its first {count} batches differ; give the loader the "
                "same dataset and arguments, or the sampler a state_dict of its own"
            )
        self._refuse_other_length(resume.get("length"))
        return next(self._rows)

    def _refuse_other_length(self, then: int | None) -> None:
        """A longer dataset begins as the shorter one did, if its order is that of the indices."""
        now = self._order.length
        if None not in (then, now) and then != now:
            raise PositionError(
                who="NumpyLoader",
                rule="to resume within an epoch the dataset must be as long as it was when the "
                f"position was saved, {then}",
                found=f"it has {now} examples",
                remedy="give the loader the same dataset",
            )


def _check_workers(order: Order, workers: int) -> None:
    if not isinstance(order.dataset, IterableDataset):
        raise PositionError(
            "NumpyLoader: a position in a stream belongs to an IterableDataset, and this loader's "
            f"is a {type(order.dataset).__name__}; give the loader the same dataset"
        )
    if max(order.num_workers, 1) != workers:
        raise PositionError(
            "NumpyLoader: each worker resumes its own share of an IterableDataset, and the "
            f"position was saved with {workers} of them but this loader has "
            f"num_workers={order.num_workers}; make the loader with the same number"
        )


def keeps_state(source: Any) -> bool:
    """Whether it has a state of its own to return to, not only that of an object inside it."""
    names = ("state_dict", "load_state_dict")
    return all(
        hasattr(type(source), name) or name in getattr(source, "__dict__", ()) for name in names
    )


class NoState(str):
    """Why something that keeps a state could not tell it."""


def state_of(source: Any) -> Any:
    """A copy of the state that something keeps, or `NoState`."""
    try:
        return copy.deepcopy(source.state_dict())
    except Exception as error:
        return NoState(
            f"NumpyLoader: a position has the state of its {type(source).__name__}, and state_dict "
            f"failed there ({type(error).__name__}: {str(error)[:100]}); fix it, or leave it out"
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
