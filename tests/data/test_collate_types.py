"""Every type of an example against torch's own default_collate and default_convert."""

import array
import collections
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import attrs
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map

import feedax
from feedax import NumpyLoader
from feedax.data import numpy_collate
from feedax.data.collate import convert_example, numpy_convert
from feedax.errors import ExampleError


class Point(NamedTuple):
    x: object
    y: object


class Attributed(dict):
    """A dict with an attribute, which its constructor does not know."""


def attributed(**fields):
    made = Attributed(fields)
    made.name = "meta"
    return made


class Items(list):
    pass


class Pair(tuple):
    pass


class Wrapper:
    """A container around another one, which a shallow copy shares."""

    def __init__(self, inner):
        self.inner = inner

    def __getitem__(self, key):
        return self.inner[key]

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        return iter(self.inner)


class Fields(Wrapper, Mapping):
    pass


class Cells(Wrapper, Sequence):
    pass


class OpenFields(Wrapper, MutableMapping):
    def __setitem__(self, key, value):
        self.inner[key] = value

    def __delitem__(self, key):
        del self.inner[key]


class OpenCells(Wrapper, MutableSequence):
    def __setitem__(self, key, value):
        self.inner[key] = value

    def __delitem__(self, key):
        del self.inner[key]

    def insert(self, index, value):
        self.inner.insert(index, value)


def factory_of(i):
    made = collections.defaultdict(list)
    made["x"] = i
    return made


def vector(i, dtype=torch.float32):
    return torch.full((2,), i, dtype=dtype)


TYPES = {
    "tensor": vector,
    "scalar tensor": torch.tensor,
    "parameter": lambda i: torch.nn.Parameter(vector(i)).detach(),
    "transposed": lambda i: torch.arange(6).reshape(2, 3).T + i,
    "conjugate": lambda i: torch.tensor([i + 1j]).conj(),
    "negative": lambda i: torch.tensor([i + 1j]).conj().imag,
    **{f"tensor {dtype}": lambda i, dtype=dtype: vector(i, dtype)
       for dtype in (torch.bool, torch.uint8, torch.uint16, torch.int8, torch.int64, torch.float16,
                     torch.float64, torch.complex64)},
    "array": lambda i: np.full((2, 1), i, np.int16),
    "empty array": lambda i: np.zeros((0, 2), np.float32),
    "array of no dimension": lambda i: np.array(i, np.uint8),
    "array read backwards": lambda i: (np.arange(3) + i)[::-1].copy(),
    "memory": lambda i: np.ndarray((1,), np.int32, memoryview(bytes([i, 0, 0, 0]))).copy(),
    "NumPy scalar": lambda i: np.float32(i),
    "NumPy bool": lambda i: np.bool_(i),
    "int": int,
    "float": float,
    "bool": bool,
    "text": str,
    "bytes": lambda i: bytes([i]),
    "dict": lambda i: {"x": i, 2: str(i)},
    "empty dict": lambda i: {},
    "OrderedDict": lambda i: collections.OrderedDict(b=i, a=vector(i)),
    "defaultdict": factory_of,
    "dict with an attribute": lambda i: attributed(x=i, y=vector(i)),
    "UserDict": lambda i: collections.UserDict(x=vector(i)),
    "ChainMap": lambda i: collections.ChainMap({"x": i}, {"y": vector(i)}),
    "MappingProxyType": lambda i: MappingProxyType({"x": vector(i)}),
    "Mapping": lambda i: Fields({"x": vector(i)}),
    "MutableMapping": lambda i: OpenFields({"x": vector(i)}),
    "tuple": lambda i: (i, vector(i)),
    "empty tuple": lambda i: (),
    "tuple of a class of its own": lambda i: Pair([i, vector(i)]),
    "torch.Size": lambda i: torch.Size([i, 2]),
    "NamedTuple": lambda i: Point(i, vector(i)),
    "list": lambda i: [i, vector(i)],
    "list of a class of its own": lambda i: Items([i, vector(i)]),
    "UserList": lambda i: collections.UserList([i, vector(i)]),
    "deque": lambda i: collections.deque([i, vector(i)], maxlen=2),
    "range": lambda i: range(i, i + 2),
    "array.array": lambda i: array.array("i", [i, i]),
    "bytearray": lambda i: bytearray([i, i]),
    "Sequence": lambda i: Cells([i, vector(i)]),
    "MutableSequence": lambda i: OpenCells([i, vector(i)]),
    "all of them": lambda i: Items([{"d": collections.deque([Point(i, (factory_of(i),))])}]),
}  # fmt: skip


