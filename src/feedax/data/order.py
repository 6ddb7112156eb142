"""The order of an epoch: which examples each batch holds, and how far an epoch has come.

Everything that decides the order is drawn here: torch's iterators see an `Order` as their sampler,
and each `Task` that it yields knows its place in the epoch. So the position of the batch that was
handed over is known, however many batches were drawn ahead, and another process can resume there.
"""

import contextlib
import copy
import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import _InfiniteConstantSampler
from torch.utils.data.distributed import DistributedSampler

from feedax.data.randomness import (
    OwnStates,
    states_from_json,
    states_to_json,
    tensor_from_json,
    tensor_to_json,
)
from feedax.data.shard import Shard
from feedax.errors import PositionError, shown
from feedax.random_states import random_states, random_states_restored

VERSION = 1
"""Of a saved position."""

_NOT_RANDOM = (SequentialSampler, DistributedSampler, _InfiniteConstantSampler)
"""torch's samplers that draw from no random state but their own."""

_RANDOM_ONCE = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""torch's samplers that draw from a random state once, before their first index."""

_TORCHS = (*_NOT_RANDOM, *_RANDOM_ONCE)


@dataclass(eq=False)
class Task:
    """What a sampler yields for one batch, and its place in the epoch."""

    indices: Any  # the sampler's own object
    epoch: int
    start: int  # how many examples of the epoch come before
    rows: slice  # of the indices, those that are to be loaded
    number: int = 0  # how many batches come before
    is_batch: bool = True  # not one single example
    count: int = 1  # how many examples these are
    numbers: np.ndarray | None = None  # the indices as int64 `(examples,)`, if they are integers
    checksum: int = 0  # of all indices of the epoch up to and including these
    sampler: Any = None  # the sampler's own state after these, if it has one

    def __reduce__(self) -> Any:  # a worker needs no more
        return Task, (self.indices, self.epoch, self.start, self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Progress:
    """How far an epoch has come: what was handed over, not what was drawn ahead.

    It resumes from the position `resume`, if that is not empty.
    """

    def __init__(self, epoch: int, resume: dict[str, Any] | None = None) -> None:
        self.epoch = epoch
        self.resume = resume = resume or {}
        self.batches: int = resume.get("batches", 0)
        self.examples: int = resume.get("examples", 0)
        self.checksum: int = resume.get("checksum", 0)
        self.random: dict[str, Any] = resume.get("random", {})  # what the order began with
        self.sampler: Any = resume.get("sampler")
        # Of an iterable dataset, by worker: where its stream stands, see `Loaded`.
        self.streams: dict[str, Any] = dict(resume.get("streams", {}))
        self.next_worker: int = resume.get("next_worker", 0)
        self.workers: int = resume.get("workers", 1)
        self._first: dict[int, tuple[bytes, ...]] = {}  # what each worker's stream began with
        self.is_over = False

    def hand_over(self, task: Task) -> None:
        """Count a batch of a dataset with indices as handed over."""
        self.batches = task.number + 1
        self.examples = task.start + task.count
        self.checksum = task.checksum
        self.sampler = task.sampler

    def hand_over_stream(self, stream: tuple[int, Any, bool], worker: int, workers: int) -> None:
        """Count a batch of an iterable dataset, which one of so many workers loaded."""
        self.batches += 1
        self.examples += stream[0] - self.streams.get(str(worker), (0,))[0]
        self.streams[str(worker)] = list(stream)
        self.workers = max(workers, 1)
        self.next_worker = (worker + 1) % self.workers

    def repeated(self, worker: int, first: tuple[bytes, ...]) -> int | None:
        """Another worker whose stream began with the same examples, if these are not all alike."""
        self._first[worker] = first
        for other, firsts in self._first.items():
            both = list(zip(firsts, first, strict=False))
            if other != worker and len(set(both)) > 1 and all(a == b for a, b in both):
                return other
        return None

    def state(self) -> dict[str, Any]:
        names = ["epoch", "batches", "examples", "checksum"]
        names += ["random"] if self.random else []
        names += ["sampler"] if self.sampler is not None else []
        names += ["streams", "next_worker", "workers"] if self.streams else []
        return {name: getattr(self, name) for name in names}


@dataclass
class Position:
    """Where a loader stands: which epoch begins next, and how far the last one has come."""

    next_epoch: int = 0
    resume: dict[str, Any] | None = None  # the position in that epoch that it resumes from
    progress: Progress | None = None  # of the epoch that began last

    @property
    def is_between_epochs(self) -> bool:
        return self.progress is None or self.progress.is_over

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.next_epoch:
            self.resume = None  # a position in another epoch
        self.next_epoch = epoch

    def begin(self) -> None:
        """Begin the next epoch."""
        self.progress = Progress(self.next_epoch, self.resume)
        self.next_epoch += 1
        self.resume = None


class Order:
    """What decides the order of a loader's epochs; torch's iterators see it as their sampler.

    Attributes:
        sampler: yields the indices of a batch, or, if not `is_batched`, of single examples.
        inner: the sampler of single examples.
        stateful: the user's own sampler, if it can save its position.
        generator: what the order is drawn from, if that is not the global random state.
        length: how many examples the dataset has, if it has indices and a length.
        shard: which rows of each batch are to be loaded.
    """

    def __init__(
        self, loader: DataLoader[Any], seed: int | None, position: Position, shard: Shard
    ) -> None:
        dataset: Any = loader.dataset
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self.seed = seed
        self.shard = shard
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
        self._position = position

    @property
    def progress(self) -> Progress:
        """Of the loader's current epoch."""
        assert self._position.progress is not None
        return self._position.progress

    def __iter__(self) -> "EpochTasks":
        return EpochTasks(self, self.progress)

    def __len__(self) -> int:
        return len(self.sampler)

    def refuse_other_streams(self) -> None:
        """Raise PositionError if the streams of a position belong to another loader."""
        workers = self.progress.workers
        if not self.progress.streams:
            return
        if not isinstance(self.dataset, IterableDataset):
            raise PositionError(
                "NumpyLoader: a position in a stream belongs to an IterableDataset, and this "
                f"loader's is a {type(self.dataset).__name__}; give the loader the same dataset"
            )
        if max(self.num_workers, 1) != workers:
            raise PositionError(
                "NumpyLoader: each worker resumes its own share of an IterableDataset, and the "
                f"position was saved with {workers} of them but this loader has "
                f"num_workers={self.num_workers}; make the loader with the same number"
            )


class EpochTasks(Iterator[Task]):
    """The tasks of one epoch, drawn when torch draws its indices."""

    def __init__(self, order: Order, progress: Progress) -> None:
        self._order = order
        self._progress = progress
        self._kind = type(order.inner)
        self._has_begun = False
        self._number = self._start = self._checksum = 0
        self._saved = saved = progress.resume.get("random", {})
        if order.stateful is not None and "sampler" in progress.resume:
            order.stateful.load_state_dict(copy.deepcopy(progress.resume["sampler"]))
        self._draws_from_torch = (
            order.seed is None and order.generator is None and self._kind in _RANDOM_ONCE
        )
        # With a seed, samplers draw from random states that depend on nothing else; without one, a
        # sampler that resumes draws from the states of that time. The caller's stay as they are.
        self._drawing: Any = contextlib.nullcontext
        if order.seed is not None:
            self._drawing = OwnStates(order.seed, progress.epoch, 0, "sampler").in_use
        elif "global" in saved:
            self._drawing = OwnStates(states=states_from_json(saved["global"])).in_use
        elif "torch" in saved and self._draws_from_torch:
            self._drawing = random_states_restored
        with self._drawing():
            # DistributedSampler and its like count epochs themselves.
            if hasattr(order.inner, "set_epoch"):
                if order.seed is not None:
                    order.inner.set_epoch(progress.epoch)
                elif "epoch" in saved:
                    order.inner.set_epoch(saved["epoch"])
            self._rows = iter(order.sampler)

    def __next__(self) -> Task:
        if not self._has_begun:
            self._has_begun = True
            return self._task(self._first_row())
        if self._kind in _TORCHS:
            return self._task(next(self._rows))
        with self._drawing():
            row = next(self._rows)
        return self._task(row)

    def _task(self, row: Any) -> Task:
        order = self._order
        if order.is_batched and not hasattr(row, "__len__"):
            row = list(row)
        count = len(row) if order.is_batched else 1
        numbers = _numbers(row, order.is_batched)
        self._checksum = _checksum(row, numbers, self._checksum)
        task = Task(
            indices=row,
            epoch=self._progress.epoch,
            start=self._start,
            rows=order.shard.of(count),
            number=self._number,
            is_batch=order.is_batched,
            count=count,
            numbers=numbers,
            checksum=self._checksum,
            sampler=None if order.stateful is None else state_of(order.stateful),
        )
        self._number += 1
        self._start += count
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
                order.generator.set_state(tensor_from_json(saved["generator"]))
            drawn_from["generator"] = tensor_to_json(order.generator.get_state())
        with self._drawing():
            if self._draws_from_torch:
                if "torch" in saved:
                    torch.set_rng_state(tensor_from_json(saved["torch"]))
                drawn_from["torch"] = tensor_to_json(torch.get_rng_state())
            elif order.seed is None and order.stateful is None and self._kind not in _TORCHS:
                drawn_from["global"] = states_to_json(random_states())
            self._skip()
            return next(self._rows)

    def _skip(self) -> None:
        """Draw what was handed over again, and check that it is the same."""
        resume, order = self._progress.resume, self._order
        count = 0 if "streams" in resume else resume.get("batches", 0)
        if not count:
            return
        self._number, self._start, self._checksum = count, resume["examples"], resume["checksum"]
        if order.stateful is None:
            checksum = 0
            skipped = list(islice(self._rows, count))
            for row in skipped:
                checksum = _checksum(row, _numbers(row, order.is_batched), checksum)
            if len(skipped) < count or checksum != self._checksum:
                raise PositionError(
                    "NumpyLoader: to resume from a saved position the sampler must yield the "
                    f"indices that it yielded then, and its first {count} batches differ; give the "
                    "loader the same dataset and arguments, or the sampler a state_dict of its own"
                )
        # A longer dataset begins as the shorter one did, if its order is that of the indices.
        then, now = resume.get("length"), order.length
        if None not in (then, now) and then != now:
            raise PositionError(
                who="NumpyLoader",
                rule="to resume within an epoch the dataset must be as long as it was when the "
                f"position was saved, {then}",
                found=f"it has {now} examples",
                remedy="give the loader the same dataset",
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
        if of_batch and numbers.ndim == 0:  # a set or an iterator
            numbers = np.asarray(list(row))
    except Exception:
        return None
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        return None
    return numbers.astype(np.int64, copy=False).reshape(-1)


def _checksum(row: Any, numbers: np.ndarray | None, before: int) -> int:
    return zlib.crc32(repr(row).encode() if numbers is None else numbers.tobytes(), before)


def saved_position(
    loader: DataLoader[Any], seed: int | None, position: Position, keeps_workers: bool
) -> dict[str, Any]:
    """The position of the last batch that a loader handed over, or of the next epoch's first.

    Where it has none: ``{"version": ..., "cannot_tell": why}``. The caller may be saving much else,
    which an error would lose. With `keeps_workers`, the next epoch's workers exist already.
    """
    try:
        return copy.deepcopy(_saved(loader, seed, position, keeps_workers))
    except PositionError as error:
        why = str(error)
    except Exception as error:
        why = (
            "NumpyLoader: a position needs everything that the loader's order comes from, and "
            f"asking for it failed ({type(error).__name__}: {str(error)[:100]}); give the loader a "
            "seed, or a sampler whose state_dict works"
        )
    return {"version": VERSION, "cannot_tell": why}


def _saved(
    loader: DataLoader[Any], seed: int | None, position: Position, keeps_workers: bool
) -> dict[str, Any]:
    if not loader.in_order:
        raise PositionError(
            "NumpyLoader: a position needs batches in the sampler's order, and this loader has "
            "in_order=False; leave it out"
        )
    if isinstance(loader.dataset, IterDataPipe | MapDataPipe):
        raise PositionError(
            "NumpyLoader: a position is that of a Dataset, and this loader has a "
            f"{type(loader.dataset).__name__}; save the data pipe's own state"
        )
    if position.resume is not None:
        return position.resume
    order = Order(loader, seed, position, Shard())
    saved: dict[str, Any] = {"version": VERSION}
    if seed is not None:
        saved["seed"] = seed
    if order.length is not None:
        saved["length"] = order.length
    if position.is_between_epochs:
        saved |= Progress(position.next_epoch).state()
        if order.stateful is not None:
            saved["sampler"] = state_of(order.stateful)
    else:
        saved |= order.progress.state()
    streams = [state for _, state, _ in saved.get("streams", {}).values()]
    for state in (saved.get("sampler"), *streams):
        if isinstance(state, NoState):
            raise PositionError(state)
    if "random" not in saved and order.generator is not None:
        # The state in which the generator will be when the next epoch's first index is drawn.
        ahead = torch.Generator()
        ahead.set_state(order.generator.get_state())
        is_own = order.generator is loader.generator
        if is_own and position.is_between_epochs and not keeps_workers:
            torch.empty((), dtype=torch.int64).random_(generator=ahead)  # the workers' seed
        saved["random"] = {"generator": tensor_to_json(ahead.get_state())}
    return saved


def checked_position(state: Any, seed: int | None) -> dict[str, Any]:
    """A copy of a saved position that fits a loader with this seed.

    Raises:
        PositionError: it does not, or it is no position at all.
    """
    if isinstance(state, dict) and isinstance(state.get("cannot_tell"), str):
        raise PositionError(
            "NumpyLoader: load_state_dict must get a position, and the loader that saved this one "
            f"could not tell its own ({state['cannot_tell']}); start the epoch again"
        )
    if not _is_sound(state):
        raise PositionError(
            "NumpyLoader: load_state_dict must get what state_dict returned, and it got "
            f"{str(state)[:60]!r}; save the whole dict, as JSON for example"
        )
    if state.get("version") != VERSION:
        raise PositionError(
            f"NumpyLoader: load_state_dict knows states of version {VERSION}, and this one is of "
            f"version {shown(state.get('version'))}; load it with the feedax that saved it"
        )
    if state.get("seed") != seed:
        raise PositionError(
            "NumpyLoader: a position belongs to the seed it was saved with, "
            f"{shown(state.get('seed'))}, and this loader has seed={seed!r}; make the loader with "
            "the same one"
        )
    return copy.deepcopy(state)


def _is_sound(state: Any) -> bool:
    """Whether a saved position can be read."""
    if not isinstance(state, dict):
        return False
    numbers = [state.get(name) for name in ("epoch", "batches", "examples", "checksum")]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return False
    readers: dict[str, Any] = {"epoch": operator.index, "global": states_from_json}
    try:
        for name, value in state.get("random", {}).items():
            readers.get(name, tensor_from_json)(value)
    except (TypeError, ValueError, LookupError, AttributeError):
        return False
    return True
