"""Loading one batch: what happens wherever the examples are loaded, in a worker or not."""

import hashlib
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    MapDataPipe,
    Subset,
    get_worker_info,
)

from feedax.data.collate import (
    Examples,
    collate_fns,
    collate_into,
    convert_example,
    numpy_convert,
)
from feedax.data.order import Task, keeps_state, state_of
from feedax.data.randomness import seed_random
from feedax.errors import ExampleError, PositionError, WorkerError

ALL = -1
"""The place of all examples of a batch, where a dataset loads them together."""

NOTE = "while loading "
"""How a note on an error begins that says which example it came from."""

_FIRST = 4
"""How many examples of each worker's stream are compared with those of the other workers."""

_STREAM = 2**63
"""Added to a worker's number: where a map-style dataset's seed has an index."""


class Loaded(NamedTuple):
    """A batch, and what its loading has to tell."""

    batch: Any
    seconds: float
    # Of an iterable dataset: how many examples it has yielded in this process, its own state if it
    # has one, and whether it has ended; then digests of the first examples in this worker.
    stream: tuple[int, Any, bool] | None
    first: tuple[bytes, ...] = ()


@dataclass(eq=False)
class Loading(Dataset[Any]):
    """The user's dataset, `collate_fn` and `worker_init_fn` as torch's fetchers see them."""

    user_dataset: Dataset[Any]
    user_collate_fn: Callable[[Any], Any] | None
    user_worker_init_fn: Callable[[int], None] | None
    converts: bool  # whether examples are not batched but only converted
    seed: int | None
    epoch: int  # of the first `iter()` of an iterable dataset
    resume: dict[str, Any] | None  # how far an iterable dataset had come, for each worker

    def __post_init__(self) -> None:
        self.whose = "an example"
        self._kinds = [kind.__name__ for kind in type(self.user_dataset).__mro__]
        self._began: float | None = None
        self._stream: _Stream | None = None
        self._slots: Any = None
        self._fns = collate_fns()  # a worker does not see what was added in the trainer

    def begin(self) -> None:
        """Start the clock of a batch, if it does not run yet."""
        if self._began is None:
            self._began = time.perf_counter()

    def collate(self, examples: Any) -> Loaded:
        """Make a batch of its examples; torch hands over what this returns."""
        if self.user_collate_fn is not None:
            batch = numpy_convert(self.user_collate_fn(examples))
        elif self.converts:
            batch = convert_example(examples, self.whose)
        else:
            empty = self._slots.empty if self._slots else np.empty
            batch = collate_into(examples, empty, self._fns)
        seconds = 0.0 if self._began is None else time.perf_counter() - self._began
        self._began = None
        if self._stream is None:
            return Loaded(batch, seconds, None)
        return Loaded(batch, seconds, self._stream.position(), tuple(self._stream.first))

    def init_worker(self, worker_id: int) -> None:
        """The first thing in a worker: the user's worker_init_fn, with torch's info as documented.

        Ctrl-C reaches a whole process group; the trainer decides what becomes of its workers.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if (kind := type(self.user_dataset).__name__) not in self._kinds:
            raise WorkerError(
                who="NumpyLoader",
                rule="a dataset must be unpickled as what it is",
                found=f"a {self._kinds[0]} is a {kind} in the worker",
                remedy="fix its __reduce__, or use num_workers=0",
            )
        # The slots are this loader's; one that the dataset iterates keeps its batches for itself.
        slots = sys.modules.get("feedax.data.workers.slots")
        self._slots = slots.of_this_worker if slots is not None else None
        # The info is frozen, and its dataset is ours, not the user's as torch's documentation says.
        object.__setattr__(get_worker_info(), "dataset", self.user_dataset)
        if self.user_worker_init_fn is not None:
            self.user_worker_init_fn(worker_id)

    def __getitem__(self, task: Task) -> Any:
        """The one example of a task of a loader that does not batch."""
        self.begin()
        self.whose = f"example {task.indices!r}"
        return self._example(task, 0, task.indices)

    def __getitems__(self, task: Task) -> Any:
        """The examples of a task, each with its own randomness."""
        self._began = time.perf_counter()
        if (load := batch_method(self.user_dataset)) is not None:
            return self._together(task, load)
        indices = list(task.indices)
        places = range(len(indices))[task.rows]
        examples = [self._example(task, i, indices[i]) for i in places]
        # A collate_fn of the user's own gets what the dataset gives, as in torch.
        has_own = self.user_collate_fn is not None
        return examples if has_own else Examples(examples, indices[task.rows])

    def _example(self, task: Task, place: int, index: Any) -> Any:
        if self._slots is not None:
            self._slots.at(place)
        if self.seed is not None:
            seed_random(self.seed, task.epoch, task.start + place, index)
        try:
            return self.user_dataset[index]
        except StopIteration as error:  # torch would take it for the end of the epoch
            what = _while_loading(f"example {index!r}")
            raise RuntimeError(f"the dataset raised StopIteration {what}") from error
        except Exception as error:
            error.add_note(_while_loading(f"example {index!r}"))
            raise

    def _together(self, task: Task, load: Callable[[Any], Any]) -> Any:
        """All examples by one call of the dataset's: they share one random state."""
        indices = task.indices
        if self._slots is not None:
            self._slots.at(ALL)
        if self.seed is not None:
            seed_random(self.seed, task.epoch, task.start, next(iter(indices), 0))
        try:
            examples = load(indices)
        except Exception as error:
            error.add_note(_while_loading(f"examples {list(indices)!r}"))
            raise
        if self.user_collate_fn is not None:
            return examples
        return Examples(as_many(examples, indices), indices)

    def __iter__(self) -> Iterator[Any]:
        """An epoch of this process's own share of an iterable dataset."""
        info = get_worker_info()
        worker = info.id if info else 0
        epoch, self.epoch = self.epoch, self.epoch + 1
        resume, self.resume = self.resume or {}, None
        self._stream = _Stream(self, epoch, worker, resume.get(str(worker)))
        return self._stream