def told(tree):
    """Types and values; torch's tensors as arrays, and NumPy's scalars too, as torch has them."""
    if isinstance(tree, torch.Tensor):
        tree = tree.numpy(force=True)
    if isinstance(tree, np.ndarray | np.generic):
        return "array", tree.dtype.str, tree.shape, tree.tolist()
    if isinstance(tree, str | bytes):
        return tree
    more = {k: v for k, v in getattr(tree, "__dict__", {}).items() if k == "name"}
    more |= {k: getattr(tree, k) for k in ("default_factory", "maxlen") if hasattr(tree, k)}
    if isinstance(tree, Mapping):
        return type(tree), [(key, told(tree[key])) for key in tree], more
    if isinstance(tree, Sequence):
        texts = len(tree) > 0 and all(isinstance(part, str | bytes) for part in tree)
        kind = list if texts else type(tree)  # torch has a tuple of texts
        return kind, [told(part) for part in tree], more
    return type(tree), tree


class Made(Dataset):
    """Examples that are made once, and seen by the loader as they are."""

    def __init__(self, make):
        self.examples = [make(i) for i in range(4)]

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.examples[i]


@pytest.mark.parametrize("size", [4, None])
@pytest.mark.parametrize("make", TYPES.values(), ids=TYPES)
def test_each_type_becomes_what_torch_makes_of_it(make, size):
    data = Made(make)
    ours = [told(batch) for batch in NumpyLoader(data, size)]
    assert ours == [told(batch) for batch in DataLoader(Made(make), size)]
    # torch writes a batch into the example, where a copy of a container shares its memory.
    assert told(data.examples) == told(Made(make).examples)


@attrs.frozen
class Measured:
    x: object
    y: object


@attrs.define
class _Private:
    _x: object


@dataclass
class Half:
    """One of its fields is never set."""

    x: object
    y: object = field(init=False)


def test_attrs_objects_are_kept():
    batch = numpy_collate([Measured(i, _Private(vector(i))) for i in range(2)])
    assert (type(batch), type(batch.y)) == (Measured, _Private)
    assert (batch.x.tolist(), batch.y._x.tolist()) == ([0, 1], [[0, 0], [1, 1]])
    alone = convert_example(Measured((1, vector(1)), "a"))
    assert (type(alone), alone.x[1].tolist(), alone.y) == (Measured, [1, 1], "a")
    with pytest.raises(ExampleError, match=r"field \.y\._x must have a shape"):
        numpy_collate([Measured(i, _Private(np.zeros(i))) for i in range(2)])
    assert numpy_collate([Half(1), Half(2)]).x.tolist() == [1, 2]


def test_what_is_kept_by_a_cache_keeps_its_containers():
    data = [Measured(collections.UserList([vector(i)]), factory_of(i)) for i in range(4)]
    loader = NumpyLoader(data, 2, cache=True)
    loaded = list(loader)
    assert (type(loaded[0]), type(loaded[0].x)) == (Measured, collections.UserList)
    assert loader.plan().name == "resident"
    for again, batch in zip(loader, loaded, strict=True):
        assert (type(again), told(again.x), told(again.y)) == (
            Measured,
            told(batch.x),
            told(batch.y),
        )


class Odd(Mapping):
    """Its constructor takes no mapping."""

    def __init__(self, number):
        self.number = number

    def __getitem__(self, key):
        return {"x": self.number}[key]

    def __iter__(self):
        return iter("x")

    def __len__(self):
        return 1


class Adding(dict):
    """Like a Counter, but it also refuses to be made from what it holds."""

    def __init__(self, number):
        super().__init__(x=number)

    def __setitem__(self, key, value):
        super().__setitem__(key, self[key] + value)


@pytest.mark.parametrize("size", [2, None])
@pytest.mark.parametrize("kind", [Odd, Adding])
def test_what_holds_something_else_than_it_is_given_becomes_a_dict(kind, size):
    batch = next(iter(NumpyLoader([kind([np.ones(1)]), kind([np.ones(1)])], size)))
    assert type(batch) is dict
    assert [part.tolist() for part in batch["x"]] == ([[[1], [1]]] if size else [[1]])


