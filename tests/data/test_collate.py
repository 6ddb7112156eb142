"""numpy_collate: torch's default_collate as the oracle, and its own messages to the letter."""

import enum
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import default_collate, default_convert

from feedax.data import numpy_collate
from feedax.data.collate import collate_into, convert_example, numpy_convert
from feedax.errors import ExampleError

Pair = namedtuple("Pair", ["x", "y"])


def assert_like_torch(ours, torchs):
    """Ours is torch's batch, its tensors as arrays, its tuples as lists."""
    if isinstance(torchs, torch.Tensor):
        assert isinstance(ours, np.ndarray)
        assert torch.from_numpy(ours).dtype == torchs.dtype
        assert ours.shape == tuple(torchs.shape)
        assert ours.tobytes() == torchs.numpy().tobytes()
    elif isinstance(torchs, dict):
        assert type(ours) is type(torchs)
        assert list(ours) == list(torchs)
        for key in torchs:
            assert_like_torch(ours[key], torchs[key])
    elif isinstance(torchs, tuple | list):
        if isinstance(torchs[0] if torchs else None, str | bytes):  # torch has a tuple of texts
            assert ours == list(torchs)
            return
        assert type(ours) is (type(torchs) if hasattr(torchs, "_fields") else list)
        assert len(ours) == len(torchs)
        for a, b in zip(ours, torchs, strict=True):
            assert_like_torch(a, b)
    else:
        raise AssertionError(f"torch gave a {type(torchs)}")


DTYPES = ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]
SHAPES = [(), (1,), (3,), (2, 3), (0,), (2, 0)]


def array(seed, shape, dtype):
    bits = np.random.default_rng(seed).integers(0, 2, (*shape, 64 // 8), np.uint8)
    return np.asarray(bits.sum(-1).astype(dtype))


# A blueprint makes an example from a seed: all its examples have one structure.
leaves = st.one_of(
    st.builds(lambda s, d: lambda n: array(n, s, d), st.sampled_from(SHAPES),
              st.sampled_from(DTYPES)),
    st.builds(lambda s, d: lambda n: torch.from_numpy(array(n, s, d)), st.sampled_from(SHAPES),
              st.sampled_from(DTYPES)),
    st.builds(lambda d: lambda n: np.dtype(d).type(n), st.sampled_from(DTYPES)),
    st.sampled_from([lambda n: n, lambda n: n / 7, lambda n: n % 2 == 0, lambda n: f"text {n}",
                     lambda n: bytes([n]), lambda n: -n * 2**33]),
)  # fmt: skip


def deeper(inner):
    keys = st.one_of(st.text(max_size=2), st.integers(0, 3))
    some = st.lists(inner, max_size=3)
    return st.one_of(
        some.map(lambda parts: lambda n: [part(n) for part in parts]),
        some.map(lambda parts: lambda n: tuple(part(n) for part in parts)),
        st.dictionaries(keys, inner, max_size=3).map(
            lambda parts: lambda n: {key: part(n) for key, part in parts.items()}
        ),
        st.dictionaries(keys, inner, max_size=3).map(
            lambda parts: lambda n: OrderedDict((key, part(n)) for key, part in parts.items())
        ),
        st.tuples(inner, inner).map(lambda parts: lambda n: Pair(*(part(n) for part in parts))),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.recursive(leaves, deeper, max_leaves=6), st.lists(st.integers(0, 99), min_size=1))
def test_any_structure_becomes_what_torch_makes_of_it(make, seeds):
    examples = [make(seed) for seed in seeds]
    assert_like_torch(numpy_collate(examples), default_collate(examples))


class Class(enum.IntEnum):
    CAT = 3
    DOG = 5


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([True, False], np.array([True, False])),
        ([1, -2], np.array([1, -2], np.int64)),
        ([Class.CAT, Class.DOG], np.array([3, 5], np.int64)),
        ([0.1, 2.0], np.array([0.1, 2.0], np.float64)),
        ([1j, 2.0], np.array([1j, 2.0], np.complex128)),
        ([1, 2.5], np.array([1, 2.5], np.float64)),
        ([True, 2], np.array([1, 2], np.int64)),
        ([np.float32(1), np.float32(2)], np.array([1, 2], np.float32)),
        ([np.uint8(200), np.uint8(100)], np.array([200, 100], np.uint8)),
        ([torch.tensor([1.5], dtype=torch.bfloat16)] * 2,
         np.array([[1.5], [1.5]], ml_dtypes.bfloat16)),
        ([torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True)],
         np.array([1.5], ml_dtypes.bfloat16)),
        ([torch.ones(2, requires_grad=True)] * 2, np.ones((2, 2), np.float32)),
        ([torch.tensor(1 + 2j).conj()], np.array([1 - 2j], np.complex64)),
        ([torch.arange(6).reshape(2, 3).T], np.array([[[0, 3], [1, 4], [2, 5]]])),
        ([Image.new("L", (3, 2), 7)] * 2, np.full((2, 2, 3), 7, np.uint8)),
        ([Image.new("RGB", (3, 2), (1, 2, 3))], np.full((1, 2, 3, 3), [1, 2, 3], np.uint8)),
        ([np.arange(3)[::-1], torch.arange(3)], np.array([[2, 1, 0], [0, 1, 2]])),
    ],
    ids=lambda value: type(value[0]).__name__ if isinstance(value, list) else str(value.dtype),
)  # fmt: skip
def test_leaves_keep_their_dtype_and_gain_a_dimension(examples, expected):
    batch = numpy_collate(examples)
    assert type(batch) is np.ndarray
    assert (batch.dtype, batch.shape) == (expected.dtype, expected.shape)
    assert batch.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "texts", [["a", "bc"], [b"a", b"bc"], [np.str_("a"), np.str_("bc")], [np.bytes_(b"a")]]
)
def test_texts_become_a_list(texts):
    batch = numpy_collate(tuple(texts))
    assert type(batch) is list
    assert batch == texts


