"""Long lists of text and numbers in a dataset, and whether they are still as they were.

They are all of a dataset that takes long to pickle, and unpickling them runs nobody's code: so they
can wait, unpickled, in a process that workers are forked from.
"""

import pathlib
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from types import MethodType, NoneType
from typing import Any, NamedTuple

import numpy as np

LONG = 1000
"""A container of so many items is looked at as a whole."""

MANY = 100_000
"""Below so many objects, to pickle them is as fast as to look at them."""

MOST = 100_000_000
DEEPEST = 16

_UNCHANGING = {
    *(str, bytes, int, float, complex, bool, NoneType, pathlib.PosixPath, pathlib.PurePosixPath),
    *(kind for kind in np.sctypeDict.values() if issubclass(kind, np.number | np.bool_ | np.str_)),
}
_CONTAINERS: dict[type, bool] = {list: True, dict: True, set: True, tuple: False, frozenset: False}
"""The types of containers, and whether they can change."""


class _Layer(NamedTuple):
    """Containers of one type, how many items each has, and the items."""

    containers: list[Any]
    sizes: list[int]
    items: list[Any]


class Plain:
    """The long plain containers among `candidates`.

    Attributes:
        parts: those of the candidates that are plain all through; none where all are soon pickled.
    """

    def __init__(self, candidates: list[Any]) -> None:
        self.candidates = candidates
        self.parts: list[Any] = []
        self._layers: list[_Layer] = []
        count = 0
        for candidate in candidates:
            found = _layers(candidate)
            if found is not None:
                self.parts.append(candidate)
                count += found[0]
                self._layers += found[1]
        if count < MANY:
            self.parts, self._layers = [], []

    def is_as_it_was(self, candidates: list[Any]) -> bool:
        """Whether these are the same containers with the same items, down to the last.

        The very same objects, which are held here: of those that cannot change nothing else has to
        be looked at, and of the others their own items come in another layer.
        """
        if list(map(id, candidates)) != list(map(id, self.candidates)):
            return False
        return all(
            list(map(len, layer.containers)) == layer.sizes
            and all(map(is_, _items(layer.containers), layer.items))
            for layer in self._layers
        )

    def is_apart_from(self, memo: Callable[[], dict[int, Any]]) -> bool:
        """Whether none of the containers within the parts is known to a pickler by its id."""
        parts = set(map(id, self.parts))
        within = [x.containers for x in self._layers if not parts.issuperset(map(id, x.containers))]
        return not within or memo().keys().isdisjoint(map(id, chain.from_iterable(within)))


def candidates_in(value: Any) -> list[Any]:
    """The long containers that pickle finds in a value, as attributes and items, in a fixed order.

    Not all of them: what objects with ways of their own to be pickled hold is theirs.
    """
    found, todo, seen = list[Any](), [value], set[int]()
    for one in todo:  # grows meanwhile
        if id(one) in seen or len(todo) > 100 * LONG:
            continue
        seen.add(id(one))
        kind: Any = type(one)
        if kind in _CONTAINERS:
            if len(one) >= LONG:
                found.append(one)
            else:
                todo += _items([one])
        elif kind is MethodType:
            todo.append(one.__self__)
        elif is_pickled_by_default(kind) and kind.__getstate__ is object.__getstate__:
            todo += getattr(one, "__dict__", {}).values()
    return found


def is_pickled_by_default(kind: Any) -> bool:
    """Whether a class has no way of its own to be pickled, but for its state."""
    return all(getattr(kind, x) is getattr(object, x) for x in ("__reduce_ex__", "__reduce__"))


def _layers(part: Any) -> tuple[int, list[_Layer]] | None:
    """How many objects a container holds, and what of them can change; None if it is not plain."""
    layers, objects, count = [], [part], 0
    for _ in range(DEEPEST):
        types = set(map(type, objects))
        if not types <= _UNCHANGING | _CONTAINERS.keys():
            return None
        inner: list[Any] = []
        for kind in types & _CONTAINERS.keys():
            one_kind = objects if len(types) == 1 else [x for x in objects if type(x) is kind]
            sizes = list(map(len, one_kind))
            if count + sum(sizes) > MOST:
                return None
            items = list(_items(one_kind))
            count += len(items)
            if _CONTAINERS[kind]:
                layers.append(_Layer(one_kind, sizes, items))
            inner = inner + items if inner else items
        if not inner:
            return count, layers
        objects = inner
    return None


def _items(containers: list[Any]) -> Iterator[Any]:
    """The items of containers of one type, in order; of dicts their keys, then their values."""
    of_dicts = containers and type(containers[0]) is dict
    values = map(dict.values, containers) if of_dicts else ()
    return chain.from_iterable(chain(containers, values))
