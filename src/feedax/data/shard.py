"""One process's share of every batch, where several processes train one model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from feedax.errors import ExampleError, PlanError
from feedax.tree import is_text, map_leaves, named_leaves

WHOLE = slice(None)
"""All rows of a batch."""


@dataclass(frozen=True)
class Shard:
    """Share `index`, from 0, of `count` equal shares of the rows of every batch."""

    index: int = 0
    count: int = 1

    def of(self, rows: int) -> slice:
        """Its rows of a batch of so many, or `WHOLE` if they cannot be shared equally."""
        if self.count == 1 or rows % self.count:
            return WHOLE
        size = rows // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def cut(self, batch: Any) -> tuple[Any, bool]:
        """Its rows of a batch that was loaded whole, and whether these are only a part of it.

        Raises:
            ExampleError: the leaves do not have one number of rows.

        >>> Shard(1, 2).cut({"x": np.arange(4), "name": ["a", "b", "c", "d"]})
        ({'x': array([2, 3]), 'name': ['c', 'd']}, True)
        """
        if self.count == 1:
            return batch, False
        leaves = [leaf for _, leaf in named_leaves(batch, is_text) if leaf is not None]
        lengths = list(dict.fromkeys(map(_rows, leaves)))
        if len(lengths) > 1 or None in lengths:
            found = ", ".join("none" if rows is None else str(rows) for rows in lengths)
            raise ExampleError(
                who="NumpyLoader",
                rule="to be cut into shards, a batch must consist of arrays and lists of text with "
                "a row for each example",
                found=f"their rows are {found}",
                remedy="let the collate_fn or the dataset make it so",
            )
        mine = self.of(lengths[0] or 0) if lengths else WHOLE
        if mine == WHOLE:
            return batch, False
        cut = map_leaves(batch, lambda leaf, _: None if leaf is None else leaf[mine], is_text)
        return cut, True


def _rows(leaf: Any) -> int | None:
    has_rows = leaf.ndim > 0 if isinstance(leaf, np.ndarray) else isinstance(leaf, list | tuple)
    return len(leaf) if has_rows else None


def refuse_shard(loader: DataLoader[Any], shard: Shard, seed: int | None) -> None:
    """Raise PlanError unless the shards of several processes are cut from the same batches."""
    if not 0 <= shard.index < shard.count:
        raise PlanError(
            f"NumpyLoader: the index of a shard must be 0 to {max(shard.count, 1) - 1}, and the "
            f"count at least 1, and it is shard {shard.index} of {shard.count}; give this "
            "process's index and the number of processes"
        )
    if shard.count == 1:
        return
    if seed is None:
        raise PlanError(
            "NumpyLoader: all shards must come from one order and the same random numbers, and "
            "this loader has no seed; give it one, or give shard one"
        )
    if not loader.in_order:
        raise PlanError(
            "NumpyLoader: all shards must come from the same batches in the same order, and this "
            "loader has in_order=False; leave it out"
        )
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise PlanError(
                "NumpyLoader: a shard is cut from whole batches, and this loader's "
                f"DistributedSampler already shares out the examples by {sampler.num_replicas}; "
                "leave out either the sampler or the shard"
            )