def test_a_counter_counts_nothing_twice():
    counted = numpy_collate([collections.Counter("aab"), collections.Counter("ba")])
    assert type(counted) is collections.Counter
    assert {key: value.tolist() for key, value in counted.items()} == {"a": [2, 1], "b": [1, 1]}
    assert convert_example(collections.Counter("aab")) == {"a": 2, "b": 1}


def test_a_batch_of_ones_own_collate_fn_keeps_its_containers():
    deque = collections.deque([torch.ones(1), {"n": 1}], maxlen=3)
    kept = {"texts": ["a"], "range": range(3), "memory": memoryview(b"ab"), "set": {1}}
    ours = numpy_convert({"d": deque, "l": Items([vector(1)]), **kept})
    assert (type(ours["d"]), ours["d"].maxlen, ours["d"][0].tolist()) == (type(deque), 3, [1])
    assert (type(ours["l"]), ours["l"][0].tolist()) == (Items, [1, 1])
    assert all(ours[key] is kept[key] for key in kept)
    assert isinstance(deque[0], torch.Tensor)


@pytest.fixture
def fn_map():
    """torch's map, which is put back."""
    before = dict(default_collate_fn_map)
    yield default_collate_fn_map
    default_collate_fn_map.clear()
    default_collate_fn_map.update(before)


class Custom:
    def __init__(self, value):
        self.value = value


class Label(int):
    pass


def values_of(batch, *, collate_fn_map=None):
    return collate([(c.value, vector(c.value)) for c in batch], collate_fn_map=collate_fn_map)


def summed(batch, *, collate_fn_map=None):
    return {"sum": torch.stack(list(batch)).sum(0), "names": ["a"]}


ADDED = {
    "a class": ({Custom: values_of}, Custom),
    "a class and its kin": ({Custom: values_of}, type("Kin", (Custom,), {})),
    "in a field": ({Custom: values_of}, lambda i: {"c": [Custom(i)], "x": i}),
    "a number": ({Label: lambda batch, *, collate_fn_map: [-n for n in batch]}, Label),
    "a number that torch knows first": ({int: values_of, bool: summed}, lambda i: 1.5),
    "tensors": ({torch.Tensor: summed}, vector),
    "tensors, which arrays become": ({torch.Tensor: summed}, lambda i: np.full(2, i)),
    "arrays": ({np.ndarray: lambda batch, *, collate_fn_map: torch.ones(3)}, lambda i: np.ones(i)),
    "None": ({type(None): lambda batch, *, collate_fn_map: torch.zeros(4)}, lambda i: (i, None)),
    "torch's own function": ({Custom: default_collate_fn_map[str]}, lambda i: 3),
    "types together": ({(Custom, Label): values_of}, Custom),
    "kin of a number that torch finds first": ({np.generic: summed}, lambda i: np.float32(i)),
}


@pytest.mark.parametrize(("added", "make"), ADDED.values(), ids=ADDED)
def test_types_added_to_torchs_map_are_collated_as_in_torch(fn_map, added, make):
    fn_map.update(added)
    data = [make(i) for i in range(4)]
    ours = [told(batch) for batch in NumpyLoader(data, 2)]
    assert ours == [told(batch) for batch in DataLoader(data, 2)]


def test_a_worker_is_told_of_what_was_added(fn_map):
    fn_map[Label] = lambda batch, *, collate_fn_map: torch.tensor([-n for n in batch])
    (batch,) = NumpyLoader([Label(1), Label(2)], 2, num_workers=1)
    assert batch.tolist() == [-1, -2]


def test_what_was_added_makes_arrays(fn_map):
    fn_map[Custom] = lambda batch, *, collate_fn_map: torch.eye(2).to_sparse()
    with pytest.raises(ExampleError) as error:
        numpy_collate([{"c": Custom(1)}])
    assert str(error.value) == (
        "numpy_collate: field ['c'] must be made of arrays, tensors, images, numbers and text, and "
        "the result of <lambda> in default_collate_fn_map has a sparse tensor (torch.sparse_coo) "
        "there; make it dense with .to_dense(), or yield its values and indices"
    )


def test_the_loader_is_generic_as_torchs_is():
    class Mine(NumpyLoader[int]):
        pass

    assert NumpyLoader[int].__origin__ is NumpyLoader
    assert [batch.tolist() for batch in Mine(range(3), 2)] == [[0, 1], [2]]
    assert isinstance(feedax.NumpyLoader[int](range(3)), NumpyLoader)
    assert told(default_collate([1, 2])) == told(next(iter(NumpyLoader[int](range(1, 3), 2))))
