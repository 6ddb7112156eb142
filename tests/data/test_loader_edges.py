"""Corners of the loader where its parts meet: seeds, positions, caches, workers."""

import gc
import os
import random
import re
import signal
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import (
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.datapipes.iter import IterableWrapper
from torch.utils.data.datapipes.map import SequenceWrapper

import feedax
from feedax.data import ArrayDataset, NumpyLoader
from feedax.data.workers import server
from feedax.errors import ExampleError, PlanError, PositionError, WorkerError


class Numbers(Dataset):
    def __init__(self, count=32):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


class Draws(Numbers):
    def __getitem__(self, index):
        return random.random() + np.random.random() + torch.rand(()).item()


class Keys(Numbers):
    def __getitem__(self, index):
        example = {"a": index, "b": 100 + index}
        return example if index % 2 else dict(reversed(example.items()))


def values(loader):
    return [batch.tolist() for batch in loader]


def flat(batches):
    return [value for batch in batches for value in batch]


def test_a_cache_knows_fields_by_their_keys():
    loader = NumpyLoader(Keys(), cache=True)
    for _ in range(2):
        pairs = [(int(batch["a"][0]), int(batch["b"][0])) for batch in loader]
        assert pairs == [(i, 100 + i) for i in range(32)]
    assert loader.plan().name == "resident"


def test_a_cache_refuses_another_structure():
    class Odd(Numbers):
        def __getitem__(self, index):
            return {"a": index} if index < 4 else {"b": index}

    with pytest.raises(ExampleError) as error:
        list(NumpyLoader(Odd(), 4, cache=True))
    assert str(error.value) == (
        "NumpyLoader: cache=True needs examples of one structure, and that of example 4 is another "
        "one; leave it out, or make the examples equal"
    )


def test_a_cache_begins_again_when_the_dataset_grows():
    data = Numbers(16)
    loader = NumpyLoader(data, 4, cache=True)
    assert len(values(loader)) == 4
    assert loader.plan().name == "resident"
    data.count = 20
    assert loader.plan().name == "streamed"
    assert flat(values(loader)) == flat(values(loader)) == list(range(20))
    assert loader.plan().name == "resident"


def test_what_a_cache_gives_away_is_not_its_own():
    loader = NumpyLoader(Numbers(), 4, cache=True)
    list(loader)
    with pytest.raises(ValueError, match="read-only"):
        loader.arrays()[:] = -1
    for batch in loader:
        batch[:] = -1
    assert flat(values(loader)) == list(range(32))


def test_a_cache_is_shared_with_evaluation():
    class Counted(Numbers):
        loaded = 0

        def __getitem__(self, index):
            Counted.loaded += 1
            return index

    loader = NumpyLoader(Counted(), 4, shuffle=True, cache=True)
    list(loader)
    assert flat(values(loader.sequential())) == list(range(32))
    assert Counted.loaded == 32 + 4


@pytest.mark.parametrize(
    ("dataset", "arguments", "reason"),
    [
        (Numbers(), {"num_workers": 1, "in_order": False}, "in_order=False loses them"),
        (SequenceWrapper([1, 2]), {}, "a data pipe does not say how many it has"),
    ],
    ids=["in_order", "data pipe"],
)
def test_a_cache_needs_indices(dataset, arguments, reason):
    with pytest.raises(PlanError) as error:
        NumpyLoader(dataset, cache=True, **arguments)
    assert str(error.value) == (
        f"NumpyLoader: cache=True keeps examples by their indices, and {reason}; leave it out"
    )


@pytest.mark.parametrize("pipe", [IterableWrapper(range(6)), SequenceWrapper([*range(6)])])
def test_a_data_pipe_gives_its_batches_and_keeps_its_own_position(pipe):
    for workers in (0, 1):
        loader = NumpyLoader(pipe, 3, num_workers=workers)
        assert values(loader) == [[0, 1, 2], [3, 4, 5]]
        saved = loader.state_dict()
        assert saved["cannot_tell"].startswith("NumpyLoader: a position is that of a Dataset,")
        with pytest.raises(PositionError, match=r"could not tell its own \(NumpyLoader: a pos"):
            loader.load_state_dict(saved)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_a_seeded_loader_leaves_the_callers_states_alone(plan, workers):
    data = feedax.ArrayDataset(np.arange(8.0), np.arange(8))
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(NumpyLoader(data, 4, shuffle=True, seed=3, plan=plan, num_workers=workers))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


class Seed(Numbers):
    def __getitem__(self, index):
        return get_worker_info().seed


def test_the_seed_of_a_worker_comes_from_the_loaders():
    assert values(NumpyLoader(Seed(2), num_workers=1, seed=3)) == values(
        NumpyLoader(Seed(2), num_workers=1, seed=3)
    )


def test_the_examples_of_a_subset_have_their_own_randomness():
    whole = values(NumpyLoader(Subset(Draws(), range(32)), 8, seed=1))
    halves = values(NumpyLoader(Subset(Draws(), range(32)), 4, seed=1))
    assert flat(whole) == flat(halves) == flat(values(NumpyLoader(Draws(), 8, seed=1)))


@pytest.mark.parametrize("number", [np.int64(3), True])
def test_a_seed_and_an_epoch_may_be_any_integer(number):
    loader = NumpyLoader(Numbers(), seed=number)
    loader.set_epoch(number)
    assert type(loader.state_dict()["seed"]) is type(loader.state_dict()["epoch"]) is int
    with pytest.raises(PlanError, match=r"seed must be a whole number or None, and it is '3'"):
        NumpyLoader(Numbers(), seed="3")


def test_the_epoch_of_a_loaded_position_may_be_set_again():
    first = NumpyLoader(Numbers(), 4, shuffle=True, seed=1)
    epoch = iter(first)
    next(epoch)
    second = NumpyLoader(Numbers(), 4, shuffle=True, seed=1)
    second.load_state_dict(first.state_dict())
    second.set_epoch(0)
    assert values(second) == values(epoch)


def test_a_weighted_sampler_draws_from_the_global_state_whatever_the_loaders_generator():
    def loader():
        sampler = WeightedRandomSampler([1.0] * 32, 32)
        return NumpyLoader(
            Numbers(), 4, sampler=sampler, generator=torch.Generator().manual_seed(1)
        )

    torch.manual_seed(0)
    first = loader()
    epoch = iter(first)
    next(epoch)
    state = first.state_dict()
    torch.manual_seed(5)
    second = loader()
    second.load_state_dict(state)
    assert values(second) == values(epoch)


class Lazy(Sampler):
    def __iter__(self):
        for _ in range(20):
            yield random.randrange(32)


def test_a_resume_leaves_the_callers_random_states_alone():
    first = NumpyLoader(Numbers(), 4, sampler=Lazy())
    epoch = iter(first)
    next(epoch)
    state = first.state_dict()
    rest = values(epoch)
    random.seed(8)
    expected = random.random()
    random.seed(8)
    second = NumpyLoader(Numbers(), 4, sampler=Lazy())
    second.load_state_dict(state)
    assert values(second) == rest
    assert random.random() == expected


def test_a_distributed_sampler_goes_on_in_its_epoch():
    def loader():
        return NumpyLoader(Numbers(), 4, sampler=DistributedSampler(Numbers(), 2, 0, seed=1))

    first = loader()
    first.sampler.set_epoch(3)
    epoch = iter(first)
    next(epoch)
    state = first.state_dict()
    assert len(str(state)) < 200
    second = loader()
    second.load_state_dict(state)
    assert values(second) == values(epoch)
    assert second.sampler.epoch == 3


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_became_too_short(workers):
    first = NumpyLoader(Stream(20), 2, num_workers=workers)
    epoch = iter(first)
    next(epoch), next(epoch), next(epoch)
    second = NumpyLoader(Stream(4), 2, num_workers=workers)
    second.load_state_dict(first.state_dict())
    with pytest.raises(PositionError) as error:
        list(second)
    assert str(error.value) == (
        "NumpyLoader: to resume from a saved position the dataset must yield what it yielded then, "
        "and it ends after 4 of 6 examples; give the loader the same dataset"
    )


class Stops(Numbers):
    def __getitem__(self, index):
        return next(iter(())) if index == 2 else index


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_raises_stop_iteration_does_not_end_the_epoch(workers):
    loader = NumpyLoader(Stops(), 2, num_workers=workers)
    epoch = iter(loader)
    next(epoch)
    where = " in worker 0" if workers else ""
    sentence = f"the dataset raised StopIteration while loading example 2{where}"
    with pytest.raises(RuntimeError, match=sentence):
        next(epoch)
    assert loader.state_dict()["batches"] == 1


class Sleeps(Numbers):
    def __getitem__(self, index):
        time.sleep(9 if index == 6 else 0)
        return index


def test_a_new_epoch_that_waits_for_a_stuck_worker():
    loader = NumpyLoader(
        Sleeps(), 4, num_workers=1, persistent_workers=True, timeout=4, prefetch_factor=2
    )
    next(iter(loader))
    with pytest.raises(WorkerError) as error:
        iter(loader)
    assert str(error.value) == (
        "NumpyLoader: a batch must come within timeout=4 seconds, and worker 0 is still loading "
        "example 6; see what keeps it, or raise the timeout"
    )


class Uneven(IterableDataset):
    def __iter__(self):
        worker = get_worker_info().id
        for i in range(20 if worker else 2):
            if i == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            yield 100 * worker + i


@pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")
def test_a_worker_that_was_done_is_not_blamed():
    epoch = NumpyLoader(Uneven(), 2, num_workers=2)
    with pytest.raises(WorkerError, match=r"worker 1 must live .* was killed by SIGKILL"):
        [time.sleep(0.05) for _ in epoch]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")
def test_the_server_is_deaf_to_ctrl_c():
    next(iter(NumpyLoader([1, 2], num_workers=1)))
    status = Path(f"/proc/{server._server.pid}/status").read_text()
    mask = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
    assert mask >> signal.SIGINT - 1 & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_prefetcher_asks_for_a_position_only_if_someone_asks_it():
    loader = NumpyLoader(Numbers(8), 4, num_workers=1, in_order=False)
    batches = feedax.prefetch_to_device(loader)
    assert flat(np.asarray(batch).tolist() for batch in batches) == list(range(8))
    assert batches.state_dict() == loader.state_dict()
    assert "this loader has in_order=False" in batches.state_dict()["cannot_tell"]


def test_pin_memory_is_not_ignored_in_silence():
    with pytest.warns(UserWarning, match=r"^NumpyLoader: pin_memory pins the memory of torch's"):
        loader = NumpyLoader(Numbers(4), 4, pin_memory=True)
    assert values(loader) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_that_is_kept_keeps_no_loader_alive(workers):
    """Without a collection of cycles: a dataset may be as large as the memory."""
    options = {"num_workers": workers, "persistent_workers": bool(workers)}
    loader = NumpyLoader(
        ArrayDataset(np.arange(8), np.arange(8)), batch_size=4, plan="vectorised", **options
    )
    iterator = iter(loader)
    next(iterator)
    gc.disable()
    try:
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()