class _Stream(Iterator[Any]):
    """One epoch of an iterable dataset in one process, from where it had come to.

    With a seed, what is drawn for an example depends on its place in the stream, not on what was
    drawn before: a resumed stream draws the same random numbers.
    """

    def __init__(
        self, loading: Loading, epoch: int, worker: int, resume: tuple[int, Any, bool] | None
    ) -> None:
        self._loading = loading
        self._epoch = epoch
        self._worker = _STREAM + worker
        self._count = 0
        self.first: list[bytes] = []
        info = get_worker_info()
        # Later examples, and those of a resumed epoch, may be alike in several workers.
        self._is_compared = info is not None and info.num_workers > 1 and resume is None
        if loading.seed is not None:
            seed_random(loading.seed, epoch, worker, "stream")
        dataset: Any = loading.user_dataset
        count, state, self._has_ended = resume or (0, None, False)
        is_stateful = keeps_state(dataset)
        if is_stateful and state is not None:
            if type(dataset).__module__.partition(".")[0] == "datasets":
                # Hugging Face's goes back to a loaded state in every epoch: a twin has only this.
                twin = object.__new__(type(dataset))  # copy.copy would share its attributes
                vars(twin).update(vars(dataset))
                dataset = twin
            dataset.load_state_dict(state)
            self._count = count
        # At its end a dataset may have gone back to its beginning, for the next epoch.
        self._iterator = iter(()) if self._has_ended and is_stateful else iter(dataset)
        self._stateful = dataset if is_stateful else None
        while self._count < count:  # no state to go back to: the examples are loaded again
            try:
                next(self)
            except StopIteration:
                raise PositionError(
                    who="NumpyLoader",
                    rule="to resume from a saved position the dataset must yield what it yielded "
                    "then",
                    found=f"it ends after {self._count} of {count} examples",
                    remedy="give the loader the same dataset",
                ) from None

    def __next__(self) -> Any:
        loading = self._loading
        loading.begin()
        if loading.seed is not None:
            seed_random(loading.seed, self._epoch, self._count, self._worker)
        try:
            example = next(self._iterator)
        except StopIteration:
            self._has_ended = True
            raise
        except Exception as error:
            error.add_note(_while_loading(f"example {self._count} of the stream"))
            raise
        loading.whose = f"example {self._count} of the stream"
        self._count += 1
        if self._is_compared:
            self._compare(example)
        return example

    def _compare(self, example: Any) -> None:
        """Keep a digest of the example's bits; what cannot be pickled is not compared."""
        try:
            bits = pickle.dumps(convert_example(example))
        except Exception:
            self._is_compared = False
        else:
            self.first.append(hashlib.blake2b(bits, digest_size=16).digest())
            self._is_compared = len(self.first) < _FIRST

    def position(self) -> tuple[int, Any, bool]:
        state = None if self._stateful is None else state_of(self._stateful)
        return self._count, state, self._has_ended


