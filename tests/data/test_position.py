"""A loader's position: saved as JSON, and gone on from to the bit."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from helpers import bits, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from feedax.data import ArrayDataset, NumpyLoader
from feedax.errors import PositionError

COUNT = 118  # 30 batches of 4, the last one of 2
PLANS = ["resident", "vectorised", "streamed"]


def numbered(count: int = COUNT) -> ArrayDataset:
    """Examples whose target is their index."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 2), np.uint8)
    return ArrayDataset(pixels, np.arange(count))


class Drawn(Dataset):
    """Examples that draw from all three random states."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        drawn = random.random(), np.random.random(), float(torch.rand(()))
        return np.array([index, *drawn])


def indices(batch):
    return np.asarray(batch[1] if isinstance(batch, list | tuple) else batch).ravel().tolist()


def saved(loader):
    """The loader's state, after its journey through a file."""
    state = loader.state_dict()
    text = json.dumps(state)
    assert json.loads(text) == state
    return json.loads(text)


def seeded(plan="streamed", workers=0, dataset=None, **arguments):
    data = numbered() if dataset is None else dataset
    arguments = {"batch_size": 4, "shuffle": True, "seed": 7} | arguments
    return NumpyLoader(data, plan=plan, num_workers=workers, **arguments)


def walk(loader, epochs=1):
    """The state before each batch of some epochs and after the last, and all batches."""
    states, batches = [saved(loader)], []
    for _ in range(epochs):
        for batch in loader:
            batches.append(bits(batch))
            states.append(saved(loader))
    return states, batches


