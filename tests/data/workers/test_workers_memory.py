"""The memory that batches come in: never overwritten, used again and again, of limited size."""

import gc
import multiprocessing
import os
import sys
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest
from torch.utils.data import Dataset, IterableDataset

from feedax.data import NumpyLoader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")

WIDTH = 5000


class Rows(Dataset):
    """Example i is 5000 times i, and i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full(WIDTH, index), index


class FailsAt(Rows):
    def __getitem__(self, index):
        if index % 5 == 4:
            raise ValueError("the fifth")
        return super().__getitem__(index)


def is_right(batch):
    x, numbers = (np.asarray(part) for part in batch)
    return bool((x == numbers[:, None]).all()) and x.shape[1:] == (WIDTH,)


def slots_of(loader):
    return [channel.slots for channel in loader._iterator._context.channels]


def slot_bytes(loader):
    return max(os.fstat(slots.fd).st_blocks * 512 for slots in slots_of(loader))


def test_batches_that_are_kept_stay_as_they_are_and_the_slots_have_a_limit():
    loader = NumpyLoader(Rows(240), 2, num_workers=2, persistent_workers=True)
    kept = list(loader)
    assert all(map(is_right, kept))
    [first, second] = [len(slots._memory) for slots in slots_of(loader)]
    assert first == second == 16  # of 60 batches; the rest came by the pipe
    again = list(loader)
    assert all(map(is_right, kept + again))
    x = kept[0][0]
    assert x.ctypes.data % 64 == 0
    assert x.flags.writeable
    x[:] = -1
    assert sum(map(is_right, kept + again)) == 239
    del kept, again, x
    for batch in loader:
        assert is_right(batch)
    assert slot_bytes(loader) < 16 * 2 * WIDTH * 8 * 1.5


def test_arrays_of_jax_over_batches_stay_as_they_are():
    import jax  # here, so that no worker imports it

    loader = NumpyLoader(Rows(120), 2, num_workers=1, persistent_workers=True)
    for _ in range(2):
        assert all(map(is_right, [jax.device_put(batch) for batch in loader]))
        kept = []
        for x, numbers in loader:
            kept = [*kept[-2:], (jax.device_put(x), numbers)]
            assert all(map(is_right, kept))


def test_a_part_of_a_batch_keeps_its_memory():
    parts = []
    loader = NumpyLoader(Rows(60), 1, num_workers=1)
    for x, _ in loader:
        parts.append((x[0, 4000:].reshape(10, -1).T, memoryview(x[0, :10])))
    for number, (array, view) in enumerate(parts):
        assert (array == number).all()
        assert view.tolist() == [number] * 10


def test_slots_come_back_after_a_thousand_early_breaks():
    loader = NumpyLoader(Rows(8), 1, num_workers=1, persistent_workers=True)
    for number in range(1000):
        for batch in loader:
            assert number % 100 or is_right(batch)
            break
    assert all(map(is_right, loader))
    assert len(slots_of(loader)[0]._memory) <= 6
    assert slot_bytes(loader) < 8 * WIDTH * 8 * 1.5


def test_slots_come_back_after_errors():
    loader = NumpyLoader(FailsAt(100), 1, num_workers=1, persistent_workers=True)
    for _ in range(3):
        epoch, count, failed = iter(loader), 0, 0
        while count + failed < 100:
            try:
                count += is_right(next(epoch))
            except ValueError:
                failed += 1
        assert (count, failed) == (80, 20)
    assert len(slots_of(loader)[0]._memory) <= 6


class Sized(Dataset):
    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        size = self.sizes[index]
        return {"a": np.full(size, index), "b": [np.full((3, size // 2), index), index]}


def test_batches_of_changing_sizes(rng):
    sizes = rng.permutation([*range(0, 60_000, 1000), *([100_000] * 5), *range(40)]).tolist()
    loader = NumpyLoader(Sized(sizes), 1, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        kept = []
        for batch in loader:
            kept = [*kept, batch][-3 - 30 * epoch :]
            for one in kept:
                index = one["b"][1][0]
                assert (one["a"] == index).all()
                assert one["a"].shape == (1, sizes[index])
                assert (one["b"][0] == index).all()
        del kept, batch, one
    assert slot_bytes(loader) < 16 * 2_000_000 * 1.2


def zoo(rows):
    """Every kind of array, large and small."""
    number = sum(rows)
    arrays = []
    for size in (3, 30_000):
        plain = np.arange(size * 2.0).reshape(2, size) + number
        arrays += [
            plain, plain[:, ::2], plain.T, np.asfortranarray(plain), plain[::-1], plain[:0],
            plain.astype(ml_dtypes.bfloat16), plain.astype("M8[s]"), plain.astype("m8[ms]"),
            plain.astype(object), plain.astype("U8"), plain.astype(">i4"), plain > 3,
            np.rec.fromarrays([plain[0], plain[1] > 5], names="a,b"),
            np.broadcast_to(plain[:1], (4, size)), plain * 2,
            plain.astype(ml_dtypes.bfloat16)[:, ::2], plain.astype([("x", "f8")]),
        ]  # fmt: skip
    arrays += [np.array(2.5), np.array(3, "M8[s]"), np.float32(1), np.zeros((0, 3), "M8[s]")]
    arrays += [arrays[18], np.array(1, ml_dtypes.bfloat16), np.zeros(20_000, "V3")]
    return arrays


def test_arrays_of_every_kind_come_as_they_are():
    loader = NumpyLoader(range(9), 3, num_workers=1, collate_fn=zoo, persistent_workers=True)
    for _ in range(8):
        for rows, got in zip(([0, 1, 2], [3, 4, 5], [6, 7, 8]), loader, strict=True):
            expected = zoo(rows)
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                assert type(one) is type(other)
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert np.array_equal(one, other)
            assert got[40] is got[18]
            # In a slot, with what numpy has no buffers for.
            assert [got[i].ctypes.data % 64 for i in (18, 24, 25)] == [0, 0, 0]
            assert all(got[i].flags.writeable for i in (18, 24, 25))
    assert len(slots_of(loader)[0]._memory) > 0


class Chunks(IterableDataset):
    """Reads its examples in batches from a loader of its own, in the worker."""

    def __iter__(self):
        inner = NumpyLoader(Rows(40), 8, num_workers=0)
        for x, numbers in inner:
            yield from zip(x, numbers, strict=True)


def test_a_loader_inside_of_a_worker_has_memory_of_its_own():
    loader = NumpyLoader(Chunks(), 2, num_workers=1, prefetch_factor=4)
    numbers = []
    for batch in loader:
        assert is_right(batch)
        batch[0][:] = -1  # nobody else's
        numbers += batch[1].tolist()
    assert numbers == [*range(40)]


def test_epochs_of_new_workers_leave_nothing_behind():
    def epoch():
        return all(map(is_right, NumpyLoader(Rows(4), 2, num_workers=1)))

    assert epoch()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    assert all(epoch() for _ in range(3))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    kept = list(NumpyLoader(Rows(12), 1, num_workers=1))
    gc.collect()
    assert all(map(is_right, kept))
    assert len(os.listdir("/proc/self/fd")) <= before  # memory alone needs none
    loader = NumpyLoader(Rows(40), 2, num_workers=1)
    middle = iter(loader)
    next(middle)
    [worker] = middle._workers
    slots = weakref.ref(middle._context.channels[0].slots)
    del middle, loader
    gc.collect()
    assert not worker.is_alive()
    assert slots() is None
    assert worker not in multiprocessing.active_children()
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_two_loaders_and_two_threads_at_once():
    one, other = (NumpyLoader(Rows(40), size, num_workers=1) for size in (2, 4))
    for small, large in zip(one, other, strict=False):
        assert is_right(small)
        assert is_right(large)
    good = []

    def work(loader):
        good.append(all(is_right(batch) for _ in range(2) for batch in loader))

    threads = [threading.Thread(target=work, args=(loader,)) for loader in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True, True]
