"""What examples and batches are made of: containers that are kept, and leaves that become arrays.

PyTorch's side and JAX's side look at them in the same way; neither framework is imported here.
"""

import copy
import dataclasses
from collections import UserString
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from functools import cached_property, partial
from operator import getitem
from typing import Any, NamedTuple

import numpy as np

from feedax.errors import first_line


class Parts(NamedTuple):
    """A container taken apart.

    Attributes:
        keys: of its parts, in order: a mapping's keys, a record's field names, or numbers.
        get: from such a container and a key to the part.
        name: from a key to what a path says of it: ``['x']``, ``.x`` or ``[0]``.
        together: from new parts to a container like the one that was taken apart.
    """

    keys: Sequence[Any]
    get: Callable[[Any, Any], Any]
    name: Callable[[Any], str]
    together: Callable[[list[Any]], Any]


_IN_BRACKETS, _AFTER_A_DOT = "[{!r}]".format, ".{}".format


def taken_apart(tree: Any, *, tuples_to_lists: bool = False) -> Parts | None:
    """The parts of a mapping, a named tuple, a dataclass, an attrs object or another sequence.

    None of a leaf: of text, of an array of any library, and of all else. A container's type is
    kept as torch's ``default_collate`` keeps it: copied and filled again if it can be changed,
    else made anew; where neither gives a container of these parts, it is a dict or a list.

    Args:
        tree: a container or a leaf.
        tuples_to_lists: put a plain tuple together as a list, as torch does.

    >>> class Point(NamedTuple):
    ...     x: int
    >>> parts = taken_apart({"p": Point(1)}["p"])
    >>> parts.keys, parts.name("x"), parts.together([2])
    (('x',), '.x', Point(x=2))
    """
    kind = type(tree)
    if isinstance(tree, Mapping):
        keys = list(tree)
        return Parts(keys, getitem, _IN_BRACKETS, partial(_mapping_like, tree, keys))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return Parts(kind._fields, getattr, _AFTER_A_DOT, lambda new: kind(*new))
    if hasattr(kind, "__array__") and not isinstance(tree, tuple | list):
        return None
    if (names := record_fields(tree)) is not None:
        return Parts(names, getattr, _AFTER_A_DOT, partial(_record_like, tree, names))
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes | UserString):
        as_list = tuples_to_lists and isinstance(tree, tuple)
        like = list if as_list else partial(_sequence_like, tree)
        return Parts(range(len(tree)), getitem, _IN_BRACKETS, like)
    return None


def record_fields(value: Any) -> list[str] | None:
    """The names of the fields that a dataclass or an attrs object has; None if it is neither."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        fields: Any = dataclasses.fields(value)
    elif (fields := getattr(type(value), "__attrs_attrs__", None)) is None:
        return None
    return [field.name for field in fields if hasattr(value, field.name)]


def is_text(tree: Any) -> bool:
    """Whether it is text, or a list or tuple of nothing else, as a batch of texts is one."""
    if isinstance(tree, list | tuple):
        return len(tree) > 0 and all(isinstance(text, str | bytes) for text in tree)
    return isinstance(tree, str | bytes)


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] = lambda _: False, field: str = ""
) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, each with its path.

    Args:
        tree: it may be a leaf itself.
        is_leaf: whether something is not to be taken apart.
        field: the path of the tree.

    >>> list(named_leaves({"x": (1, [2]), "name": "a"}))
    [("['x'][0]", 1), ("['x'][1][0]", 2), ("['name']", 'a')]
    """
    parts = None if is_leaf(tree) else taken_apart(tree)
    if parts is None:
        yield field, tree
        return
    for key in parts.keys:
        yield from named_leaves(parts.get(tree, key), is_leaf, field + parts.name(key))


def map_leaves(
    tree: Any,
    change: Callable[[Any, str], Any],
    is_leaf: Callable[[Any], bool] = lambda _: False,
    *,
    tuples_to_lists: bool = False,
    field: str = "",
) -> Any:
    """A tree with each of its leaves changed.

    Args:
        tree: it may be a leaf itself.
        change: from a leaf and its path to what takes its place.
        is_leaf: whether something is not to be taken apart.
        tuples_to_lists: as torch does to an example. Then all containers are new; else those
            without a change in them are the very same ones.
        field: the path of the tree.
    """
    parts = None if is_leaf(tree) else taken_apart(tree, tuples_to_lists=tuples_to_lists)
    if parts is None:
        return change(tree, field)
    old = [parts.get(tree, key) for key in parts.keys]
    new = [
        map_leaves(
            part, change, is_leaf, tuples_to_lists=tuples_to_lists, field=field + parts.name(key)
        )
        for key, part in zip(parts.keys, old, strict=True)
    ]
    if not tuples_to_lists and all(a is b for a, b in zip(old, new, strict=True)):
        return tree
    return parts.together(new)


