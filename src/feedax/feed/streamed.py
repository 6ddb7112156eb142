"""Batches from the host, one by one or cut anew into blocks for evaluation."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from feedax.feed.batch import Batch, PyTree, filled, is_text, kind_of, length, opened, pair, rows
from feedax.feed.devices import Devices
from feedax.feed.pipeline import Pipeline
from feedax.feed.place import Placement
from feedax.feed.position import Position, Tell, position
from feedax.feed.prefetch import is_foreign
from feedax.feed.resident import Check, ResidentFeed, Residents, is_resident

WAITING_BYTES = 2**28
"""How much memory examples of several shapes may take while each waits for more of its own."""


class StreamedFeed:
    """One epoch in batches from the host, put on the device one by one.

    Args:
        batches: an iterable of NumPy batches `(inputs, targets)`.
        exact: hand out batches of their true size, for models that see the whole batch.
        check: called with every batch.
        devices: where the batches go.
        tell: says where the source stands, if it can.
        skip: how many batches to leave out first.

    Attributes:
        load_seconds: time spent on loading in this thread; 0 where worker processes load.
        text: where the first batch holds text, which stays on the host.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        exact: bool,
        check: Check,
        devices: Devices,
        tell: Tell | None = None,
        skip: int = 0,
    ) -> None:
        self.load_seconds = 0.0
        self.text: list[str] = []
        # Cut into columns, a batch cannot be filled up at its end.
        self._exact = exact or devices.processes > 1
        self._check = check
        self._loads_here = getattr(batches, "num_workers", 0) == 0
        self._tell = tell
        self._skip = self._batches = skip
        self._pipeline = _pipeline(
            batches, self._whole(batches), devices, lambda put, item: put(*item), tell
        )

    @property
    def transfer_seconds(self) -> float:
        return self._pipeline.transfer_seconds

    def take(self, steps: int) -> Batch | None:
        """The next batch of the epoch; None at its end."""
        del steps  # one at a time: the next one may not be loaded yet
        batch = next(self._pipeline, None)
        self._batches += batch is not None
        return batch

    def position(self) -> Position:
        """Where the source stood after the batches that were handed out."""
        return position(self._tell and self._pipeline.state, self._batches)

    def close(self) -> None:
        """Let go of the batches that are still to come."""
        self._pipeline.close()

    def _whole(self, batches: Iterable[Any]) -> Iterator[tuple[Batch, bool]]:
        size = 0
        iterator = None
        while True:
            started = time.perf_counter()
            iterator = iter(batches) if iterator is None else iterator
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if self._skip:
                self._skip -= 1
                continue
            if self._loads_here:
                self.load_seconds += time.perf_counter() - started
            is_part = getattr(batches, "has_part", False)
            inputs, targets = pair(batch)
            if size == 0:
                self.text = _text_fields(batch)
            del batch
            self._check(inputs, targets, "a batch")
            count = length((inputs, targets))
            size = count if self._exact else max(size, count)
            yield filled(inputs, targets, size), is_part


Feed = ResidentFeed | StreamedFeed


def open_feed(
    source: Any,
    exact: bool,
    residents: Residents,
    check: Check,
    tell: Tell | None = None,
    skip: int = 0,
) -> Feed:
    """The feed of one epoch of a loader, or of any iterable of NumPy batches."""
    if residents.live_here(source):
        return ResidentFeed(source, exact, residents, check, tell, skip)
    return StreamedFeed(source, exact, check, residents.devices, tell, skip)


def how(source: Any, residents: Residents) -> str:
    """In words, how batches reach the device."""
    plan = getattr(source, "plan", None)
    if not callable(plan):
        return "batches of an iterable, one by one"
    if not is_resident(source) or residents.live_here(source):
        return f"{plan()}"
    copies = residents.devices.copies
    return (
        f"vectorised: {copies} devices of one memory would each hold all examples, "
        f"{copies * plan().size / 1e6:,.1f} MB together, over the budget of "
        f"{source.memory_budget / 1e6:,.1f} MB"
    )


def device_blocks(
    batches: Iterable[Any],
    size_of: Callable[[list[Any]], int] | None,
    check: Check,
    devices: Devices,
    share: tuple[int, int] = (0, 1),
) -> Pipeline:
    """Batches cut anew into blocks of one size, or as they are if size_of is None.

    Batches that differ in more than the number of their examples, padded to the longest one say,
    make blocks of their own for each `kind_of`.

    Args:
        batches: an iterable of NumPy batches `(inputs, targets)`.
        size_of: the examples of a block, from the leaves of a batch.
        check: called with every batch.
        devices: where the blocks go.
        share: which of how many processes this is that do the batches together.

    Returns:
        Iterates each block on the device, its last one filled up, and how many examples it holds.
    """
    blocks = _blocks(_share_of(batches, *share), size_of, check)
    return _pipeline(batches, blocks, devices, lambda put, block: (put(block[0]), block[1]))


