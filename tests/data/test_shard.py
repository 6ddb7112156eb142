"""Parts of every batch, for processes that train together: side by side they are the whole."""

import json
import os
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import draw, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    Dataset,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.datapipes.iter import IterableWrapper
from torch.utils.data.datapipes.map import SequenceWrapper

from feedax.data import ArrayDataset, NumpyLoader, numpy_collate
from feedax.errors import ExampleError, PlanError, PositionError

COUNT = 22  # 5 batches of 4, and one of 2


class Drawn(Dataset):
    """Examples with random numbers and text; it knows what was loaded in this process."""

    def __init__(self, count=COUNT):
        self.count, self.loaded = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.loaded.append(index)
        for _ in range(index % 3):
            draw()
        return {"x": np.array([index, *draw()]), "name": f"no. {index}", "y": index}


class DrawnAtOnce(Drawn):
    """The same, a whole batch by one call that has one random state."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Stream(IterableDataset):
    """Random examples, shared out among the workers."""

    def __iter__(self):
        worker = get_worker_info()
        share = slice(worker.id, None, worker.num_workers) if worker else slice(None)
        for index in range(COUNT)[share]:
            yield {"x": np.array([index, *draw()]), "name": f"no. {index}"}


class Batches(Dataset):
    """A dataset that makes the batches itself."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = 4 - index  # 4, 3, 2
        return np.full((rows, 2), draw()[0]), torch.arange(rows), [f"{index}"] * rows


def padded(examples):
    """As long as the longest of the whole batch, and noisy."""
    longest = max(example["y"] for example in examples)
    rows = [np.resize(example["x"], longest + 1) + draw()[0] for example in examples]
    return (np.stack(rows), {"names": [example["name"] for example in examples], "none": None})


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Record:
    x: Any
    pair: Pair


def recorded(examples):
    x = torch.tensor(np.stack([example["x"] for example in examples]))
    return Record(x, Pair(x[:, 0] * 2, [bytes([len(e["name"])]) for e in examples]))


def deterministic(index):
    return np.full(3, index, np.float32), index * 0.5


class Deterministic(Drawn):
    def __getitem__(self, index):
        return deterministic(index)


def leaves(tree):
    """The leaves of a batch by their names, each a list of rows or something else."""
    if isinstance(tree, Record):
        tree = vars(tree)
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, tuple | list) and not isinstance(tree[0], str | bytes):
        items = list(enumerate(tree))
    else:
        return {(): tree}
    return {
        (type(tree), key, *rest): leaf for key, part in items for rest, leaf in leaves(part).items()
    }


def bits(leaf):
    return (leaf.dtype.str, leaf.shape, leaf.tobytes()) if isinstance(leaf, np.ndarray) else leaf


def same(batch, expected):
    batch, expected = leaves(batch), leaves(expected)
    assert list(batch) == list(expected)
    for name, leaf in expected.items():
        assert bits(batch[name]) == bits(leaf), name


def joined(batches):
    """Batches beside each other: an oracle that knows nothing of how they were cut."""
    for name, first in leaves(batches[0]).items():
        parts = [leaves(batch)[name] for batch in batches]
        if first is None:
            yield name, None
        elif isinstance(first, np.ndarray):
            yield name, np.concatenate(parts)
        else:
            yield name, [text for part in parts for text in part]


def rows(batch):
    return {len(leaf) for leaf in leaves(batch).values() if leaf is not None}


def beside(whole, views, epochs=2):
    """Check that the views' batches are columns of the whole loader's; return each has_part."""
    had = []
    for _ in range(epochs):
        for expected, *batches in zip(whole, *views, strict=True):
            (count,) = rows(expected)
            told = {view.has_part for view in views}
            assert told == {count % len(views) == 0 and len(views) > 1}
            if told == {True}:
                assert [rows(batch) for batch in batches] == [{count // len(views)}] * len(views)
                together = dict(joined(batches))
                assert {name: bits(leaf) for name, leaf in together.items()} == {
                    name: bits(leaf) for name, leaf in leaves(expected).items()
                }
            else:
                for batch in batches:
                    same(batch, expected)
            had.append(told == {True})
            if not isinstance(whole.dataset, IterDataPipe | MapDataPipe):
                states = {json.dumps(loader.state_dict()) for loader in (whole, *views)}
                assert len(states) == 1
    return had


def loader_of(kind, workers=0, **arguments):
    """A fresh loader: with (plan) arrays, or else random examples."""
    arguments = {"batch_size": 4, "shuffle": True, "seed": 5, "num_workers": workers} | arguments
    if kind == "streamed":
        return NumpyLoader(Drawn(), plan=kind, **arguments)
    x = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3), np.uint8)
    return NumpyLoader(ArrayDataset(x, np.arange(COUNT)), plan=kind, **arguments)


