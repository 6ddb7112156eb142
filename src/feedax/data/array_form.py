"""Datasets whose examples lie in arrays, and how to gather a batch of them at once.

A dataset has an array form when its exact type is registered and its transforms have a form for
whole batches. Nothing is guessed: a subclass may yield anything, so it has no array form. The
datasets that feedax knows are registered in `feedax.data.known_datasets`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from feedax.data.batch_transforms import ARRAY, INT, TENSOR, Stage, batch_transform
from feedax.data.batch_transforms import NoArrayForm as NoArrayForm
from feedax.data.collate import to_numpy
from feedax.errors import PlanError
from feedax.tree import NotAnArray, map_leaves, name_of, named_leaves


@dataclass(frozen=True, kw_only=True)
class ArrayForm:
    """The examples of a dataset, of which any batch can be gathered at once."""

    name: str  # of the dataset and its transform, for people
    # What the form was made from: another object, or another number or text in its place, is
    # another dataset.
    identity: tuple[Any, ...]
    structure: Callable[[list[np.ndarray]], Any] = list  # from leaves to what is collated of them

    def __len__(self) -> int:
        raise NotImplementedError

    def leaves(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        """The arrays `(examples, ...)` of a batch; indices are not negative."""
        raise NotImplementedError

    def take(self, indices: np.ndarray | slice) -> Any:
        """The batch of these examples: what `numpy_collate` makes of them, without the loop."""
        return self.structure(self.leaves(indices))

    def same_dataset(self, other: "ArrayForm") -> bool:
        """Whether both read the same objects, unchanged in between."""
        return len(self.identity) == len(other.identity) and all(
            a is b or (isinstance(a, int | bytes) and type(a) is type(b) and a == b)
            for a, b in zip(self.identity, other.identity, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class ArraysForm(ArrayForm):
    """One array for each leaf of an example."""

    arrays: tuple[np.ndarray, ...]  # `(n, ...)`, in the dataset; nothing of a memory map is read
    # For each array, from its rows to what examples hold.
    batch_transforms: tuple[Callable[[np.ndarray], np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def leaves(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        fields = zip(self.arrays, self.batch_transforms, strict=True)
        return [np.ascontiguousarray(transform(array[indices])) for array, transform in fields]


@dataclass(frozen=True, kw_only=True)
class SubsetForm(ArrayForm):
    """Some rows of another form, in an order of their own; copies no array."""

    whole: ArrayForm
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def leaves(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        return self.whole.leaves(self.rows[indices])


@dataclass(frozen=True, kw_only=True)
class ConcatForm(ArrayForm):
    """Forms one after the other; `ends` are their cumulative lengths."""

    parts: tuple[ArrayForm, ...]
    ends: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1])

    def leaves(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        rows = np.arange(len(self))[indices] if isinstance(indices, slice) else indices
        part_of = np.searchsorted(self.ends, rows, side="right")
        present = np.unique(part_of)
        if len(present) == 1:
            return self._of_part(present[0], rows)
        result: list[np.ndarray] = [
            np.empty((len(rows), *leaf.shape[1:]), leaf.dtype)
            for leaf in self.parts[0].leaves(NO_ROWS)
        ]
        for part in present:
            mask = part_of == part
            for whole, leaf in zip(result, self._of_part(part, rows[mask]), strict=True):
                whole[mask] = leaf
        return result

    def _of_part(self, part: int, rows: np.ndarray) -> list[np.ndarray]:
        start = self.ends[part - 1] if part else 0
        return self.parts[part].leaves(rows - start)


NO_ROWS = np.empty(0, np.intp)
_FORMS: dict[type | tuple[str, str], Callable[[Any], ArrayForm]] = {}
"""By the exact type of a dataset, or by its module and name if its library is not imported here."""


def array_form(dataset: Any) -> ArrayForm:
    """The array form of a dataset.

    Raises:
        NoArrayForm: there is none; says why.
        PlanError: the arrays that a registered class gives are not its examples.
    """
    kind = type(dataset)
    make = _FORMS.get(kind)
    name = kind.__module__, kind.__qualname__
    # Its library is not imported for this: if such a dataset exists, it has been imported.
    if make is None and getattr(sys.modules.get(name[0]), name[1], None) is kind:
        make = _FORMS.get(name)
    if make is None:
        raise NoArrayForm(any_python(dataset))
    return make(dataset)


def any_python(dataset: Any) -> str:
    """Why a dataset of a type that is not registered has no array form."""
    return f"{name_of(dataset)} may run any Python for an example"


def register_array_form(*types: type | tuple[str, str]) -> Callable[[Any], Any]:
    """Register how datasets of exactly these types, see `_FORMS`, become an `ArrayForm`."""

    def register(make: Callable[[Any], ArrayForm]) -> Callable[[Any], ArrayForm]:
        _FORMS.update(dict.fromkeys(types, make))
        return make

    return register


def register_arrays(
    cls: type,
    arrays: Callable[[Any], Any],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> None:
    """Say where the examples of a dataset class lie, so that its batches need no Python loop.

    Once is enough, for all datasets whose type is exactly `cls`. What is said is put to the proof
    before it is used: sampled examples must come out equal, bit for bit. An epoch looks for other
    arrays, for tensors changed in place and for another transform, but for nothing else that
    ``dataset[i]`` depends on.

    Args:
        cls: a map-style dataset class.
        arrays: from a dataset to its arrays: NumPy arrays, memory maps or CPU tensors `(n, ...)`,
            n the dataset's length, in tuples, lists, dicts or named tuples as ``dataset[i]`` nests
            its values. It is called at each epoch, so it should hand out what is there already.
        transform: from a dataset to the transform that ``dataset[i]`` applies to the first array's
            row; one of those that feedax knows, or None.

    Raises:
        PlanError: `cls` is no class, or `arrays` or `transform` is no function.

    >>> class Points(torch.utils.data.Dataset):
    ...     def __init__(self):
    ...         self.x, self.y = np.eye(3), np.arange(3)
    ...     def __len__(self):
    ...         return 3
    ...     def __getitem__(self, i):
    ...         return {"x": self.x[i], "y": self.y[i]}
    >>> register_arrays(Points, lambda data: {"x": data.x, "y": data.y})
    >>> array_form(Points()).take(np.array([2, 0]))["y"]
    array([2, 0])
    """
    if not isinstance(cls, type):
        raise PlanError(
            f"register_arrays: it must be given a dataset class, and it was given {cls!r}; "
            "register the class once, not each dataset"
        )
    for name, function in (("arrays", arrays), ("transform", transform)):
        if not callable(function) and (name == "arrays" or function is not None):
            raise PlanError(
                f"register_arrays: {name} must be a function of a dataset, and it is {function!r}; "
                "write lambda data: ..."
            )

    def make(dataset: Any) -> ArrayForm:
        tree = arrays(dataset)
        leaves = [leaf for _, leaf in named_leaves(tree)]
        _check_registered(dataset, leaves)
        nesting = repr(collated(tree, iter(range(len(leaves))))).encode()
        return arrays_form(
            dataset,
            leaves,
            [None if transform is None else transform(dataset)],
            extra=(nesting,),
            structure=lambda new: collated(tree, iter(new)),
        )

    register_array_form(cls)(make)


def _check_registered(dataset: Any, leaves: list[Any]) -> None:
    who = f"register_arrays: the arrays of {name_of(dataset)} must"
    if not leaves:
        raise PlanError(f"{who} be at least one, and there is none; return them from the function")
    for number, leaf in enumerate(leaves):
        if not isinstance(leaf, np.ndarray | torch.Tensor):
            raise PlanError(
                f"{who} be NumPy arrays or tensors in tuples, lists and dicts, and number {number} "
                f"is a {name_of(leaf)}; convert it once, when the dataset is made"
            )
        rows = leaf.shape[0] if leaf.ndim else "no"
        if rows != len(dataset):
            raise PlanError(
                f"{who} hold one row for each of its {len(dataset)} examples, and number {number} "
                f"holds {rows} rows; give all of them the dataset's length"
            )


def arrays_form(
    dataset: Any,
    leaves: Sequence[Any],
    transforms: Sequence[Any] = (),
    *,
    kinds: Sequence[str] = (),
    extra: tuple[Any, ...] = (),
    structure: Callable[[list[np.ndarray]], Any] = list,
) -> ArraysForm:
    """The form of a dataset over arrays or tensors `(n, ...)`, one for each leaf of an example.

    Args:
        dataset: for its name.
        leaves: the arrays; a list of ints is one, too.
        transforms: of the first leaves.
        kinds: what the dataset makes of the first leaves' rows, where it is not their own kind.
        extra: more that the form depends on.
        structure: builds a batch of its leaves.
    """
    arrays = []
    made = []
    identity: list[Any] = [*extra, len(leaves)]
    what = "transform"
    count = len(leaves)
    for leaf, transform, kind in zip_longest(leaves, transforms[:count], kinds[:count]):
        array, own_kind, looked_at = _plain(name_of(dataset), leaf)
        form = batch_transform(transform, Stage(kind or own_kind, array[:0]), what)
        arrays.append(array)
        made.append(form)
        identity += [*looked_at, *form.identity]
        what = "target_transform"
    names = made[0].names if made else ()
    return ArraysForm(
        name=name_of(dataset) + (f" with {', '.join(names)}" if names else ""),
        identity=tuple(identity),
        structure=structure,
        arrays=tuple(arrays),
        batch_transforms=tuple(made),
    )


def _plain(name: str, leaf: Any) -> tuple[np.ndarray, str, tuple[Any, ...]]:
    """A leaf as an array in this process's memory, its kind, and what tells that it is the same."""
    if type(leaf) in (torch.Tensor, torch.nn.Parameter):
        if leaf.layout != torch.strided or leaf.device.type != "cpu" or leaf.is_quantized:
            raise NoArrayForm(f"{name} holds a tensor that is not a plain one in the CPU's memory")
        # torch has no public way to see that a tensor was changed in place, or is a view.
        version = 0 if leaf.is_inference() else leaf._version
        try:
            array = to_numpy(leaf)
        except NotAnArray as no:
            raise NoArrayForm(f"{name} holds {no.what}") from no
        owner = leaf if leaf._base is None else leaf._base  # a view is a new object each time
        looked_at: tuple[Any, ...] = (owner, version, _layout(array))
        kind = TENSOR
    elif type(leaf) in (np.ndarray, np.memmap):
        array = np.asarray(leaf)
        looked_at = (_owner(leaf), _layout(leaf))
        kind = ARRAY
    elif type(leaf) is list and set(map(type, leaf)) <= {int}:
        try:
            array = np.asarray(leaf, np.int64)
        except OverflowError:
            raise NoArrayForm(f"{name} holds integers beyond int64") from None
        looked_at = (leaf, array.tobytes())
        kind = INT
    else:
        raise NoArrayForm(f"{name} holds a {name_of(leaf)}, not a plain NumPy array")
    if array.dtype.hasobject:
        raise NoArrayForm(f"the arrays of {name} hold Python objects")
    if array.dtype.kind in "US":
        raise NoArrayForm(f"the arrays of {name} hold text")
    if array.dtype.kind not in "biufc" and array.dtype.isbuiltin != 2:  # 2: bfloat16 and its like
        raise NoArrayForm(f"the arrays of {name} hold {array.dtype}, not numbers")
    if array.ndim == 0:
        raise NoArrayForm(f"{name} holds a single value, not an array of examples")
    return array, kind, looked_at


def _owner(array: Any) -> Any:
    """The array whose memory an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _layout(array: np.ndarray) -> bytes:
    place = array.__array_interface__["data"][0]
    return repr((place, array.shape, array.strides, array.dtype.str)).encode()


def collated(tree: Any, leaves: Iterator[Any]) -> Any:
    """The tree with new leaves, its tuples as lists: `numpy_collate` makes them so."""
    return map_leaves(tree, lambda *_: next(leaves), tuples_to_lists=True)