def _share_of(batches: Iterable[Any], part: int, parts: int) -> Iterator[Any]:
    """Every process's own columns of a batch; of those that every process has, every n-th."""
    for number, batch in enumerate(batches):
        if getattr(batches, "has_part", False) or number % parts == part:
            yield batch
        del batch


def _blocks(
    batches: Iterable[Any], size_of: Callable[[list[Any]], int] | None, check: Check
) -> Iterator[tuple[Batch, int]]:
    piles: dict[Any, _Pile] = {}
    for batch in batches:
        inputs, targets = pair(batch)
        del batch
        check(inputs, targets, "a batch")
        if size_of is None:
            count = length((inputs, targets))
            yield filled(inputs, targets, count), count
            continue
        kind = kind_of((inputs, targets))
        if kind not in piles:
            piles[kind] = _Pile(size_of(jax.tree.leaves((inputs, targets))))
        yield from piles[kind].add((inputs, targets))
        while sum(pile.nbytes for pile in piles.values()) > WAITING_BYTES:
            yield from max(piles.values(), key=lambda pile: pile.nbytes).rest(is_alone=False)
    for pile in piles.values():
        yield from pile.rest(is_alone=len(piles) == 1)


class _Pile:
    """Examples of one kind that wait until they are a block.

    Args:
        size: the examples of a block.

    Attributes:
        nbytes: the memory that those take that wait.
    """

    def __init__(self, size: int) -> None:
        self.nbytes = 0
        self._size = size
        self._parts: list[tuple[PyTree, PyTree]] = []
        self._count = 0

    def add(self, examples: tuple[PyTree, PyTree]) -> Iterator[tuple[Batch, int]]:
        """Put examples onto it; the blocks that are full now."""
        # Copies: a source may use its arrays again for the next batch, before these are cut.
        self._parts.append(jax.tree.map(np.array, examples))
        self._count += length(examples)
        if self._count >= self._size:
            together, count, size = self._together(), self._count, self._size
            for start in range(0, count - size + 1, size):
                yield filled(*rows(together, start, start + size), size), size
            left = count % size
            self._parts = [rows(together, count - left, count)] if left else []
            self._count = left
        self.nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._parts))

    def rest(self, is_alone: bool) -> Iterator[tuple[Batch, int]]:
        """What is left, filled up: to a block, or among several piles to a power of two."""
        if self._count:
            size = self._size if is_alone else min(self._size, 1 << (self._count - 1).bit_length())
            yield filled(*self._together(), size), self._count
        self._parts, self._count, self.nbytes = [], 0, 0

    def _together(self) -> tuple[PyTree, PyTree]:
        if len(self._parts) == 1:
            return self._parts[0]
        together: tuple[PyTree, PyTree]
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *self._parts)
        return together


def _pipeline(
    source: Any,
    items: Iterator[Any],
    devices: Devices,
    put_item: Callable[[Callable[[Any], Any], Any], Any],
    tell: Tell | None = None,
) -> Pipeline:
    foreign = is_foreign(source)
    # Two under way where worker processes load. Where this process does, that would gain nothing,
    # as JAX computes while it loads; and a sampler may look at how training goes.
    size = 2 if _has_workers(source) else 1

    @cache
    def placement(count: int, is_part: bool) -> Placement:
        return Placement((devices.columns if is_part else devices.rows)(count), foreign)

    def put(batch: Batch, is_part: bool = False) -> Batch:
        place = placement(length(batch), is_part)
        placed: Batch = place.put(batch, wait=foreign or size > 1)
        return placed

    return Pipeline(items, partial(put_item, put), size, foreign, tell)


def _has_workers(source: Any) -> bool:
    plan = getattr(source, "plan", None)
    streams = not callable(plan) or plan().name == "streamed"
    return streams and getattr(source, "num_workers", 0) > 0


def _text_fields(batch: Any) -> list[str]:
    found = jax.tree_util.tree_leaves_with_path(tuple(opened(batch)), is_leaf=is_text)
    parts = ("inputs", "targets")
    return [
        f"{parts[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
        for path, leaf in found
        if is_text(leaf)
    ]
