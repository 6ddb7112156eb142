"""What feedax knows of the object that it is given to train on or to evaluate."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import feedax
from feedax.data import ArrayDataset
from feedax.errors import BatchError
from feedax.feed import Source, source_by_seed

DATA = ArrayDataset(np.arange(10.0), np.arange(10))
BATCHES = [(np.ones(2), np.zeros(2))] * 3


def test_a_list_has_the_defaults():
    source = Source.of(BATCHES, "fit: train", again=True)
    assert (source.length, source.batch_size, source.num_workers) == (3, None, None)
    assert (source.plan(), source.times(), source.state_dict) == (None, None, None)
    assert (source.nbytes, source.memory_budget, source.device_budget) == (0, math.inf, math.inf)
    assert not any([
        source.comes_once, source.batches_are_fresh, source.loads_in_workers, source.has_arrays,
        source.persistent_workers, source.takes_each_once, source.lacks_seed, source.has_part,
    ])  # fmt: skip
    assert source.resumable_state() is None
    assert source.resume({"batches": 2}) == 2
    assert source.sequential() is source.shard(0, 2, seed=1) is source
    assert list(source) == BATCHES


def test_a_loader_says_it_all_and_is_asked_again_each_time():
    loader = feedax.NumpyLoader(DATA, 4, num_workers=2, persistent_workers=True)
    source = Source(loader)
    assert (source.length, source.batch_size, source.num_workers) == (3, 4, 2)
    assert source.plan() is loader.plan()
    assert source.has_arrays
    assert source.nbytes == loader.plan().size == 160
    assert source.lacks_seed
    assert source.persistent_workers
    assert not source.loads_in_workers
    assert source.times() == (0, 0)
    assert source.resumable_state()()["epoch"] == 0
    loader.plan, loader.num_workers, loader.seed = "streamed", 1, 5
    assert source.loads_in_workers
    assert (source.num_workers, source.lacks_seed) == (1, False)
    assert not source.has_arrays


def test_torchs_own_loader_is_an_iterable_with_workers():
    source = Source(DataLoader(torch.arange(6), 2, num_workers=2))
    assert (source.length, source.batch_size, source.num_workers) == (3, 2, 2)
    assert source.loads_in_workers
    assert source.plan() is None


def test_a_shard_of_another_library_is_something_else():
    """Hugging Face's `Dataset.shard` takes the number of shards first."""

    class Others(list):
        def shard(self, num_shards, index):
            raise AssertionError

    source = Source(Others(BATCHES))
    assert source.shard(0, 2, seed=None) is source


def test_sources_of_one_object_are_one():
    assert Source(BATCHES) == Source(BATCHES) != Source(list(BATCHES))
    assert len({Source(BATCHES), Source(BATCHES)}) == 1
    source = Source(BATCHES)
    assert Source.of(source, "fit: train") is source


def test_what_a_network_of_a_seed_is_trained_on():
    loader = feedax.NumpyLoader(DATA, 4)
    assert source_by_seed(loader, "sweep: train")(3).seed == 3
    assert source_by_seed(range, "sweep: train")(3) == range(3)
    assert list(source_by_seed(BATCHES, "sweep: train")(3)) == BATCHES
    with pytest.raises(BatchError) as caught:
        source_by_seed(3, "sweep: train")
    assert str(caught.value) == (
        "sweep: train must be a loader or another iterable of NumPy batches, and it is a int; give "
        "a NumpyLoader or a list"
    )
