"""The feed of one epoch hands out its batches, from examples on the device or from the host."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError
from feedax.feed.batch import (
    Batch,
    Chunk,
    HostBatch,
    PyTree,
    is_text,
    length,
    opened,
    pad_indices,
    padded_batch,
    pair,
    pick,
)
from feedax.feed.prefetch import Pipeline
from feedax.feed.source import Source, SourcePosition, StateDict, position
from feedax.feed.transfer import Devices, Transfer, own, shares_memory, with_the_call

CHUNK_STEPS = 512
"""The most steps of one chunk."""
CHUNK_INDICES = 2**17
"""The most indices of one chunk: 512 kB of them."""

Check = Callable[[PyTree, PyTree, str], None]
"""Looks at inputs and targets on the host; the text says what they are, for messages."""


class Residents:
    """The examples of resident sources, all of them on each device, until a dataset changes."""

    def __init__(self, devices: Devices, who: str = "fit") -> None:
        self.devices = devices
        self.who = who
        self._kept: dict[Source, tuple[Any, tuple[PyTree, PyTree]]] = {}

    def live_here(self, source: Source) -> bool:
        """Whether the examples of a source are kept here."""
        plan, copies = source.plan(), self.devices.copies
        if plan is None or not plan.is_resident:
            return False
        return copies == 1 or copies * plan.size <= source.device_budget

    def describe(self, source: Source) -> str:
        """How batches reach the device, in words."""
        plan = source.plan()
        if plan is None:
            return "batches of an iterable, one by one"
        if not plan.is_resident or self.live_here(source):
            return str(plan)
        copies = self.devices.copies
        return (
            f"vectorised: {copies} devices of one memory would each hold all examples, "
            f"{copies * plan.size / 1e6:,.1f} MB together, over the budget of "
            f"{source.memory_budget / 1e6:,.1f} MB"
        )

    def examples(self, source: Source, check: Check) -> tuple[PyTree, PyTree]:
        """All inputs and targets of a source, on the devices."""
        plan = source.plan()
        # A loader makes a new plan when its dataset has changed.
        if source not in self._kept or self._kept[source][0] is not plan:
            self._kept[source] = (plan, self._put(source, plan, check))
        return self._kept[source][1]

    def forget_others(self, sources: Iterable[Source]) -> None:
        """Free the examples that none of these sources has."""
        kept = {id(plan): (plan, examples) for plan, examples in self._kept.values()}
        plans = {source: id(source.plan()) for source in sources}
        self._kept = {source: kept[plan] for source, plan in plans.items() if plan in kept}

    def _put(self, source: Source, plan: Any, check: Check) -> tuple[PyTree, PyTree]:
        for another, examples in self._kept.values():
            if another is plan:  # the same examples in the order of another seed
                return examples
        inputs, targets = pair(source.arrays(), self.who)
        check(inputs, targets, "the dataset")
        return self.devices.replicate((inputs, targets))


class Feed:
    """One epoch of what is trained on. A piece of it is a `Batch` or a `Chunk`.

    Attributes:
        load_seconds: time spent on loading in this thread; 0 where worker processes load.
        transfer_seconds: time spent on bringing batches to the devices.
        drawing_seconds: time spent on drawing indices; None where there are none.
        text: where the first batch holds text, which stays on the host.
    """

    load_seconds = 0.0
    transfer_seconds = 0.0
    drawing_seconds: float | None = None
    text: Sequence[str] = ()

    def take(self, steps: int) -> Batch | Chunk | None:
        """The next piece, of at most so many steps; None at the end of the epoch."""
        raise NotImplementedError

    def positions(self) -> list[SourcePosition]:
        """The position of each network's source after the pieces that were handed out."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the batches that are under way."""


@dataclass(eq=False)
class NetworkFeed(Feed):
    """The feed of one network.

    Args:
        source: where the batches come from.
        exact: do not pad short batches: the model sees the whole batch.
        residents: the examples on the devices, and those devices.
        check: called with every batch, or once with all resident examples.
        state_dict: the source's, if positions are to hold its state.
        skip: how many batches to skip at the start.
        has_begun: whether the epoch is resumed here, after some of its batches.
    """

    source: Source
    exact: bool
    residents: Residents
    check: Check
    state_dict: StateDict | None = None
    skip: int = 0
    has_begun: bool = False

    def __post_init__(self) -> None:
        self._batches = self.skip
        # A short batch is padded to the size of those before it, which a resumed run has not seen.
        self._size = (self.source.sampled_batch_size or 0) if self.has_begun else 0

    def position(self) -> SourcePosition:
        return position(self.state_dict, self._batches)

    def positions(self) -> list[SourcePosition]:
        return [self.position()]


