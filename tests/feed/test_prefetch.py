"""`prefetch_to_device`: the same batches, safe and in order, and nothing left behind."""

import gc
import inspect
import subprocess
import sys
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import aligned, transfer_threads
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import feedax
from feedax.data import ArrayDataset
from feedax.errors import BatchError
from feedax.feed import Masked, prefetch_to_device

MODES = ["short", "drop", "pad", "wrap"]
HOW_TO = [1, 2, 5]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert transfer_threads() == []
    yield
    if transfer_threads():
        gc.collect()  # what a failed test still holds
    wait_for_no_threads()


def wait_for_no_threads():
    deadline = time.monotonic() + 60
    while transfer_threads() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert transfer_threads() == []


def counted(count=7, size=4):
    return [np.arange(i, i + size, dtype=np.float32) for i in range(count)]


class Source:
    """Batches with a memory of what happened, and where."""

    def __init__(self, batches, fails_after=None, fresh=False):
        self.batches = batches
        self.fails_after = fails_after
        self.batches_are_fresh = fresh
        self.threads = set()
        self.position = 0
        self.state = {"position": self.position}

    def __iter__(self):
        for i, batch in enumerate(self.batches):
            if i == self.fails_after:
                raise KeyError("the source is broken")
            self.threads.add(threading.get_ident())
            self.position = self.state["position"] = i + 1
            yield batch
        self.state["position"] = "end"

    def state_dict(self):
        return self.state  # the very dict that goes on changing


@pytest.mark.parametrize("size", HOW_TO)
@pytest.mark.parametrize("fresh", [False, True])
def test_the_same_batches_in_order_on_the_device(size, fresh):
    batches = [{"x": x, "y": (x.astype(np.int32), [x > 2])} for x in counted()]
    got = list(prefetch_to_device(Source(batches, fresh=fresh), size))
    assert len(got) == len(batches)
    for ours, theirs in zip(got, batches, strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(ours))
        assert jax.tree.map(lambda a: (a.dtype, a.tolist()), ours) == jax.tree.map(
            lambda a: (a.dtype, a.tolist()), theirs
        )
    assert transfer_threads() == []


@pytest.mark.parametrize("size", HOW_TO)
def test_batches_are_pulled_in_the_consumers_thread_and_no_sooner_than_said(size):
    source = Source(counted(7))
    batches = prefetch_to_device(source, size)
    assert (source.position, transfer_threads()) == (0, [])
    for taken, _ in enumerate(batches, start=1):
        assert source.position == min(taken + size - 1, 7)
        assert len(transfer_threads()) == (0 if size == 1 else 1)
    assert source.threads == {threading.get_ident()}
    assert next(batches, None) is None


def test_a_dataset_draws_the_numbers_that_it_draws_without_prefetching():
    import torch

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return torch.rand(2), np.random.rand()

    def epoch(through):
        torch.manual_seed(0)
        np.random.seed(0)
        loader = feedax.NumpyLoader(Noisy(), 4, shuffle=True)
        return [np.asarray(x).tolist() for x, _ in through(loader)]

    assert epoch(lambda loader: prefetch_to_device(loader, 4)) == epoch(iter)


@pytest.mark.parametrize("size", HOW_TO)
def test_an_error_comes_after_the_batches_before_it(size):
    batches = prefetch_to_device(Source(counted(), fails_after=3), size)
    got = [next(batches).tolist() for _ in range(3)]
    assert got == [x.tolist() for x in counted(3)]
    with pytest.raises(KeyError, match="the source is broken"):
        next(batches)
    assert transfer_threads() == []
    assert next(batches, "ended") == "ended"


def test_an_error_of_the_transfer_is_the_consumers_too():
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "batch"))  # of one dimension too many
    batches = prefetch_to_device(counted(), 2, sharding)
    with pytest.raises(BatchError) as error:
        next(batches)
    assert str(error.value).startswith(
        "prefetch_to_device: a batch must divide among the devices of its sharding, and one does "
        "not ("
    )
    assert str(error.value).endswith(
        "); leave short batches out with last='drop', or fill them up with last='pad' or 'wrap'"
    )
    assert transfer_threads() == []


def test_ctrl_c_while_loading_ends_the_thread():
    def interrupted():
        yield np.ones(3)
        yield np.ones(3)
        raise KeyboardInterrupt

    batches = prefetch_to_device(interrupted(), 2)
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert transfer_threads() == []


def test_a_cpu_needs_no_thread():
    """Its memory is the host's, and JAX computes while the next batch is loaded."""
    devices = [None, jax.devices()[0], SingleDeviceSharding(jax.devices()[0])]
    for sharding in devices:
        batches = prefetch_to_device(counted(3), sharding=sharding)
        assert next(batches).tolist() == [0, 1, 2, 3]
        assert transfer_threads() == []