@dataclass(frozen=True, slots=True)
class Sample:
    """Its constructor expects a single example."""

    x: np.ndarray
    label: int
    seen: int = field(init=False, default=4)

    def __post_init__(self):
        assert isinstance(self.label, int)


def test_a_dataclass_stays_one():
    batch = numpy_collate([Sample(np.zeros(2), 1), Sample(np.ones(2), 2)])
    assert type(batch) is Sample
    assert batch.x.tolist() == [[0, 0], [1, 1]]
    assert (batch.label.tolist(), batch.label.dtype) == ([1, 2], np.int64)
    assert batch.seen.tolist() == [4, 4]


class Strict(dict):
    """A mapping whose constructor takes something else."""

    def __init__(self, a, b):
        super().__init__({"a": a, "b": b})


def test_mappings_stay_what_they_are_where_that_is_possible():
    frozen = numpy_collate([MappingProxyType({"a": 1}), MappingProxyType({"a": 2})])
    assert type(frozen) is MappingProxyType
    assert frozen["a"].tolist() == [1, 2]
    batch = numpy_collate([Strict(1, "x"), Strict(2, "y")])
    assert type(batch) is Strict
    assert (batch["a"].tolist(), batch["b"]) == ([1, 2], ["x", "y"])


def test_keys_may_come_in_any_order():
    batch = numpy_collate([{"a": 1, "b": 2}, {"b": 4, "a": 3}])
    assert {key: value.tolist() for key, value in batch.items()} == {"a": [1, 3], "b": [2, 4]}


def test_the_batch_shares_no_memory_with_its_examples():
    example = np.zeros(3)
    numpy_collate([example])[:] = 1
    assert not example.any()


