"""NumpyLoader against torch's own DataLoader: arguments, order, batches, random states."""

import copy
import inspect
import multiprocessing
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_same_batch, slow
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from feedax.data import ArrayDataset, NumpyLoader, numpy_collate
from feedax.errors import PlanError

COUNT = 23
FAST = ["resident", "vectorised"]
PLANS = [*FAST, "streamed"]


def numbered(count: int = COUNT) -> ArrayDataset:
    """Examples whose target is their index."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 2), np.uint8)
    return ArrayDataset(pixels, np.arange(count))


class Eager:
    """A sampler that draws all its indices, from the global state, as soon as it is asked."""

    def __iter__(self):
        return iter(torch.randperm(COUNT).tolist())

    def __len__(self):
        return COUNT


class Uneven:
    """A batch sampler whose batches have other sizes every time, drawn one by one."""

    def __iter__(self):
        for _ in range(5):
            size = int(torch.randint(1, 6, ()))
            yield torch.randint(-COUNT, COUNT, (size,)).tolist()

    def __len__(self):
        return 5


WEIGHTS = torch.arange(1.0, COUNT + 1)
ORDERS = {
    "in order": lambda g: {"batch_size": 5, "generator": g},
    "drop_last": lambda g: {"batch_size": 5, "generator": g, "drop_last": True},
    "shuffle": lambda g: {"batch_size": 5, "generator": g, "shuffle": True},
    "shuffle drop_last": lambda g: {
        "batch_size": 4, "generator": g, "shuffle": True, "drop_last": True},
    "one big batch": lambda g: {"batch_size": 100, "generator": g, "shuffle": True},
    "subset": lambda g: {"batch_size": 4, "sampler": SubsetRandomSampler(range(3, 17), g)},
    "weighted": lambda g: {
        "batch_size": 6, "sampler": WeightedRandomSampler(WEIGHTS, 40, generator=g)},
    "replacement": lambda g: {
        "batch_size": 7, "generator": g,
        "sampler": RandomSampler(range(COUNT), replacement=True, num_samples=70, generator=g)},
    "uneven batches": lambda g: {"batch_sampler": Uneven(), "generator": g},
    "eager sampler": lambda g: {"batch_size": 5, "sampler": Eager(), "generator": g},
}  # fmt: skip


def history(cls, order, own_generator, through=iter, epochs=3, **arguments):
    """Every batch's indices over some epochs, one of them broken off, and all random states."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    generator = torch.Generator().manual_seed(4) if own_generator else None
    loader = cls(numbered(), **ORDERS[order](generator), **arguments)
    told = []
    for epoch in range(epochs):
        for number, batch in enumerate(through(loader)):
            told.append(np.asarray(batch[1] if isinstance(batch, list) else batch).tolist())
            if (epoch, number) == (1, 1):
                break
        told.append(torch.get_rng_state().numpy().tobytes())
        told.append(own_generator and generator.get_state().numpy().tobytes())
        told.append((random.getstate(), np.random.get_state()[1].tobytes()))
    return told


@pytest.fixture(scope="module")
def torchs_with_workers():
    """What torch does with two workers, once for each order."""
    known = {}

    def ask(order, own_generator, persistent_workers):
        key = (order, own_generator, persistent_workers)
        if key not in known:
            known[key] = history(
                DataLoader, order, own_generator, num_workers=2,
                persistent_workers=persistent_workers, multiprocessing_context="forkserver",
            )  # fmt: skip
        return known[key]

    return ask


def test_it_takes_the_arguments_of_torchs_loader_and_some_of_its_own():
    torchs = list(inspect.signature(DataLoader).parameters.values())
    ours = list(inspect.signature(NumpyLoader).parameters.values())
    shown = [[(p.name, p.kind, p.default) for p in ps] for ps in (torchs, ours)]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    own = [("seed", keyword_only, None), ("cache", keyword_only, False),
           ("plan", keyword_only, "auto"), ("memory_budget", keyword_only, 2**31)]  # fmt: skip
    assert shown[1] == shown[0] + own
    assert issubclass(NumpyLoader, DataLoader)


