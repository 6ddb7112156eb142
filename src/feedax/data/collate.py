"""Examples in, one NumPy batch out."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image

from feedax.errors import ExampleError

_PYTHON_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
_NONE = type(None)
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
_KINDS = {"U": "text", "S": "text", "O": "Python object"}


def numpy_collate(batch: Sequence[Any]) -> Any:
    """Stack examples into one batch of NumPy arrays.

    The structure of an example is kept, as torch's ``default_collate`` keeps it: dicts, named
    tuples and dataclasses stay what they are, tuples and lists become lists. Its leaves gain a
    first dimension, and their dtype is

    ========================================  ============================================
    in every example                          in the batch
    ========================================  ============================================
    NumPy array or scalar                     its dtype, in the machine's byte order
    torch tensor                              its dtype (bfloat16: that of ``ml_dtypes``)
    PIL image                                 uint8, or what its mode holds
    array of another library                  that of its ``__array__``
    ``bool``, ``int``, ``float``, ``complex`` bool, int64, float64, complex128
    several of these                          the one that NumPy promotes them to
    ``str``, ``bytes``                        a list of them, no array
    ========================================  ============================================

    Args:
        batch: the examples, n of them, all of one structure.

    Returns:
        The structure of one example, with arrays ``(n, ...)``.

    Raises:
        ExampleError: the examples do not fit together; names the field, the two values that
            differ and the two examples. Or a value is None, or an integer beyond int64.

    >>> x, y = numpy_collate([(np.float32([1, 2]), 0), (np.float32([3, 4]), 1)])
    >>> x, y
    (array([[1., 2.],
           [3., 4.]], dtype=float32), array([0, 1]))
    """
    return collate_into(batch, np.empty)


def collate_into(batch: Sequence[Any], empty: Empty = np.empty) -> Any:
    """`numpy_collate`, its stacked arrays `(n, ...)` in memory that the caller provides.

    Args:
        batch: the examples.
        empty: from a shape and a dtype to an array whose content does not matter. Python numbers
            and objects do not ask for it.

    >>> buffer = np.zeros((3, 2))
    >>> batch = collate_into([np.ones(2), np.ones(2)], lambda shape, dtype: buffer[: shape[0]])
    >>> buffer.tolist()
    [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    refuse_empty(batch)
    indices = getattr(batch, "indices", range(len(batch)))
    return _Collation(indices, empty=empty).collate(batch, "")


def refuse_empty(batch: Sized) -> None:
    if len(batch) == 0:
        raise ExampleError("numpy_collate: a batch must hold an example, and this one is empty")


class Examples(list[Any]):
    """A list of examples that knows each one's index in the dataset, for messages."""

    def __init__(self, examples: list[Any], indices: Sequence[Any]) -> None:
        super().__init__(examples)
        self.indices = indices


class _Collation:
    """One call of `numpy_collate`: it walks the structure and knows the examples' indices."""

    def __init__(self, indices: Sequence[Any], *, empty: Empty = np.empty) -> None:
        self.indices = indices
        self.empty = empty

    def collate(self, values: Sequence[Any], field: str) -> Any:
        first = values[0]
        self._refuse_none(values, field)
        if isinstance(first, str | bytes):
            self._same("a kind of value", [_kind_of_text(value) for value in values], field)
            return list(values)
        if isinstance(first, np.ndarray | np.generic | torch.Tensor | Image.Image):
            return self._stack(self._to_arrays(values, field), field)
        for kind, dtype in _PYTHON_NUMBERS.items():
            if isinstance(first, kind):
                if {*map(type, values)} == {type(first)}:
                    return self._numbers(values, dtype, field)
                return self._stack(self._to_arrays(values, field), field)
        if isinstance(first, Mapping):
            keys = self._same("keys", [_keys(value) for value in values], field, ordered=False)
            return _like(first, {k: self._part(values, k, f"{field}[{k!r}]") for k in keys})
        if isinstance(first, tuple) and hasattr(first, "_fields"):
            self._same("field names", [getattr(v, "_fields", _kind(v)) for v in values], field)
            return type(first)(*self._parts(values, [f"{field}.{n}" for n in first._fields]))
        if _is_other_array(first):
            return self._stack(self._to_arrays(values, field), field)
        if dataclasses.is_dataclass(first) and not isinstance(first, type):
            self._same("a type", [_kind(value) for value in values], field)
            names = [f.name for f in dataclasses.fields(first)]
            parts = {
                n: self.collate([getattr(v, n) for v in values], f"{field}.{n}") for n in names
            }
            return _with_fields(first, parts)
        if isinstance(first, Sequence):
            length = self._same("a length", [_length(value) for value in values], field)
            return self._parts(values, [f"{field}[{i}]" for i in range(length)])
        raise ExampleError(
            f"numpy_collate: {_spoken(field)} must be made of arrays, tensors, images, numbers and "
            f"text, and example {self.indices[0]} has a {_kind(first)} there; convert it "
            "in the dataset, or give the loader a collate_fn"
        )

    def _numbers(self, values: Sequence[Any], dtype: type[np.generic], field: str) -> np.ndarray:
        try:
            return np.asarray(values, dtype)  # small: not worth memory from elsewhere
        except OverflowError:
            self._refuse_beyond_int64(values, field)
            raise

    def _to_arrays(self, values: Sequence[Any], field: str) -> list[np.ndarray]:
        if not {*map(type, values)}.isdisjoint(_PYTHON_NUMBERS):
            self._refuse_beyond_int64(values, field)  # NumPy has another dtype for each size
        return [to_numpy(value) for value in values]

    def _parts(self, values: Sequence[Any], fields: list[str]) -> list[Any]:
        return [self._part(values, i, field) for i, field in enumerate(fields)]

    def _part(self, values: Sequence[Any], key: Any, field: str) -> Any:
        return self.collate([value[key] for value in values], field)

    def _stack(self, arrays: list[np.ndarray], field: str) -> np.ndarray:
        shape = self._same("a shape", [array.shape for array in arrays], field)
        dtypes = dict.fromkeys(array.dtype for array in arrays)
        if len(dtypes) > 1:
            # NumPy would turn a number beside a text into a text, without a word.
            kinds = [_KINDS.get(array.dtype.kind, "number") for array in arrays]
            self._same("a kind of value", kinds, field)
        dtype = np.result_type(*dtypes)
        # Memory from elsewhere cannot hold references to Python objects.
        empty = np.empty if dtype.hasobject else self.empty
        batch = empty((len(arrays), *shape), dtype)
        for row, array in enumerate(arrays):
            batch[row] = array
        return batch

    def _refuse_none(self, values: Sequence[Any], field: str) -> None:
        if _NONE in map(type, values):
            index = next(i for i, v in zip(self.indices, values, strict=True) if v is None)
            raise ExampleError(
                f"numpy_collate: {_spoken(field)} must hold a value in every example, and it "
                f"is None in example {index}; leave the field out or give it a value"
            )

    def _refuse_beyond_int64(self, values: Sequence[Any], field: str) -> None:
        for index, value in zip(self.indices, values, strict=True):
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ExampleError(
                    f"numpy_collate: {_spoken(field)} must hold integers that fit into int64, and "
                    f"it is {value} in example {index}; give it as a float, or as an array of "
                    "another dtype"
                )

    def _same(self, what: str, found: list[Any], field: str, ordered: bool = True) -> Any:
        """The property that all values share; an error that shows two that do not."""
        if found.count(found[0]) == len(found):
            return found[0]
        for index, value in zip(self.indices, found, strict=True):
            equal = value == found[0] if ordered else set(value) == set(found[0])
            if not equal:
                raise ExampleError(
                    f"numpy_collate: {_spoken(field)} must have {what} that all examples of a "
                    f"batch share, and it is {found[0]} in example {self.indices[0]} but {value} "
                    f"in example {index}; make them equal in the dataset (resize, crop or pad), "
                    "or give the loader a collate_fn"
                )
        return found[0]


def to_numpy(value: Any) -> np.ndarray:
    """One leaf as an array: a tensor's own values (bfloat16 too), an image's pixels."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    if value.dtype == torch.bfloat16:
        import ml_dtypes  # comes with JAX; NumPy itself has no bfloat16

        return value.detach().view(torch.uint16).numpy(force=True).view(ml_dtypes.bfloat16)
    return value.numpy(force=True)


def _is_other_array(value: Any) -> bool:
    """Whether a value is an array of a library that is not known here, JAX for one."""
    kind = type(value)
    return hasattr(kind, "__array__") and not issubclass(kind, np.ndarray | np.generic)


def numpy_convert(tree: Any) -> Any:
    """The same tree with its tensors, images and other libraries' arrays as NumPy arrays.

    Everything else stays as it is. This is what a loader does to the batches of a user's own
    ``collate_fn``.

    >>> numpy_convert({"x": torch.arange(2), "name": ("a", 1)})
    {'x': array([0, 1]), 'name': ('a', 1)}
    """
    return map_leaves(tree, _converted, _is_array_object)


def convert_example(tree: Any) -> Any:
    """One example that is not batched (``batch_size=None``), its tensors as NumPy arrays.

    Its plain tuples become lists, as torch's ``default_convert`` makes them.

    >>> convert_example((torch.arange(2), ("a", 1)))
    [array([0, 1]), ['a', 1]]
    """
    return map_leaves(
        tree,
        _converted,
        _is_array_object,
        lambda old, items: items if type(old) is tuple else _like(old, items),
    )


def _is_array_object(value: Any) -> bool:
    return _is_other_array(value) and not isinstance(value, Mapping | list | tuple)


def _converted(leaf: Any) -> Any:
    is_array = isinstance(leaf, torch.Tensor | Image.Image) or _is_other_array(leaf)
    return to_numpy(leaf) if is_array else leaf


def _like(container: Any, items: Any) -> Any:
    try:
        return type(container)(items)
    except TypeError:  # a container with a constructor of its own
        return items


def map_leaves(
    tree: Any,
    change: Callable[[Any], Any],
    is_leaf: Callable[[Any], bool],
    like: Callable[[Any, Any], Any] = _like,
) -> Any:
    """A tree of dicts, tuples, lists and dataclasses with each of its leaves changed.

    Args:
        tree: it may be a leaf itself.
        change: from a leaf to what takes its place.
        is_leaf: whether something is not to be taken apart.
        like: from a list or tuple and its changed items to what takes its place.
    """

    def again(value: Any) -> Any:
        return map_leaves(value, change, is_leaf, like)

    if is_leaf(tree):
        return change(tree)
    if isinstance(tree, Mapping):
        return _like(tree, {key: again(value) for key, value in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(again, tree))
    if isinstance(tree, list | tuple):
        return like(tree, [again(value) for value in tree])
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        return _with_fields(tree, {f.name: again(getattr(tree, f.name)) for f in fields})
    return change(tree)


def _with_fields(record: Any, fields: dict[str, Any]) -> Any:
    """A copy of a dataclass. Its constructor is not asked: that one expects a single example."""
    record = copy.copy(record)
    for name, value in fields.items():
        object.__setattr__(record, name, value)  # frozen ones too
    return record


def _kind(value: Any) -> str:
    return type(value).__name__


def _kind_of_text(value: Any) -> str:
    return "text" if isinstance(value, str | bytes) else _kind(value)


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Mapping) else [f"none ({_kind(value)})"]


def _length(value: Any) -> int | str:
    return len(value) if isinstance(value, Sequence) else f"none ({_kind(value)})"


def _spoken(field: str) -> str:
    return f"field {field}" if field else "an example"
