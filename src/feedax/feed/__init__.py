"""The bridge: NumPy batches to the device.

A feed hands out one epoch's work piece by piece. Where a loader's examples lie in arrays that fit
on the device, the arrays go there once and a piece is a `Chunk` of index rows; otherwise a piece
is one `Batch`. feedax trains on either, and the examples and their order are the same. For loops
of one's own there is `prefetch_to_device`.

Nothing here imports torch: a loader is anything with the methods of `ArrayLoader`, and everything
else that can be iterated is taken as an iterable of NumPy batches.
"""

from feedax.feed.batch import Batch, Chunk, Masked, kind_of, pick, refuse_no_batches
from feedax.feed.devices import Devices
from feedax.feed.hosts import columns_of
from feedax.feed.place import on_device, scalar
from feedax.feed.position import Position, go_on, teller
from feedax.feed.prefetch import DevicePrefetcher, prefetch_to_device
from feedax.feed.resident import CHUNK_STEPS, ArrayLoader, Residents, is_resident
from feedax.feed.stacked import StackedFeed
from feedax.feed.streamed import Feed, device_blocks, how, open_feed

__all__ = [
    "CHUNK_STEPS",
    "ArrayLoader",
    "Batch",
    "Chunk",
    "DevicePrefetcher",
    "Devices",
    "Feed",
    "Masked",
    "Position",
    "Residents",
    "StackedFeed",
    "columns_of",
    "device_blocks",
    "go_on",
    "how",
    "is_resident",
    "kind_of",
    "on_device",
    "open_feed",
    "pick",
    "prefetch_to_device",
    "refuse_no_batches",
    "scalar",
    "teller",
]