def rest(loader, state, epochs=1):
    """What comes after a position: the rest of its epoch, then others."""
    loader.load_state_dict(state)
    return [bits(batch) for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_each_of_30_batches_is_a_place_to_go_on_from(plan, workers):
    states, batches = walk(seeded(plan, workers))
    assert len(batches) == 30
    for place, state in enumerate(states):
        assert (state["batches"], state["examples"]) == (place, min(4 * place, COUNT))
        assert len(json.dumps(state)) < 500
        if plan == "streamed" and workers and place % 5 not in (0, 1):
            continue  # workers take their time to start
        assert rest(seeded(plan, workers), state) == batches[place:], place


OWN = {
    "shuffle": lambda g: {"shuffle": True, "generator": g},
    "subset": lambda g: {"sampler": SubsetRandomSampler(range(COUNT), g), "generator": g},
    "weighted": lambda g: {"sampler": WeightedRandomSampler(torch.ones(COUNT), 118, generator=g)},
    "replacement": lambda g: {
        "sampler": RandomSampler(range(COUNT), replacement=True, num_samples=118, generator=g)},
}  # fmt: skip


@pytest.mark.parametrize("order", OWN)
@pytest.mark.parametrize("plan", PLANS)
def test_each_of_30_batches_with_torchs_samplers_and_the_global_random_state(plan, order):
    torch.manual_seed(1)
    states, batches = walk(NumpyLoader(numbered(), 4, plan=plan, **OWN[order](None)))
    for place, state in enumerate(states[1:], 1):  # before the first nothing is drawn yet
        torch.manual_seed(place)
        loader = NumpyLoader(numbered(), 4, plan=plan, **OWN[order](None))
        assert rest(loader, state) == batches[place:], place


@pytest.mark.parametrize("order", OWN)
@pytest.mark.parametrize(
    ("plan", "workers", "persistent"),
    [("resident", 0, False), ("vectorised", 2, False), ("resident", 2, True),
     ("streamed", 0, False)],
)  # fmt: skip
def test_with_a_generator_of_ones_own_later_epochs_are_right_too(plan, workers, persistent, order):
    def loader(seed):
        return NumpyLoader(
            numbered(), 16, plan=plan, num_workers=workers, persistent_workers=persistent,
            **OWN[order](torch.Generator().manual_seed(seed)),
        )  # fmt: skip

    original = loader(1)
    states, batches = walk(original, epochs=3)
    states[8] = states[16] = None  # the batches that end an epoch: see the next test
    for place, state in enumerate(states):
        if state is not None:
            assert rest(loader(2), state, 3)[: len(batches) - place] == batches[place:], place


@pytest.mark.parametrize("own", [{"seed": 3}, {}], ids=["seed", "generator"])
@pytest.mark.parametrize(
    ("plan", "workers", "persistent"),
    [("resident", 0, False), ("resident", 2, False), ("vectorised", 2, True),
     ("streamed", 0, False), ("streamed", 2, True)],
)  # fmt: skip
def test_a_position_between_epochs(plan, workers, persistent, own):
    def loader(seed):
        arguments = own or {"generator": torch.Generator().manual_seed(seed)}
        return NumpyLoader(
            numbered(), 32, True, plan=plan, num_workers=workers, persistent_workers=persistent,
            **arguments,
        )  # fmt: skip

    original = loader(5)
    before = saved(original)
    epoch = iter(original)
    begun = saved(original)
    first = [bits(next(epoch)) for _ in range(4)]
    after_last = saved(original)
    assert next(epoch, None) is None
    ended = saved(original)
    assert (after_last["epoch"], ended["epoch"], ended["batches"]) == (0, 1, 0)
    second = [bits(batch) for batch in original]
    assert first != second
    resumed = loader(6)
    assert rest(resumed, before, 2) == first + second
    assert rest(resumed, begun, 2) == first + second
    assert rest(resumed, after_last) == []
    assert [bits(batch) for batch in resumed] == second
    assert rest(resumed, ended) == second


@pytest.mark.parametrize("own", [{"seed": 3}, {}], ids=["seed", "generator"])
@pytest.mark.parametrize("plan", ["vectorised", "streamed"])
def test_a_position_after_a_break(plan, own):
    def loader(seed):
        arguments = own or {"generator": torch.Generator().manual_seed(seed)}
        return NumpyLoader(numbered(), 32, True, plan=plan, **arguments)

    original = loader(5)
    for number, _batch in enumerate(original):
        if number == 1:
            break
    state = saved(original)
    assert (state["epoch"], state["batches"]) == (0, 2)
    whole = [bits(batch) for batch in loader(5)]
    assert rest(loader(6), state) == whole[2:]


def test_a_state_is_handed_on_until_batches_are_wanted():
    original = seeded()
    assert saved(original) == saved(original)
    next(iter(original))
    state = saved(original)
    resumed = seeded()
    resumed.load_state_dict(state)
    resumed.load_state_dict(saved(resumed))
    assert saved(resumed) == saved(resumed) == state
    epoch = iter(resumed)
    assert saved(resumed) == state
    next(epoch)
    assert saved(resumed)["batches"] == 2


def test_a_saved_state_and_a_loaded_one_are_nobody_elses():
    loader = seeded(sampler=Stateful(), shuffle=None)
    next(iter(loader))
    state = loader.state_dict()
    expected = json.dumps(state)
    state["sampler"]["drawn"] = 99
    assert json.dumps(loader.state_dict()) == expected
    state = json.loads(expected)
    loader.load_state_dict(state)
    state["sampler"]["drawn"] = 99
    assert json.dumps(loader.state_dict()) == expected


@pytest.mark.parametrize("dataset", [Drawn, slow(numbered)])
def test_with_a_seed_any_plan_and_any_workers_go_on_from_any_other(dataset):
    slow, fast = [("streamed", 0), ("streamed", 2)], [("vectorised", 0), ("resident", 2)]
    pairs = [*itertools.permutations(slow + fast * (dataset is numbered), 2)]
    expected = walk(seeded(dataset=dataset()), epochs=2)[1]
    for first, second in pairs:
        original = seeded(*first, dataset=dataset())
        epoch = iter(original)
        told = [bits(next(epoch)) for _ in range(13)]
        between = seeded(*second, dataset=dataset())
        between.load_state_dict(saved(original))
        epoch = iter(between)
        told += [bits(next(epoch)) for _ in range(9)]  # more than workers draw ahead
        told += rest(seeded(*first, dataset=dataset()), saved(between), epochs=2)
        assert told == expected, (first, second)


def test_with_a_seed_the_caller_sees_nothing_of_a_resume():
    original = seeded(sampler=Lazy(), shuffle=None)
    next(iter(original))
    resumed = seeded(sampler=Lazy(), shuffle=None)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert len(rest(resumed, saved(original))) == 29
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


class Lazy:
    """A sampler without a state that draws each index from one of the global states."""

    def __init__(self, count=COUNT):
        self.count = count

    def __iter__(self):
        for number in range(self.count):
            yield (
                random.randrange(COUNT),
                int(np.random.randint(COUNT)),
                int(torch.randint(COUNT, ())),
            )[number % 3]

    def __len__(self):
        return self.count


class Rows:
    """A batch sampler without a state, with batches of its own sizes and kinds."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        for number in range(12):
            yield self.kind(torch.randperm(COUNT)[: number % 3 + 1].tolist())

    def __len__(self):
        return 12


class Stateful:
    """A sampler with a state of its own: how far it is in an order that nobody else knows."""

    def __init__(self, order=None):
        self.order = torch.randperm(COUNT).tolist() if order is None else order
        self.drawn = 0

    def __iter__(self):
        while self.drawn < COUNT:
            self.drawn += 1
            yield self.order[self.drawn - 1]
        self.drawn = 0

    def __len__(self):
        return COUNT

    def state_dict(self):
        return {"order": self.order, "drawn": self.drawn}

    def load_state_dict(self, state):
        self.order, self.drawn = state["order"], state["drawn"]


class Drawing:
    """A sampler that keeps a NumPy generator under the name that torch has for its own."""

    def __init__(self, seed=3):
        self.generator = np.random.default_rng(seed)
        self.order = self.generator.permutation(COUNT).tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return COUNT


SAMPLERS = {
    "lazy": lambda: {"sampler": Lazy(), "batch_size": 10},
    "list": lambda: {"sampler": [5, 3, 3, -1] * 9, "batch_size": 3},
    "numpy generator": lambda: {"sampler": Drawing(), "batch_size": 10},
    "distributed": lambda: {
        "sampler": DistributedSampler(range(COUNT), num_replicas=2, rank=1), "batch_size": 5},
    "lists": lambda: {"batch_sampler": Rows(list)},
    "tensors": lambda: {"batch_sampler": Rows(torch.tensor)},
    "arrays": lambda: {"batch_sampler": Rows(np.array)},
    "iterators": lambda: {"batch_sampler": Rows(iter)},
    "mappings": lambda: {"batch_sampler": Rows(dict.fromkeys)},
}  # fmt: skip


@pytest.mark.parametrize("own", [{}, {"seed": 1}], ids=["", "seed"])
@pytest.mark.parametrize(("plan", "workers"), [("resident", 0), ("vectorised", 2), ("streamed", 0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_without_a_state_is_asked_again(sampler, plan, workers, own):
    def loader():
        return NumpyLoader(numbered(), plan=plan, num_workers=workers, **SAMPLERS[sampler](), **own)

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    states, batches = walk(loader())
    assert len(batches) == len(loader())
    for place in (1, 2, len(batches) - 1, len(batches)):
        random.seed(4)
        np.random.seed(5)
        torch.manual_seed(6)
        assert rest(loader(), states[place]) == batches[place:], place


OTHER = (
    "NumpyLoader: to resume from a saved position the sampler must yield the indices that it "
    "yielded then, and its first 3 batches differ; give the loader the same dataset and "
    "arguments, or the sampler a state_dict of its own"
)


@pytest.mark.parametrize("plan", ["resident", "streamed"])
@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"sampler": list(range(20))}, {"sampler": [*range(11), 12, 11, *range(13, 20)]}),
        ({"sampler": list(range(20))}, {"sampler": list(range(11))}),
        ({"sampler": list(range(20))}, {"sampler": []}),
        ({"batch_sampler": [[0, 1]] * 5}, {"batch_sampler": [[0, 1, 0]] * 5}),
        ({"shuffle": True, "seed": 1}, {"shuffle": True, "seed": 1, "dataset": numbered(119)}),
        ({"shuffle": True, "seed": 1}, {"shuffle": False, "seed": 1}),
        ({"shuffle": True, "seed": 1}, {"shuffle": True, "seed": 1, "batch_size": 3}),
    ],
    ids=["order", "shorter", "empty", "sizes", "another length", "not shuffled", "batch_size"],
)
def test_other_indices_are_refused(plan, then, now):
    def loader(dataset=None, **arguments):
        size = {} if "batch_sampler" in arguments else {"batch_size": 4}
        return NumpyLoader(dataset or numbered(), plan=plan, **size | arguments)

    original = loader(**then)
    epoch = iter(original)
    for _ in range(3):
        next(epoch)
    resumed = loader(**now)
    resumed.load_state_dict(saved(original))
    with pytest.raises(PositionError) as error:
        list(resumed)
    assert str(error.value) == OTHER
    resumed.set_epoch(0)  # the loader itself is in order
    assert len(list(resumed)) == len(resumed)


@pytest.mark.parametrize("own", [{}, {"seed": 1}], ids=["", "seed"])
@pytest.mark.parametrize(("plan", "workers"), [("resident", 0), ("vectorised", 2), ("streamed", 0)])
def test_a_samplers_own_state_is_saved_and_given_back(plan, workers, own):
    def loader(order=None):
        return NumpyLoader(
            numbered(), 10, sampler=Stateful(order), plan=plan, num_workers=workers, **own
        )

    states, batches = walk(loader(), epochs=2)
    for place, state in enumerate(states):
        if place == 12:  # the first epoch's last batch: the sampler's position is its end
            continue
        told = rest(loader(list(range(COUNT))), state, 2)
        assert told[: len(batches) - place] == batches[place:], place


class Counting(Dataset):
    loaded = 0

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        self.loaded += 1
        return index


@pytest.mark.parametrize("size", [1, 128, None])
def test_skipping_loads_no_example(size):
    original = seeded(dataset=Counting(), batch_size=size)
    epoch = iter(original)
    for _ in range(70):
        next(epoch)
    data = Counting()
    resumed = seeded(dataset=data, batch_size=size)
    resumed.load_state_dict(saved(original))
    epoch = iter(resumed)
    assert data.loaded == 0
    batch = next(epoch)
    assert data.loaded == np.size(batch)
    assert rest(seeded(dataset=data, batch_size=size), saved(original))[0] == bits(batch)


BAD = {
    "no dict": (lambda state: [1], "'[1]'"),
    "nothing": (lambda state: {}, "'{}'"),
    "a key is missing": (lambda state: {k: v for k, v in state.items() if k != "epoch"}, None),
    "text for a number": (lambda state: state | {"batches": "3"}, None),
    "a bool for a number": (lambda state: state | {"batches": True}, None),
    "below zero": (lambda state: state | {"examples": -1}, None),
    "random states that are none": (lambda state: state | {"random": {"torch": "xyz"}}, None),
    "random states of another kind": (lambda state: state | {"random": [1]}, None),
    "another version": (
        lambda state: state | {"version": 2},
        "NumpyLoader: load_state_dict knows states of version 1, and this one is of version 2; "
        "load it with the feedax that saved it",
    ),
    "no version": (
        lambda state: {k: v for k, v in state.items() if k != "version"},
        "NumpyLoader: load_state_dict knows states of version 1, and this one is of version None; "
        "load it with the feedax that saved it",
    ),
    "another seed": (
        lambda state: state | {"seed": 8},
        "NumpyLoader: a position belongs to the seed it was saved with, 8, and this loader has "
        "seed=7; make the loader with the same one",
    ),
    "no seed": (
        lambda state: {k: v for k, v in state.items() if k != "seed"},
        "NumpyLoader: a position belongs to the seed it was saved with, None, and this loader has "
        "seed=7; make the loader with the same one",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_state_is_refused_and_the_loader_stays_as_it_was(bad):
    spoil, told = BAD[bad]
    expected = walk(seeded())[1]
    loader = seeded()
    epoch = iter(loader)
    batches = [bits(next(epoch)) for _ in range(3)]
    before = saved(loader)
    state = spoil(before)
    with pytest.raises(PositionError) as error:
        loader.load_state_dict(state)
    if told is None or not told.startswith("NumpyLoader"):
        told = (
            "NumpyLoader: load_state_dict must get what state_dict returned, and it got "
            f"{str(state)[:60]!r}; save the whole dict, as JSON for example"
        )
    assert str(error.value) == told
    assert saved(loader) == before
    assert batches + [bits(batch) for batch in epoch] == expected
    assert saved(loader)["epoch"] == 1


def test_out_of_order_batches_have_no_position():
    loader = NumpyLoader(numbered(), num_workers=2, in_order=False, plan="vectorised")
    why = (
        "NumpyLoader: a position needs batches in the sampler's order, and this loader has "
        "in_order=False; leave it out"
    )
    assert saved(loader) == {"version": 1, "cannot_tell": why}
    list(loader)
    before = vars(loader).copy()
    with pytest.raises(PositionError) as error:
        loader.load_state_dict(saved(loader))
    assert str(error.value) == (
        "NumpyLoader: load_state_dict must get a position, and the loader that saved this one "
        f"could not tell its own ({why}); begin the epoch anew"
    )
    assert vars(loader) == before


class Shards(IterableDataset):
    """Unequal shards, one for each worker; its examples are drawn, too."""

    sizes = (5, 17)

    def __iter__(self):
        info = get_worker_info()
        workers = range(len(self.sizes)) if info is None else [info.id]
        for worker in workers:
            for number in range(self.sizes[worker]):
                drawn = random.random(), np.random.random(), float(torch.rand(()))
                yield np.array([100 * worker + number, *drawn])


class Longer(Shards):
    sizes = (13, 4)


class Resumable(Shards):
    """The same with a position of its own: nothing is read again."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        info = get_worker_info()
        workers = range(len(self.sizes)) if info is None else [info.id]
        names = [100 * w + number for w in workers for number in range(self.sizes[w])]
        while self.position < len(names):
            self.position += 1
            drawn = random.random(), np.random.random(), float(torch.rand(()))
            yield np.array([names[self.position - 1], *drawn])
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


ALONE, KEPT, DROPPED = {"batch_size": None}, {"batch_size": 3}, {"batch_size": 3, "drop_last": True}


@pytest.mark.parametrize(
    ("dataset", "workers", "arguments"),
    [(Shards, 0, KEPT), slow(Shards, 2, KEPT), (Longer, 2, DROPPED), (Resumable, 0, ALONE),
     (Resumable, 0, DROPPED), (Resumable, 2, KEPT), slow(Resumable, 2, ALONE)],
)  # fmt: skip
def test_a_stream_goes_on_in_each_worker(dataset, workers, arguments):
    def loader():
        return NumpyLoader(dataset(), num_workers=workers, seed=5, **arguments)

    states, batches = walk(loader(), epochs=1)
    ended = states.pop()
    length = len(batches)
    assert ended["batches"] == length
    places = range(length) if workers == 0 else {3, length - 1}
    later = loader()
    later.set_epoch(1)
    following = walk(later)[1]
    for place in sorted(places):
        assert states[place]["batches"] == place
        resumed = loader()
        assert rest(resumed, states[place]) == batches[place:], place
        if place == 3:
            assert [bits(batch) for batch in resumed] == following


@pytest.mark.parametrize("dataset", [slow(Shards), Resumable])
def test_a_stream_is_saved_and_gone_on_with_again_and_again(dataset):
    def loader():
        return NumpyLoader(dataset(), batch_size=2, num_workers=2, persistent_workers=True, seed=1)

    expected = walk(loader(), epochs=2)[1]
    told = []
    state = None
    for count in (1, 4, 4):
        resumed = loader()
        if state is not None:
            resumed.load_state_dict(state)
        epoch = iter(resumed)
        told += [bits(next(epoch)) for _ in range(count)]
        state = saved(resumed)
    assert state["examples"] == 17  # worker 0 had 5 of them, and so one batch of one
    assert told + rest(loader(), state, epochs=2) == expected


def test_a_stream_is_not_gone_on_with_by_other_workers():
    original = NumpyLoader(Resumable(), 2, num_workers=0)
    next(iter(original))
    resumed = NumpyLoader(Resumable(), 2, num_workers=2)
    resumed.load_state_dict(saved(original))
    with pytest.raises(PositionError) as error:
        iter(resumed)
    assert str(error.value) == (
        "NumpyLoader: each worker resumes its own share of an IterableDataset, and the "
        "position was saved with 1 of them but this loader has num_workers=2; make the loader "
        "with the same number"
    )
    other = NumpyLoader(numbered(), 2)
    other.load_state_dict(saved(original))
    with pytest.raises(PositionError) as error:
        iter(other)
    assert str(error.value) == (
        "NumpyLoader: a position in a stream belongs to an IterableDataset, and this loader's is "
        "a ArrayDataset; give the loader the same dataset"
    )


class Expensive(Resumable):
    read = 0

    def __iter__(self):
        for example in super().__iter__():
            self.read += 1
            yield example


def test_a_stream_with_a_state_reads_nothing_again():
    original = NumpyLoader(Expensive(), 2)
    epoch = iter(original)
    for _ in range(5):
        next(epoch)
    data = Expensive()
    resumed = NumpyLoader(data, 2)
    resumed.load_state_dict(saved(original))
    assert next(iter(resumed))[0, 0] == 105
    assert data.read == 2


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), slow(2, True)])
def test_a_hugging_face_stream_goes_on(hugging_face, workers, persistent):
    def loader():
        data = hugging_face.Dataset.from_dict({"i": list(range(11))})
        stream = data.with_format("numpy").to_iterable_dataset(num_shards=2)
        return NumpyLoader(stream, 2, num_workers=workers, persistent_workers=persistent)

    def told(loader):
        return [batch["i"].tolist() for batch in loader]

    original = loader()
    epoch = iter(original)
    batches, states = [], []
    for batch in epoch:
        batches.append(batch["i"].tolist())
        states.append(saved(original))
    for place in (1, 3, 5):
        resumed = loader()
        resumed.load_state_dict(states[place - 1])
        assert told(resumed) == batches[place:], place
        assert told(resumed) == batches  # all of the next epoch