def test_a_break_ends_the_thread_and_lets_the_source_go():
    source = Source(counted(50))
    iterator_gone = threading.Event()

    def watched():
        try:
            yield from source
        finally:
            iterator_gone.set()

    for _ in prefetch_to_device(watched(), 3):
        assert len(transfer_threads()) == 1
        break
    wait_for_no_threads()
    assert iterator_gone.is_set()


def test_a_prefetcher_that_nobody_holds_is_collected_without_the_garbage_collector():
    batches = prefetch_to_device(counted(50), 3)
    next(batches)
    gone = weakref.ref(batches)
    gc.disable()
    try:
        del batches
        assert gone() is None
        wait_for_no_threads()
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fails_after", [None, 3])
def test_one_that_has_ended_is_freed_without_the_garbage_collector(size, fails_after):
    source = Source(counted(), fails_after)
    batches = prefetch_to_device(source, size=size)
    gc.disable()
    try:
        try:
            for _ in batches:
                pass
        except KeyError:
            assert fails_after
        gone = weakref.ref(source)
        del source, batches
        assert gone() is None
    finally:
        gc.enable()


def test_with_and_close_end_the_thread():
    with prefetch_to_device(counted(50), 3) as batches:
        next(batches)
        assert len(transfer_threads()) == 1
    assert transfer_threads() == []
    assert list(batches) == []
    batches.close()


@pytest.mark.parametrize("size", HOW_TO)
@pytest.mark.parametrize("last", MODES)
def test_state_dict_is_that_of_a_loop_without_prefetching(size, last):
    """Saved before every batch: the batches that are left are those that would have come."""
    plain, source = Source(counted(6)), Source(counted(6))
    loop, batches = iter(plain), prefetch_to_device(source, size, last=last)
    assert batches.state_dict() == {"position": 0}
    for _ in range(6):
        next(loop), next(batches)
        assert batches.state_dict() == plain.state_dict()
    assert (next(loop, None), next(batches, None)) == (None, None)
    assert batches.state_dict() == plain.state_dict() == {"position": "end"}


def test_a_source_without_state():
    with pytest.raises(BatchError) as error:
        prefetch_to_device(counted()).state_dict()
    assert str(error.value) == (
        "prefetch_to_device: state_dict() needs batches of a loader that has a state_dict, and "
        "these have none; give a NumpyLoader"
    )


def device():
    return jax.devices()[0]


SHARDINGS = {
    "default": lambda: None,
    "device": device,
    "sharding": lambda: SingleDeviceSharding(device()),
    "mesh": lambda: NamedSharding(Mesh(np.array([device()]), ("b",)), PartitionSpec("b")),
    "tree": lambda: (device(), {"y": None}),
}


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS)
@pytest.mark.parametrize("size", HOW_TO)
@pytest.mark.parametrize("read_only", [False, True])
def test_arrays_that_the_caller_keeps_are_copied(sharding, size, read_only):
    mine = [(aligned((4, 64), i), {"y": aligned(64, i)}) for i in range(4)]
    # Without a copy JAX does take this memory for its own; otherwise this test would say nothing.
    aliased = jax.device_put(mine[0][0])
    mine[0][0][...] = -1
    assert float(aliased[0, 0]) == -1
    mine[0][0][...] = 0
    if read_only:
        for leaf in jax.tree.leaves(mine):
            leaf.setflags(write=False)
    got = []
    for batch in prefetch_to_device([*mine, mine[0]], size, sharding()):
        got.append(batch)
    for leaf in jax.tree.leaves(mine):
        leaf.setflags(write=True)
        leaf[...] = -1
    for i, batch in zip([0, 1, 2, 3, 0], got, strict=True):
        assert [set(np.asarray(leaf).ravel()) for leaf in jax.tree.leaves(batch)] == [{i}, {i}]


@pytest.mark.parametrize("size", HOW_TO)
@pytest.mark.parametrize("last", MODES)
def test_a_source_may_write_its_next_batch_over_the_last(size, last):
    def reusing():
        memory = aligned((16, 1000), 0)
        for i in range(20):
            memory[...] = i
            yield memory

    for i, batch in enumerate(prefetch_to_device(reusing(), size, last=last)):
        array = batch.batch if last == "pad" else batch
        assert set(np.asarray(array).ravel()) == {i}


def test_fresh_batches_are_not_copied():
    arrays = [aligned((4, 64), i) for i in range(3)]
    got = list(prefetch_to_device(Source(arrays, fresh=True)))
    addresses = [array.ctypes.data for array in arrays]
    assert [batch.unsafe_buffer_pointer() for batch in got] == addresses
    foreign = list(prefetch_to_device(arrays))
    assert not {batch.unsafe_buffer_pointer() for batch in foreign} & set(addresses)


