"""Examples that live on the device: they go there once, and batches are gathered there."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from feedax.feed.batch import Chunk, PyTree, pair

CHUNK_STEPS = 512
CHUNK_INDICES = 2**17
"""The most steps of one chunk, and of its indices: 512 kB of them."""


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

    load_seconds = transfer_seconds = 0.0

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

    def close(self) -> None:
        """Nothing to give back: the examples stay for the next epoch."""
