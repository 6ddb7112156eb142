"""NumpyLoader with real worker processes."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
from helpers import slow
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from feedax.data import ArrayDataset, NumpyLoader, numpy_collate
from feedax.errors import ExampleError

SHAPES = (
    "numpy_collate: field ['x'] must have a shape that all examples of a batch share, and it is "
    "(2,) in example 5 but (3,) in example 7; make them equal in the dataset (resize, crop or "
    "pad), or give the loader a collate_fn"
)


class Squares(Dataset):
    """Structured examples, from Python, with a bfloat16 tensor and text among them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        x = torch.full((2,), index**2, dtype=torch.bfloat16, requires_grad=True)
        return {"x": x, "rest": (index, f"number {index}", np.float32(index) / 3)}


def leaves(batches):
    """The batches' leaves in order, arrays with every bit and dtype."""
    return [
        (leaf.dtype.name, leaf.tobytes()) if isinstance(leaf, np.ndarray) else leaf
        for batch in batches
        for leaf in (batch["x"], *batch["rest"])
    ]


class Torchs(DataLoader):
    """torch's loader, without the workers: they would give the same batches, only later."""

    kept = None

    def __init__(self, *arguments, num_workers, persistent_workers, **named):
        super().__init__(*arguments, **named)
        self.keeps = persistent_workers

    def __iter__(self):
        if self.kept is not None and self.keeps:
            self.kept._reset(self)
        else:
            self.kept = super().__iter__()
        return self.kept


@pytest.mark.parametrize("persistent", [slow(False), True])
def test_workers_give_torchs_batches_in_torchs_order(persistent):
    def epochs(cls, **arguments):
        generator = torch.Generator().manual_seed(4)
        loader = cls(
            Squares(11), batch_size=3, shuffle=True, generator=generator, num_workers=2,
            persistent_workers=persistent, **arguments,
        )  # fmt: skip
        epoch = iter(loader)  # one that is broken off; workers have drawn it all, ahead
        next(epoch) if cls is NumpyLoader else list(epoch)
        return [leaves(loader) for _ in range(2)]

    expected = epochs(Torchs, collate_fn=numpy_collate)
    assert len(expected[0]) == 4 * len(("x", "index", "text", "third"))
    assert expected[0] != expected[1]
    assert epochs(NumpyLoader) == expected


class Witness(Dataset):
    """What a worker knows of itself."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        info = get_worker_info()
        ignores_ctrl_c = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        own_dataset = info.dataset is self and type(info.dataset) is Witness
        return ["jax" in sys.modules, own_dataset, ignores_ctrl_c, os.getpid()]


SET_BY_INIT = []


def remember(worker_id):
    SET_BY_INIT.append((worker_id, type(get_worker_info().dataset).__name__))


class Remembered(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return repr(SET_BY_INIT)


def test_a_worker_has_no_jax_and_knows_the_users_dataset():
    loader = NumpyLoader(Witness(), batch_size=2, num_workers=2, prefetch_factor=1)
    assert loader.multiprocessing_context is None  # another library may take it for torch's
    if sys.platform.startswith("linux"):
        assert "(started by forkserver)" in str(loader.plan())
    (jax, own, quiet, first), (*_, second) = loader
    assert (jax.any(), own.all(), quiet.all()) == (False, True, True)
    assert len({*first, *second, os.getpid()}) == 3
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_worker_init_fn_runs_once_in_each_worker_and_sees_the_users_dataset():
    loader = NumpyLoader(Remembered(), batch_size=2, num_workers=2, worker_init_fn=remember)
    assert loader.worker_init_fn is remember
    assert list(loader) == [[f"[({worker}, 'Remembered')]"] * 2 for worker in (0, 1)]
    assert SET_BY_INIT == []


class Ragged(Dataset):
    def __init__(self, fail=None):
        self.fail = fail

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if self.fail:
            raise self.fail
        return {"x": np.zeros(3 if index == 7 else 2)}


class RaggedBatches(Ragged):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dataset", [Ragged(), RaggedBatches()], ids=lambda d: type(d).__name__)
def test_examples_that_do_not_fit_are_named_by_their_indices(dataset, workers):
    loader = NumpyLoader(dataset, batch_sampler=[[1, 0], [5, 6, 7], [2]], num_workers=workers)
    epoch = iter(loader)
    assert next(epoch)["x"].shape == (2, 2)
    with pytest.raises(ExampleError) as error:
        next(epoch)
    assert str(error.value) == SHAPES
    if workers:  # as with torch's loader, the next batch is still to come
        [last] = epoch
        assert last["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ExampleError("Ragged: a sentence\nof two lines"), ExampleError),
        (KeyError("not feedax's"), KeyError),
    ],
    ids=["feedax", "other"],
)
def test_an_error_keeps_its_type_on_the_way_from_a_worker(error, kind):
    epoch = iter(NumpyLoader(Ragged(error), sampler=[0], num_workers=1))
    with pytest.raises(kind) as caught:
        next(epoch)
    assert list(epoch) == []
    if kind is ExampleError:
        assert str(caught.value) == str(error)
        assert "worker process 0" in str(caught.value.__cause__)
    else:
        assert "in DataLoader worker process 0" in str(caught.value)


class Counter(IterableDataset):
    """Each worker counts its own share."""

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return iter(range(worker, 10, workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, None])
def test_an_iterable_dataset_gives_torchs_batches(workers, batch_size):
    ours = list(NumpyLoader(Counter(), batch_size, num_workers=workers))
    expected = {
        (0, 2): [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
        (2, 2): [[0, 2], [1, 3], [4, 6], [5, 7], [8], [9]],
    }.get((workers, batch_size), [*range(10)])
    assert [np.asarray(batch).tolist() for batch in ours] == expected
    assert type(ours[0]) is (np.ndarray if batch_size else int)


def test_tensors_of_a_collate_fn_become_arrays_in_the_worker():
    data = ArrayDataset(np.eye(4, dtype=np.float32), np.arange(4))
    loader = NumpyLoader(data, batch_size=4, num_workers=1, collate_fn=default_collate)
    [(x, y)] = loader
    assert (type(x), x.dtype, x.tolist()) == (np.ndarray, np.float32, np.eye(4).tolist())
    assert (type(y), y.tolist()) == (np.ndarray, [0, 1, 2, 3])
    assert str(loader.plan()).startswith("streamed: a collate_fn of your own wants to see")


class Broken:
    def __iter__(self):
        raise TypeError("the sampler is broken")


def test_a_sampler_that_fails_is_not_taken_for_something_that_cannot_travel():
    with pytest.raises(TypeError, match=r"^the sampler is broken$"):
        iter(NumpyLoader(Ragged(), sampler=Broken(), num_workers=1))


def test_an_epoch_with_workers_sees_a_changed_dataset():
    data = ArrayDataset(np.arange(4.0), np.arange(4), transform=np.sqrt)
    loader = NumpyLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    [(streamed, _)] = loader
    assert streamed.tolist() == np.sqrt(np.arange(4.0)).tolist()
    data.transform = None
    for _ in range(2):
        [(gathered, _)] = loader
        assert gathered.tolist() == [0, 1, 2, 3]
    assert loader.plan().name == "resident"
    data.transform = np.square
    [(squared, _)] = loader
    assert squared.tolist() == [0, 1, 4, 9]
