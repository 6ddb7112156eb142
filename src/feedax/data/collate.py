"""Examples in, one NumPy batch out."""

import zlib
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data._utils import collate as torch_collate

from feedax.errors import ExampleError, first_line
from feedax.tree import (
    CONVERT,
    NotAnArray,
    as_array,
    map_leaves,
    name_of,
    record_fields,
    taken_apart,
)

_PYTHON_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
_NONE = type(None)
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
_KINDS = {"U": "text", "S": "text", "T": "text", "O": "Python object", "M": "date", "m": "duration"}
_TORCHS = {torch.Tensor, np.ndarray, (np.bool_, np.number, np.object_), float, int, str, bytes}
_ARRAYS = np.ndarray | np.generic | torch.Tensor | Image.Image
_STACKED = _ARRAYS | bool | int | float | complex | str | bytes | list | tuple
_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
                 "float8_e8m0fnu")  # fmt: skip
_ML_DTYPES = {getattr(torch, n): n for n in _NOT_IN_NUMPY if hasattr(torch, n)}
CollateFns = Mapping[Any, Callable[..., Any]]
"""How examples of some types become a batch, by type, as in torch's ``default_collate_fn_map``."""


def numpy_collate(batch: Sequence[Any]) -> Any:
    """Stack examples into one batch of NumPy arrays.

    The structure of an example is kept, as torch's ``default_collate`` keeps it: mappings, named
    tuples, lists of any type, dataclasses and attrs objects stay what they are, with their
    attributes, and tuples become lists. What can be no container of arrays becomes a dict or a
    list. Its leaves gain a first dimension, and their dtype is

    =========================================  ============================================
    in every example                           in the batch
    =========================================  ============================================
    NumPy array or scalar                      its dtype, in the machine's byte order
    torch tensor                               its dtype (bfloat16, float8: of ``ml_dtypes``)
    PIL image                                  uint8, or what its mode holds ("P": indices)
    array of another library                   that of its ``__array__``
    ``bool``, ``int``, ``float``, ``complex``  bool, int64, float64, complex128
    several of these                           the one that NumPy promotes them to
    ``str``, ``bytes``                         a list of them, no array
    =========================================  ============================================

    A type of your own that was added to torch's ``default_collate_fn_map`` is collated by the
    function given there, and the tensors of its result become arrays.

    Args:
        batch: the examples, n of them, all of one structure.

    Returns:
        The structure of one example, with arrays ``(n, ...)``.

    Raises:
        ExampleError: the examples do not fit together; names the field, the two values that
            differ and the two examples. Or a value is None, an integer beyond int64, or nothing
            that an array holds as it is: masked or missing values, sparse, nested, quantised and
            meta tensors, what is a Python object to NumPy.

    >>> x, y = numpy_collate([(np.float32([1, 2]), 0), (np.float32([3, 4]), 1)])
    >>> x, y
    (array([[1., 2.],
           [3., 4.]], dtype=float32), array([0, 1]))
    """
    return collate_into(batch, np.empty)


def collate_into(
    batch: Sequence[Any], empty: Empty = np.empty, fns: CollateFns | None = None
) -> Any:
    """`numpy_collate`, its stacked arrays `(n, ...)` in memory that the caller provides.

    `empty` makes of a shape and a dtype an array whose content does not matter; Python numbers and
    objects do not ask for it. `collate_fns` is asked if `fns` is None.

    >>> buffer = np.zeros((3, 2))
    >>> batch = collate_into([np.ones(2), np.ones(2)], lambda shape, dtype: buffer[: shape[0]])
    >>> buffer.tolist()
    [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    refuse_empty(batch)
    indices = getattr(batch, "indices", range(len(batch)))
    fns = collate_fns() if fns is None else fns
    return _Collation(indices, empty, fns).collate(batch, "")


def collate_fns() -> CollateFns:
    """torch's ``default_collate_fn_map`` if a user has changed it; nothing else."""
    fns = torch_collate.default_collate_fn_map
    return {} if all(_is_torchs(kind, fn) for kind, fn in fns.items()) else dict(fns)


