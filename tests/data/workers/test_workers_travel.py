"""What goes to workers and what comes back: notebook code, files, tensors, things that cannot."""

import functools
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script, slow
from torch.utils.data import Dataset

from feedax.data import NumpyLoader
from feedax.errors import WorkerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")


def test_a_script_without_a_guard(tmp_path):
    done = run_script(
        tmp_path,
        """
        import sys, threading
        from collections import namedtuple
        from dataclasses import dataclass
        import jax, jax.numpy as jnp, numpy as np
        from feedax.data import NumpyLoader

        print("run", __name__)
        SCALE = 2
        Point = namedtuple("Point", "x y")

        @dataclass
        class Record:
            value: object
            def scaled(self):
                return self.value * SCALE

        class Odd(Exception):
            pass

        class Mine:
            def __init__(self, shift):
                self.shift = shift
                self.transform = lambda x: x + shift
            def __len__(self):
                return 4
            def __getitem__(self, index):
                if index == 3:
                    raise Odd("three")
                brought = "jax" in sys.modules, "jaxlib" in sys.modules
                point = Point(np.full(2, self.transform(index)), index)
                return {"point": point, "record": Record(index), "brought": brought}

        class Brought(Mine):
            def __getitem__(self, index):
                import jax, jax.numpy as jnp
                return jnp.full(5000, index), jax.default_backend()

        busy, stop = jax.jit(lambda x: x @ x), threading.Event()
        def keep_busy():
            while not stop.wait(0.01):
                busy(jnp.ones((20, 20))).block_until_ready()
        thread = threading.Thread(target=keep_busy)
        thread.start()
        scaled = Record.scaled
        loader = NumpyLoader(Mine(10), sampler=[0, 1, 2, 3], batch_size=2, num_workers=1)
        epoch = iter(loader)
        batch = next(epoch)
        SCALE = 5
        print(isinstance(batch["point"], Point), batch["point"].x.tolist())
        print(type(batch["record"]) is Record, batch["record"].scaled(), Record.scaled is scaled)
        print([part.tolist() for part in batch["brought"]])
        try:
            next(epoch)
        except Odd as error:
            print("Odd", "while loading example 3 in worker 0" in str(error) + str(
                getattr(error, "__notes__", "")))
        own = NumpyLoader(Mine(0), 3, num_workers=1,
                          collate_fn=lambda rows: [Point(sum(r["point"].y for r in rows), 0)])
        [point] = next(iter(own))
        print(type(point) is Point, point.x)
        [[array, backend]] = NumpyLoader(Brought(0), sampler=[1], batch_size=1, num_workers=1)
        print(type(array), array.shape, backend)
        stop.set()
        thread.join()
        """,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "run __main__",
        "True [[10, 10], [11, 11]]",
        "True [0 5] True",
        "[[False, False], [False, False]]",
        "Odd True",
        "True 3",
        "<class 'numpy.ndarray'> (1, 5000) ['cpu']",
    ]


class Holder(Dataset):
    """Yields what it is told to."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


class LeavesOut(Holder):
    """Has two locks, and leaves one of them at home."""

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "known"}


def with_lock(rows, lock=None):
    return rows


LOCK = threading.Lock()
REMEDY = (
    " is not (cannot pickle '_thread.lock' object); make it in the dataset's __getitem__ or in "
    "worker_init_fn, leave it out in __getstate__, or use num_workers=0"
)


def stuck(**arguments):
    dataset = arguments.pop("dataset", Holder())
    with pytest.raises(WorkerError) as error:
        list(NumpyLoader(dataset, batch_size=2, num_workers=1, **arguments))
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dataset": Holder(transform=Holder(lock=LOCK))}, "dataset.transform.lock, a lock,"),
        ({"dataset": Holder(steps=[1, {"a": LOCK}])}, "dataset.steps[1]['a'], a lock,"),
        ({"dataset": LeavesOut(known=LOCK, lock=LOCK)}, "dataset.lock, a lock,"),
        ({"collate_fn": (lambda lock: lambda rows: lock)(LOCK)}, "lock of collate_fn, a lock,"),
        ({"collate_fn": functools.partial(with_lock, lock=LOCK)},
         "collate_fn.keywords['lock'], a lock,"),
        ({"worker_init_fn": Holder(lock=LOCK).__getitem__},
         "worker_init_fn.__self__.lock, a lock,"),
    ],
    ids=["attribute", "item", "getstate", "closure", "partial", "method"],
)  # fmt: skip
def test_what_cannot_travel_to_a_worker(arguments, name):
    expected = f"NumpyLoader: what goes to a worker must be picklable, and {name}{REMEDY}"
    assert stuck(**arguments) == expected


def test_a_batch_that_cannot_travel_back_is_an_error_and_the_next_one_comes():
    def collate(rows):
        return {"sound": np.zeros(9000), "bad": [LOCK_OF_WORKER]} if 0 in rows else sum(rows)

    loader = NumpyLoader(Holder(), 2, num_workers=1, collate_fn=collate)
    exec_in_worker = "import threading\nLOCK_OF_WORKER = threading.Lock()"
    loader.worker_init_fn = lambda worker: exec(exec_in_worker, collate.__globals__)
    for _ in range(3):
        epoch = iter(loader)
        with pytest.raises(WorkerError, match=r"the batch\['bad'\]\[0\], a lock, is not \(cannot"):
            next(epoch)
        assert list(epoch) == [5]


LOCK_OF_WORKER = None


@pytest.mark.parametrize("persistent", [False, True])
def test_a_sampler_that_yields_what_cannot_travel(persistent):
    rows = [[0, 1], [2, LOCK], [3]]
    loader = NumpyLoader(
        Holder(), batch_sampler=rows, num_workers=1, prefetch_factor=1,
        persistent_workers=persistent,
    )  # fmt: skip
    with pytest.raises(WorkerError, match=r"what the sampler yields.*lock"):
        list(loader)
    rows[1] = [2]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2], [3]]


class Maps(Dataset):
    """Reads a memory map in a worker, and tells how it lies there."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return 1

    def __getitem__(self, index):
        start = np.asarray(self.values).__array_interface__["data"][0]
        lines = Path("/proc/self/maps").read_text().splitlines()
        for line in lines:
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if low <= start < high:
                return np.array(self.values), line.split(maxsplit=5)[5:]
        return np.array(self.values), []


