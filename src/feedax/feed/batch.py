"""Batches: what they are made of, on the host and on the device."""

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping, Sized
from functools import cache
from numbers import Number
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import BatchError, first_line
from feedax.tree import CONVERT, NotAnArray, as_array, record_fields, taken_apart
from feedax.tree import is_text as is_plain_text

PyTree = Any


class Batch(NamedTuple):
    """Examples for the device: arrays there, or of the host, which go there with a call.

    Attributes:
        inputs: PyTree of arrays `(examples, ...)`.
        targets: PyTree of arrays `(examples, ...)`.
        weights: float32 `(examples,)`: 1 for an example, 0 for padding.
    """

    inputs: PyTree
    targets: PyTree
    weights: Array


class Masked(NamedTuple):
    """A padded batch, and which of its rows are examples.

    Attributes:
        batch: PyTree of arrays `(examples, ...)`.
        mask: bool `(examples,)`: False for padding.
    """

    batch: PyTree
    mask: Array


class Chunk(NamedTuple):
    """Several steps over arrays on the device.

    Attributes:
        examples: (inputs, targets), PyTrees of arrays `(all examples, ...)`.
        indices: int32 `(rows, batch size)`, a row a step.
        sizes: int32 `(rows,)`: how many indices of a row are examples; the rest is padding.
        steps: int32 scalar: how many rows are steps.
    """

    examples: tuple[PyTree, PyTree]
    indices: Array
    sizes: Array
    steps: np.int32


def pick(examples: tuple[PyTree, PyTree], indices: Array, size: Array) -> Batch:
    """Gather one batch on the device; pure, for use inside compiled code."""
    inputs, targets = jax.tree.map(lambda array: array[indices], examples)
    return Batch(
        inputs, targets, (jnp.arange(indices.shape[0], dtype=size.dtype) < size).astype(jnp.float32)
    )


class HostBatch(NamedTuple):
    """A padded batch on the host, how many examples it has, and whether it is a shard of one."""

    batch: Batch
    examples: int
    is_shard: bool = False


def padded_batch(inputs: PyTree, targets: PyTree, size: int) -> HostBatch:
    """A batch on the host, padded to `size` examples."""
    count = length((inputs, targets))
    inputs, targets = pad((inputs, targets), count, size)
    weights: Any = (np.arange(size) < count).astype(np.float32)
    return HostBatch(Batch(inputs, targets, weights), count)


def pad(examples: PyTree, count: int, size: int) -> PyTree:
    """`count` examples, padded to `size` with copies of the first one; the same arrays if full."""
    if count == size:
        return examples
    order = pad_indices(np.arange(count), size)
    return jax.tree.map(lambda leaf: leaf[order], examples)


def pad_indices(indices: np.ndarray, size: int) -> np.ndarray:
    """The indices of a batch, padded to `size` with the first one.

    All padding of short batches in feedax is this.
    """
    if len(indices) == size:
        return indices
    full = np.full(size, indices[0])
    full[: len(indices)] = indices
    return full


def pair(batch: Any, who: str = "fit") -> tuple[PyTree, PyTree]:
    """The inputs and the targets of a batch, their leaves as NumPy arrays.

    Containers that JAX does not know are converted, see `opened`. Text is left out, see
    `without_text`, and so is the padding of a `Masked` batch.

    Raises:
        BatchError: it is not a pair, or its leaves are not numbers in arrays of one length above 0.
    """
    if type(batch) in (list, tuple) and len(batch) == 2 and all(map(_is_numeric, batch)):
        inputs, targets = (_fitting(part, who) for part in batch)
        length((inputs, targets), who)
        return inputs, targets
    given = batch
    if isinstance(batch, Masked):
        batch = _unmasked(batch)
    # The order of a record's fields does not say which of them are the inputs.
    batch = opened(batch, who) if record_fields(batch) is None else None
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        got = type(given).__name__ + (f" of {len(given)}" if isinstance(given, Sized) else "")
        raise BatchError(
            who=who,
            rule="a batch must be a pair (inputs, targets)",
            found=f"this one is a {got}",
            remedy="let the dataset yield such pairs, or make them in a collate_fn",
        )
    # Inputs or targets that are nothing but text are refused, by `numbers`.
    parts = tuple(part if is_text(part) else without_text(part) for part in batch)
    inputs, targets = numbers(parts, who, names=("inputs", "targets"))
    length((inputs, targets), who)
    return inputs, targets


def _unmasked(batch: Masked) -> PyTree:
    batch = jax.device_get(batch)
    counts = np.asarray(batch.mask)
    if counts.all():
        return batch.batch
    return jax.tree.map(lambda leaf: np.asarray(leaf)[counts], batch.batch)


def kind_of(examples: PyTree) -> Any:
    """Its structure, its shapes without the first axis, and its dtypes on the device."""
    leaves, structure = jax.tree.flatten(examples)
    return structure, tuple((a.shape[1:], jax.dtypes.canonicalize_dtype(a.dtype)) for a in leaves)


