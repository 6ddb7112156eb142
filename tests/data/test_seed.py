"""A loader with a seed: its order, and random states that belong to each example."""

import itertools
import random

import numpy as np
import pytest
import torch
from helpers import bits, draw, slow, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from feedax.data import ArrayDataset, NumpyLoader, numpy_collate
from feedax.data.randomness import seed_random
from feedax.errors import PlanError

COUNT = 21
PLANS = ["resident", "vectorised", "streamed"]


class Drawn(Dataset):
    """Examples that draw from all three random states, and more often for some."""

    def __init__(self, count=COUNT):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        for _ in range(index % 3):
            draw()
        return np.array([index, *draw()])


class DrawnAtOnce(Drawn):
    """The same, a whole batch by one call."""

    def __getitems__(self, indices):
        return [np.array([index, *draw()]) for index in indices]


class Named(Drawn):
    """Examples with names."""

    def __getitem__(self, name):
        assert isinstance(name, str)
        return np.array([*draw()])


def told(dataset=None, epochs=2, **arguments):
    """Every batch of some epochs, bit for bit."""
    data = Drawn() if dataset is None else dataset
    loader = NumpyLoader(data, **{"batch_size": 4, "seed": 3} | arguments)
    return [[bits(batch) for batch in loader] for _ in range(epochs)]


def all_states():
    """The caller's random states, to compare."""
    numpys = np.random.get_state()
    return random.getstate(), numpys[1].tobytes(), numpys[2:], torch.get_rng_state().tolist()


class Lazy:
    """A sampler that draws each index from the three global states in turn."""

    def __iter__(self):
        for number in range(30):
            index = int(COUNT * draw()[number % 3])
            yield index

    def __len__(self):
        return 30


class Eager:
    """A sampler that draws all indices as soon as it is asked."""

    def __iter__(self):
        return iter([*torch.randperm(COUNT).tolist(), *np.random.permutation(COUNT).tolist()])

    def __len__(self):
        return 2 * COUNT


class Batches:
    """A batch sampler that draws its batches, and their sizes."""

    def __iter__(self):
        for _ in range(6):
            yield [random.randrange(COUNT) for _ in range(np.random.randint(1, 5))]

    def __len__(self):
        return 6


ORDERS = {
    "shuffle": lambda: {"shuffle": True},
    "in order": dict,
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.arange(1.0, COUNT + 1), 30)},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(3, 19))},
    "replacement": lambda: {"sampler": RandomSampler(range(COUNT), True, 70)},
    "lazy": lambda: {"sampler": Lazy()},
    "eager": lambda: {"sampler": Eager()},
    "batches": lambda: {"batch_sampler": Batches(), "batch_size": 1},
    "no batches": lambda: {"sampler": Eager(), "batch_size": None},
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_seed_alone_decides_the_batches(order):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = told(**ORDERS[order](), epochs=3)
    for global_seed in (2, 3):
        random.seed(global_seed), np.random.seed(global_seed), torch.manual_seed(global_seed)
        assert told(**ORDERS[order](), epochs=3) == expected
    assert told(**ORDERS[order](), seed=4) != expected[:2]
    firsts = [epoch[0] for epoch in expected]
    assert all(a != b for a, b in itertools.combinations(firsts, 2))


@pytest.mark.parametrize(
    "order",
    slow_but(["shuffle", "batches"], ["weighted", "lazy", "eager", "no batches"]),
)
def test_workers_give_the_bytes_of_this_process(order):
    expected = told(**ORDERS[order]())
    persistent = order in ("shuffle", "batches")
    assert told(**ORDERS[order](), num_workers=2, persistent_workers=persistent) == expected


@pytest.mark.parametrize("dataset", [DrawnAtOnce, slow(Drawn)])
def test_any_number_of_workers(dataset):
    expected = told(dataset(), shuffle=True)
    assert told(dataset(), shuffle=True, num_workers=1) == expected
    assert told(dataset(), shuffle=True, num_workers=2, prefetch_factor=1) == expected


@pytest.mark.slow
def test_workers_that_are_spawned():
    expected = told(shuffle=True)
    ours = told(
        shuffle=True, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
    )
    assert ours == expected


