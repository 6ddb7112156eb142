"""Whatever a dataset is made of, its examples are `dataset[i]`, and evaluation moves nothing."""

import random
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from helpers import slow, slow_but
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import feedax
from feedax.data import ArrayDataset, NumpyLoader
from feedax.errors import ExampleError, PlanError
from feedax.random_states import generators_in

# The examples are those of dataset[i]


class Batched(Dataset):
    """Loads a batch at once."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return float(index)

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Forwarding(Dataset):
    """Doubles what another has, and finds the rest there, `__getitems__` too."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return 2 * self.inner[index]

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class BatchedInOwnWay(Batched):
    def __getitems__(self, indices):
        return [float(index) for index in indices]


class Doubled(BatchedInOwnWay):
    """Inherits a way to load batches that knows nothing of its examples."""

    def __getitem__(self, index):
        return 2 * super().__getitem__(index)


class DoubledArrays(TensorDataset):
    def __getitem__(self, index):
        return 2 * super().__getitem__(index)[0]


class ByMixin:
    """A way to load batches of any dataset."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class WithMixin(ByMixin, Doubled):
    pass


def on_the_instance():
    dataset = Forwarding(list(range(4)))
    dataset.__getitems__ = lambda indices: [-1.0 for _ in indices]
    dataset.__getitem__ = lambda index: -1.0
    return dataset


WHOLE = {
    "forwarded": lambda: Forwarding(BatchedInOwnWay()),
    "forwarded, of torch": lambda: Forwarding(Subset(torch.arange(9.0), [0, 1, 2, 3])),
    "inherited": Doubled,
    "a subset of forwarded": lambda: Subset(Forwarding(BatchedInOwnWay()), [0, 1, 2, 3]),
    "a subset of a subset": lambda: Subset(Subset(Doubled(), [3, 2, 1, 0]), [3, 2, 1, 0]),
    "a mixin": WithMixin,
    "on the instance": on_the_instance,
    "a subclass of arrays": lambda: DoubledArrays(torch.arange(4.0)),
}


@pytest.mark.parametrize(
    ("name", "workers"),
    slow_but([("forwarded", 1), *((name, 0) for name in WHOLE)], product(WHOLE, [0, 1])),
)
def test_the_examples_are_those_of_the_datasets_own_indexing(name, workers):
    dataset = WHOLE[name]()
    loader = NumpyLoader(dataset, batch_size=2, num_workers=workers)
    assert np.ravel(list(loader)).tolist() == [0, 2, 4, 6]
    assert loader.plan().name == "streamed"
    cached = NumpyLoader(dataset, batch_size=2, cache=True)
    for _ in range(2):
        assert np.ravel(list(cached)).tolist() == [0, 2, 4, 6]


def test_a_dataset_is_asked_for_whole_batches_where_its_class_says_how():
    asked = []

    class Asked(Batched):
        def __getitems__(self, indices):
            asked.append(list(indices))
            return super().__getitems__(indices)

    for dataset in (Asked(), Subset(Asked(), [3, 2, 1, 0])):
        asked.clear()
        assert len(list(NumpyLoader(dataset, batch_size=2))) == 2
        assert [len(indices) for indices in asked] == [2, 2]


def test_arrays_of_another_length_are_an_error():
    class Shorter(ArrayDataset):
        def __len__(self):
            return 3

    feedax.register_arrays(Shorter, lambda data: (data.inputs, data.targets))
    loader = NumpyLoader(Shorter(np.arange(4), np.arange(4)), batch_size=2)
    with pytest.raises(PlanError, match="must hold one row for each of its 3 examples"):
        loader.plan()


# Evaluation leaves random states as they were

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
DATA = ArrayDataset(X, (X[:, 0] > 0).astype(np.int32))


class Draws(Dataset):
    """Draws from everything that there is to draw from."""

    def __init__(self):
        self.own = np.random.default_rng(3)
        self.parts = [random.Random(5), torch.Generator().manual_seed(2)]

    def __len__(self):
        return 30

    def __getitem__(self, index):
        drawn = random.random() + np.random.random() + float(torch.rand(())) + self.own.random()
        drawn += self.parts[0].random() + float(torch.rand((), generator=self.parts[1]))
        return X[index] + np.float32(drawn), int(X[index, 0] > 0)


class Picks(Sampler):
    """A sampler of somebody's own."""

    def __init__(self):
        self.rng = np.random.RandomState(4)

    def __iter__(self):
        for _ in range(6):
            yield random.randrange(10) + np.random.randint(10) + int(self.rng.randint(10))

    def __len__(self):
        return 6