def parts_of(make, parts):
    return [make().shard(part, parts) for part in range(parts)]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    ("plan", "workers"),
    [("resident", 0), slow("resident", 2), ("vectorised", 0), ("streamed", 0), slow("streamed", 2)],
)
def test_parts_beside_each_other_are_the_whole_batches(plan, workers, parts):
    if (workers, plan, parts) == (2, "streamed", 4):
        parts = 3  # no batch can be shared
    whole, views = loader_of(plan, workers), parts_of(lambda: loader_of(plan, workers), parts)
    had = beside(whole, views)
    expected = {2: [True] * 6, 3: [False] * 6, 4: [True] * 5 + [False]}[parts]
    assert had == expected * 2
    for view in views:
        stats = view.stats()
        assert stats.batches == 12
        assert stats.examples == 2 * {2: 11, 3: 22, 4: 5 + 2}[parts]
        assert len(view) == len(whole) == 6


KINDS = {
    "shuffle": lambda n: {"shuffle": True},
    "in order": lambda n: {"shuffle": False},
    "listed": lambda n: {"sampler": [i % n for i in range(7, 7 + 2 * n)]},
    "replacement": lambda n: {"sampler": RandomSampler(range(n), True, n + 3)},
    "weighted": lambda n: {"sampler": WeightedRandomSampler([1.0] * n, 2 * n)},
    "sizes": lambda n: {"batch_size": 1, "batch_sampler": [range(1 + i % n) for i in range(n)]},
}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 30), st.integers(1, 9), st.booleans(), st.sampled_from(sorted(KINDS)),
    st.sampled_from([Drawn, Deterministic, DrawnAtOnce, "arrays"]), st.integers(1, 6),
    st.sampled_from([0, 2**64 - 1]), st.integers(0, 3),
)  # fmt: skip
def test_any_loader_in_any_number_of_parts(n, size, drop_last, kind, data, parts, seed, epoch):
    def make():
        dataset = (
            ArrayDataset(np.arange(3 * n).reshape(n, 3), np.arange(n))
            if data == "arrays"
            else data(n)
        )
        more = {"batch_size": size, "drop_last": drop_last} | KINDS[kind](n)
        if kind == "sizes":
            del more["drop_last"]
        loader = NumpyLoader(dataset, seed=seed, **more)
        loader.set_epoch(epoch)
        return loader

    beside(make(), parts_of(make, parts), epochs=1)


def test_only_its_columns_are_loaded():
    data = [Drawn(), Drawn()]
    for part in range(2):
        view = NumpyLoader(data[part], 4, seed=0).shard(part, 2)
        assert [batch["y"].tolist() for batch in view][-1] == [20 + part]
    assert data[0].loaded == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20]
    assert data[1].loaded == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 21]
    subset = Drawn()
    list(NumpyLoader(torch.utils.data.Subset(subset, range(8)), 8, seed=0).shard(3, 4))
    assert subset.loaded == [6, 7]


