"""The examples a command works on: opened by name, described, put into loaders."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Subset

from feedax import datasets
from feedax.cli.flags import DataFlags
from feedax.data import ArrayDataset, FlattenAndCast, NumpyLoader
from feedax.errors import DatasetError, ModelError
from feedax.random_states import random_states_restored

TITLES = {"train": "Training", "validation": "Validation", "test": "Test"}


def _spread(part: Any) -> list[int]:
    """Indices of some examples; of a stream, or where all lie in one array, one or none."""
    if part is None or isinstance(part, IterableDataset):
        return []
    count = 1 if isinstance(part, ArrayDataset) else min(16, len(part))
    return np.linspace(0, len(part) - 1, count).astype(int).tolist()


@dataclass(frozen=True)
class Examples:
    """A dataset's training set, and its test set if it has one."""

    flags: DataFlags
    train: Any
    test: Any | None

    @classmethod
    def open(cls, flags: DataFlags) -> "Examples":
        """Load both; see `feedax.datasets.load`."""
        parts = [
            datasets.load(flags.dataset, train=train, root=flags.root) for train in (True, False)
        ]
        return cls(flags, *parts)

    @property
    def name(self) -> str:
        """The dataset's name without its file, folder or part."""
        return self.flags.dataset.partition(":")[0].replace("-", "_")

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example's input; refused where some examples have another one."""
        shape = self.first_input.shape
        with random_states_restored():
            for part in (self.train, self.test):
                for i in _spread(part):
                    other = np.shape(part[i][0])  # type: ignore[index]
                    if other != shape:
                        which = "training" if part is self.train else "test"
                        raise ModelError(
                            f"the network: all inputs of {self.flags.dataset} must have one shape, "
                            f"and that of training example 0 is {list(shape)} and that of {which} "
                            f"example {i} is {list(other)}; make them alike in the dataset, with a "
                            "transform that resizes or cuts them"
                        )
        return shape

    @cached_property
    def first_input(self) -> np.ndarray:
        """The input of the first example; refused where that is no pair of input and label."""
        streamed = isinstance(self.train, IterableDataset)
        example = next(iter(self.train)) if streamed else self.train[0]
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise ModelError(
                f"the network: an example must be a pair of input and label, and the first of "
                f"{self.flags.dataset} is a {type(example).__name__}; return such pairs"
            )
        return np.asarray(example[0])

    @property
    def values(self) -> int:
        """How many numbers one example's input has."""
        return math.prod(self.input_shape)

    @cached_property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape of the images that the examples are the plain pixels of, or None.

        None also for images that a transform scales or an array holds as other than 0 to 255: what
        is done to those is not known to `feedax predict`.
        """
        whole = self._whole
        is_other = isinstance(whole, ArrayDataset) and whole.inputs.dtype != np.uint8
        return None if is_other else self.flattened_shape

    @cached_property
    def flattened_shape(self) -> tuple[int, ...] | None:
        """The shape of the images that the examples are the flattened pixels of, or None."""
        whole = self._whole
        is_flat = type(getattr(whole, "transform", None)) is FlattenAndCast
        return datasets.image_shape(whole) if is_flat else None

    @property
    def _whole(self) -> Any:
        """The training set that a Subset is a part of."""
        whole = self.train
        while isinstance(whole, Subset):
            whole = whole.dataset
        return whole

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        return datasets.class_names(self.train)

    @cached_property
    def class_count(self) -> int:
        """How many classes the labels have: the names, or the largest label and one."""
        if self.class_names is not None:
            return len(self.class_names)
        if isinstance(self.train, IterableDataset):
            raise ModelError(
                f"the network: the last layer needs an output for each class, and the stream "
                f"{self.flags.dataset} does not say how many it has; give all sizes with --layers"
            )
        labels = getattr(self.train, "targets", None)
        if labels is None:
            labels = [label for _, label in (self.train[i] for i in range(len(self.train)))]
        return int(np.max(np.asarray(labels))) + 1

    def loaders(self) -> dict[str, NumpyLoader]:
        """A loader for each part there is: ``"train"``, ``"validation"`` and ``"test"``.

        Evaluation takes each whole and in its own order, see `NumpyLoader.sequential`.
        """
        flags = self.flags
        train, validation = self._split()
        if flags.shuffle and isinstance(self.train, IterableDataset):
            raise DatasetError(
                f"feedax: only a dataset with indices can be shuffled, and {flags.dataset} is a "
                f"stream; leave --shuffle out, and shuffle in the stream"
            )
        parts = {"train": train, "validation": validation, "test": self.test}
        return {
            name: NumpyLoader(
                part,
                batch_size=flags.batch_size,
                shuffle=(name == "train" and flags.shuffle) or None,
                drop_last=name == "train" and flags.drop_last,
                num_workers=flags.num_workers,
                seed=flags.seed,
                cache=flags.cache,
                plan=flags.plan,
            )
            for name, part in parts.items()
            if part is not None
        }

    def _split(self) -> tuple[Any, Any | None]:
        """The training set without the examples to validate with, and these."""
        share, name = self.flags.validation, self.flags.dataset
        if not share:
            return self.train, None
        if isinstance(self.train, IterableDataset):
            raise DatasetError(
                f"feedax: only a dataset with indices can be split, and {name} is a stream; leave "
                "--validation out"
            )
        count = len(self.train)
        held_out = round(share * count)
        if not 0 < held_out < count:
            raise DatasetError(
                f"feedax: --validation must leave examples on both sides, and {share} of the "
                f"{count} of {name} is {held_out}; give another share"
            )
        # Not of --seed: runs of several seeds are compared by the same examples.
        order = np.random.default_rng(0).permutation(count)
        parts = (order[held_out:], order[:held_out])
        train, validation = (Subset(self.train, np.sort(part).tolist()) for part in parts)
        return train, validation