class DrawingStream(IterableDataset):
    def __iter__(self):
        return iter([Draws()[index] for index in range(8)])


GENERATOR = torch.Generator().manual_seed(0)
VALIDATION = {
    "in order": lambda: NumpyLoader(DATA, 10),
    "shuffled with torch's": lambda: NumpyLoader(DATA, 10, shuffle=True, plan="streamed"),
    "the generator of training": lambda: NumpyLoader(
        DATA, 10, sampler=SubsetRandomSampler(range(9), generator=GENERATOR)),
    "weighted": lambda: NumpyLoader(DATA, 10, sampler=WeightedRandomSampler([1.0] * 30, 9)),
    "with replacement": lambda: NumpyLoader(
        DATA, 10, sampler=RandomSampler(DATA, replacement=True, generator=GENERATOR),
        plan="streamed"),
    "a sampler of one's own": lambda: NumpyLoader(DATA, 2, sampler=Picks()),
    "a dataset that draws": lambda: NumpyLoader(Draws(), 10),
    "both": lambda: NumpyLoader(Draws(), 2, sampler=Picks(), generator=GENERATOR),
    "a stream that draws": lambda: NumpyLoader(DrawingStream(), 4),
    "torch's loader": lambda: DataLoader(
        TensorDataset(torch.tensor(X), torch.zeros(30, dtype=torch.int32)), 10,
        shuffle=True, generator=GENERATOR, collate_fn=feedax.data.numpy_collate),
    "torch's loader of the global state": lambda: DataLoader(
        Draws(), 10, shuffle=True, collate_fn=feedax.data.numpy_collate),
}  # fmt: skip


def score(w, x):
    return w @ x


@pytest.mark.parametrize("name", VALIDATION)
@pytest.mark.parametrize("generator", [None, slow(GENERATOR)], ids=["global", "generator"])
def test_training_is_the_same_with_and_without_evaluation(name, generator):
    import optax  # here, so that no worker imports it

    def trained(sets):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        GENERATOR.manual_seed(0)
        # The dataset draws too where no generator decides the order: the whole state matters.
        data = Draws() if generator is None else DATA
        train = NumpyLoader(data, 7, shuffle=True, generator=generator)
        w, _ = feedax.fit(
            score, np.zeros((2, 3), np.float32), train, optimizer=optax.sgd(0.5), epochs=2, **sets
        )
        return np.asarray(w).tobytes()

    validation = VALIDATION[name]()
    assert trained({"evaluate": {"validation": validation}}) == trained({})


def everything(held):
    states = [random.getstate(), [str(part) for part in np.random.get_state()]]
    states += [torch.get_rng_state().tolist()]
    found = generators_in(held.sampler, held.generator, held.dataset, GENERATOR)
    for generator in sorted(found, key=id):
        if isinstance(generator, torch.Generator):
            states.append(generator.get_state().tolist())
        elif isinstance(generator, np.random.Generator):
            states.append(str(generator.bit_generator.state))
        else:
            states.append(str((getattr(generator, "getstate", None) or generator.get_state)()))
    return states


@pytest.mark.parametrize("name", [name for name in VALIDATION if not name.startswith("torch")])
def test_the_callers_draws_and_those_of_evaluation_do_not_meet(name):
    """By hand, too; and within one evaluation the numbers are new for every batch."""
    loader = VALIDATION[name]()
    before = everything(loader)
    seen = [np.asarray(x).tobytes() for x, _ in loader.sequential()]
    assert everything(loader) == before
    assert len(set(seen)) == len(seen) > 1 or len(seen) == 1
    for batch, (x, _) in zip(seen, loader.sequential(), strict=True):
        assert x.tobytes() == batch
        random.random(), np.random.random(), torch.rand(())  # the caller's go on
    random.seed(1)