def test_examples_with_names():
    names = [f"example {number}" for number in range(10)]
    assert len({batch[0][2] for batch in told(Named(10), sampler=names, batch_size=1)[0]}) == 10
    expected = told(Named(10), sampler=names)
    assert told(Named(10), sampler=names, num_workers=2) == expected
    assert told(Named(10), sampler=names[::-1]) != expected


@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"no batches"}))
def test_every_plan_has_the_seeds_order(order):
    data = ArrayDataset(np.arange(2.0 * COUNT).reshape(COUNT, 2), np.arange(COUNT))
    expected = told(data, **ORDERS[order](), plan="streamed")
    for plan, workers in itertools.product(PLANS[:2], (0, 2)):
        assert told(data, **ORDERS[order](), plan=plan, num_workers=workers) == expected


def test_an_example_has_the_random_states_of_its_place():
    [batches] = told(batch_size=1, shuffle=True, epochs=1, seed=11)
    for position, [(_, _, data)] in enumerate(batches):
        index, *drawn = np.frombuffer(data)
        seed_random(11, 0, position, int(index))
        for _ in range(int(index) % 3):
            draw()
        assert tuple(drawn) == draw()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(*[st.integers(0, 2**63 - 1)] * 4), min_size=2, max_size=2, unique=True))
def test_other_places_have_other_random_states(places):
    drawn = []
    for place in places:
        seed_random(*place)
        drawn.append(draw())
    for a, b in zip(*drawn, strict=True):
        assert a != b


@pytest.mark.parametrize("index", [5, np.int64(5), torch.tensor(5), np.uint8(5)], ids=repr)
def test_an_index_of_any_kind_has_the_seed_of_its_number(index):
    seed_random(1, 2, 3, 5)
    expected = draw()
    seed_random(1, 2, 3, index)
    assert draw() == expected


def test_an_example_drawn_twice_in_an_epoch_is_not_the_same_twice():
    [first, second] = told(sampler=[6] * 8, batch_size=1)
    seen = [batch[0][2] for batch in first + second]
    assert len(set(seen)) == 16


@pytest.mark.parametrize("plan", PLANS)
def test_the_epoch_is_counted_or_set(plan):
    data = ArrayDataset(np.arange(COUNT), np.arange(COUNT))
    expected = told(data, epochs=4, shuffle=True, plan=plan)
    loader = NumpyLoader(data, 4, True, seed=3, plan=plan)
    assert [bits(batch) for batch in loader] == expected[0]
    loader.set_epoch(3)
    assert [bits(batch) for batch in loader] == expected[3]
    loader.set_epoch(1)
    assert [bits(batch) for batch in loader] == expected[1]
    assert [bits(batch) for batch in loader] == expected[2]
    next(iter(loader))
    loader.set_epoch(0)
    assert [bits(batch) for batch in loader] == expected[0]


@pytest.mark.parametrize("persistent", [False, True])
def test_the_epoch_travels_to_workers_with_the_indices(persistent):
    expected = told(epochs=4, shuffle=True)
    loader = NumpyLoader(Drawn(), 4, True, num_workers=1, persistent_workers=persistent, seed=3)
    epochs = [0, 1, 3] if persistent else [0, 3]
    for epoch in epochs:
        loader.set_epoch(epoch)
        assert [bits(batch) for batch in loader] == expected[epoch]
    loader.set_epoch(1)
    next(iter(loader))  # an epoch broken off counts
    assert [bits(batch) for batch in loader] == expected[2]


