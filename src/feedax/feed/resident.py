"""Examples that live on the device: they go there once, and batches are gathered there."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from feedax.feed.batch import Chunk, PyTree, pair
from feedax.feed.devices import Devices
from feedax.feed.position import Position, Tell, position

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
    @property
    def takes_each_once(self) -> bool: ...


Check = Callable[[PyTree, PyTree, str], None]
"""Looks at inputs and targets on the host; the text says what they are, for messages."""


class Residents:
    """The examples of resident loaders, put on the devices once for as long as they are the same.

    Args:
        devices: each of them gets all examples.
    """

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self._kept: dict[int, tuple[ArrayLoader, Any, tuple[PyTree, PyTree]]] = {}

    def live_here(self, source: Any) -> bool:
        """Whether the examples of a loader are to be among them."""
        return is_resident(source, self.devices.copies)

    def examples(self, loader: ArrayLoader, check: Check) -> tuple[PyTree, PyTree]:
        """The inputs and the targets of a loader, all of them on the devices."""
        plan = loader.plan()
        # A loader makes another plan when its dataset is not what it was.
        if id(loader) not in self._kept or self._kept[id(loader)][1] is not plan:
            self._kept[id(loader)] = (loader, plan, self._put(loader, plan, check))
        return self._kept[id(loader)][2]

    def forget_others(self, sources: Iterable[Any]) -> None:
        """Let go of examples that none of these loaders has, and of all other loaders."""
        plans = {id(plan): (plan, examples) for _, plan, examples in self._kept.values()}
        loaders = [source for source in sources if isinstance(source, ArrayLoader)]
        self._kept = {
            id(loader): (loader, *plans[id(loader.plan())])
            for loader in loaders
            if id(loader.plan()) in plans
        }

    def _put(self, loader: ArrayLoader, plan: Any, check: Check) -> tuple[PyTree, PyTree]:
        for _, another, examples in self._kept.values():
            if another is plan:  # the same examples in the order of another seed
                return examples
        inputs, targets = pair(loader.arrays())
        check(inputs, targets, "the dataset")
        examples = self.devices.replicate((inputs, targets))
        return examples


def is_resident(source: Any, copies: int = 1) -> bool:
    """Whether the examples of a loader are to live on the device, so many times in one memory."""
    if not isinstance(source, ArrayLoader) or source.plan().name != "resident":
        return False
    size, budget = getattr(source.plan(), "size", 0), getattr(source, "device_budget", math.inf)
    return bool(copies == 1 or copies * size <= budget)


class ResidentFeed:
    """One epoch in chunks of steps over examples that live on the device.

    Args:
        loader: a loader whose plan is resident.
        exact: hand out batches of their true size, for models that see the whole batch.
        residents: where the examples are kept.
        check: called once with all examples.
        tell: says where the loader stands, if it can.
        skip: how many batches to leave out first.

    Attributes:
        examples: (inputs, targets), all of them, on the devices.
        drawing_seconds: time spent on drawing indices.
    """

    def __init__(
        self,
        loader: ArrayLoader,
        exact: bool,
        residents: Residents,
        check: Check,
        tell: Tell | None = None,
        skip: int = 0,
    ) -> None:
        self._exact = exact
        self._tell = tell
        self._batches = skip
        self._devices = residents.devices
        self.examples = residents.examples(loader, check)
        self._size = 0
        self._rows = islice(loader.index_batches(), skip, None)
        self._held: np.ndarray | None = None
        self._before_held: Position | None = None

    load_seconds = transfer_seconds = drawing_seconds = 0.0

    def take(self, steps: int) -> Chunk | None:
        """The next steps of the epoch, at most `steps` of them; None at its end."""
        table = self.take_indices(steps)
        if table is None:
            return None
        indices, sizes, count = table
        indices, sizes = self._devices.replicate((indices, sizes))
        return Chunk(self.examples, indices, sizes, np.int32(count))

    def take_indices(self, steps: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """The same on the host: the indices and sizes of a `Chunk`, and how many rows count."""
        first = self._draw()
        if first is None:
            return None
        size = len(first) if self._exact else max(self._size, len(first))
        most = max(1, min(CHUNK_STEPS, CHUNK_INDICES // size))
        rows = [first]
        # Drawn when it is needed and no sooner: a sampler may look at how training goes.
        while len(rows) < min(steps, most):
            before = position(self._tell, self._batches) if self._exact else None
            row = self._draw()
            if row is None:
                break
            if self._exact and len(row) != size:
                self._held, self._before_held = row, before
                break
            rows.append(row)
            size = max(size, len(row))
        self._size = size
        indices = np.zeros((most, size), np.int32)
        sizes = np.ones(most, np.int32)
        for i, row in enumerate(rows):
            indices[i] = row[0]
            indices[i, : len(row)] = row
            sizes[i] = len(row)
        return indices, sizes, len(rows)

    def position(self) -> Position:
        """Where the loader stood after the steps that were handed out."""
        return self._before_held or position(self._tell, self._batches)

    def _draw(self) -> np.ndarray | None:
        row, self._held, self._before_held = self._held, None, None
        started = time.perf_counter()
        if row is None and (row := next(self._rows, None)) is not None:
            self._batches += 1
        self.drawing_seconds += time.perf_counter() - started
        return row

    def close(self) -> None:
        """Nothing to give back: the examples stay for the next epoch."""