def same_bits(tree: Any, other: Any) -> bool:
    """Whether two mappings, lists or tuples of arrays are the same: types, keys, order and bits.

    >>> same_bits({"x": [np.zeros(2)]}, {"x": [np.zeros(2)]})
    True
    """
    if type(tree) is not type(other):
        return False
    if isinstance(tree, np.ndarray):
        is_alike = tree.dtype == other.dtype and tree.shape == other.shape
        return is_alike and tree.tobytes() == other.tobytes()
    parts, others = taken_apart(tree), taken_apart(other)
    if not isinstance(tree, Mapping | list | tuple) or parts is None or others is None:
        return False
    return list(parts.keys) == list(others.keys) and all(
        same_bits(parts.get(tree, key), parts.get(other, key)) for key in parts.keys
    )


def _mapping_like(container: Any, keys: list[Any], new: list[Any]) -> Any:
    items = dict(zip(keys, new, strict=True))
    return items if type(container) is dict else _refilled(container, keys, new, items)


def _sequence_like(container: Any, new: list[Any]) -> Any:
    return new if type(container) is list else _refilled(container, range(len(new)), new, new)


def _refilled(container: Any, keys: Sequence[Any], new: list[Any], plain: Any) -> Any:
    """A container of the same type with these parts, or the plain dict or list of them."""
    for make in (partial(_copied, container, keys, new), lambda: type(container)(plain)):
        try:
            made = make()
            held = [made[key] for key in keys]
            if len(made) == len(new) and all(map(_is_held, new, held)):
                return made
        except Exception:
            continue
    return plain


def _is_held(part: Any, found: Any) -> bool:
    """Whether a container holds a part that it was given: it may do with it what it likes."""
    return found is part or (type(found) is type(part) and not isinstance(part, np.ndarray))


def _copied(container: Any, keys: Sequence[Any], new: list[Any]) -> Any:
    """A copy filled again: it keeps attributes, a default factory, a greatest length."""
    if not isinstance(container, MutableMapping | MutableSequence):
        raise TypeError
    old = [container[key] for key in keys]
    made = copy.copy(container)
    for key, part in zip(keys, new, strict=True):
        made[key] = part
    if any(container[k] is b and b is not a for k, a, b in zip(keys, old, new, strict=True)):
        for key, part in zip(keys, old, strict=True):  # the copy shares its memory: undo it
            container[key] = part
        raise TypeError
    return made


def _record_like(record: Any, names: Sequence[str], new: list[Any]) -> Any:
    """A copy of a record. Its constructor is not asked: that one expects a single example."""
    record = copy.copy(record)
    for name, value in vars(type(record)).items():
        if isinstance(value, cached_property):  # computed of a single example
            vars(record).pop(name, None)
    for name, part in zip(names, new, strict=True):
        object.__setattr__(record, name, part)  # frozen ones too
    return record


class NotAnArray(Exception):
    """A value that is no array of numbers, text or dates.

    Attributes:
        what: the value, in words.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def as_array(value: Any) -> np.ndarray:
    """A leaf as a plain NumPy array, which it already is or can become without a loss.

    Raises:
        NotAnArray: values of it are masked or missing, or only Python objects could hold it.

    >>> as_array(np.ma.array([1, 2], mask=[False, False]))
    array([1, 2])
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(value)
        if hidden.dtype.names is not None:
            hidden = hidden != np.zeros((), hidden.dtype)
        if hidden.any():
            first = np.argwhere(hidden)[0].tolist()
            what = f"a masked array, masked at {first}" if first else "a masked value"
            raise NotAnArray(what, "fill it in with .filled(...), and yield its mask as a field")
    try:
        array = np.asarray(value)
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise NotAnArray(f"a {name_of(value)} that is no array ({reason})", CONVERT) from error
    if array.dtype.hasobject and not isinstance(value, np.ndarray | np.generic):
        of = " of Python objects" if array.ndim else ""
        raise NotAnArray(f"a {name_of(value)}{of}", CONVERT)
    said = getattr(getattr(value, "dtype", None), "kind", array.dtype.kind)
    if said in tuple("iub") and array.dtype.kind != said:  # pandas' integers, some of them missing
        raise NotAnArray(f"a {name_of(value)} of {value.dtype} with missing values", CONVERT)
    return array


CONVERT = "convert it in the dataset, or give the loader a collate_fn"


def name_of(value: Any) -> str:
    """The name of a value's type, for messages."""
    return type(value).__name__
