"""The feeds of many networks, side by side."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from feedax.feed.batch import Batch, Chunk
from feedax.feed.devices import Devices
from feedax.feed.position import Position
from feedax.feed.resident import ResidentFeed
from feedax.feed.streamed import Feed


class StackedFeed:
    """One epoch of many networks: a piece of work has a batch for each.

    Args:
        feeds: one for each network; all have as many batches, of the same sizes.
        devices: they share the networks.
    """

    def __init__(self, feeds: Sequence[Feed], devices: Devices) -> None:
        self._feeds = feeds
        self._devices = devices

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
        """
        first = self._feeds[0]
        if isinstance(first, ResidentFeed):
            tables = [feed.take_indices(steps) for feed in self._feeds]  # type: ignore[union-attr]
            if tables[0] is None:
                return None
            parts = [np.stack(part, axis=1) for part in zip(*[t[:2] for t in tables], strict=True)]  # type: ignore[index]
            indices, sizes = self._devices.replicate(parts)
            return Chunk(first.examples, indices, sizes, np.int32(tables[0][2]))
        batches = [feed.take(steps) for feed in self._feeds]
        if batches[0] is None:
            return None
        batch: Batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return jax.device_put(batch, self._devices.shared) if self._devices.mesh else batch

    def positions(self) -> list[Position]:
        """Where each network's loader stands."""
        return [feed.position() for feed in self._feeds]

    def close(self) -> None:
        for feed in self._feeds:
            feed.close()