def length(examples: PyTree, who: str = "fit") -> int:
    """How many examples the arrays of a PyTree hold."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        found = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(examples)) or "no arrays"
        raise BatchError(
            who=who,
            rule="all arrays of a batch must have one number of examples, above 0, as their first "
            "dimension",
            found=f"their shapes are {found}",
            remedy="see what the dataset or collate_fn returns",
        )
    return int(lengths.pop()[0])


def opened(batch: PyTree, who: str = "fit") -> PyTree:
    """A batch whose fields JAX sees, whatever its containers are.

    A container of a type that is registered with JAX stays as it is. Of the others, a mapping
    becomes a dict; a dataclass or an attrs object a named tuple of its fields; and a sequence a
    list, unless it is one of Python numbers, which is an array. A defaultdict becomes a dict, too:
    two of them are alike for JAX only with the very same factory.

    Raises:
        BatchError: JAX cannot take it apart.

    >>> from collections import UserDict
    >>> opened((UserDict(x=np.ones(2)), 3))
    ({'x': array([1., 1.])}, 3)
    """
    try:
        leaves, structure = jax.tree.flatten(batch, is_leaf=lambda part: type(part) is defaultdict)
    except (TypeError, ValueError) as error:  # keys that cannot be sorted
        reason = first_line(error).rstrip(".")
        raise BatchError(
            f"{who}: a batch must be made of containers that JAX can take apart, and one is not "
            f"({reason}); give dicts keys of one type"
        ) from error
    if not any(map(_is_closed, leaves)):
        return batch
    return jax.tree.unflatten(
        structure, [opened(_open(leaf), who) if _is_closed(leaf) else leaf for leaf in leaves]
    )


def _is_closed(leaf: Any) -> bool:
    """Whether a leaf of JAX's is a container."""
    if type(leaf) in (np.ndarray, str, bytes) or (parts := taken_apart(leaf)) is None:
        return False
    is_array = isinstance(parts.keys, range) and parts.keys and isinstance(leaf[0], Number)
    return not is_array


def _open(container: Any) -> Any:
    if isinstance(container, Mapping):
        return dict(container)
    if (names := record_fields(container)) is not None:
        kind: Any = type(container)
        return _named_tuple(kind, tuple(names))(*(getattr(container, name) for name in names))
    return list(container)


@cache
def _named_tuple(record: Any, names: tuple[str, ...]) -> Any:
    """One type for all records of a class, or a batch would be another tree each time."""
    make: Any = namedtuple
    kind = make(record.__name__, names, rename=True)
    for place, name in zip(kind._fields, names, strict=True):
        if place != name:  # a named tuple's own field cannot begin with an underscore
            setattr(kind, name, property(attrgetter(place)))
    return kind


def numbers(
    parts: PyTree, who: str = "fit", names: tuple[str, ...] = (), keep: tuple[type, ...] = ()
) -> PyTree:
    """A tree with its leaves as arrays of numbers that the device can hold.

    Args:
        parts: the tree, as `opened` returns it.
        who: speaks, in an error.
        names: of the tree's parts, for errors.
        keep: types of leaves that are left as they are.
    """

    def number(path: Any, leaf: Any) -> Any:
        return leaf if isinstance(leaf, keep) else _number(leaf, who, path, names)

    return jax.tree_util.tree_map_with_path(number, parts, is_leaf=is_text)


def _number(leaf: Any, who: str, path: Any, names: tuple[str, ...]) -> np.ndarray:
    """A leaf as an array of numbers that the device can hold.

    Without ``jax_enable_x64`` the device holds int64 as int32 and float64 as float32. A float then
    loses its last digits, which is accepted; an integer would become another number.
    """
    remedy = "leave that field out of the dataset's examples, or turn it into numbers"
    try:
        array = as_array(jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf)
        if array.dtype.kind in "OSTUMmV" and not jnp.issubdtype(array.dtype, jnp.number):
            raise NotAnArray(f"values of type {array.dtype}", remedy)
    except NotAnArray as no:
        raise BatchError(
            f"{who}: {_spoken(path, names)} must be made of numbers, and it holds {no.what}; "
            f"{remedy if no.remedy == CONVERT else no.remedy}"
        ) from no
    return _fitting(array, who)


def _is_numeric(part: Any) -> bool:
    return type(part) is np.ndarray and part.dtype.kind in "biufc"


def _fitting(array: np.ndarray, who: str) -> np.ndarray:
    """An array of numbers in native byte order, whose integers fit into what the device holds."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if held != array.dtype and array.dtype.kind in "iu" and array.size:
        for value in (array.min(), array.max()):
            if not jnp.iinfo(held).min <= value <= jnp.iinfo(held).max:
                raise BatchError(
                    who=who,
                    rule=f"integers must fit into the {held} that the device holds",
                    found=f"a batch has {value}",
                    remedy="make them smaller, or set jax_enable_x64",
                )
    return array


def _spoken(path: Any, names: tuple[str, ...]) -> str:
    """A part of a batch, for messages."""
    first = names[path[0].idx] if names else jax.tree_util.keystr(path[:1])
    field = first + jax.tree_util.keystr(path[1:])
    return f"field {field} of a batch" if field else "a batch"


def without_text(tree: PyTree) -> PyTree:
    """A batch without its text, which no device can hold.

    Text is a ``str``, ``bytes``, a list or tuple of nothing else, or a NumPy array of them. In a
    dict its key is left out; elsewhere None, a PyTree without leaves, stands in its place.

    >>> without_text(({"x": np.ones(2), "name": ["a", "b"]}, [b"c", b"d"]))
    ({'x': array([1., 1.])}, None)
    """
    if not any(map(is_text, jax.tree.leaves(tree, is_leaf=is_text))):
        return tree

    def without(part: Any) -> Any:
        if type(part) in _DICTS:
            return type(part)((k, without_text(v)) for k, v in part.items() if not is_text(v))
        return None if is_text(part) else part

    return jax.tree.map(without, tree, is_leaf=lambda part: type(part) in _DICTS or is_text(part))


_DICTS = (dict, OrderedDict)


def is_text(leaf: Any) -> bool:
    """Whether something in a batch is text, and nothing but text."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "STU"
    return is_plain_text(leaf)