KINDS = {
    "shuffle": lambda n: {"shuffle": True},
    "in order": lambda n: {},
    "lazy": lambda n: {"sampler": [i % n for i in range(7, 7 + 2 * n)]},
    "replacement": lambda n: {"sampler": RandomSampler(range(n), True, n + 3)},
    "weighted": lambda n: {"sampler": WeightedRandomSampler([1.0] * n, 2 * n)},
}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 40), st.integers(1, 9), st.booleans(), st.sampled_from(sorted(KINDS)),
    st.sampled_from([*PLANS, "resident 2"]), st.sampled_from(PLANS),
    st.sampled_from([None, 0, 2**64 - 1]), st.lists(st.integers(1, 12), max_size=3),
)  # fmt: skip
def test_any_epoch_in_any_pieces(n, size, drop_last, kind, plan, other, seed, pieces):
    def loader(plan):
        plan, workers = plan.split()[0], int(plan.endswith("2")) * 2
        return NumpyLoader(
            numbered(n), size, drop_last=drop_last, plan=plan, num_workers=workers, seed=seed,
            **KINDS[kind](n),
        )  # fmt: skip

    torch.manual_seed(n)
    original = loader(plan)
    states, expected = walk(original)
    state, told = states[min(1, len(expected))], expected[:1]
    for number, piece in enumerate(pieces):
        resumed = loader(other if number % 2 else plan)
        resumed.load_state_dict(state)
        for _, batch in zip(range(piece), resumed, strict=False):
            told.append(bits(batch))
        if len(told) == len(expected):
            return
        state = saved(resumed)
        assert state["batches"] == len(told)
    if expected:
        assert told + rest(loader(other), state) == expected


def test_a_samplers_own_generator_beside_a_seed_is_saved_with_the_position():
    def loader(seed):
        generator = torch.Generator().manual_seed(seed)
        return seeded(shuffle=None, sampler=RandomSampler(range(COUNT), generator=generator))

    states, batches = walk(loader(1), epochs=2)
    for place in (0, 1, 29, 31, 59):
        told = rest(loader(2), states[place], epochs=2)
        assert told[: len(batches) - place] == batches[place:], place