def _while_loading(what: str) -> str:
    info = get_worker_info()
    return f"{NOTE}{what}" + (f" in worker {info.id}" if info else "")


def batch_method(dataset: Any) -> Callable[[Any], Any] | None:
    """A dataset's own way to load a batch: the examples are to be those of ``dataset[i]``.

    So a `__getitems__` counts where its class is the one that defines `__getitem__`, or derives
    from it: not one that is inherited beside a new `__getitem__`, nor one that `__getattr__` takes
    from a dataset within. A Subset has one only if what it is of has one.
    """
    kinds = (vars(kind) for kind in type(dataset).__mro__)
    kind: Any = next((k for k in kinds if "__getitems__" in k or "__getitem__" in k), {})
    method = kind.get("__getitems__")
    if method is None or (method is Subset.__getitems__ and batch_method(dataset.dataset) is None):
        return None
    bound: Callable[[Any], Any] = dataset.__getitems__
    return bound


def why_whole(loader: DataLoader[Any], collate_fn: Any, has_cache: bool) -> str | None:
    """Why whole batches must be loaded to hand over a shard of them.

    None if examples are loaded one by one and independently, so that some can be left out.
    `collate_fn` is the user's own, if there is one.
    """
    if isinstance(loader.dataset, IterableDataset | MapDataPipe):
        return f"a {type(loader.dataset).__name__} yields its examples one after the other"
    if loader.batch_sampler is None:
        return "with batch_size=None the dataset makes them"
    if collate_fn is not None:
        return "a collate_fn of your own wants to see all examples"
    if has_cache:
        return "every process must know all examples after the same epoch, to have the same plan"
    if batch_method(loader.dataset) is not None:
        return "the dataset's __getitems__ loads all examples together"
    return None


def examples_of(dataset: Any, indices: list[int]) -> list[Any]:
    """The examples as the loader asks for them."""
    load = batch_method(dataset)
    return as_many(load(indices), indices) if load else [dataset[i] for i in indices]


def as_many(examples: Any, indices: Sequence[Any]) -> list[Any]:
    """What a dataset's `__getitems__` gave, as a list.

    Raises:
        ExampleError: it is not one example for each index.
    """
    listed = list(examples) if isinstance(examples, Iterable) else None
    if listed is None or isinstance(examples, Mapping) or len(listed) != len(indices):
        kind = type(examples).__name__
        found = f"a {kind}" if listed is None else f"{len(listed)} in a {kind}"
        raise ExampleError(
            f"NumpyLoader: __getitems__ must give one example for each of {len(indices)} indices, "
            f"and it gave {found}; fix it, or leave it out of the dataset's class"
        )
    return listed
