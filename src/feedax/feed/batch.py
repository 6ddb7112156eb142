"""Batches: what they are made of, on the host and on the device."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import BatchError

PyTree = Any


class Batch(NamedTuple):
    """Examples on the device.

    Attributes:
        inputs: PyTree of arrays `(examples, ...)`.
        targets: PyTree of arrays `(examples, ...)`.
        weights: float32 `(examples,)`: 1 for an example, 0 for a copy that only fills the batch.
    """

    inputs: PyTree
    targets: PyTree
    weights: Array


class Masked(NamedTuple):
    """A batch of the full size, and which of its examples count.

    Attributes:
        batch: PyTree of arrays `(examples, ...)`.
        mask: bool `(examples,)`: False for a copy that only fills the batch.
    """

    batch: PyTree
    mask: Array


class Chunk(NamedTuple):
    """Some steps over arrays that live on the device.

    Attributes:
        examples: (inputs, targets), PyTrees of arrays `(all examples, ...)`.
        indices: int32 `(rows, batch size)`, a row a step.
        sizes: int32 `(rows,)`: how many indices of a row are examples; the others repeat
            one of them.
        steps: int32 scalar, how many rows count.
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


def refuse_no_batches(source: Any, who: str, again: bool = False) -> None:
    """Look at a source before any time is spent on it.

    Args:
        source: a loader or another iterable.
        who: says what it is, for the message.
        again: whether it is to be iterated more than once.

    Raises:
        BatchError: it cannot be iterated (so often).
    """
    if not isinstance(source, Iterable):
        raise BatchError(
            f"{who} must be a loader or another iterable of NumPy batches, and it is a "
            f"{type(source).__name__}; give a NumpyLoader or a list"
        )
    if again and isinstance(source, Iterator):
        raise BatchError(
            f"{who} must be there again in the next epoch, and it is a {type(source).__name__}, "
            "which ends; give a NumpyLoader or a list"
        )


def filled(inputs: PyTree, targets: PyTree, size: int) -> Batch:
    """A batch on the host, filled up to `size` examples with copies of its first one.

    Its arrays are the given ones where nothing is to be filled up.
    """
    count = length((inputs, targets))
    if count < size:
        order = filling(count, size)
        inputs, targets = jax.tree.map(lambda leaf: leaf[order], (inputs, targets))
    return Batch(inputs, targets, (np.arange(size) < count).astype(np.float32))  # type: ignore[arg-type]


def filling(count: int, size: int) -> np.ndarray:
    """The rows of `count` examples, then the first one again and again."""
    order = np.zeros(size, np.intp)
    order[:count] = np.arange(count)
    return order


def rows(examples: tuple[PyTree, PyTree], start: int, stop: int) -> tuple[PyTree, PyTree]:
    """The examples from start to stop."""
    return jax.tree.map(lambda array: array[start:stop], examples)


def pair(batch: Any) -> tuple[PyTree, PyTree]:
    """The inputs and the targets of a batch, their leaves as NumPy arrays.

    Text in them stays behind, see `without_text`; so do the copies that fill a `Masked` batch.

    Raises:
        BatchError: it is not a pair, or its leaves are not numbers in arrays of one length above 0.
    """
    if isinstance(batch, Masked):
        batch = _unmasked(batch)
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise BatchError(
            f"fit: a batch must be a pair (inputs, targets), and this one is a {got}; let the "
            "dataset yield such pairs, or make them in a collate_fn"
        )
    # Inputs or targets that are nothing but text are refused, by `number`.
    parts = tuple(part if is_text(part) else without_text(part) for part in batch)
    inputs, targets = jax.tree.map(number, parts, is_leaf=is_text)
    length((inputs, targets))
    return inputs, targets


def _unmasked(batch: Masked) -> PyTree:
    batch = jax.device_get(batch)
    counts = np.asarray(batch.mask)
    if counts.all():
        return batch.batch
    return jax.tree.map(lambda leaf: np.asarray(leaf)[counts], batch.batch)


def length(examples: PyTree, who: str = "fit") -> int:
    """How many examples the arrays of a PyTree hold."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        found = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(examples)) or "no arrays"
        raise BatchError(
            f"{who}: all arrays of a batch must have one number of examples, above 0, as their "
            f"first dimension, and their shapes are {found}; see what the dataset or collate_fn "
            "returns"
        )
    return int(lengths.pop()[0])


def number(leaf: Any, who: str = "fit") -> np.ndarray:
    """A leaf as an array of numbers that the device can hold.

    Without ``jax_enable_x64`` the device holds int64 as int32 and float64 as float32. What a
    float loses so is its last digits; what an integer would lose is its value.
    """
    array = np.asarray(jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf)
    if array.dtype.kind in "OSTUMmV" and not jnp.issubdtype(array.dtype, jnp.number):
        raise BatchError(
            f"{who}: a batch must be made of numbers, and it holds values of type {array.dtype}; "
            "leave that field out of the dataset's examples, or turn it into numbers"
        )
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if held != array.dtype and array.dtype.kind in "iu" and array.size:
        for value in (array.min(), array.max()):
            if not jnp.iinfo(held).min <= value <= jnp.iinfo(held).max:
                raise BatchError(
                    f"{who}: integers must fit into the {held} that the device holds, and a batch "
                    f"has {value}; make them smaller, or set jax_enable_x64"
                )
    return array


def without_text(tree: PyTree) -> PyTree:
    """A batch without its text, which no device can hold.

    Text is a ``str``, ``bytes``, a list or tuple of nothing else, or a NumPy array of them. In a
    dict its key is left out; elsewhere None, a PyTree without leaves, stands in its place.

    >>> without_text(({"x": np.ones(2), "name": ["a", "b"]}, [b"c", b"d"]))
    ({'x': array([1., 1.])}, None)
    """
    if not any(map(is_text, jax.tree.leaves(tree, is_leaf=is_text))):
        return tree
    if is_text(tree):
        return None
    if type(tree) in (dict, OrderedDict):
        return type(tree)((k, without_text(v)) for k, v in tree.items() if not is_text(v))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(without_text, tree))
    if type(tree) in (list, tuple):
        return type(tree)(map(without_text, tree))
    return jax.tree.map(lambda leaf: None if is_text(leaf) else leaf, tree, is_leaf=is_text)


def is_text(leaf: Any) -> bool:
    """Whether something in a batch is text, and nothing but text."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "STU"
    if isinstance(leaf, list | tuple):
        return len(leaf) > 0 and all(isinstance(part, str | bytes) for part in leaf)
    return isinstance(leaf, str | bytes)