def uneven(*sizes):
    start = 1
    for size in sizes:
        x = np.arange(start, start + size)
        start += size
        yield {"x": np.stack([x, x], 1).astype(np.float32), "y": x}


def of(batches):
    return [batch["y"].tolist() for batch in batches]


def test_last_batches():
    sizes = (4, 4, 3)
    assert of(prefetch_to_device(uneven(*sizes))) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    drop = prefetch_to_device(uneven(4, 2, 4, 3), last="drop")
    assert of(drop) == [[1, 2, 3, 4], [7, 8, 9, 10]]
    wrap = list(prefetch_to_device(uneven(*sizes), last="wrap"))
    assert of(wrap) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 1]]
    assert wrap[2]["x"].tolist() == [[9, 9], [10, 10], [11, 11], [1, 1]]
    pad = list(prefetch_to_device(uneven(*sizes), last="pad"))
    assert [type(batch) for batch in pad] == [Masked] * 3
    assert of(batch for batch, _ in pad) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 9]]
    assert [(mask.dtype, mask.tolist()) for _, mask in pad] == [
        (bool, [True] * 4), (bool, [True] * 4), (bool, [True, True, True, False]),
    ]  # fmt: skip


def test_the_batch_size_is_the_loaders_where_it_has_one():
    loader = feedax.NumpyLoader(ArrayDataset(np.arange(3), np.arange(3)), 8)
    (wrapped,) = prefetch_to_device(loader, last="wrap")
    assert wrapped[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    ((padded, mask),) = prefetch_to_device(loader, last="pad")
    assert padded[1].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert mask.tolist() == [True] * 3 + [False] * 5
    assert list(prefetch_to_device(loader, last="drop")) == []
    (short,) = prefetch_to_device(loader)
    assert short[0].tolist() == [0, 1, 2]


def test_one_compilation_and_an_exact_mean_with_a_mask():
    traces = []

    @jax.jit
    def sums(batch, mask):
        traces.append(1)
        return (batch["y"] * mask.astype(batch["y"].dtype)).sum(), mask.sum()

    masked = [sums(*batch) for batch in prefetch_to_device(uneven(4, 4, 3), last="pad")]
    total, count = (sum(map(int, part)) for part in zip(*masked, strict=True))
    assert (total, count, len(traces)) == (66, 11, 1)


def test_masked_batches_are_trained_and_scored_as_the_batches_they_fill():
    x = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)
    y = np.arange(11) % 3
    plain = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    w = jax.random.normal(jax.random.key(0), (3, 5))

    def linear(w, x):
        return w @ x

    masked = prefetch_to_device(plain, last="pad")
    assert feedax.evaluate(linear, w, masked) == feedax.evaluate(linear, w, plain)
    fitted, (row,) = feedax.fit(linear, w, prefetch_to_device(plain, last="pad"))
    expected, (plain_row,) = feedax.fit(linear, w, plain)
    assert (fitted.tolist(), row["loss"]) == (expected.tolist(), plain_row["loss"])


@pytest.mark.parametrize("last", ["drop", "pad", "wrap"])
def test_a_batch_longer_than_the_first(last):
    with pytest.raises(BatchError) as error:
        list(prefetch_to_device(uneven(2, 3), last=last))
    assert str(error.value) == (
        "prefetch_to_device: a batch must not be longer than the first one or than batch_size, 2 "
        "examples, and one has 3; use last='short'"
    )
    assert of(prefetch_to_device(uneven(2, 3))) == [[1, 2], [3, 4, 5]]


def test_text_stays_on_the_host():
    batch = {
        "x": np.ones(2), "name": ["a", "b"], "raw": np.array([b"a", b"b"]),
        "deep": {"words": ("c", "d"), "y": np.ones(2)},
    }  # fmt: skip
    (got,) = prefetch_to_device([batch])
    assert {key: type(value) for key, value in got.items()} == {"x": type(got["x"]), "deep": dict}
    assert list(got["deep"]) == ["y"]
    ((x, names, rest),) = prefetch_to_device([(np.ones(2), ["a", "b"], [np.ones(2), "all"])])
    assert (x.tolist(), names, rest[0].tolist(), rest[1]) == ([1, 1], None, [1, 1], None)
    (padded,) = prefetch_to_device([batch], last="pad")
    assert sorted(padded.batch) == ["deep", "x"]


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (np.array([None, 1]), "a batch must be made of numbers, and it holds values of type "
         "object; leave that field out of the dataset's examples, or turn it into numbers"),
        (np.array([1, 2**40]), "integers must fit into the int32 that the device holds, and a "
         "batch has 1099511627776; make them smaller, or set jax_enable_x64"),
    ],
)  # fmt: skip
def test_what_no_device_holds(leaf, said):
    with pytest.raises(BatchError) as error:
        list(prefetch_to_device([leaf]))
    assert str(error.value) == f"prefetch_to_device: {said}"


