"""One process's share of every batch, where several processes train one model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, MapDataPipe
from torch.utils.data.distributed import DistributedSampler

from feedax.data.loading import batch_method
from feedax.errors import ExampleError, PlanError
from feedax.tree import is_text, map_leaves, named_leaves

WHOLE = slice(None)
"""All rows of a batch."""


@dataclass(frozen=True)
class Columns:
    """Which rows of a batch are this part's. With one part, all of them.

    Imagine the epoch as a table with a batch a line: then a part is some of its columns.

    Args:
        part: which one, from 0.
        parts: how many share each batch.
    """

    part: int = 0
    parts: int = 1

    def of(self, count: int) -> slice:
        """The rows of a batch of `count`: a part's, or `WHOLE` if they can't be shared equally."""
        if self.parts == 1 or count % self.parts:
            return WHOLE
        size = count // self.parts
        return slice(self.part * size, (self.part + 1) * size)

    def cut(self, batch: Any) -> tuple[Any, bool]:
        """These rows of a batch that was loaded whole, and whether they are a part of it only.

        Args:
            batch: PyTree of arrays `(n, ...)` and of lists of n texts.

        Raises:
            ExampleError: its leaves do not have one number of rows.

        >>> Columns(1, 2).cut({"x": np.arange(4), "name": ["a", "b", "c", "d"]})
        ({'x': array([2, 3]), 'name': ['c', 'd']}, True)
        """
        if self.parts == 1:
            return batch, False
        leaves = [leaf for _, leaf in named_leaves(batch, is_text)]
        lengths = dict.fromkeys(_rows(leaf) for leaf in leaves if leaf is not None)
        if not lengths:
            return batch, False
        if len(lengths) > 1 or None in lengths:
            found = ", ".join("none" if rows is None else str(rows) for rows in lengths)
            raise ExampleError(
                "NumpyLoader: to be shared by columns, everything in a batch must be an array or "
                f"a list of text with a row for each example, and their rows are {found}; let "
                "the collate_fn or the dataset make it so"
            )
        mine = self.of(lengths.popitem()[0])  # type: ignore[arg-type]
        if mine == WHOLE:
            return batch, False
        return map_leaves(
            batch, lambda leaf, _: leaf if leaf is None else leaf[mine], is_text
        ), True


def _rows(leaf: Any) -> int | None:
    has_rows = leaf.ndim > 0 if isinstance(leaf, np.ndarray) else isinstance(leaf, list | tuple)
    return len(leaf) if has_rows else None


def why_whole(loader: Any) -> str | None:
    """Why a loader must load whole batches, to hand over the columns of the very same ones.

    None if examples are loaded one by one and independently, so that the others can be left out.
    """
    if isinstance(loader.dataset, IterableDataset | MapDataPipe):
        return f"a {type(loader.dataset).__name__} yields its examples one after the other"
    if loader.batch_sampler is None:
        return "with batch_size=None the dataset makes them"
    if not loader.collates_itself:
        return "a collate_fn of your own wants to see all examples"
    if loader._account.cache is not None:
        return "every process is to know all examples after the same epoch, to have one plan"
    if batch_method(loader.dataset) is not None:
        return "the dataset's __getitems__ loads all examples together"
    return None


def refuse_columns(loader: Any, columns: Columns, seed: int | None) -> None:
    """See that parts of a loader's batches in several processes are parts of the same batches.

    Raises:
        PlanError: they need not be.
    """
    part, parts = columns.part, columns.parts
    if not 0 <= part < parts:
        raise PlanError(
            f"NumpyLoader: columns must be asked for part 0 to {max(parts, 1) - 1} of at least 1, "
            f"and it is part {part} of {parts}; give this process's index and their number"
        )
    if parts == 1:
        return
    if seed is None:
        raise PlanError(
            "NumpyLoader: every part must come from the same order and the same random numbers, "
            "and this loader has no seed; give it one, or give columns one"
        )
    if not loader.in_order:
        raise PlanError(
            "NumpyLoader: every part must come from the same batches in the same order, and this "
            "loader has in_order=False; leave it out"
        )
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise PlanError(
                "NumpyLoader: columns are shares of whole batches, and this loader's "
                f"DistributedSampler shares out the examples by {sampler.num_replicas} already; "
                "leave the sampler out, or the columns"
            )