def in_worker(values):
    [[got, where]] = NumpyLoader(Maps(values), None, num_workers=1)
    return got, "".join(where)


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("r", slice(100, 9000)),
        slow("r", slice(None)),
        slow("r", slice(0, 0)),
        slow("r+", slice(100, 9000)),
        ("r+", slice(None)),
        slow("r+", slice(0, 0)),
        ("c", slice(100, 9000)),
        slow("c", slice(None)),
        ("c", slice(0, 0)),
    ],
)
def test_a_memory_map_travels_by_its_file(tmp_path, part, mode):
    path = tmp_path / "a map"
    np.arange(20000.0).tofile(path)
    values = np.memmap(path, np.float64, mode, offset=80)
    if mode == "c":
        values[200] = -1
    got, where = in_worker(values[part])
    assert got.tolist() == values[part].tolist()
    if len(got):
        assert where.endswith("a map") == (mode != "c")
        assert not in_worker(values[part][::2])[1].endswith("a map")
    assert path.stat().st_size == 160000


@pytest.mark.parametrize("replaced", [False, True])
def test_a_memory_map_of_a_file_that_is_gone_travels_by_value(tmp_path, replaced):
    path = tmp_path / "map"
    np.arange(9000.0).tofile(path)
    values = np.memmap(path, np.float64, "r")
    path.unlink()
    if replaced:
        np.zeros(9000).tofile(path)
    got, where = in_worker(values)
    assert got.tolist() == [*range(9000)]
    assert "memfd" in where


class Tensors(Dataset):
    def __init__(self, count):
        self.plain = torch.arange(count, dtype=torch.float32)
        self.view = self.plain[1:]
        self.shared = torch.arange(count, dtype=torch.float32).share_memory_()
        self.weights = torch.ones(count, requires_grad=True)
        self.empty = torch.zeros(0, 3)
        self.array = np.arange(count)
        self.again = self.array
        self.frozen = np.arange(count)
        self.frozen.flags.writeable = False

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.view[0] += 10
        self.array[1] += 10
        told = [self.plain[1], self.shared[1], self.again[1], self.weights.requires_grad]
        told += [self.frozen.flags.writeable, self.empty.numel()]
        return [float(value) for value in told]


@pytest.mark.parametrize("count", [3, 9000])
def test_tensors_and_arrays_are_snapshots_unless_they_are_shared(count):
    data = Tensors(count)
    loader = NumpyLoader(data, None, num_workers=1, persistent_workers=True)
    assert list(loader) == [[11, 1, 11, 1, 0, 0]]
    assert (data.plain[1], data.array[1]) == (1, 1)
    data.plain[1] = data.shared[1] = data.array[1] = 7
    assert list(loader) == [[21, 7, 21, 1, 0, 0]]


class Where(Dataset):
    """Tells which memory its array lies in."""

    def __init__(self):
        self.array = np.arange(100_000)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        _, where = Maps(self.array)[0]
        [memory] = [line for line in Path("/proc/self/maps").read_text().splitlines()
                    if "feedax-dataset" in line]  # fmt: skip
        return "".join(where), memory.split()[4], os.getpid()


def test_the_workers_share_one_copy_of_the_arrays():
    (first, *one), (second, *other) = NumpyLoader(Where(), None, num_workers=2)
    assert first.startswith("/memfd:feedax-dataset")
    assert (first, one[0]) == (second, other[0])  # the inode
    assert one[1] != other[1]


@pytest.mark.parametrize("method", [slow("spawn"), "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_torchs_own_way_to_start_workers(method):
    loader = NumpyLoader(Fails(), 2, num_workers=1, multiprocessing_context=method)
    epoch = iter(loader)
    [batch, label] = next(epoch)
    assert (type(batch), batch.shape, label.tolist()) == (np.ndarray, (2, 9000), [0, 1])
    with pytest.raises(KeyError) as error:
        next(epoch)
    assert "while loading example 3 in worker 0" in str(error.value)
    assert list(epoch) == []
    assert loader.stats().batches == 1


class Fails(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise KeyError("three")
        return np.full(9000, index), index


class Modules(Holder):
    def __getitem__(self, index):
        return " ".join(
            name
            for name in ("feedax.data", "torchvision", "jax", "test_imports")
            if name in STARTED
        )


STARTED = set(sys.modules)


def test_the_server_has_imported_what_workers_need():
    epoch = iter(NumpyLoader(Modules(), None, num_workers=1))
    assert next(epoch) == "feedax.data"
    [channel] = epoch._context.channels
    assert not channel.has_jax


class Counts(Holder):
    def __getitem__(self, index):
        with self.lock:
            self.count.value += 1
        return index


def test_a_lock_and_memory_of_multiprocessing_are_the_trainers():
    context = multiprocessing.get_context("forkserver")
    data = Counts(lock=context.Lock(), count=context.Value("q", 0, lock=False))
    with data.lock:
        epoch = iter(NumpyLoader(data, 1, num_workers=2))
        assert data.count.value == 0
    assert len(list(epoch)) == 4
    assert data.count.value == 4
