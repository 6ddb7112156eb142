"""The bridge: NumPy batches to the device.

What the user gives becomes a `Source`. A feed hands out one epoch of it piece by piece. Where a
loader's examples lie in arrays that fit on the device, the arrays go there once and a piece is a
`Chunk` of index rows; otherwise a piece is one `Batch`. feedax trains on either, and the examples
and their order are the same. For loops of one's own there is `prefetch_to_device`.

Nothing here imports torch.
"""

from feedax.feed.batch import Batch, Chunk, Masked, kind_of, length, pad, pad_indices, pair, pick
from feedax.feed.blocks import device_blocks
from feedax.feed.feeds import CHUNK_STEPS, Feed, Residents, StackedFeed, open_feed
from feedax.feed.prefetch import DevicePrefetcher, prefetch_to_device
from feedax.feed.source import Source, SourcePosition, StateDict, source_by_seed
from feedax.feed.transfer import Devices, on_device, scalar, with_the_call

__all__ = [
    "CHUNK_STEPS",
    "Batch",
    "Chunk",
    "DevicePrefetcher",
    "Devices",
    "Feed",
    "Masked",
    "Residents",
    "Source",
    "SourcePosition",
    "StackedFeed",
    "StateDict",
    "device_blocks",
    "kind_of",
    "length",
    "on_device",
    "open_feed",
    "pad",
    "pad_indices",
    "pair",
    "pick",
    "prefetch_to_device",
    "scalar",
    "source_by_seed",
    "with_the_call",
]