WHOLE = {
    "collate_fn": lambda: NumpyLoader(Drawn(), 4, True, collate_fn=padded, seed=1),
    "records": lambda: NumpyLoader(Drawn(), 4, True, collate_fn=recorded, seed=1),
    "__getitems__": lambda: NumpyLoader(DrawnAtOnce(), 4, True, seed=1),
    "stream": lambda: NumpyLoader(Stream(), 4, seed=1),
    "workers' stream": lambda: NumpyLoader(Stream(), 4, seed=1, num_workers=2),
    "batch_size=None": lambda: NumpyLoader(Batches(), None, seed=1),
    "data pipe": lambda: NumpyLoader(
        IterableWrapper(range(COUNT)).shuffle().map(deterministic), 4, seed=1
    ),
    "map pipe": lambda: NumpyLoader(SequenceWrapper(range(COUNT)).map(deterministic), 4, seed=1),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_batches_are_cut_where_examples_are_not_loaded_one_by_one(kind):
    whole, views = WHOLE[kind](), parts_of(WHOLE[kind], 2)
    had = beside(whole, views)
    # The workers have 11 examples each, in batches of 4, 4 and 3; the last is not divisible.
    odd = {"batch_size=None": [True, False, True], "workers' stream": [True] * 4 + [False] * 2}
    assert had == 2 * odd.get(kind, [True] * 6)
    if "pipe" not in kind:  # where nobody knows them
        counts = {"batch_size=None": 3, "workers' stream": 4 * 2 + 2 * 3}
        assert {view.stats().examples for view in views} == {2 * counts.get(kind, 11)}
    assert "Whole batches are loaded and cut into 2 shards: " in str(views[0].plan())
    assert "into" not in str(whole.plan())


def test_with_a_cache_all_parts_know_all_examples_after_the_same_epoch():
    def make():
        return NumpyLoader(Deterministic(), 4, True, seed=2, cache=True)

    whole, views = make(), parts_of(make, 2)
    beside(whole, views, epochs=1)
    assert [view.plan().name for view in views] == ["resident"] * 2
    assert beside(whole, views, epochs=1) == [True] * 6


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["resident", "streamed", "stream"])
def test_a_position_of_two_parts_is_one_for_any_number_of_them(kind, parts):
    def make():
        return WHOLE["stream"]() if kind == "stream" else loader_of(kind)

    two = make().shard(1, 2)
    epoch = iter(two)
    next(epoch), next(epoch)
    state = json.loads(json.dumps(two.state_dict()))
    assert state["examples"] == 8

    def go_on():
        loader = make()
        loader.load_state_dict(state)
        return loader

    def view_goes_on(part):
        loader = make().shard(part, parts)
        loader.load_state_dict(state)
        return loader

    expected = list(make())[2:]
    for batch, wanted in zip(go_on(), expected, strict=True):
        same(batch, wanted)
    beside(go_on(), [view_goes_on(part) for part in range(parts)])
    beside(go_on(), parts_of(go_on, parts))  # a view of a loader that goes on does so too


@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_the_examples_in_order_are_shared_by_columns_too(plan):
    def make():
        loader = loader_of(plan)
        assert len(list(loader.sequential())) == 6  # whole ones, before its columns are asked for
        return loader

    whole, views = loader_of(plan, drop_last=True), parts_of(make, 2)
    for _ in range(2):
        had = beside(whole.sequential(), [view.sequential() for view in views], epochs=1)
        assert had == [True] * 6
    assert not any(view.stats().batches for view in views)
    assert views[0].sequential() is views[0].sequential()


def test_a_resident_loaders_index_batches_stay_whole():
    view = loader_of("resident").shard(1, 2)
    assert len(next(iter(view))[1]) == 2
    assert view.has_part
    indices = [batch.tolist() for batch in view.index_batches()]
    assert [len(batch) for batch in indices] == [4] * 5 + [2]
    assert not view.has_part
    assert view.stats().examples == 2 + COUNT
    whole = loader_of("resident")
    whole.set_epoch(1)
    assert indices == [batch.tolist() for batch in whole.index_batches()]


def test_a_view_stands_apart_from_its_loader():
    loader = NumpyLoader(Drawn(), 4, True)
    view = loader.shard(0, 2, seed=9)
    assert (loader.seed, view.seed, view.dataset is loader.dataset) == (None, 9, True)
    first = [batch["y"].tolist() for batch in view]
    assert loader.state_dict()["epoch"] == 0
    assert loader.stats().batches == 0
    assert not loader.has_part
    whole = NumpyLoader(Drawn(), 4, True, seed=9)
    assert [batch["y"].tolist() for batch in view.shard(0, 1)] != first
    again = whole.shard(1, 2).shard(0, 2, seed=4)  # parts of the whole, not of a part
    assert ([batch["y"].tolist() for batch in again], again.seed) == (first, 9)
    assert not NumpyLoader(Drawn(), 4).shard(0, 1).seed  # alone it needs none
    assert loader.shard(0, 2, seed=9).plan().name == "streamed"


def test_examples_without_leaves_are_their_own_parts():
    class Nothing(Drawn):
        def __getitem__(self, index):
            return {}

    def collate(examples):
        return {}

    assert list(NumpyLoader(Nothing(4), 4, seed=0, collate_fn=collate).shard(0, 2)) == [{}]
    assert list(NumpyLoader(Nothing(4), 4, seed=0).shard(0, 2)) == [{}]