class Foreign:
    """An array of another library, as JAX's are: no NumPy array, but it can become one."""

    def __init__(self, value):
        self.value = np.asarray(value)

    def __array__(self, dtype=None, copy=None):
        return self.value


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([Foreign(np.float32([1, 2])), Foreign(np.float32([3, 4]))], np.float32([[1, 2], [3, 4]])),
        ([Foreign(np.int8(1)), Foreign(np.int8(2))], np.int8([1, 2])),
        ([Foreign(np.int32(1)), np.int32(2), torch.tensor(3, dtype=torch.int32)],
         np.int32([1, 2, 3])),
        ([np.float32(1), Foreign(np.float32(2))], np.float32([1, 2])),
        ([1.5, Foreign(np.float64(2))], np.array([1.5, 2])),
    ],
)  # fmt: skip
def test_arrays_of_another_library_become_numpys(examples, expected):
    batch = numpy_collate([{"x": example} for example in examples])["x"]
    assert type(batch) is np.ndarray
    assert (batch.dtype, batch.tolist()) == (expected.dtype, expected.tolist())
    converted = numpy_convert(examples)
    assert [type(x) for x in converted if not isinstance(x, float | np.generic)] == [
        np.ndarray for x in examples if not isinstance(x, float | np.generic)
    ]
    assert np.stack(converted).tolist() == expected.tolist()


def test_a_class_that_makes_arrays_is_no_array():
    with pytest.raises(ExampleError) as error:
        numpy_collate([Foreign])
    assert str(error.value) == UNKNOWN.format("an example", "type")


def memory(log):
    def empty(shape, dtype):
        log.append(np.full(shape, 7).astype(dtype))
        return log[-1]

    return empty


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.recursive(leaves, deeper, max_leaves=6), st.lists(st.integers(0, 99), min_size=1))
def test_memory_of_the_callers_does_not_change_a_batch(make, seeds):
    examples = [make(seed) for seed in seeds]
    assert_like_torch(collate_into(examples, memory([])), default_collate(examples))


def test_every_stacked_array_lies_in_the_callers_memory():
    examples = [
        {"a": np.full(3, n, np.uint8), "t": torch.full((2,), n), "i": Image.new("L", (2, 2), n),
         "s": np.float32(n), "f": Foreign(np.full(2, n)), "n": n, "text": "x",
         "o": np.array([n, None])}
        for n in range(3)
    ]  # fmt: skip
    log = []
    batch = collate_into(examples, memory(log))
    assert [key for key in batch if any(batch[key] is array for array in log)] == list("atisf")
    assert batch["o"].tolist() == [[0, None], [1, None], [2, None]]
    assert batch["a"].tolist() == [[n] * 3 for n in range(3)]


@pytest.mark.parametrize(
    "dtypes",
    [("uint8", "float32"), ("int8", "uint8"), (">f4", ">f4"), (">i2", "<i2"), ("bool", "float16"),
     ("int16", "uint16", "float32"), ("float32", "uint16", "int16")],
)  # fmt: skip
def test_dtypes_that_differ_are_promoted_as_numpy_stacks_them(dtypes):
    examples = [np.ones(2, dtype) for dtype in dtypes]
    batch, stacked = numpy_collate(examples), np.stack(examples)
    assert (batch.dtype.str, batch.tobytes()) == (stacked.dtype.str, stacked.tobytes())


Triple = namedtuple("Triple", ["a", "b", "c"])


