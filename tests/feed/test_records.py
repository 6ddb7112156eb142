"""Examples of any container on their way to the device: JAX sees their fields."""

from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import attrs
import equinox
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from helpers import slow_but
from torch.utils.data import Dataset

import feedax
from feedax.data.array_form import register_arrays
from feedax.errors import BatchError, ModelError
from feedax.feed import prefetch_to_device
from feedax.feed.batch import opened

A = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
B = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
LABELS = np.arange(12) % 2


class Record(Mapping):
    """A read-only dict."""

    def __init__(self, fields):
        self._fields = dict(fields)

    def __getitem__(self, name):
        return self._fields[name]

    def __iter__(self):
        return iter(self._fields)

    def __len__(self):
        return len(self._fields)


class Rows(dict):
    pass


class Parts(list):
    pass


@dataclass(frozen=True, slots=True)
class Data:
    a: Any
    b: Any
    made: Any = field(init=False, default=0)

    def __post_init__(self):
        assert self.a.shape == (2,), "the constructor is for one example"


@attrs.frozen
class Attrs:
    a: Any
    b: Any
    _hidden: Any = 0


class Tuple(NamedTuple):
    a: Any
    b: Any


def factory(a, b):
    made = defaultdict(lambda: 0)  # another function for each example
    made |= {"a": a, "b": b}
    return made


BY_KEY = itemgetter("a", "b")
BY_NAME = attrgetter("a", "b")
BY_PLACE = itemgetter(0, 1)
KINDS = {
    "Mapping": (lambda a, b: Record({"b": b, "a": a}), BY_KEY),
    "dict of a class of its own": (lambda a, b: Rows(a=a, b=b), BY_KEY),
    "UserDict": (lambda a, b: UserDict(a=a, b=b), BY_KEY),
    "OrderedDict": (lambda a, b: OrderedDict(b=b, a=a), BY_KEY),
    "defaultdict": (factory, BY_KEY),
    "dataclass": (Data, BY_NAME),
    "attrs": (Attrs, attrgetter("a", "b", "_hidden")),
    "NamedTuple": (Tuple, BY_NAME),
    "UserList": (lambda a, b: UserList([a, b]), BY_PLACE),
    "deque": (lambda a, b: deque([a, b]), BY_PLACE),
    "list of a class of its own": (lambda a, b: Parts([a, b]), BY_PLACE),
    "one in another": (
        lambda a, b: Record({"p": UserList([Rows(a=a)]), "q": Attrs(Tuple(b, b), b)}),
        lambda x: (x["p"][0]["a"], x["q"].a.a),
    ),
}


class Examples(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(A)

    def __getitem__(self, i):
        return self.make(A[i], B[i]), LABELS[i]


def predict(w, x, get):
    a, b = get(x)[:2]
    return w @ (a + 2 * b)


HOW = {"epochs": 2, "optimizer": optax.sgd(0.1)}


def trained(model, batches):
    return feedax.fit(model, jnp.zeros((2, 2)), batches, **HOW)[0]


@pytest.fixture(scope="module")
def expected():
    params = trained(lambda w, x: w @ x, [(A + 2 * B, LABELS)])
    scores = feedax.evaluate(lambda w, x: w @ x, params, [(A + 2 * B, LABELS)])
    return params, scores


@pytest.mark.parametrize(
    "kind", slow_but(["Mapping", "dataclass", "NamedTuple", "UserList", "one in another"], KINDS)
)
def test_a_model_sees_the_fields(kind, expected):
    make, get = KINDS[kind]
    loader = feedax.NumpyLoader(Examples(make), 12)
    model = partial(predict, get=get)
    params = trained(model, loader)
    np.testing.assert_allclose(params, expected[0], rtol=1e-5)
    for batches in (loader, list(loader)):
        assert feedax.evaluate(model, params, batches) == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("last", ["short", "pad", "wrap"])
@pytest.mark.parametrize(("make", "get"), KINDS.values(), ids=KINDS)
def test_the_device_gets_the_fields(make, get, last):
    loader = feedax.NumpyLoader(Examples(make), 8)
    batches = list(feedax.prefetch_to_device(loader, last=last))
    assert len({jax.tree.structure(batch) for batch in batches}) == 1
    inputs, labels = batches[0].batch if last == "pad" else batches[0]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((inputs, labels)))
    a, b = get(inputs)[:2]
    assert (np.asarray(a) == A[:8]).all()
    assert (np.asarray(b) == B[:8]).all()


