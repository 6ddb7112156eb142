"""The bridge: NumPy batches to the device.

A feed hands out one epoch's work piece by piece. Where a loader's examples lie in arrays that fit
on the device, the arrays go there once and a piece is a `Chunk` of index rows; otherwise a piece
is one `Batch`. feedax trains on either, and the examples and their order are the same.

Nothing here imports torch: a loader is anything with the methods of `ArrayLoader`, and everything
else that can be iterated is taken as an iterable of NumPy batches.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import BatchError

PyTree = Any
CHUNK_STEPS = 512
CHUNK_INDICES = 2**17
"""The most steps of one chunk, and of its indices: 512 kB of them."""


class Batch(NamedTuple):
    """Examples on the device.

    Attributes:
        inputs: PyTree of arrays `(examples, ...)`.
        targets: PyTree of arrays `(examples, ...)`.
        weights: float32 `(examples,)`: 1 for an example, 0 for a copy that only fills the batch.
    """

    inputs: PyTree
    targets: PyTree
    weights: Array


class Chunk(NamedTuple):
    """Some steps over arrays that live on the device.

    Attributes:
        examples: (inputs, targets), PyTrees of arrays `(all examples, ...)`.
        indices: int32 `(rows, batch size)`, a row a step.
        sizes: int32 `(rows,)`: how many indices of a row are examples; the others repeat
            one of them.
        steps: int32 scalar, how many rows count.
    """

    examples: tuple[PyTree, PyTree]
    indices: np.ndarray
    sizes: np.ndarray
    steps: np.int32


def pick(examples: tuple[PyTree, PyTree], indices: Array, size: Array) -> Batch:
    """Gather one batch on the device; pure, for use inside compiled code."""
    inputs, targets = jax.tree.map(lambda array: array[indices], examples)
    return Batch(inputs, targets, (jnp.arange(indices.shape[0]) < size).astype(jnp.float32))


@runtime_checkable
class ArrayLoader(Protocol):
    """What a feed asks of a loader that may have its examples as arrays: `NumpyLoader` does."""

    def plan(self) -> Any: ...
    def arrays(self) -> Any: ...
    def index_batches(self) -> Iterator[np.ndarray]: ...
    def sequential(self) -> Any: ...


Check = Callable[[PyTree, PyTree, str], None]
"""Looks at inputs and targets on the host; the text says what they are, for messages."""


class Residents:
    """The examples of resident loaders, put on the device once for as long as they are the same."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ArrayLoader, Any, tuple[PyTree, PyTree]]] = {}

    def examples(self, loader: ArrayLoader, check: Check) -> tuple[PyTree, PyTree]:
        plan = loader.plan()
        # A loader makes another plan when its dataset is not what it was.
        if id(loader) not in self._kept or self._kept[id(loader)][1] is not plan:
            inputs, targets = pair(loader.arrays())
            check(inputs, targets, "the dataset")
            # A copy: JAX would share NumPy's memory on the CPU, and that may be the user's own.
            examples = jax.tree.map(jnp.array, (inputs, targets))
            self._kept[id(loader)] = (loader, plan, examples)
        return self._kept[id(loader)][2]


def is_resident(source: Any) -> bool:
    """Whether the examples of a loader are to live on the device."""
    return isinstance(source, ArrayLoader) and source.plan().name == "resident"


