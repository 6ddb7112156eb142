"""How Python objects are pickled for a worker, and batches for the trainer.

Everything can be sent that cloudpickle or multiprocessing can pickle: lambdas, closures and the
classes of a notebook or script by value, locks and shared tensors by their handles. Arrays lie
beside the pickle, out of band: those of a dataset once for all workers, in anonymous memory.

Of a dataset, long lists of text and numbers (`PlainParts`) take the most time to pickle, and
unpickling them runs no code of the user's. So a server unpickles them once, and workers are forked
from it; each start checks whether they have changed.
"""

import inspect
import io
import mmap
import os
import pathlib
import pickle
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from multiprocessing.reduction import ForkingPickler
from operator import is_
from types import FunctionType, MethodType, NoneType, WrapperDescriptorType
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch

from feedax.errors import WorkerError

LONG = 1000
"""Containers of at least this many items are examined as a whole."""

MANY = 100_000
"""With fewer objects, pickling them is as fast as checking whether they have changed."""

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


class PlainParts:
    """The long plain containers among `candidates`.

    Attributes:
        parts: the candidates that are plain all through; none if pickling them is fast anyway.
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

    def is_unchanged(self, candidates: list[Any]) -> bool:
        """Whether these are the same containers with the same items, down to the last.

        They are held here and compared by identity: an item that cannot change is still equal, and
        one that can is a container of another layer.
        """
        if list(map(id, candidates)) != list(map(id, self.candidates)):
            return False
        return all(
            list(map(len, layer.containers)) == layer.sizes
            and all(map(is_, _items(layer.containers), layer.items))
            for layer in self._layers
        )

    def shares_nothing(self, memo: Any) -> bool:
        """Whether a pickler's memo has none of the containers within the parts."""
        containers = chain.from_iterable(layer.containers for layer in self._layers)
        within = set(map(id, containers)) - set(map(id, self.parts))
        return not within or memo.copy().keys().isdisjoint(within)


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


ALIGNMENT = 64
"""Bytes; what XLA wants of memory that it is to use as it lies."""

OUT_OF_BAND = 2**14
"""Arrays of at least so many bytes lie beside the pickle: below, a copy costs less."""


_MULTIPROCESSINGS: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
"""How multiprocessing, and torch for it, pickle locks, connections and tensors.

The table itself, as others register with it later; `dispatch_table`, which is public, is a copy
mixed with copyreg's."""

held: list[Any] = []
"""In a server that holds the plain parts of a dataset, and in its workers: those parts."""

_CLASS_NAMES: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
_CLASSES: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
"""The classes that cloudpickle has sent or received by value, and the names they go by.

It has no public way to ask for them, and without them a class would not be the same one after its
way to a worker and back."""


class PartsShared(Exception):
    """The rest of a value refers to a container within its plain parts."""


_received: set[str] = set()
"""In a worker: the classes that came from the trainer. They go back by name: by value they would
overwrite the trainer's own methods with copies."""


def receive_classes() -> None:
    """Say in a worker that the classes it has got so far are the trainer's."""
    _received.update(_CLASSES)


def classes_by_value() -> list[type]:
    """The classes that were pickled by value; whoever holds them can be sent their names."""
    return list(_CLASSES.values())


def _class_named(name: str) -> type:
    return _CLASSES[name]


def _reduce_unbuffered(array: np.ndarray) -> Any:
    """An array whose dtype (bfloat16, datetime64) has no buffers, as its bytes."""
    if array.dtype.hasobject or not array.flags.c_contiguous or not array.nbytes:
        return NotImplemented
    raw = array.reshape(-1).view(np.uint8)
    return _from_bytes, (raw, array.dtype, array.shape)


def _from_bytes(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return raw.view(dtype).reshape(shape)


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's pickler with multiprocessing's reducers, and tensors' memory as arrays."""

    def __init__(self, file: Any, reducers: dict[type, Any], buffer_callback: Any) -> None:
        # The C pickler looks for its table once, as it is made.
        self.dispatch_table: Any = ChainMap(reducers, _MULTIPROCESSINGS, super().dispatch_table)
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, type):
            name = _CLASS_NAMES.get(value)
            if name in _received:
                return _class_named, (name,)
        elif kind is np.ndarray:
            if value.dtype.kind in "VMm" and value.dtype.names is None:
                return _reduce_unbuffered(value)
        elif _answers_for_any_name(kind) and kind not in self.dispatch_table:
            return _reduce_unasked(value)
        return super().reducer_override(value)


class _Unpickler(pickle.Unpickler):
    """pickle's own, whose `persistent_load` can be set in Python 3.13.0 too."""