def arrays_of(tree):
    """torch's tree with its tensors as arrays, and only they."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy()
    if isinstance(tree, dict):
        return {key: arrays_of(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return type(tree)(*map(arrays_of, tree)) if hasattr(tree, "_fields") else tree
    return [arrays_of(value) for value in tree] if isinstance(tree, list) else tree


def described(tree):
    """A tree whose arrays can be compared."""
    if isinstance(tree, np.ndarray):
        return ("array", str(tree.dtype), tree.tolist())
    if isinstance(tree, dict):
        return {key: described(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return (type(tree).__name__, *map(described, tree))
    return tree


def test_an_example_that_is_not_batched_is_what_torch_makes_of_it():
    x = torch.arange(3)
    example = (x, [x, (1, "a")], {"k": (x, np.arange(2))}, Triple(x, (2,), None), ((),))
    ours = convert_example(example)
    assert described(ours) == described(arrays_of(default_convert(example)))
    assert type(ours) is list
    kept = numpy_convert(example)
    assert [type(kept), type(kept[1][1]), type(kept[2]["k"]), type(kept[4][0])] == [tuple] * 4


def test_a_list_of_a_class_of_its_own_and_a_dataclass_are_kept():
    ours = convert_example([Sample(torch.zeros(2), 3), Image.new("L", (2, 1))])
    assert type(ours[0]) is Sample
    assert [type(ours[0].x), type(ours[1])] == [np.ndarray] * 2


MISMATCH = (
    "numpy_collate: {} must have {} that all examples of a batch share, and it is {} in example 0 "
    "but {} in example {}; make them equal in the dataset (resize, crop or pad), or give the "
    "loader a collate_fn"
)
NONE = (
    "numpy_collate: {} must hold a value in every example, and it is None in example {}; leave "
    "the field out or give it a value"
)
BIG = (
    "numpy_collate: {} must hold integers that fit into int64, and it is {} in example {}; give "
    "it as a float, or as an array of another dtype"
)
UNKNOWN = (
    "numpy_collate: {} must be made of arrays, tensors, images, numbers and text, and example 0 "
    "has a {} there; convert it in the dataset, or give the loader a collate_fn"
)
PICTURES = [(Image.new("L", size), 0) for size in ((4, 3), (4, 3), (5, 3))]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "numpy_collate: a batch must hold an example, and this one is empty"),
        ([np.zeros(2), np.zeros(3)], MISMATCH.format("an example", "a shape", (2,), (3,), 1)),
        (PICTURES, MISMATCH.format("field [0]", "a shape", (3, 4), (3, 5), 2)),
        ([{"x": [{"y": torch.ones(1)}]}, {"x": [{"y": torch.ones(1, 1)}]}],
         MISMATCH.format("field ['x'][0]['y']", "a shape", (1,), (1, 1), 1)),
        ([Pair(1, np.zeros(1)), Pair(2, np.zeros(2))],
         MISMATCH.format("field .y", "a shape", (1,), (2,), 1)),
        ([Sample(np.zeros(1), 1), Sample(np.zeros(2), 2)],
         MISMATCH.format("field .x", "a shape", (1,), (2,), 1)),
        ([(1, 2), (1, 2), (1,)], MISMATCH.format("an example", "a length", 2, 1, 2)),
        ([(1, [2]), (1, 2)], MISMATCH.format("field [1]", "a length", 1, "none (int)", 1)),
        ([{"a": 1}, {"a": 1, "b": 2}],
         MISMATCH.format("an example", "keys", ["a"], ["a", "b"], 1)),
        ([{"a": 1}, 5], MISMATCH.format("an example", "keys", ["a"], ["none (int)"], 1)),
        ([Pair(1, 2), (1, 2)],
         MISMATCH.format("an example", "field names", ("x", "y"), "tuple", 1)),
        ([Sample(1, 1), 5], MISMATCH.format("an example", "a type", "Sample", "int", 1)),
        ([1, "a"], MISMATCH.format("an example", "a kind of value", "number", "text", 1)),
        (["a", 1], MISMATCH.format("an example", "a kind of value", "text", "int", 1)),
        ([np.float32(1), b"a"],
         MISMATCH.format("an example", "a kind of value", "number", "text", 1)),
        ([np.zeros(1), np.array([{}])],
         MISMATCH.format("an example", "a kind of value", "number", "Python object", 1)),
        ([None], NONE.format("an example", 0)),
        ([(1, 2), (1, None)], NONE.format("field [1]", 1)),
        (["a", None], NONE.format("an example", 1)),
        ([{"a": [None]}], NONE.format("field ['a'][0]", 0)),
        ([2**63], BIG.format("an example", 2**63, 0)),
        ([(0, 1), (0, -(2**63) - 1)], BIG.format("field [1]", -(2**63) - 1, 1)),
        ([{"n": 1.5}, {"n": 2**64}], BIG.format("field ['n']", 2**64, 1)),
        ([np.int64(1), 2**63], BIG.format("an example", 2**63, 1)),
        ([object()], UNKNOWN.format("an example", "object")),
        ([(1, {2})], UNKNOWN.format("field [1]", "set")),
        ([Sample], UNKNOWN.format("an example", "type")),
    ],
)  # fmt: skip
def test_examples_that_do_not_fit_together(examples, message):
    with pytest.raises(ExampleError) as error:
        numpy_collate(examples)
    assert str(error.value) == message
