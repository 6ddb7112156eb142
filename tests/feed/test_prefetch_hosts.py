"""Batches of several hosts: two real processes with two devices each."""

import inspect
import socket
import subprocess
import sys

import pytest
from helpers import aligned

HOST = """
import sys
import threading
import jax
import numpy as np

host, port = int(sys.argv[1]), sys.argv[2]
sys.stdout = open(sys.argv[3], "w")  # Gloo prints on the process's own
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, host)

from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from feedax.errors import BatchError
from feedax.feed import prefetch_to_device

"""
CHECKS = """
mesh = Mesh(np.array(jax.devices()), ("data",))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


@jax.jit
def total(batch, mask):
    return (batch["y"] * mask).sum(), mask.sum()


class Stream:
    def __init__(self, *sizes, fails=False):
        self.sizes = sizes
        self.fails = fails

    def __iter__(self):
        for i, size in enumerate(self.sizes):
            if i == len(self.sizes) - 1 and self.fails:
                raise KeyError("broken")
            yield {"y": np.arange(size, dtype=np.float32) + 100 * i + 10 * host}


class Sized(Stream):
    def __len__(self):
        return len(self.sizes)


def said(source, **options):
    # Every host goes on with steps over all devices while it asks for the next batch.
    got = 0
    try:
        for batch in prefetch_to_device(source, 2, rows, **options):
            total(*batch) if options.get("last") == "pad" else total(batch, np.float32(1))
            got += 1
    except (BatchError, KeyError) as error:
        return f"{got} {type(error).__name__}: {error}"
    return f"{got} fine"


# Every host gives its own part, and its memory is not shared, whole or in slices.
for last in ("short", "drop", "pad", "wrap"):
    mine = [{"y": aligned((64, 16), 10 * host + i), "z": aligned(64, i)} for i in range(3)]
    if last == "short":
        source, sharding = mine, {"y": rows, "z": everywhere}
    else:
        source, sharding = [one["y"] for one in mine], rows
    got = list(prefetch_to_device(source, 2, sharding, last=last))
    for leaf in jax.tree.leaves(mine):
        leaf[...] = -1
    for i, batch in enumerate(got):
        if last == "short":
            assert [set(np.asarray(s.data).ravel()) for s in batch["z"].addressable_shards] == [
                {i}, {i}
            ]
            batch = batch["y"]
        elif last == "pad":
            assert batch.mask.sharding == rows and batch.mask.shape == (128,)
            batch = batch.batch
        assert (batch.shape, batch.sharding) == ((128, 16), rows)
        shards = [set(np.asarray(s.data).ravel()) for s in batch.addressable_shards]
        assert shards == [{10 * host + i}] * 2, shards

# A short last batch, of another size on each host, is filled up and counted once.
for kind in (Sized, Stream):
    masked = prefetch_to_device(kind(4, 4, 3 - host), 2, rows, last="pad")
    print([tuple(map(int, total(batch, mask))) for batch, mask in masked])

print(said(Sized(4, 4, 4)))
print(said(Sized(4, 4, 4), last="wrap"))
print(said(Sized(*[4] * (3 + host)), last="pad"))
print(said(Stream(*[4] * (3 + host)), last="pad"))
print(said(Stream(*[4] * (3 - host))))
print(said(Sized(*[4] * 3, *[2] * host), last="drop"))
print(said(Sized(4, 4, 4 - 2 * host)))
print(said(Stream(4, 4, 4, fails=host == 1)))
print(said(Sized()))
alone = NamedSharding(Mesh(np.array(jax.devices()[2 * (1 - host):][:2]), ("data",)), P("data"))
try:
    prefetch_to_device([], 2, alone)
except BatchError as error:
    print(error)
mine = NamedSharding(Mesh(np.array(jax.local_devices()), ("data",)), P("data"))
print(len(list(prefetch_to_device([np.ones(4)] * (2 + host), 2, mine))))
threads = [thread.name for thread in threading.enumerate()]
assert not [name for name in threads if name.startswith("feedax")], threads
sys.stdout.close()
"""

WHO = "BatchError: prefetch_to_device: every host must"
REMEDY = "; give every host as many examples, and fill up short batches with last='pad' or 'wrap'"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """What the two hosts say, line by line."""
    folder = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = HOST + inspect.getsource(aligned) + CHECKS
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                code,
                str(host),
                str(port),
                str(folder / f"{host}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], outputs
    return [(folder / f"{host}").read_text().splitlines() for host in range(2)]


def test_both_hosts_say_the_same(hosts):
    first, second = hosts
    sums = "[(52, 8), (852, 8), (1024, 5)]"
    same = [
        sums,
        sums,
        "3 fine",
        "3 fine",
        f"0 {WHO} have the same number of batches, and host 0 has 3, host 1 has 4{REMEDY}",
        f"3 {WHO} have the same number of batches, and host 0 has 3, host 1 has over 3{REMEDY}",
        f"2 {WHO} have the same number of batches, and host 0 has over 2, host 1 has 2{REMEDY}",
        "3 fine",
        f"2 {WHO} have the same number of examples in batch 2, and host 0 has 4, host 1 has 2"
        f"{REMEDY}",
    ]
    assert first[:9] == same
    assert second[:9] == same


def test_a_host_that_fails_is_named_to_the_others(hosts):
    first, second = hosts
    assert (
        first[9] == f"2 {WHO} yield its batches, and host 1 failed at batch 2; see the error there"
    )
    assert second[9] == "2 KeyError: 'broken'"


def test_hosts_without_batches_agree(hosts):
    assert [lines[10] for lines in hosts] == ["0 fine", "0 fine"]


def test_all_hosts_must_take_part(hosts):
    for host, lines in enumerate(hosts):
        assert lines[11] == (
            "prefetch_to_device: a sharding over several hosts must use devices of all 2 of them, "
            f"and it uses those of [{1 - host}]; make its mesh of jax.devices()"
        )


def test_a_sharding_of_one_host_asks_nobody(hosts):
    assert [lines[12] for lines in hosts] == ["2", "3"]
