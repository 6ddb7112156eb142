"""Batches regrouped into blocks of one size, for evaluation."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from feedax.feed.batch import HostBatch, PyTree, kind_of, length, padded_batch, pair
from feedax.feed.feeds import Check, transferred
from feedax.feed.prefetch import Pipeline
from feedax.feed.source import Source
from feedax.feed.transfer import Devices

WAITING_BYTES = 2**28
"""How much memory examples may take that wait for more of their kind."""


def device_blocks(
    source: Source,
    size_of: Callable[[list[Any]], int] | None,
    check: Check,
    devices: Devices,
    share: tuple[int, int] = (0, 1),
    waiting_bytes: int = WAITING_BYTES,
    who: str = "evaluate",
) -> Pipeline:
    """Batches regrouped into blocks of one size, or as they are if size_of is None.

    Batches that differ in more than their number of examples (sequences padded to another length,
    say) are regrouped apart from each other, by `kind_of`.

    Args:
        source: of batches `(inputs, targets)`.
        size_of: from the leaves of a batch to the number of examples in a block.
        check: called with every batch.
        devices: where the blocks go.
        share: this process's index, and how many processes share the batches.
        waiting_bytes: how much memory examples may take that wait for more of their kind.
        who: speaks, in an error.

    Returns:
        Iterates pairs: a block on the device, and how many of its examples are no padding.
    """
    blocks = _blocks(_share_of(source, *share), size_of, check, waiting_bytes, who)
    return transferred(source, blocks, devices)


def _share_of(source: Source, part: int, parts: int) -> Iterator[Any]:
    """This process's rows of batches that are sharded; of whole batches, every n-th."""
    for number, batch in enumerate(source):
        if source.has_part or number % parts == part:
            yield batch


def _blocks(
    batches: Iterator[Any],
    size_of: Callable[[list[Any]], int] | None,
    check: Check,
    waiting_bytes: int,
    who: str,
) -> Iterator[HostBatch]:
    piles: dict[Any, _Pile] = {}
    for batch in batches:
        inputs, targets = pair(batch, who)
        check(inputs, targets, "a batch")
        if size_of is None:
            yield padded_batch(inputs, targets, length((inputs, targets)))
            continue
        kind = kind_of((inputs, targets))
        if kind not in piles:
            piles[kind] = _Pile(size_of(jax.tree.leaves((inputs, targets))))
        yield from piles[kind].add((inputs, targets))
        while sum(pile.nbytes for pile in piles.values()) > waiting_bytes:
            yield from max(piles.values(), key=lambda pile: pile.nbytes).rest(is_alone=False)
    for pile in piles.values():
        yield from pile.rest(is_alone=len(piles) == 1)


class _Pile:
    """Examples of one kind, of `nbytes` together, that wait until they fill a block of `size`."""

    def __init__(self, size: int) -> None:
        self.nbytes = 0
        self._size = size
        self._parts: list[tuple[PyTree, PyTree]] = []
        self._count = 0

    def add(self, examples: tuple[PyTree, PyTree]) -> Iterator[HostBatch]:
        """Add examples; yields the blocks that are full now."""
        # Copies: a source may reuse its arrays for the next batch before this block is full.
        self._parts.append(jax.tree.map(np.array, examples))
        self._count += length(examples)
        if self._count >= self._size:
            together, count, size = self._together(), self._count, self._size
            for start in range(0, count - size + 1, size):
                yield padded_batch(*_rows(together, start, start + size), size)
            left = count % size
            self._parts = [_rows(together, count - left, count)] if left else []
            self._count = left
        self.nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._parts))

    def rest(self, is_alone: bool) -> Iterator[HostBatch]:
        """What is left, padded: to a whole block, or among several piles to a power of two."""
        if self._count:
            size = self._size if is_alone else min(self._size, 1 << (self._count - 1).bit_length())
            yield padded_batch(*self._together(), size)
        self._parts, self._count, self.nbytes = [], 0, 0

    def _together(self) -> tuple[PyTree, PyTree]:
        if len(self._parts) == 1:
            return self._parts[0]
        together: tuple[PyTree, PyTree]
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *self._parts)
        return together


def _rows(examples: tuple[PyTree, PyTree], start: int, stop: int) -> tuple[PyTree, PyTree]:
    return jax.tree.map(lambda array: array[start:stop], examples)