def open_feed(
    source: Source,
    exact: bool,
    residents: Residents,
    check: Check,
    state_dict: StateDict | None = None,
    skip: int = 0,
    has_begun: bool = False,
) -> NetworkFeed:
    """The feed of one network; the arguments are those of `NetworkFeed`."""
    kind = ResidentFeed if residents.live_here(source) else StreamedFeed
    return kind(source, exact, residents, check, state_dict, skip, has_begun)


class ResidentFeed(NetworkFeed):
    """An epoch in chunks of steps over `examples` on the device, which are (inputs, targets)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drawing_seconds: float = 0.0
        self.examples = self.residents.examples(self.source, self.check)
        self._rows = islice(self.source.index_batches(), self.skip, None)
        self._held: np.ndarray | None = None
        # The position before the row, or the end, that was drawn ahead.
        self._before: SourcePosition | None = None

    def take(self, steps: int) -> Chunk | None:
        table = self.take_indices(steps)
        if table is None:
            return None
        indices, sizes, count = table
        indices, sizes = self.residents.devices.replicate((indices, sizes))
        return Chunk(self.examples, indices, sizes, np.int32(count))

    def take_indices(self, steps: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """The indices, sizes and steps of the next `Chunk`, on the host."""
        first = self._draw()
        if first is None:
            return None
        size = len(first) if self.exact else max(self._size, len(first))
        most = max(1, min(CHUNK_STEPS, CHUNK_INDICES // size))
        rows = [first]
        # Drawn no sooner than it is needed: a sampler may depend on the training so far.
        while len(rows) < min(steps, most):
            # To ask for the position takes longer than to draw: only where a row may be held.
            may_be_held = self.exact or self._batches >= (self.source.length or 0)
            before = position(self.state_dict, self._batches) if may_be_held else None
            row = self._draw()
            if row is None or (self.exact and len(row) != size):
                self._held, self._before = row, before
                break
            rows.append(row)
            size = max(size, len(row))
        self._size = size
        indices = np.zeros((most, size), np.int32)
        sizes = np.ones(most, np.int32)
        for i, row in enumerate(rows):
            indices[i] = pad_indices(row, size)
            sizes[i] = len(row)
        return indices, sizes, len(rows)

    def position(self) -> SourcePosition:
        return self._before or super().position()

    def _draw(self) -> np.ndarray | None:
        row, self._held, self._before = self._held, None, None
        started = time.perf_counter()
        if row is None and (row := next(self._rows, None)) is not None:
            self._batches += 1
        self.drawing_seconds += time.perf_counter() - started
        return row


class StreamedFeed(NetworkFeed):
    """An epoch in batches from the host, put on the device one by one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        devices = self.residents.devices
        # Where each process has its own rows of a batch, their end is no place for padding.
        self._exact = self.exact or devices.processes > 1
        self._pipeline = transferred(self.source, self._padded(), devices, self.state_dict)

    def take(self, steps: int) -> Batch | None:
        del steps  # one at a time: the next one may not be loaded yet
        batch, _ = next(self._pipeline, (None, 0))
        self.transfer_seconds = self._pipeline.transfer_seconds
        self._batches += batch is not None
        return batch

    def position(self) -> SourcePosition:
        return position(self.state_dict and self._pipeline.state, self._batches)

    def close(self) -> None:
        self._pipeline.close()

    def _padded(self) -> Iterator[HostBatch]:
        source, skip, size = self.source, self.skip, self._size
        loads_here = not source.num_workers
        iterator, is_first = None, True
        while True:
            started = time.perf_counter()
            iterator = iter(source) if iterator is None else iterator
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if skip:
                skip -= 1
                size = max(size, length(pair(batch, self.residents.who)))
                continue
            if loads_here:
                self.load_seconds += time.perf_counter() - started
            is_shard = source.has_part
            inputs, targets = pair(batch, self.residents.who)
            if is_first:
                self.text, is_first = _text_fields(batch), False
            del batch
            self.check(inputs, targets, "a batch")
            count = length((inputs, targets))
            size = count if self._exact else max(size, count)
            yield padded_batch(inputs, targets, size)._replace(is_shard=is_shard)


def _text_fields(batch: Any) -> list[str]:
    found = jax.tree_util.tree_leaves_with_path(tuple(opened(batch)), is_leaf=is_text)
    parts = ("inputs", "targets")
    return [
        f"{parts[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
        for path, leaf in found
        if is_text(leaf)
    ]