@pytest.mark.parametrize(
    ("loader", "asked", "words"),
    [
        ({}, (2, 2), "NumpyLoader: the index of a shard must be 0 to 1, and the count at least "
         "1, and it is shard 2 of 2; give this process's index and the number of processes"),
        ({}, (0, 0), "NumpyLoader: the index of a shard must be 0 to 0, and the count at least "
         "1, and it is shard 0 of 0; give this process's index and the number of processes"),
        ({"seed": None}, (0, 2), "NumpyLoader: all shards must come from one order and the same "
         "random numbers, and this loader has no seed; give it one, or give shard one"),
        ({"in_order": False}, (0, 2), "NumpyLoader: all shards must come from the same batches in "
         "the same order, and this loader has in_order=False; leave it out"),
        ({"sampler": DistributedSampler(range(COUNT), 3, 0)}, (0, 2), "NumpyLoader: a shard is "
         "cut from whole batches, and this loader's DistributedSampler already shares out the "
         "examples by 3; leave out either the sampler or the shard"),
    ],
)  # fmt: skip
def test_parts_that_may_be_of_other_batches_are_refused(loader, asked, words):
    with pytest.raises(PlanError) as error:
        NumpyLoader(Drawn(), 4, **{"seed": 1} | loader).shard(*asked)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("collate", "found"),
    [
        (lambda examples: (np.zeros((4, 2)), np.zeros(3)), "4, 3"),
        (lambda examples: {"x": np.zeros((4, 2)), "mean": np.float32(1)}, "4, none"),
        (lambda examples: [1, 2, 3, 4], "none"),
        (lambda examples: np.array(0.5), "none"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(collate, found):
    with pytest.raises(ExampleError) as error:
        list(NumpyLoader(Drawn(), 4, collate_fn=collate, seed=1).shard(0, 2))
    assert str(error.value) == (
        "NumpyLoader: to be cut into shards, a batch must consist of arrays and lists of text with "
        f"a row for each example, and their rows are {found}; let the collate_fn or the dataset "
        "make it so"
    )


def test_an_error_in_a_worker_names_the_example_of_the_whole_batch():
    class Breaks(Drawn):
        def __getitem__(self, index):
            if index == 7:
                raise KeyError("lost")
            return index

    loader = NumpyLoader(Breaks(), 4, seed=1)
    assert [batch.tolist() for batch in loader.shard(0, 2)][1] == [4, 5]
    with pytest.raises(KeyError) as error:
        list(loader.shard(1, 2))
    assert error.value.__notes__ == ["while loading example 7"]
    ragged = NumpyLoader([np.zeros(2 + (i == 7)) for i in range(8)], 4, seed=1).shard(1, 2)
    with pytest.raises(ExampleError, match=r"is \(2,\) in example 6 but \(3,\) in example 7"):
        list(ragged)


def test_columns_is_another_name_of_shard():
    loader = NumpyLoader(range(9), 4)
    shard, same = loader.shard(1, 2, seed=3), loader.columns(1, 2, seed=3)
    assert [x.tolist() for x in shard] == [x.tolist() for x in same]


def test_a_longer_dataset_is_another_one_within_an_epoch():
    def loader(count, **more):
        return NumpyLoader(ArrayDataset(np.arange(count), np.arange(count)), 4, **more)

    original = loader(20)
    next(iter(original))
    state = original.state_dict()
    longer = loader(24)
    longer.load_state_dict(state)
    with pytest.raises(PositionError) as error:
        list(longer)
    assert str(error.value) == (
        "NumpyLoader: to resume within an epoch the dataset must be as long as it was when the "
        "position was saved, 20, and it has 24 examples; give the loader the same dataset"
    )
    del state["length"]  # as it was saved when nobody looked at it
    longer.load_state_dict(state)
    assert len(list(longer)) == 5
    list(original)
    longer.load_state_dict(original.state_dict())  # between two epochs a dataset may grow
    assert len(list(longer)) == 6


class Worker(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, os.getpid(), random.random()


@pytest.mark.parametrize("persistent", [False, True])
def test_the_examples_in_order_keep_their_workers_where_the_loader_does(persistent):
    loader = NumpyLoader(Worker(), 2, True, num_workers=1, persistent_workers=persistent, seed=1)
    told = []
    for _ in range(2):
        told.append([numpy_collate(batch) for batch in loader.sequential()])
        next(iter(loader.sequential()))  # an evaluation that is broken off
    first, second = (np.concatenate(batches, axis=1) for batches in told)
    assert first[0].tolist() == second[0].tolist() == list(range(8))
    assert first[2].tobytes() == second[2].tobytes()
    assert (set(first[1]) == set(second[1])) is persistent


def test_the_examples_in_order_begin_with_the_first_wherever_the_loader_goes_on():
    loader = loader_of("resident")
    next(iter(loader))
    resumed = loader_of("resident")
    resumed.load_state_dict(loader.state_dict())
    assert np.concatenate([y for _, y in resumed.sequential()]).tolist() == list(range(COUNT))
    assert len(list(resumed)) == 5
