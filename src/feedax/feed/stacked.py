"""The feeds of many networks, side by side."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError
from feedax.feed.batch import Batch, Chunk, pick
from feedax.feed.devices import Devices
from feedax.feed.position import Position
from feedax.feed.resident import ResidentFeed
from feedax.feed.streamed import Feed


class StackedFeed:
    """One epoch of many networks: a piece of work has a batch for each.

    Args:
        feeds: one for each network; all have as many batches, of the same sizes.
        size: how many networks a piece is for; those without a feed get what the last one gets.
        devices: they share the networks.
    """

    def __init__(self, feeds: Sequence[Feed], size: int, devices: Devices) -> None:
        self._feeds = feeds
        self._filling = size - len(feeds)
        self._devices = devices
        examples = [feed.examples for feed in feeds if isinstance(feed, ResidentFeed)]
        self._examples = examples[0] if examples else None
        same = len(examples) == len(feeds) and all(one is examples[0] for one in examples)
        self._share_examples = same

    @property
    def load_seconds(self) -> float:
        return sum(feed.load_seconds for feed in self._feeds)

    @property
    def transfer_seconds(self) -> float:
        return sum(feed.transfer_seconds for feed in self._feeds)

    def take(self, steps: int) -> Batch | Chunk | None:
        """The next steps of all networks, at most so many; None at the end of the epoch.

        A chunk's indices are `(rows, networks, batch size)`, its sizes `(rows, networks)`; the
        leaves of a batch are `(networks, examples, ...)`.

        Raises:
            BatchError: the networks have not as many batches, or batches of other sizes.
        """
        return self._chunk(steps) if self._share_examples else self._batch()

    def _chunk(self, steps: int) -> Chunk | None:
        tables: list[Any] = [feed.take_indices(steps) for feed in self._feeds]  # type: ignore[union-attr]
        tables = self._alike(tables)
        if tables[0] is None:
            return None
        parts = [np.stack(part, axis=1) for part in zip(*[t[:2] for t in tables], strict=True)]
        indices, sizes = self._devices.replicate(parts)
        assert self._examples is not None
        return Chunk(self._examples, indices, sizes, np.int32(tables[0][2]))

    def _batch(self) -> Batch | None:
        batches = self._alike([_next_batch(feed) for feed in self._feeds])
        if batches[0] is None:
            return None
        batch: Batch = _stacked(batches, where=self._devices.shared)
        return batch

    def _alike(self, parts: list[Any]) -> list[Any]:
        """One part for each network of the size."""
        kinds = [
            (jax.tree.structure(part), [np.shape(leaf) for leaf in jax.tree.leaves(part)])
            for part in parts
        ]
        counts = [part[2] for part in parts if type(part) is tuple]
        if any(kind != kinds[0] for kind in kinds) or len(set(counts)) > 1:
            raise BatchError(
                "sweep: networks side by side must have as many batches as each other, of the same "
                "sizes, and their loaders yield other ones; give together=1"
            )
        return parts + parts[-1:] * self._filling

    def positions(self) -> list[Position]:
        """Where each network's loader stands."""
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


def _next_batch(feed: Feed) -> Batch | None:
    piece = feed.take(1)
    if isinstance(piece, Chunk):
        batch: Batch = _first_row(*piece[:3])
        return batch
    return piece