def _answers_for_any_name(kind: Any) -> bool:
    """Whether objects of a class answer for names that only pickle looks for.

    A wrapper asks the object within for what it lacks itself; while it is unpickled, it has none.
    """
    own = hasattr(kind, "__getattr__") or type(kind.__getattribute__) is not WrapperDescriptorType
    return own and not hasattr(kind, "__setstate__") and is_pickled_by_default(kind)


def _reduce_unasked(value: Any) -> Any:
    """As `object` does it, but without looking up any name in the object itself."""
    reduced: Any = object.__reduce_ex__(value, 4)
    made, arguments, _, *items = reduced
    return made, arguments, _get_state(value), *items, _set_state


def _get_state(value: Any) -> Any:
    kind: Any = type(value)
    return kind.__getstate__(value)


def _set_state(value: Any, state: Any) -> None:
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        object.__getattribute__(value, "__dict__").update(attributes)
    for name, one in (slots or {}).items():
        object.__setattr__(value, name, one)


def dumps(
    value: Any,
    large: list[pickle.PickleBuffer] | None = None,
    *,
    maps_files: bool = False,
    known: Sequence[Any] = (),
    plain: PlainParts | None = None,
) -> bytes:
    """Pickle a value.

    Args:
        value: the object to pickle.
        large: gets the arrays of `OUT_OF_BAND` bytes or more; if None, the pickle has them all.
        maps_files: whether a memory map is pickled as the name of its file, not as its values.
        known: objects that the reader has already; they are pickled as their place in this list.
        plain: whose parts these are, if they are.

    Raises:
        PartsShared: the rest of the value refers to a container within one of them.
    """

    def within(buffer: pickle.PickleBuffer) -> bool:
        if large is None or buffer.raw().nbytes < OUT_OF_BAND:
            return True
        large.append(buffer)
        return False

    reducers: dict[type, Any] = {torch.UntypedStorage: _reduce_storage}
    if maps_files:
        reducers[np.memmap] = _reduce_memmap
    file = io.BytesIO()
    pickler: Any = _Pickler(file, reducers, within)
    if known:  # one call of Python for every object makes it half as fast
        places = {id(value): place for place, value in enumerate(known)}
        pickler.persistent_id = lambda value: places.get(id(value))
    pickler.dump(value)
    if plain is not None and not plain.shares_nothing(pickler.memo):
        raise PartsShared
    return file.getvalue()


def loads(pickled: Any, buffers: Sequence[Any] = (), known: Sequence[Any] = ()) -> Any:
    """The value of a pickle made by `dumps`, with the buffers and the known objects put back."""
    if not known:
        return pickle.loads(pickled, buffers=buffers)
    unpickler: Any = _Unpickler(io.BytesIO(pickled), buffers=buffers)
    unpickler.persistent_load = known.__getitem__
    return unpickler.load()


def address(buffer: Any) -> int:
    """Where a buffer's bytes begin."""
    return np.frombuffer(buffer, np.uint8).ctypes.data


def aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


class SharedPickle(NamedTuple):
    """Pickled objects in anonymous memory that every worker maps, each its own copy on write.

    Attributes:
        fd: the memory's file descriptor.
        size: of the pickle, in bytes.
        buffers: where the arrays lie beside it: start, stop, and whether they are read-only.
        held: whether the plain parts are not among them.
    """

    fd: int
    size: int
    buffers: tuple[tuple[int, int, bool], ...]
    held: bool

    @classmethod
    def pack(cls, value: Any, plain: PlainParts) -> "SharedPickle":
        """Write a value to memory, without its plain parts if that can be."""
        large: list[pickle.PickleBuffer] = []
        held = bool(plain.parts)
        try:
            pickled = dumps(value, large, maps_files=True, known=plain.parts, plain=plain)
        except PartsShared:
            held = False
            large.clear()
            pickled = dumps(value, large, maps_files=True)
        places: dict[tuple[int, int], tuple[int, int, bool]] = {}
        buffers = []
        fd = os.memfd_create("feedax-dataset")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(pickled)
                for buffer in large:
                    raw = buffer.raw()
                    where = (address(raw), raw.nbytes)
                    if where not in places:  # two names for one array stay one piece of memory
                        start = file.seek(aligned(file.tell()))
                        file.write(raw)
                        places[where] = (start, start + raw.nbytes, raw.readonly)
                    buffers.append(places[where])
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, len(pickled), tuple(buffers), held)

    def unpack(self, parts: list[Any]) -> Any:
        """The value again, in a worker that has the plain parts; its arrays are its own."""
        size = os.fstat(self.fd).st_size
        memory = memoryview(mmap.mmap(self.fd, size, access=mmap.ACCESS_COPY))
        os.close(self.fd)
        buffers = [
            memory[start:stop].toreadonly() if readonly else memory[start:stop]
            for start, stop, readonly in self.buffers
        ]
        return loads(memory[: self.size], buffers, parts)