class ResidentFeed:
    """One epoch in chunks of steps over examples that live on the device.

    Args:
        loader: a loader whose plan is resident.
        exact: hand out batches of their true size, for models that see the whole batch.
        residents: where the examples are kept.
        check: called once with all examples.
    """

    def __init__(
        self, loader: ArrayLoader, exact: bool, residents: Residents, check: Check
    ) -> None:
        self._exact = exact
        self._examples = residents.examples(loader, check)
        self._size = 0
        self._rows = iter(loader.index_batches())
        self._next = next(self._rows, None)

    def take(self, steps: int) -> Chunk | None:
        """The next steps of the epoch, at most `steps` of them; None at its end."""
        if self._next is None:
            return None
        rows: list[np.ndarray] = []
        size = len(self._next) if self._exact else max(self._size, len(self._next))
        most = max(1, min(CHUNK_STEPS, CHUNK_INDICES // size))
        while len(rows) < min(steps, most) and self._next is not None and self._fits(size):
            rows.append(self._next)
            # Drawn when it is needed and no sooner: a sampler may look at how training goes.
            self._next = next(self._rows, None)
        self._size = size
        indices = np.zeros((most, size), np.int32)
        sizes = np.ones(most, np.int32)
        for i, row in enumerate(rows):
            indices[i] = row[0]
            indices[i, : len(row)] = row
            sizes[i] = len(row)
        return Chunk(self._examples, indices, sizes, np.int32(len(rows)))

    def _fits(self, size: int) -> bool:
        assert self._next is not None
        return len(self._next) == size if self._exact else len(self._next) <= size


class StreamedFeed:
    """One epoch in batches from the host, put on the device one by one.

    Args:
        batches: an iterable of NumPy batches `(inputs, targets)`.
        exact: hand out batches of their true size, for models that see the whole batch.
        check: called with every batch.
    """

    def __init__(self, batches: Iterable[Any], exact: bool, check: Check) -> None:
        self._exact = exact
        self._check = check
        self._size = 0
        self._epoch = iter(batches)

    def take(self, steps: int) -> Batch | None:
        """The next batch of the epoch; None at its end."""
        del steps  # one at a time: the next one may not be loaded yet
        for batch in self._epoch:
            inputs, targets = pair(batch)
            self._check(inputs, targets, "a batch")
            count = length((inputs, targets))
            self._size = count if self._exact else max(self._size, count)
            return filled(inputs, targets, self._size)
        return None


Feed = ResidentFeed | StreamedFeed


def open_feed(source: Any, exact: bool, residents: Residents, check: Check) -> Feed:
    """The feed of one epoch of a loader, or of any iterable of NumPy batches."""
    if is_resident(source):
        return ResidentFeed(source, exact, residents, check)
    return StreamedFeed(source, exact, check)


def how(source: Any) -> str:
    """In words, how batches reach the device."""
    plan = getattr(source, "plan", None)
    return f"{plan()}" if callable(plan) else "batches of an iterable, one by one"


def refuse_no_batches(source: Any, who: str, again: bool = False) -> None:
    """Look at a source before any time is spent on it.

    Args:
        source: a loader or another iterable.
        who: says what it is, for the message.
        again: whether it is to be iterated more than once.

    Raises:
        BatchError: it cannot be iterated (so often).
    """
    if not isinstance(source, Iterable):
        raise BatchError(
            f"{who} must be a loader or another iterable of NumPy batches, and it is a "
            f"{type(source).__name__}; give a NumpyLoader or a list"
        )
    if again and isinstance(source, Iterator):
        raise BatchError(
            f"{who} must be there again in the next epoch, and it is a {type(source).__name__}, "
            "which ends; give a NumpyLoader or a list"
        )


def blocks(batches: Iterable[Any], size: int | None, check: Check) -> Iterator[tuple[Batch, int]]:
    """Batches cut anew into blocks of `size` examples, or as they are if size is None.

    Yields each block on the device, its last one filled up, and how many examples it holds.
    """
    waiting: list[tuple[PyTree, PyTree]] = []
    count = 0
    for batch in batches:
        inputs, targets = pair(batch)
        check(inputs, targets, "a batch")
        if size is None:
            count = length((inputs, targets))
            yield filled(inputs, targets, count), count
            continue
        waiting.append((inputs, targets))
        count += length((inputs, targets))
        if count < size:
            continue
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *waiting)
        for start in range(0, count - size + 1, size):
            inputs, targets = rows(together, start, start + size)
            yield filled(inputs, targets, size), size
        waiting = [rows(together, count - count % size, count)] if count % size else []
        count %= size
    if waiting and size is not None:
        inputs, targets = jax.tree.map(lambda *parts: np.concatenate(parts), *waiting)
        yield filled(inputs, targets, size), count


def rows(examples: tuple[PyTree, PyTree], start: int, stop: int) -> tuple[PyTree, PyTree]:
    """The examples from start to stop."""
    return jax.tree.map(lambda array: array[start:stop], examples)


def filled(inputs: PyTree, targets: PyTree, size: int) -> Batch:
    """A batch on the device, filled up to `size` examples with copies of its first one."""
    count = length((inputs, targets))
    order = np.zeros(size, np.intp)
    order[:count] = np.arange(count)
    # Picking rows copies, and it must: a source may use its arrays again for the next batch.
    inputs, targets = jax.tree.map(lambda leaf: leaf[order], (inputs, targets))
    weights = (np.arange(size) < count).astype(np.float32)
    return Batch(*jax.device_put((inputs, targets, weights)))


def pair(batch: Any) -> tuple[PyTree, PyTree]:
    """The inputs and the targets of a batch, their leaves as NumPy arrays.

    Raises:
        BatchError: it is not a pair, or its leaves are not numbers in arrays of one length above 0.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise BatchError(
            f"fit: a batch must be a pair (inputs, targets), and this one is a {got}; let the "
            "dataset yield such pairs, or make them in a collate_fn"
        )
    inputs, targets = jax.tree.map(number, tuple(batch))
    length((inputs, targets))
    return inputs, targets


def length(examples: tuple[PyTree, PyTree]) -> int:
    """How many examples a pair of PyTrees holds."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        found = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(examples)) or "no arrays"
        raise BatchError(
            "fit: all arrays of a batch must have one number of examples, above 0, as their first "
            f"dimension, and their shapes are {found}; see what the dataset or collate_fn returns"
        )
    return int(lengths.pop()[0])


def number(leaf: Any) -> np.ndarray:
    """A leaf as an array of numbers that the device can hold.

    Without ``jax_enable_x64`` the device holds int64 as int32 and float64 as float32. What a
    float loses so is its last digits; what an integer would lose is its value.
    """
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMmV" and not jnp.issubdtype(array.dtype, jnp.number):
        raise BatchError(
            f"fit: a batch must be made of numbers, and it holds values of type {array.dtype}; "
            "leave that field out of the dataset's examples, or turn it into numbers"
        )
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if held != array.dtype and array.dtype.kind in "iu" and array.size:
        for value in (array.min(), array.max()):
            if not jnp.iinfo(held).min <= value <= jnp.iinfo(held).max:
                raise BatchError(
                    f"fit: integers must fit into the {held} that the device holds, and a batch "
                    f"has {value}; make them smaller, or set jax_enable_x64"
                )
    return array