def transferred(
    source: Source,
    batches: Iterator[HostBatch],
    devices: Devices,
    state_dict: StateDict | None = None,
) -> Pipeline:
    """A pipeline that brings a source's batches to the devices, each with its number of examples.

    `state_dict` is the source's, if its state is asked for.
    """
    foreign = not source.batches_are_fresh
    # Two batches under way where worker processes load. Where this process loads, that would gain
    # nothing, as JAX computes meanwhile; and a sampler may depend on the training so far.
    size = 2 if source.loads_in_workers else 1

    @cache
    def transfer(rows: int, is_shard: bool) -> Transfer:
        return Transfer((devices.parts if is_shard else devices.rows)(rows), foreign)

    def put(item: HostBatch) -> tuple[Batch, int]:
        to_devices = transfer(length(item.batch), item.is_shard)
        return to_devices.put(item.batch, wait=foreign or size > 1), item.examples

    def keep(item: HostBatch) -> tuple[Batch, int]:
        return jax.tree.map(own, item.batch) if foreign else item.batch, item.examples

    # A CPU reads the host's memory, and takes it faster with the call of a compiled function.
    stays = size == 1 and devices.mesh is None and shares_memory()
    return Pipeline(batches, keep if stays else put, size, foreign, state_dict)


class StackedFeed(Feed):
    """The feed of many networks: a piece has a batch for each of them.

    A chunk's indices are `(rows, networks, batch size)`, its sizes `(rows, networks)`; the leaves
    of a batch are `(networks, examples, ...)`.

    Args:
        feeds: one for each network; they must agree in the number of batches and in their sizes.
        size: how many networks a piece is for; those without a feed get the last one's batches.
        devices: the networks are divided among them.
    """

    def __init__(self, feeds: Sequence[NetworkFeed], size: int, devices: Devices) -> None:
        self._feeds = feeds
        self._filling = size - len(feeds)
        self._devices = devices
        resident = [feed for feed in feeds if isinstance(feed, ResidentFeed)]
        same = all(feed.examples is resident[0].examples for feed in resident)
        self._resident = resident if same and len(resident) == len(feeds) else []

    def take(self, steps: int) -> Batch | Chunk | None:
        """The next piece, see `Feed.take`.

        Raises:
            BatchError: the networks differ in their number of batches, or in the sizes of these.
        """
        piece = self._chunk(steps) if self._resident else self._batch()
        self.load_seconds = sum(feed.load_seconds for feed in self._feeds)
        self.transfer_seconds = sum(feed.transfer_seconds for feed in self._feeds)
        return piece

    def _chunk(self, steps: int) -> Chunk | None:
        tables = self._alike([feed.take_indices(steps) for feed in self._resident])
        if tables[0] is None:
            return None
        parts = [np.stack(part, axis=1) for part in zip(*[t[:2] for t in tables], strict=True)]
        indices, sizes = self._devices.replicate(parts)
        return Chunk(self._resident[0].examples, indices, sizes, np.int32(tables[0][2]))

    def _batch(self) -> Batch | None:
        batches = self._alike([_next_batch(feed) for feed in self._feeds])
        if batches[0] is None:
            return None
        with with_the_call():
            batch: Batch = _stacked(batches, where=self._devices.shared)
        return batch

    def _alike(self, parts: list[Any]) -> list[Any]:
        """The parts, repeated for networks without a feed."""
        kinds = [
            (jax.tree.structure(part), [np.shape(leaf) for leaf in jax.tree.leaves(part)])
            for part in parts
        ]
        counts = [part[2] for part in parts if type(part) is tuple]
        if any(kind != kinds[0] for kind in kinds) or len(set(counts)) > 1:
            raise BatchError(
                who="sweep",
                rule="networks trained side by side must get the same number of batches, of the "
                "same sizes",
                found="their loaders differ",
                remedy="give together=1",
            )
        return parts + parts[-1:] * self._filling

    def positions(self) -> list[SourcePosition]:
        return [feed.position() for feed in self._feeds]

    def close(self) -> None:
        for feed in self._feeds:
            feed.close()


@partial(jax.jit, static_argnames="where")
def _stacked(batches: list[Batch], where: Any) -> Batch:
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    return batch if where is None else jax.lax.with_sharding_constraint(batch, where)


@jax.jit
def _first_row(examples: Any, indices: Any, sizes: Any) -> Batch:
    return pick(examples, indices[0], sizes[0])


def _next_batch(feed: NetworkFeed) -> Batch | None:
    piece = feed.take(1)
    if isinstance(piece, Chunk):
        batch: Batch = _first_row(*piece[:3])
        return batch
    return piece
