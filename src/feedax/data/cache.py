"""``cache=True``: a dataset's examples, kept as they were loaded."""

import itertools
import random
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, MapDataPipe

from feedax.data.array_form import ArraysForm, collated
from feedax.data.collate import numpy_collate
from feedax.data.loading import examples_of
from feedax.errors import ExampleError, PlanError
from feedax.random_states import random_states_restored
from feedax.tree import name_of, named_leaves, same_bits

LOADED_AGAIN = 4
"""How many examples are loaded again in each epoch that comes from memory, and compared."""

FILL = 256
"""How many missing examples, at most, are loaded at the end of an epoch to complete the cache."""


class Cache:
    """The examples of a map-style dataset that is deterministic, as its user asserts.

    It yields numbers in arrays, of the same shapes for every example.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.forget()

    def forget(self) -> None:
        self._known = np.zeros(len(self._dataset), bool)
        self._template: Any = None
        self._arrays: dict[str, np.ndarray] = {}  # by the path of a leaf in the template

    def owns(self, form: Any) -> bool:
        """Whether an array form is one of what is kept here."""
        return isinstance(form, ArraysForm) and form.identity[0] is self

    @property
    def is_complete(self) -> bool:
        return len(self._dataset) == len(self._known) and bool(self._known.all())

    def known(self) -> tuple[int, int]:
        """How many examples are kept, and of how many."""
        return int(self._known.sum()), len(self._known)

    def keep(self, indices: Any, rows: np.ndarray | None, batch: Any) -> None:
        """Keep a batch's examples; `rows` are its indices where these are integers.

        Raises:
            PlanError: they cannot be kept in arrays by their indices.
        """
        if rows is None:
            raise PlanError(
                "NumpyLoader: cache=True keeps examples by their numbers, and the sampler yields "
                f"{indices}; leave it out"
            )
        if len(self._dataset) != len(self._known):
            self.forget()  # it has grown or shrunk
        if not self._arrays:
            self._begin(batch)
        leaves = self._leaves(batch, rows[0])
        for array, leaf in zip(self._arrays.values(), leaves, strict=True):
            if leaf.shape[1:] != array.shape[1:] or leaf.dtype != array.dtype:
                raise ExampleError(
                    who="NumpyLoader",
                    rule="cache=True needs examples of one shape and dtype",
                    found=f"after {array.dtype} {array.shape[1:]} there is {leaf.dtype} "
                    f"{leaf.shape[1:]} at example {rows[0]}",
                    remedy="leave it out, or make the examples equal",
                )
            array[rows] = leaf
        self._known[rows] = True

    def fill_up(self) -> None:
        """Load the few examples that an epoch's sampler left out, if any."""
        missing = np.flatnonzero(~self._known)
        if self._arrays and 0 < len(missing) <= FILL:
            for index in missing.tolist():
                self.keep([index], np.array([index]), self._load(index))

    def form(self) -> ArraysForm:
        """The array form of what is kept."""
        template, views = self._template, [array.view() for array in self._arrays.values()]
        for view in views:
            view.flags.writeable = False
        return ArraysForm(
            name=name_of(self._dataset),
            identity=(self, self._known),
            structure=lambda leaves: collated(template, iter(leaves)),
            arrays=tuple(views),
            batch_transforms=tuple(lambda rows: rows for _ in views),
        )

    def check(self, epoch: int) -> None:
        """Load a few examples again.

        Raises:
            ExampleError: one of them is not what it was.
        """
        count = len(self._known)
        for index in random.Random(epoch).sample(range(count), min(LOADED_AGAIN, count)):
            leaves = self._leaves(self._load(index), index)
            kept = [array[index : index + 1] for array in self._arrays.values()]
            if not same_bits(leaves, kept):
                raise ExampleError(
                    who="NumpyLoader",
                    rule="with cache=True an example must be the same each time it is loaded",
                    found=f"example {index} of {name_of(self._dataset)} has changed",
                    remedy="leave cache out if the dataset is random, or call refresh() if it was "
                    "edited",
                )

    def _load(self, index: int) -> Any:
        with random_states_restored():
            return numpy_collate(examples_of(self._dataset, [index]))

    def _begin(self, batch: Any) -> None:
        arrays = {}
        for path, leaf in named_leaves(batch):
            if not isinstance(leaf, np.ndarray) or leaf.dtype.hasobject:
                raise PlanError(
                    who="NumpyLoader",
                    rule="cache=True keeps examples made of numbers in arrays, in tuples, lists "
                    "and dicts",
                    found=f"a batch holds a {name_of(leaf)}",
                    remedy="leave it out, or let the dataset yield numbers only",
                )
            arrays[path] = np.empty((len(self._known), *leaf.shape[1:]), leaf.dtype)
        self._arrays = arrays
        self._template = collated(batch, itertools.repeat(None))

    def _leaves(self, batch: Any, index: Any) -> list[np.ndarray]:
        """A batch's leaves in the order of the arrays; dicts may have their keys in another one."""
        leaves = dict(named_leaves(batch))
        if leaves.keys() != self._arrays.keys():
            raise ExampleError(
                who="NumpyLoader",
                rule="cache=True needs examples of one structure",
                found=f"that of example {index} is another one",
                remedy="leave it out, or make the examples equal",
            )
        return [leaves[path] for path in self._arrays]


def refuse_cache(loader: DataLoader[Any], collate_fn: Any, plan: str) -> None:
    """Raise PlanError if a loader, with this collate_fn of the user's, has no examples to keep."""
    dataset = loader.dataset
    reason = None
    if isinstance(dataset, IterableDataset):
        reason = "an IterableDataset has none"
    elif isinstance(dataset, MapDataPipe):
        reason = "a data pipe does not say how many it has"
    elif not hasattr(type(dataset), "__len__"):
        reason = f"a {name_of(dataset)} does not say how many it has"
    elif loader.batch_sampler is None:
        reason = "batch_size=None makes no batches"
    elif collate_fn is not None:
        reason = "a collate_fn of your own hides them"
    elif not loader.in_order:
        reason = "in_order=False loses them"
    elif plan == "streamed":
        reason = "plan='streamed' asks to load them every time"
    if reason:
        raise PlanError(
            who="NumpyLoader",
            rule="cache=True keeps examples by their indices",
            found=reason,
            remedy="leave it out",
        )