def test_evaluation_draws_as_torchs_loader_would():
    torch.manual_seed(7)
    sampler = SubsetRandomSampler(range(20))
    expected = [x.tolist() for x, _ in DataLoader(DATA, 4, sampler=sampler)]
    torch.manual_seed(7)
    loader = NumpyLoader(DATA, 4, sampler=sampler)
    assert [x.tolist() for x, _ in loader.sequential()] == expected


# A stream that comes once for each worker

ALIKE = (
    "NumpyLoader: with more than one worker an iterable dataset must share out its examples, and "
    "workers 0 and 1 begin with the same ones, so that these come once for each worker; let "
    "__iter__ or a worker_init_fn ask torch.utils.data.get_worker_info() for this worker's share, "
    "or use num_workers=1"
)
TOLD = "Its workers began with the same examples: these come once for each worker"


class Whole(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class Split(Whole):
    def __iter__(self):
        info = get_worker_info()
        return iter(self.examples[info.id :: info.num_workers])


def share_out(worker):
    dataset = get_worker_info().dataset
    dataset.examples = dataset.examples[worker::2]


TEXTS = [{"text": f"word {i}", "x": torch.tensor([i])} for i in range(8)]


@pytest.mark.parametrize(
    ("examples", "arguments"),
    [([*range(8)], {"batch_size": 4}), slow([*range(8)], {"batch_size": None}),
     slow(TEXTS, {"batch_size": 1, "persistent_workers": True}),
     (TEXTS, {"batch_size": 2, "collate_fn": lambda examples: len(examples)})],
    ids=["batches", "no batches", "persistent", "collate_fn"],
)  # fmt: skip
def test_a_stream_that_is_not_shared_out_is_told(examples, arguments):
    loader = NumpyLoader(Whole(examples), num_workers=2, **arguments)
    assert TOLD not in loader.plan().notes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(loader)
        epoch = iter(loader)  # once
        next(epoch), next(epoch)
        saved = loader.state_dict()
        list(epoch)
    assert [str(warning.message) for warning in caught] == [ALIKE]
    assert TOLD in loader.plan().notes
    resumed = NumpyLoader(Whole(examples), num_workers=2, **arguments)
    resumed.load_state_dict(saved)
    list(resumed)  # of the same epoch: it began before


@pytest.mark.parametrize(
    ("dataset", "arguments"),
    [(Split([*range(8)]), {}), slow(Split([1.0] * 8), {"batch_size": 2}),
     slow(Split([0, 0, 1, 2, 3, 4]), {}), (Whole([*range(8)]), {"worker_init_fn": share_out}),
     (Split(["header", "header", *"abcdef"]), {"batch_size": None})],
    ids=["split", "constants", "begun alike", "worker_init_fn", "header"],
)  # fmt: skip
def test_a_stream_that_is_shared_out_is_not_warned_of(dataset, arguments):
    loader = NumpyLoader(dataset, num_workers=2, **{"batch_size": 2} | arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)
    assert TOLD not in loader.plan().notes
    assert (
        "Each worker iterates the dataset: one that does not ask get_worker_info() for its share "
        "comes once for each"
    ) in loader.plan().notes


class Shorter(Dataset):
    """Leaves an example of each batch out, as a dataset with broken examples may."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index

    def __getitems__(self, indices):
        return [self[i] for i in indices[1:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_with_fewer_examples_than_indices_is_an_error(workers):
    with pytest.raises(ExampleError) as error:
        next(iter(NumpyLoader(Shorter(), batch_size=3, num_workers=workers)))
    assert str(error.value) == (
        "NumpyLoader: __getitems__ must give one example for each of 3 indices, and it gave 2 in a "
        "list; fix it, or leave it out of the dataset's class"
    )


def test_generators_are_found_wherever_they_lie():
    rng, one, two = np.random.default_rng(0), random.Random(0), torch.Generator()

    class Noise(torch.nn.Module):
        generator = two

    def noisy(x):
        return x + rng.normal()

    held = [lambda x: noisy(x), {"a": {one.random}}, torch.nn.Sequential(Noise())]
    assert {id(found) for found in generators_in(held)} == {id(rng), id(one), id(two)}
    assert generators_in([one] * 1001) == []