class Broken(Drawn):
    def __getitem__(self, index):
        if index == 2:
            draw()
            raise ValueError("broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("order", ["shuffle", "in order", "lazy", "eager", "no batches"])
def test_the_caller_has_its_random_states_back_after_every_batch(order):
    loader = NumpyLoader(Drawn(), **{"batch_size": 4, "seed": 3} | ORDERS[order]())
    before = all_states()
    for _batch in loader:
        assert all_states() == before
    with pytest.raises(ValueError, match=r"^broken"):
        list(NumpyLoader(Broken(), seed=3))
    assert all_states() == before


def test_the_callers_own_draws_between_batches_change_nothing():
    loader = NumpyLoader(Drawn(), batch_size=4, sampler=Lazy(), seed=3)
    expected = [bits(batch) for batch in loader]
    loader.set_epoch(0)
    random.seed(8)
    ours = [random.random() for _ in range(8)]
    random.seed(8)
    between, batches = [], []
    for batch in loader:
        batches.append(bits(batch))
        between.append(random.random())
    assert batches == expected
    assert between == ours


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        shift = draw()[0]
        for number in range(9 if info is None else 5 - info.id):
            yield np.array([number, shift, *draw()])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_seeded_by_seed_epoch_and_worker(workers):
    expected = told(Stream(), epochs=3, num_workers=workers)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    persistent = workers > 0
    again = told(Stream(), epochs=3, num_workers=workers, persistent_workers=persistent)
    assert again == expected
    assert told(Stream(), epochs=1, num_workers=workers, seed=4) != expected[:1]
    assert len({batch[0][2] for epoch in expected for batch in epoch}) == sum(map(len, expected))
    loader = NumpyLoader(Stream(), 4, num_workers=workers, seed=3, persistent_workers=persistent)
    for epoch in (0, 2):
        loader.set_epoch(epoch)
        assert [bits(batch) for batch in loader] == expected[epoch]


def test_a_stream_gives_the_caller_its_random_states_back():
    before = all_states()
    for _batch in NumpyLoader(Stream(), 2, seed=1):
        assert all_states() == before
        random.random(), np.random.random(), torch.rand(())
        before = all_states()


class Counted(DistributedSampler):
    """It remembers which epochs it was told."""

    def __init__(self):
        super().__init__(range(COUNT), num_replicas=2, rank=0)
        self.told = []

    def set_epoch(self, epoch):
        self.told.append(epoch)
        super().set_epoch(epoch)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_a_distributed_sampler_is_told_the_epoch(plan, batched):
    data = ArrayDataset(np.arange(COUNT), np.arange(COUNT))

    def loader(seed):
        sampler = Counted()
        order = {"sampler": sampler, "batch_size": 4}
        if batched:
            order = {"batch_sampler": BatchSampler(sampler, 4, False)}
        return sampler, NumpyLoader(data, plan=plan, seed=seed, **order)

    sampler, ours = loader(7)
    [first, second] = [np.concatenate([y for _, y in ours]).tolist() for _ in range(2)]
    ours.set_epoch(5)
    next(iter(ours))
    assert sampler.told == [0, 1, 5]
    for epoch, indices in ((0, first), (1, second)):
        theirs = Counted()
        theirs.set_epoch(epoch)
        assert indices == list(theirs)
    assert first != second
    sampler, ours = loader(None)
    list(ours), list(ours)
    assert sampler.told == []  # as torch does


def test_a_seed_and_a_generator_are_one_too_many():
    with pytest.raises(PlanError) as error:
        NumpyLoader(Drawn(), seed=0, generator=torch.Generator())
    assert str(error.value) == (
        "NumpyLoader: either seed or generator must decide the order, and both are given; leave "
        "one of them out"
    )


def mixed(batch):
    """A collate function that draws, too."""
    return np.stack([np.append(example, draw()) for example in batch])


def test_a_collate_function_draws_the_same_anywhere():
    expected = told(collate_fn=mixed, shuffle=True)
    assert told(collate_fn=mixed, shuffle=True, num_workers=2) == expected


def test_without_a_seed_examples_draw_as_in_torchs_loader():
    def epochs(cls, **arguments):
        torch.manual_seed(4), random.seed(4), np.random.seed(4)
        loader = cls(Drawn(), 4, True, **arguments)
        return [bits(batch) for _ in range(2) for batch in loader], all_states()

    assert epochs(NumpyLoader) == epochs(DataLoader, collate_fn=numpy_collate)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 30), st.integers(1, 8), st.booleans(), st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 2**40), st.sampled_from(sorted(ORDERS)),
)  # fmt: skip
def test_any_seeded_epoch_is_the_same_again(count, size, drop_last, seed, epoch, order):
    def batches():
        arguments = {"shuffle": True}
        if order in ("shuffle", "in order"):
            arguments = ORDERS[order]()
        loader = NumpyLoader(Drawn(count), size, drop_last=drop_last, seed=seed, **arguments)
        loader.set_epoch(epoch)
        draw()
        return [bits(batch) for batch in loader]

    assert batches() == batches()