def _is_torchs(kind: Any, fn: Any) -> bool:
    """Whether an entry is one of torch's own, which NumPy's rules take the place of."""
    return kind in _TORCHS and getattr(fn, "__module__", None) == torch_collate.__name__


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

    def __init__(self, indices: Sequence[Any], empty: Empty, fns: CollateFns) -> None:
        self.indices = indices
        self.empty = empty
        self.fns = fns

    def collate(self, values: Sequence[Any], field: str) -> Any:
        first = values[0]
        if self.fns and (fn := self._users(first)) is not None:
            whose = f"the result of {getattr(fn, '__name__', fn)} in default_collate_fn_map"
            if isinstance(first, np.ndarray) and fn is self.fns[torch.Tensor]:
                values = [torch.as_tensor(value) for value in values]
            result = fn(values, collate_fn_map=self.fns)
            return map_leaves(result, partial(_converted, "numpy_collate", whose), field=field)
        self._refuse_none(values, field)
        if isinstance(first, str | bytes):
            kinds = ["text" if isinstance(v, str | bytes) else name_of(v) for v in values]
            self._same("a kind of value", kinds, field)
            return list(values)
        if isinstance(first, _ARRAYS):
            return self._stack(values, field)
        for kind, dtype in _PYTHON_NUMBERS.items():
            if isinstance(first, kind) and {*map(type, values)} == {type(first)}:
                return self._numbers(values, dtype, field)
        parts = taken_apart(first, tuples_to_lists=True)
        if parts is None:
            return self._stack(values, field)
        self._refuse_other_parts(first, values, field)
        keys, get, name, together = parts
        return together(
            [self.collate([get(v, key) for v in values], field + name(key)) for key in keys]
        )

    def _users(self, value: Any) -> Callable[..., Any] | None:
        """The user's function for a type, found as torch finds it."""
        kinds = [type(value)] if type(value) in self.fns else self.fns
        kind = next((kind for kind in kinds if isinstance(value, kind)), None)
        if kind is np.ndarray and _is_torchs(kind, self.fns[kind]):
            kind = torch.Tensor  # that is what torch's own makes of arrays
        return None if kind is None or _is_torchs(kind, self.fns[kind]) else self.fns[kind]

    def _refuse_other_parts(self, first: Any, values: Sequence[Any], field: str) -> None:
        if isinstance(first, Mapping):
            keys = [[*v] if isinstance(v, Mapping) else [f"none ({name_of(v)})"] for v in values]
            self._same("keys", keys, field, ordered=False)
        elif isinstance(first, tuple) and hasattr(first, "_fields"):
            self._same("field names", [getattr(v, "_fields", name_of(v)) for v in values], field)
        elif record_fields(first) is not None:
            self._same("a type", [name_of(value) for value in values], field)
        else:
            lengths = [
                len(v) if isinstance(v, Sequence) else f"none ({name_of(v)})" for v in values
            ]
            self._same("a length", lengths, field)

    def _numbers(self, values: Sequence[Any], dtype: type[np.generic], field: str) -> np.ndarray:
        try:
            return np.asarray(values, dtype)  # small: not worth memory from elsewhere
        except OverflowError:
            self._refuse_beyond_int64(values, field)
            raise

    def _to_arrays(self, values: Sequence[Any], field: str) -> list[np.ndarray]:
        if not {*map(type, values)}.isdisjoint(_PYTHON_NUMBERS):
            self._refuse_beyond_int64(values, field)  # NumPy has another dtype for each size
        if isinstance(values[0], Image.Image):
            self._same("an image mode", [_mode(value, values[0]) for value in values], field)
        arrays: list[np.ndarray] = []
        try:
            for value in values:
                arrays.append(to_numpy(value))
        except NotAnArray as no:
            whose = f"example {list(self.indices)[len(arrays)]}"
            raise _not_an_array("numpy_collate", whose, field, no) from no
        return arrays

    def _stack(self, values: Sequence[Any], field: str) -> np.ndarray:
        arrays = self._to_arrays(values, field)
        shape = self._same("a shape", [array.shape for array in arrays], field)
        dtypes = dict.fromkeys(array.dtype for array in arrays)
        if len(dtypes) > 1:
            # NumPy would turn a number beside a text into a text, without a word.
            kinds = [_KINDS.get(array.dtype.kind, "number") for array in arrays]
            self._same("a kind of value", kinds, field)
        try:
            dtype = np.result_type(*dtypes)
        except TypeError:
            self._same("a dtype", [array.dtype for array in arrays], field)
            raise
        if dtype.kind == "f" and all(one.kind in "iu" for one in dtypes):
            # No integer dtype holds both, and a float would lose digits.
            self._same("a dtype", [array.dtype for array in arrays], field)
        # Memory from elsewhere cannot hold references to Python objects.
        empty = np.empty if dtype.hasobject else self.empty
        batch = empty((len(arrays), *shape), dtype)
        for row, array in enumerate(arrays):
            # One object in an array of no dimension is meant, not the array.
            batch[row] = array if array.ndim or not dtype.hasobject else array[()]
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
                    who="numpy_collate",
                    rule=f"{_spoken(field)} must have {what} that all examples of a batch share",
                    found=f"it is {found[0]} in example {self.indices[0]} but {value} in example "
                    f"{index}",
                    remedy="make them equal in the dataset (resize, crop or pad), or give the "
                    "loader a collate_fn",
                )
        return found[0]