@pytest.mark.parametrize("own_generator", [False, True], ids=["global", "generator"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_order_and_the_random_states_are_torchs(order, own_generator):
    expected = history(DataLoader, order, own_generator)
    for plan in PLANS:
        assert history(NumpyLoader, order, own_generator, plan=plan) == expected, plan
    for plan in FAST:
        through = NumpyLoader.index_batches
        indices = history(NumpyLoader, order, own_generator, through, plan=plan)
        assert indices == expected, plan


@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
@pytest.mark.parametrize(
    ("order", "own_generator"),
    [("shuffle", True), ("weighted", False), ("eager sampler", False), ("uneven batches", True)],
)
def test_a_fast_plan_starts_no_workers_but_draws_as_torch_does_with_them(
    order, own_generator, persistent, torchs_with_workers, monkeypatch
):
    expected = torchs_with_workers(order, own_generator, persistent)

    def start(process):
        raise AssertionError("a worker starts")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    for through in (iter, NumpyLoader.index_batches):
        told = history(
            NumpyLoader, order, own_generator, through, num_workers=2,
            persistent_workers=persistent, plan="resident",
        )  # fmt: skip
        assert told == expected


@pytest.mark.parametrize("own_generator", [slow(False), True], ids=["global", "generator"])
def test_streamed_workers_keep_torchs_order(own_generator, torchs_with_workers):
    told = history(NumpyLoader, "shuffle", own_generator, num_workers=2, plan="streamed")
    assert told == torchs_with_workers("shuffle", own_generator, False)


DATASETS = {
    "pixels": numbered,
    "float32": lambda: ArrayDataset(np.float32([[1, -0.0], [np.nan, np.inf]]), np.int8([3, 4])),
    "bool": lambda: ArrayDataset(np.eye(5, dtype=bool), np.arange(5) > 2),
    "transposed": lambda: ArrayDataset(np.arange(24.0).reshape(2, 3, 4).T, np.arange(4)),
    "big-endian": lambda: ArrayDataset(np.arange(6, dtype=">f4"), np.arange(6)),
    "tensors": lambda: TensorDataset(
        torch.arange(6).reshape(3, 2).to(torch.bfloat16),
        torch.rand(3, requires_grad=True),
        torch.tensor([1 + 2j, 3j, 4]).conj(),
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_plan_gives_the_bits_of_numpy_collate(name):
    dataset = DATASETS[name]()
    expected = [
        numpy_collate([dataset[i] for i in batch])
        for batch in BatchSampler(SequentialSampler(dataset), 2, False)
    ]
    assert NumpyLoader(dataset).plan().name == "resident"
    for plan in PLANS:
        assert_same_batch(list(NumpyLoader(dataset, batch_size=2, plan=plan)), expected)


@pytest.mark.parametrize("plan", PLANS)
def test_a_batch_is_the_callers_own(plan):
    loader = NumpyLoader(numbered(), batch_size=COUNT, plan=plan)
    first = next(iter(loader))
    first[0][:] = 0
    assert next(iter(loader))[0].any()
    assert loader.dataset.inputs.any()


@pytest.mark.parametrize("plan", PLANS)
def test_an_empty_batch_is_refused(plan):
    with pytest.raises(Exception, match=r"^numpy_collate: a batch must hold an example, and this"):
        list(NumpyLoader(numbered(), batch_sampler=[[]], plan=plan))


@pytest.mark.parametrize("plan", PLANS)
def test_a_batch_sampler_may_yield_any_iterable_of_indices(plan):
    batches = [iter([1, 2]), torch.tensor([3, 4]), np.array([5]), range(-2, 0), {7: "a"}]
    loader = NumpyLoader(numbered(), batch_sampler=batches, plan=plan)
    assert [y.tolist() for _, y in loader] == [[1, 2], [3, 4], [5], [21, 22], [7]]


@pytest.mark.parametrize("plan", FAST)
@pytest.mark.parametrize("wrong", [COUNT, -COUNT - 1])
def test_an_index_outside_the_dataset_is_an_index_error(plan, wrong):
    loader = NumpyLoader(numbered(), batch_sampler=[[1, wrong]], plan=plan)
    message = (
        f"NumpyLoader: the sampler must yield indices below {COUNT}, the length of the dataset, "
        f"and it yielded {wrong}; give it the dataset that the loader has"
    )
    with pytest.raises(IndexError) as error:
        next(iter(loader))
    assert str(error.value) == message


def first_two(batch):
    return {"first": batch[0][0], "list": (torch.tensor([len(batch)]), "text", None)}


def test_a_collate_fn_of_ones_own_gets_a_list_and_its_tensors_become_arrays():
    [batch] = NumpyLoader(TensorDataset(torch.eye(3)), batch_size=3, collate_fn=first_two)
    assert type(batch["list"]) is tuple
    assert_same_batch(
        [batch["first"], *batch["list"]], [np.float32([1, 0, 0]), np.array([3]), "text", None]
    )
    [batch] = NumpyLoader(numbered(3), batch_size=3, collate_fn=lambda batch: (type(batch), batch))
    assert_same_batch(batch, (list, [numbered(3)[i] for i in range(3)]))


class Batched(Dataset):
    """It loads a batch at once, and gives it as it likes."""

    def __init__(self, give):
        self.give = give

    def __len__(self):
        return 5

    def __getitems__(self, indices):
        return self.give(indices)


def test_a_dataset_that_loads_whole_batches():
    fields = NumpyLoader(
        Batched(lambda indices: {"index": torch.tensor(indices)}), batch_size=3,
        collate_fn=lambda batch: batch,
    )  # fmt: skip
    assert [batch["index"].tolist() for batch in fields] == [[0, 1, 2], [3, 4]]


def test_without_batches_examples_are_only_converted():
    dataset = TensorDataset(torch.arange(6).reshape(3, 2), torch.arange(3))
    examples = list(NumpyLoader(dataset, batch_size=None))
    assert_same_batch(examples, [[np.array([2 * i, 2 * i + 1]), np.array(i)] for i in range(3)])
    # torch's way to fetch a whole batch with one index.
    batches = BatchSampler(SequentialSampler(dataset), 2, False)
    [first, _] = NumpyLoader(dataset, batch_size=None, sampler=batches)
    assert_same_batch(first, [np.array([[0, 1], [2, 3]]), np.array([0, 1])])


class Countdown(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(range(self.length, 0, -1))

    def __len__(self):
        return self.length


def test_an_iterable_dataset():
    loader = NumpyLoader(Countdown(5), batch_size=2)
    assert [batch.tolist() for batch in loader] == [[5, 4], [3, 2], [1]]
    assert len(loader) == 3
    assert list(NumpyLoader(Countdown(3), batch_size=None)) == [3, 2, 1]
    twin = loader.sequential()
    assert twin is not loader
    assert [batch.tolist() for batch in twin] == [[5, 4], [3, 2], [1]]


@pytest.mark.parametrize("plan", PLANS)
def test_len_is_the_number_of_batches(plan):
    for order in ORDERS.values():
        arguments = order(None)
        loader = NumpyLoader(numbered(), **arguments, plan=plan)
        assert len(loader) == len(DataLoader(numbered(), **arguments)) == len(list(loader))


@pytest.mark.parametrize("plan", PLANS)
def test_sequential_gives_every_example_in_order_and_draws_nothing(plan):
    dataset = numbered()
    generator = torch.Generator().manual_seed(7)
    loader = NumpyLoader(
        dataset, batch_size=5, shuffle=True, drop_last=True, generator=generator, plan=plan
    )
    before = generator.get_state(), torch.get_rng_state()
    for _ in range(2):
        seen = np.concatenate([y for _, y in loader.sequential()])
        assert seen.tolist() == list(range(COUNT))
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())
    assert loader.sequential() is loader.sequential()
    assert (loader.drop_last, loader.sequential().drop_last) == (True, False)
    assert len(list(loader)) == 4


@pytest.mark.parametrize(
    "order", ["subset", "weighted", "replacement", "uneven batches", "eager sampler"]
)
def test_a_loader_that_picks_its_examples_picks_the_same_ones_to_evaluate(order):
    """Each evaluation is the first epoch; the loader's own epochs do not move by it."""
    loader = NumpyLoader(numbered(), **ORDERS[order](None), seed=1)
    alone = NumpyLoader(numbered(), **ORDERS[order](None), seed=1)
    first, second = ([y.tolist() for _, y in alone] for _ in range(2))
    assert not loader.takes_each_once
    for expected in (first, second):
        assert [y.tolist() for _, y in loader] == expected
        assert [y.tolist() for _, y in loader.sequential()] == first


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copied_or_pickled_loader_gives_the_same_batches(plan, twin):
    loader = NumpyLoader(numbered(), batch_size=5, shuffle=True, plan=plan)
    list(loader)
    words = str(loader.plan())
    other = twin(loader)
    assert str(other.plan()) == words
    torch.manual_seed(5)
    expected = list(loader)
    torch.manual_seed(5)
    assert_same_batch(list(other), expected)


@pytest.mark.parametrize("ask", [NumpyLoader.arrays, NumpyLoader.index_batches])
def test_a_streamed_loader_has_no_arrays(ask):
    with pytest.raises(PlanError) as error:
        ask(NumpyLoader(numbered(), plan="streamed"))
    assert str(error.value) == (
        "NumpyLoader: only a resident or vectorised loader has its examples as arrays, and this "
        "one is streamed: it was asked for. Examples are loaded in this process, one Python call "
        "each."
    )


@pytest.mark.parametrize("name", DATASETS)
def test_arrays_hold_all_examples_in_the_datasets_order(name):
    dataset = DATASETS[name]()
    arrays = NumpyLoader(dataset, batch_size=2, shuffle=True).arrays()
    assert_same_batch(arrays, numpy_collate([dataset[i] for i in range(len(dataset))]))


@pytest.mark.parametrize(
    "arguments",
    [{"num_workers": -1}, {"batch_size": 0}, {"shuffle": True, "sampler": Eager()},
     {"batch_size": None, "drop_last": True}, {"persistent_workers": True},
     {"prefetch_factor": 2}, {"timeout": -1}],
    ids=lambda arguments: "-".join(arguments),
)  # fmt: skip
def test_wrong_arguments_are_refused_in_torchs_words(arguments):
    with pytest.raises(ValueError) as torchs:  # noqa: PT011
        DataLoader(numbered(), **arguments)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        NumpyLoader(numbered(), **arguments)
    assert str(ours.value) == str(torchs.value)


def test_the_loader_is_torchs_to_those_who_look_at_it():
    loader = partial(NumpyLoader, numbered(), 4)(shuffle=True)
    assert isinstance(loader.sampler, RandomSampler)
    assert (loader.batch_size, loader.num_workers, loader.drop_last) == (4, 0, False)
    with pytest.raises(ValueError, match="batch_size attribute should not be set after"):
        loader.batch_size = 8