def refuse(named: dict[str, Any], error: BaseException) -> WorkerError:
    """The error that names the part, of some values by name, which cannot be pickled."""
    return WorkerError(
        who="NumpyLoader",
        rule="what goes to a worker must be picklable",
        found=f"{_culprit(named, _can_pickle)} is not ({error})",
        remedy="make it in the dataset's __getitem__ or in worker_init_fn, leave it out in "
        "__getstate__, or use num_workers=0",
    )


def refuse_arrived(named: dict[str, Any], failure: str) -> WorkerError:
    """The error that names the part, of some values by name, which a worker cannot unpickle."""
    return unfit("a worker", _culprit(named, _can_unpickle), failure)


def unfit(reader: str, what: str, failure: str) -> WorkerError:
    return WorkerError(
        who="NumpyLoader",
        rule=f"{reader} must be able to unpickle what it is sent",
        found=f"{what} fails there ({failure})",
        remedy="mend the __reduce__ or __setstate__ of its class, or use num_workers=0",
    )


def in_one_line(error: BaseException) -> str:
    """An error's kind and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _culprit(named: dict[str, Any], succeeds: Callable[[Any], bool]) -> str:
    """The innermost part that fails by itself, or one far enough within; all names if none does."""
    culprit, name, parts = " or ".join(named), "", list(named.items())
    seen = set[int]()
    while len(name) < 200:
        failing = (one for one in parts if id(one[1]) not in seen and not succeeds(one[1]))
        if (found := next(failing, None)) is None:
            break
        name, part = found
        culprit = f"{name}, a {type(part).__name__},"
        seen.add(id(part))
        parts = _parts(part, name)
    return culprit


def _parts(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple | set):
        parts = [(f"{name}[{i}]", part) for i, part in enumerate(value)]
    elif isinstance(value, FunctionType):
        parts = [(f"{key} of {name}", part) for key, part in _closure(value).items()]
    elif isinstance(value, MethodType):
        parts = [(f"{name}.__self__", value.__self__), (name, value.__func__)]
    elif isinstance(value, partial):
        parts = [(f"{name}.{key}", getattr(value, key)) for key in ("func", "args", "keywords")]
    else:
        parts = [(f"{name}.{key}", part) for key, part in _state(value).items()]
    return parts


def _closure(function: FunctionType) -> dict[str, Any]:
    """The variables of others that a function uses."""
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # one has no value yet
        return {}
    return {**found.globals, **found.nonlocals}


def _state(value: Any) -> dict[str, Any]:
    """The attributes that pickle would take along."""
    try:
        state = _get_state(value)
    except Exception:
        return {}
    dicts = [part for part in (state if isinstance(state, tuple) else (state,)) if part]
    return {k: v for part in dicts if isinstance(part, dict) for k, v in part.items()}


def _can_pickle(value: Any) -> bool:
    try:
        dumps(value, [], maps_files=True)
    except Exception:
        return False
    return True


def _can_unpickle(value: Any) -> bool:
    buffers: list[pickle.PickleBuffer] = []
    try:
        loads(dumps(value, buffers, maps_files=True), buffers)
    except Exception:
        return False
    return True


def _reduce_storage(storage: torch.UntypedStorage) -> Any:
    """A tensor's memory as an array beside the pickle, unless it is shared on purpose."""
    if storage.device.type != "cpu" or storage.is_shared() or storage.nbytes() == 0:
        return _MULTIPROCESSINGS[torch.UntypedStorage](storage)
    return _storage, (torch.tensor([], dtype=torch.uint8).set_(storage).numpy(),)


def _storage(data: np.ndarray) -> torch.UntypedStorage:
    return torch.from_numpy(data).untyped_storage()


def _reduce_memmap(array: np.memmap) -> Any:
    """A memory map by its file, where that is still the file that was mapped."""
    # Changes to a map of mode "c" are nowhere but in this process.
    mapped = _mapped_file(array) if array.mode != "c" and array.flags.c_contiguous else None
    if mapped is None:
        return array.view(np.ndarray).__reduce_ex__(5)
    path, offset = mapped
    mode = "r+" if array.flags.writeable else "r"
    return np.memmap, (path, array.dtype, mode, offset, array.shape)


def _mapped_file(array: np.ndarray) -> tuple[str, int] | None:
    """The file that an array maps, and where in it the array begins, as the system knows them."""
    start = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, offset, _, inode, *path = line.rstrip("\n").split(maxsplit=5)
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= start < high:
                break
        else:
            return None
    try:
        same = os.stat(path[0]).st_ino == int(inode)
    except (OSError, IndexError):
        return None  # deleted, or no file at all
    return (path[0], int(offset, 16) + start - low) if same else None