def to_numpy(value: Any) -> np.ndarray:
    """One leaf as an array: a tensor's own values (bfloat16 too), an image's pixels.

    Raises:
        NotAnArray: no array holds it as it is.
    """
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, torch.Tensor):
        try:
            if name := _ML_DTYPES.get(value.dtype):
                import ml_dtypes  # comes with JAX; NumPy itself has no bfloat16

                bits = torch.uint16 if value.dtype.itemsize == 2 else torch.uint8
                array = value.detach().view(bits).numpy(force=True)
                return array.view(getattr(ml_dtypes, name))
            return value.numpy(force=True)
        except Exception as error:
            raise _no_array(value, error) from error
    if isinstance(value, _STACKED) or hasattr(type(value), "__array__"):
        return as_array(value)
    raise NotAnArray(f"a {name_of(value)}", CONVERT)


def _no_array(tensor: torch.Tensor, error: Exception) -> NotAnArray:
    if tensor.is_nested:
        return NotAnArray("a nested tensor", "pad it with .to_padded_tensor(...)")
    if tensor.layout != torch.strided:
        what = f"a sparse tensor ({tensor.layout})"
        return NotAnArray(what, "make it dense with .to_dense(), or yield its values and indices")
    if tensor.is_quantized:
        return NotAnArray("a quantised tensor", "yield its .dequantize() or its .int_repr()")
    if tensor.is_meta:
        return NotAnArray("a tensor on the meta device, without values", "load its values")
    reason = first_line(error).rstrip(".")
    return NotAnArray(f"a {name_of(tensor)} of {tensor.dtype} that is no array ({reason})", CONVERT)


def numpy_convert(tree: Any) -> Any:
    """The same tree with its tensors, images and other libraries' arrays as NumPy arrays.

    Everything else stays as it is. This is what a loader does to the batches of a user's own
    ``collate_fn``.

    Raises:
        ExampleError: no array holds one of them as it is, see `numpy_collate`.

    >>> numpy_convert({"x": torch.arange(2), "name": ("a", 1)})
    {'x': array([0, 1]), 'name': ('a', 1)}
    """
    return map_leaves(tree, partial(_converted, "NumpyLoader", "a batch of the collate_fn"))


def convert_example(tree: Any, whose: str = "an example") -> Any:
    """One example that is not batched (``batch_size=None``), its tensors as NumPy arrays.

    Its plain tuples become lists, as torch's ``default_convert`` makes them. `whose` says which
    example it is, for messages.

    Raises:
        ExampleError: no array holds a part of it as it is, see `numpy_collate`.

    >>> convert_example((torch.arange(2), ("a", 1)))
    [array([0, 1]), ['a', 1]]
    """
    return map_leaves(tree, partial(_converted, "NumpyLoader", whose), tuples_to_lists=True)


def _converted(who: str, whose: str, leaf: Any, field: str) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        converts = isinstance(leaf, np.ma.MaskedArray | np.matrix)
    else:
        converts = isinstance(leaf, torch.Tensor | Image.Image) or hasattr(type(leaf), "__array__")
    if not converts:
        return leaf
    try:
        return to_numpy(leaf)
    except NotAnArray as no:
        raise _not_an_array(who, whose, field, no) from no


def _not_an_array(who: str, whose: str, field: str, no: NotAnArray) -> ExampleError:
    return ExampleError(
        who=who,
        rule=f"{_spoken(field)} must be made of arrays, tensors, images, numbers and text",
        found=f"{whose} has {no.what} there",
        remedy=no.remedy,
    )


def _mode(value: Any, first: Image.Image) -> str:
    """What the numbers of an image mean; a palette is told from others by its checksum."""
    if not isinstance(value, Image.Image):
        return first.mode
    palette = value.getpalette() if value.mode in ("P", "PA") else None
    named = "" if palette is None else f" with palette {zlib.crc32(bytes(palette)):08x}"
    return value.mode + named


def _spoken(field: str) -> str:
    return f"field {field}" if field else "an example"