def test_networks_side_by_side_see_them(expected):
    loader = feedax.NumpyLoader(Examples(factory), 12)
    networks = feedax.sweep(
        partial(predict, get=BY_KEY),
        lambda key: jnp.zeros((2, 2)),
        loader,
        seeds=2,
        together=2,
        **HOW,
    )
    for network in networks.networks:
        np.testing.assert_allclose(network.params, expected[0], rtol=1e-5)


class Stored(Dataset):
    def __init__(self, make):
        self.make, self.a, self.b, self.labels = make, A, B, LABELS

    def __len__(self):
        return len(A)

    def __getitem__(self, i):
        return self.make(self.a[i], self.b[i]), self.labels[i]


register_arrays(Stored, lambda data: (data.make(data.a, data.b), data.labels))


@pytest.mark.parametrize("kind", ["Mapping", "NamedTuple"])
def test_resident_examples_have_the_structure_of_streamed_ones(kind):
    make, get = KINDS[kind]
    seen = {}
    for plan in ("resident", "vectorised", "streamed"):

        def model(w, x, plan=plan):
            seen[plan] = jax.tree.structure(x)
            return predict(w, x, get)

        loader = feedax.NumpyLoader(Stored(make), 4, plan=plan)
        params = trained(model, loader)
        seen[plan] = seen[plan], feedax.evaluate(model, params, loader), type(next(iter(loader))[0])
    assert seen["resident"] == seen["vectorised"] == seen["streamed"]


@flax.struct.dataclass
class Flax:
    a: Any
    b: Any


class Equinox(equinox.Module):
    a: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclass
class Registered:
    a: Any
    b: Any


@pytest.mark.parametrize("kind", [Flax, Equinox, Registered])
def test_what_is_registered_with_jax_stays(kind):
    (batch,) = prefetch_to_device([kind(A, Record({"b": B}))])
    assert (type(batch), type(batch.b)) == (kind, dict)
    assert opened(FrozenDict(a=A)) == FrozenDict(a=A)
    plain = ({"a": A}, [B, None])
    assert opened(plain) is plain


@dataclass
class Named:
    a: Any
    name: Any


def test_text_in_them_stays_behind():
    def example(i):
        fields = {"d": Named(A[i], "a"), "m": Record({"t": "b", "x": B[i]})}
        return Record({**fields, "l": UserList(["c", A[i]])}), LABELS[i]

    loader = feedax.NumpyLoader([example(i) for i in range(12)], 12)
    ((inputs, _),) = prefetch_to_device(loader)
    assert inputs["d"].name is None
    assert list(inputs["m"]) == ["x"]
    assert inputs["l"][0] is None
    assert (np.asarray(inputs["l"][1]) == A).all()
    assert loader.plan().notes[-1] == (
        "Its fields [0]['d'].name and [0]['m']['t'] and [0]['l'][0] are text: kept as lists, which "
        "do not go to a device"
    )
    with pytest.raises(ModelError, match=r"it fails on inputs of .*: there is no 't'$"):
        trained(lambda w, x: w @ x["m"]["t"], loader)


def test_numbers_in_a_sequence_are_an_array():
    for labels in (
        range(12),
        UserList([0, 1] * 6),
        memoryview(bytes([0, 1] * 6)),
        Parts([0, 1.0] * 6),
    ):
        ((_, got),) = prefetch_to_device([(A, labels)])
        assert got.shape == (12,)


def test_keys_that_cannot_be_sorted():
    with pytest.raises(BatchError) as error:
        list(prefetch_to_device([Record({"a": A, 1: B})]))
    assert str(error.value) == (
        "prefetch_to_device: a batch must be made of containers that JAX can take apart, and one "
        "is not (Comparator raised exception while sorting pytree dictionary keys); give dicts "
        "keys of one type"
    )


def test_a_sharding_may_have_the_batchs_containers():
    device = jax.devices()[0]
    for make in (Tuple, Named, lambda a, b: Record({"a": a, "b": b})):
        (batch,) = prefetch_to_device([make(A, B)], sharding=make(device, device))
        assert len(jax.tree.leaves(batch)) == 2
