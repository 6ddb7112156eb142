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


class Loaded(NamedTuple):
    """A batch, and what its loading has to tell.

    Attributes:
        batch: what the loader yields.
        seconds: how long loading took.
        stream: of an iterable dataset: how many examples it has yielded in this process, its own
            state if it has one, and whether it has ended.
        first: digests of the examples that an iterable dataset began with in this worker.
    """

    batch: Any
    seconds: float
    stream: tuple[int, Any, bool] | None
    first: tuple[bytes, ...] = ()


@dataclass(eq=False)
class Loading:
    """A dataset and a collate function as torch's fetchers see them.

    Args:
        user_dataset: the user's dataset.
        user_collate_fn: the user's, or None to collate examples with `numpy_collate`.
        user_worker_init_fn: the user's, if there is one.
        converts: whether examples are not batched but only converted.
        seed: the loader's, or None for torch's own randomness.
        epoch: that of the first `iter()` of an iterable dataset.
        resume: how far an iterable dataset had come, for each worker.
    """

    user_dataset: Dataset[Any]
    user_collate_fn: Callable[[Any], Any] | None
    user_worker_init_fn: Callable[[int], None] | None
    converts: bool
    seed: int | None
    epoch: int
    resume: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._kinds = [kind.__name__ for kind in type(self.user_dataset).__mro__]
        self.began: float | None = None
        self.stream: _Stream | None = None
        self.slots: Any = None
        self.fns = collate_fns()  # a worker does not see what was added in the trainer
        self.whose = "an example"
        of_iterable = isinstance(self.user_dataset, IterableDataset)
        self.dataset: Dataset[Any] = Streamed(self) if of_iterable else Indexed(self)

    def begin(self) -> None:
        """Start the clock of a batch, if it does not run yet."""
        if self.began is None:
            self.began = time.perf_counter()

    def collate(self, examples: Any) -> Loaded:
        """Make a batch of its examples; torch hands over what this returns."""
        batch = self._batch(examples)
        seconds = 0.0 if self.began is None else time.perf_counter() - self.began
        self.began = None
        stream = self.stream
        if stream is None:
            return Loaded(batch, seconds, None)
        return Loaded(batch, seconds, stream.position(), tuple(stream.first))

    def _batch(self, examples: Any) -> Any:
        if self.user_collate_fn is not None:
            return numpy_convert(self.user_collate_fn(examples))
        if self.converts:
            return convert_example(examples, self.whose)
        return collate_into(examples, self.slots.empty if self.slots else np.empty, self.fns)

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
        self.slots = slots.of_this_worker if slots is not None else None
        # The info is frozen, and its dataset is ours, not the user's as torch's documentation says.
        object.__setattr__(get_worker_info(), "dataset", self.user_dataset)
        if self.user_worker_init_fn is not None:
            self.user_worker_init_fn(worker_id)


class Indexed(Dataset[Any]):
    """A map-style dataset: loads the examples of a task, each with its own randomness."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def __getitem__(self, task: Task) -> Any:
        """The one example of a task of a loader that does not batch."""
        self._loading.begin()
        self._loading.whose = f"example {task.indices!r}"
        return self._example(task, 0, task.indices)

    def __getitems__(self, task: Task) -> Any:
        loading = self._loading
        loading.began = None  # a batch before may have failed
        loading.begin()
        whole_batch = batch_method(loading.user_dataset)
        if whole_batch:
            return self._whole(task, whole_batch)
        indices = list(task.indices)
        places = range(len(indices))[task.rows]
        examples = [self._example(task, i, indices[i]) for i in places]
        # A collate_fn of the user's own gets what the dataset gives, as in torch.
        return (
            Examples(examples, indices[task.rows]) if loading.user_collate_fn is None else examples
        )

    def _example(self, task: Task, place: int, index: Any) -> Any:
        loading = self._loading
        if loading.slots is not None:
            loading.slots.at(place)
        if loading.seed is not None:
            seed_random(loading.seed, task.epoch, task.start + place, index)
        try:
            return loading.user_dataset[index]
        except StopIteration as error:  # torch would take it for the end of the epoch
            what = _while_loading(f"example {index!r}")
            raise RuntimeError(f"the dataset raised StopIteration {what}") from error
        except Exception as error:
            error.add_note(_while_loading(f"example {index!r}"))
            raise

    def _whole(self, task: Task, whole_batch: Callable[[Any], Any]) -> Any:
        """All examples by one call of the dataset's: they share one random state."""
        loading = self._loading
        indices = task.indices
        if loading.slots is not None:
            loading.slots.at(ALL)
        if loading.seed is not None:
            seed_random(loading.seed, task.epoch, task.start, next(iter(indices), 0))
        try:
            examples = whole_batch(indices)
        except Exception as error:
            error.add_note(_while_loading(f"examples {list(indices)!r}"))
            raise
        if loading.user_collate_fn is not None:
            return examples
        return Examples(as_many(examples, indices), indices)


_FIRST = 4
"""How many examples of each worker's stream are compared with those of the other workers."""

_STREAM = 2**63
"""Added to a worker's number: where a map-style dataset's seed has an index."""


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

    Args:
        loader: the loader.
        collate_fn: the user's own, if there is one.
        has_cache: whether the loader keeps the examples.

    Returns:
        None if examples are loaded one by one and independently, so that some can be left out.
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
    whole_batch = batch_method(dataset)
    return as_many(whole_batch(indices), indices) if whole_batch else [dataset[i] for i in indices]


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


class Streamed(IterableDataset[Any]):
    """An iterable dataset: each `iter()` is an epoch of this process's own share."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def __iter__(self) -> Iterator[Any]:
        loading = self._loading
        info = get_worker_info()
        worker = info.id if info else 0
        epoch, loading.epoch = loading.epoch, loading.epoch + 1
        resume, loading.resume = loading.resume, None
        loading.stream = _Stream(loading, epoch, worker, (resume or {}).get(str(worker)))
        return loading.stream


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
        """Keep the example's bits in short; what cannot be pickled is not compared."""
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


ALL = -1
"""The place of all examples of a batch, where a dataset loads them together."""

NOTE = "while loading "
"""How a note on an error begins that says which example it came from."""


def _while_loading(what: str) -> str:
    info = get_worker_info()
    return f"{NOTE}{what}" + (f" in worker {info.id}" if info else "")