def test_arrays_of_different_lengths():
    with pytest.raises(BatchError) as error:
        list(prefetch_to_device([(np.ones(2), np.ones(3))], last="pad"))
    assert str(error.value) == (
        "prefetch_to_device: all arrays of a batch must have one number of examples, above 0, as "
        "their first dimension, and their shapes are (2,), (3,); see what the dataset or "
        "collate_fn returns"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 0}, "size must be a whole number of batches, 1 or more, and it is 0; leave it "
         "out"),
        ({"size": 1.5}, "size must be a whole number of batches, 1 or more, and it is 1.5; leave "
         "it out"),
        ({"last": "fill"}, "last must be one of 'short', 'drop', 'pad', 'wrap', and it is 'fill'; "
         "leave it out to get short batches as they are"),
        ({"sharding": {"x": "cpu"}}, "sharding must be a device, a sharding or a PyTree of these, "
         "and it holds 'cpu'; give a jax.sharding.NamedSharding"),
        ({"batches": 3}, "batches must be a loader or another iterable of NumPy batches, and it "
         "is a int; give a NumpyLoader or a list"),
    ],
)  # fmt: skip
def test_arguments_that_are_wrong(arguments, said):
    with pytest.raises(BatchError) as error:
        prefetch_to_device(**{"batches": [], **arguments})
    assert str(error.value) == f"prefetch_to_device: {said}"


def test_a_sharding_of_another_structure():
    with pytest.raises(BatchError) as error:
        list(prefetch_to_device([{"x": np.ones(2)}], sharding={"y": device()}))
    assert str(error.value) == (
        "prefetch_to_device: sharding must have the structure of a batch or of its upper part, "
        "and it is PyTreeDef({'y': *}) for PyTreeDef({'x': *}); give one sharding for all, or one "
        "for each part of a batch that is no text"
    )


@pytest.mark.parametrize("size", HOW_TO)
def test_jaxs_settings_are_the_consumers(size):
    with jax.enable_x64(True):
        (batch,) = prefetch_to_device([np.array([2**40, 1])], size)
        assert (batch.dtype, batch.tolist()) == (jnp.int64, [2**40, 1])


EIGHT_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from feedax.errors import BatchError
from feedax.feed import prefetch_to_device

"""
CHECKS = """
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
rows, cells = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("data", "model"))
everywhere, one = NamedSharding(mesh, P()), jax.devices()[5]
for sharding in (rows, everywhere, one, None, (rows, rows), (cells, None), (everywhere, one)):
    for last in ("short", "pad"):
        for size in (1, 2):
            mine = [(aligned((64, 64), i), aligned(64, i)) for i in range(3)]
            got = list(prefetch_to_device(mine, size, sharding, last=last))
            for leaf in jax.tree.leaves(mine):
                leaf[...] = -1
            for i, batch in enumerate(got):
                if last == "pad":
                    batch, mask = batch
                    assert mask.all(), mask
                    if sharding is rows or isinstance(sharding, tuple) and sharding[0] is cells:
                        assert mask.sharding == rows
                for leaf, place in zip(
                    batch, sharding if isinstance(sharding, tuple) else (sharding, sharding)
                ):
                    assert set(np.asarray(leaf).ravel()) == {i}, (sharding, last, size)
                    if place is one:
                        assert leaf.devices() == {one}
                    elif place is None:
                        assert leaf.devices() == {jax.devices()[0]}
                    else:
                        assert leaf.sharding == place
with jax.default_device(jax.devices()[3]):
    (batch,) = prefetch_to_device([np.ones(3)])
    assert batch.devices() == {jax.devices()[3]} and not batch.committed
try:
    list(prefetch_to_device([np.ones(8), np.ones(6)], 2, rows))
except BatchError as error:
    print(str(error).split(" (")[0])
short = list(prefetch_to_device([np.ones(8), np.ones(6)], 2, rows, last="pad"))
print(short[1].mask.tolist())
"""


def test_eight_devices_in_one_process():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EIGHT_DEVICES + inspect.getsource(aligned) + CHECKS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [  # before them JAX 0.12 prints where it was called
        "prefetch_to_device: a batch must divide among the devices of its sharding, and one does "
        "not",
        "[True, True, True, True, True, True, False, False]",
    ]
