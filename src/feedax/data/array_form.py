"""Datasets whose examples lie in arrays, and how to gather a batch of them at once.

A dataset has an array form when its exact type is registered here and its transforms have a form
for whole batches. Nothing is guessed: a subclass may yield anything, so it has no array form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.datasets as tv
from torch.utils.data import Subset, TensorDataset

from feedax.data.array_dataset import ArrayDataset
from feedax.data.collate import to_numpy
from feedax.data.transforms import FlattenAndCast


class NoArrayForm(Exception):
    """This dataset's batches cannot be gathered from arrays; the message says why."""


@dataclass(frozen=True)
class ArrayForm:
    """The examples of a dataset as arrays.

    Attributes:
        name: of the dataset and its transform, for people.
        arrays: one array `(n, ...)` per field of an example, as they lie in the dataset.
        batch_transforms: for each field, the function from raw rows to what examples hold.
        identity: what the form was made from. Another object, or another number or text in its
            place, is another dataset.
    """

    name: str
    arrays: tuple[np.ndarray, ...]
    batch_transforms: tuple[Callable[[np.ndarray], np.ndarray], ...]
    identity: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        """The batch of these examples: what `numpy_collate` makes of them, without the loop."""
        fields = zip(self.arrays, self.batch_transforms, strict=True)
        return [transform(array[indices]) for array, transform in fields]

    def same_dataset(self, other: "ArrayForm") -> bool:
        """Whether both read the same objects, unchanged in between."""
        return len(self.identity) == len(other.identity) and all(
            a is b or (isinstance(a, int | bytes) and a == b)
            for a, b in zip(self.identity, other.identity, strict=True)
        )


_FORMS: dict[type, Callable[[Any], ArrayForm]] = {}


def array_form(dataset: Any) -> ArrayForm:
    """The array form of a dataset.

    Raises:
        NoArrayForm: there is none; says why.
    """
    make = _FORMS.get(type(dataset))
    if make is None:
        raise NoArrayForm(f"{name_of(dataset)} may run any Python for an example")
    return make(dataset)


def register_array_form(*types: type) -> Callable[[Callable[[Any], ArrayForm]], Any]:
    """Register how datasets of exactly these types become an `ArrayForm`."""

    def register(make: Callable[[Any], ArrayForm]) -> Callable[[Any], ArrayForm]:
        _FORMS.update(dict.fromkeys(types, make))
        return make

    return register


def name_of(value: Any) -> str:
    return type(value).__name__


def _same(batch: np.ndarray) -> np.ndarray:
    return batch


def _flatten_and_cast(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1).astype(np.float32)


def _batch_transform(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    if transform is None:
        return _same
    if type(transform) is FlattenAndCast:
        return _flatten_and_cast
    raise NoArrayForm(f"the transform {name_of(transform)} is known for single examples only")


def _label_transform(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    if transform is None:
        return _same
    raise NoArrayForm(f"the target_transform {name_of(transform)} may be any Python")


def _named(dataset: Any) -> str:
    transform = getattr(dataset, "transform", None)
    return name_of(dataset) + (f" with {name_of(transform)}" if transform is not None else "")


def _version(value: Any) -> int | bytes:
    """What changes when a tensor or a list is changed in place. (An array's own form sees it.)"""
    if isinstance(value, torch.Tensor):
        return 0 if value.is_inference() else value._version
    return len(value) if isinstance(value, np.ndarray) else np.asarray(value).tobytes()


def _pictures(dataset: Any, labels: np.ndarray) -> ArrayForm:
    """A torchvision dataset that yields (transform(PIL image), label)."""
    images, targets = dataset.data, dataset.targets
    transforms = (_batch_transform(dataset.transform), _label_transform(dataset.target_transform))
    return ArrayForm(
        name=_named(dataset),
        arrays=(to_numpy(images), labels),
        batch_transforms=transforms,
        identity=(images, _version(images), targets, _version(targets), dataset.transform,
                  dataset.target_transform),
    )  # fmt: skip


@register_array_form(tv.MNIST, tv.FashionMNIST, tv.KMNIST, tv.EMNIST)
def _mnist_family(dataset: Any) -> ArrayForm:
    return _pictures(
        dataset, to_numpy(dataset.targets).astype(np.int64, copy=False)
    )  # it yields int(label)


@register_array_form(tv.CIFAR10, tv.CIFAR100)
def _cifar(dataset: Any) -> ArrayForm:
    return _pictures(dataset, to_numpy(dataset.targets))


@register_array_form(TensorDataset)
def _tensors(dataset: TensorDataset) -> ArrayForm:
    tensors = dataset.tensors
    return ArrayForm(
        name=name_of(dataset),
        arrays=tuple(to_numpy(t) for t in tensors),
        batch_transforms=(_same,) * len(tensors),
        identity=(*tensors, *map(_version, tensors)),
    )


@register_array_form(ArrayDataset)
def _arrays(dataset: ArrayDataset) -> ArrayForm:
    for array in (dataset.inputs, dataset.targets):
        if type(array) not in (np.ndarray, np.memmap):
            raise NoArrayForm(f"ArrayDataset holds a {name_of(array)}, not a plain NumPy array")
        if array.dtype.hasobject:
            raise NoArrayForm("the arrays of ArrayDataset hold Python objects")
        if array.dtype.kind in "US":
            raise NoArrayForm("the arrays of ArrayDataset hold text")
    return ArrayForm(
        name=_named(dataset),
        arrays=(dataset.inputs, dataset.targets),
        batch_transforms=(_batch_transform(dataset.transform), _same),
        identity=(dataset.inputs, dataset.targets, dataset.transform),
    )


@dataclass(frozen=True)
class SubsetForm(ArrayForm):
    """Some rows of another form, in an order of their own; copies no array."""

    rows: np.ndarray

    @classmethod
    def of(cls, whole: ArrayForm, subset: Subset[Any]) -> "SubsetForm":
        rows = np.asarray(list(subset.indices), np.intp)
        if isinstance(whole, SubsetForm):
            rows = whole.rows[rows]
        identity = (*whole.identity, rows.tobytes())
        return cls(whole.name, whole.arrays, whole.batch_transforms, identity, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        return super().take(self.rows[indices])


@register_array_form(Subset)
def _subset(dataset: Subset[Any]) -> ArrayForm:
    return SubsetForm.of(array_form(dataset.dataset), dataset)
