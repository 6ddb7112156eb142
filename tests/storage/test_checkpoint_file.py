"""Checkpoint files: every dtype to the bit, every damage noticed, complete or absent."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import ShapeDtypeStruct

from feedax.errors import CheckpointError, RunFolderError
from feedax.files import remove_leftovers, replace_file
from feedax.storage.checkpoint_file import decode, encode, read_checkpoint, write_checkpoint
from feedax.storage.snapshot import HostArray, restore, snapshot

FLOAT8 = ["e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"]
NARROW = [
    *("bool", "int2", "int4", "int8", "int16", "int32", "uint2", "uint4", "uint8", "uint16"),
    *("uint32", "float4_e2m1fn", *(f"float8_{kind}" for kind in FLOAT8)),
    *("float16", "bfloat16", "float32", "complex64"),
]
WIDE = ["int64", "uint64", "float64", "complex128"]
IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]


def bits(array) -> bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def through_a_file(state, like=None, about=None):
    content = b"".join(encode(snapshot(state), about or {}))
    arrays, found = decode(content, "a file")
    assert found == (about or {})
    return restore(arrays, state if like is None else like)


def any_bits(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every bit pattern that a dtype has may occur: NaN with a payload, -0.0, infinity."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(7).integers(0, 256, size, np.uint8)
    if dtype == "bool":
        raw %= 2
    if small := re.fullmatch(r"u?int([24])|float([4])_.*", dtype):
        raw %= 2 ** int(small[1] or small[2])
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_every_dtype_survives_to_the_bit(dtype):
    with jax.enable_x64(dtype in WIDE):
        state = {
            "matrix": jnp.array(any_bits(dtype, (3, 5))),
            "scalar": jnp.array(any_bits(dtype, ())),
            "empty": jnp.array(any_bits(dtype, (0, 3))),
            "numpy": any_bits(dtype, (4, 6)),
            "transposed": any_bits(dtype, (4, 6)).T,
            "strided": any_bits(dtype, (9, 2))[::-2, 1:],
        }
        shapes = jax.eval_shape(lambda: {name: jnp.asarray(x) for name, x in state.items()})
        again = through_a_file(state)
        as_jax = through_a_file(state, like=shapes)
    for name, leaf in state.items():
        for found in (again[name], as_jax[name]):
            assert (found.dtype, found.shape) == (np.dtype(dtype), leaf.shape)
            assert bits(found) == bits(leaf)
        assert isinstance(again[name], np.ndarray) is isinstance(leaf, np.ndarray)
        assert isinstance(as_jax[name], jax.Array)


@pytest.mark.parametrize("impl", IMPLS)
def test_typed_keys_come_back_as_typed_keys(impl):
    key = jax.random.key(3, impl=impl)
    state = {"one": key, "many": jax.random.split(key, (2, 3)), "old": jax.random.PRNGKey(5)}
    for like in (state, jax.eval_shape(lambda: state)):
        again = through_a_file(state, like=like)
        for name, leaf in state.items():
            assert (again[name].dtype, again[name].shape) == (leaf.dtype, leaf.shape)
        assert jax.random.key_impl(again["many"]) == impl
        np.testing.assert_array_equal(again["old"], state["old"])
        for name in ("one", "many"):
            np.testing.assert_array_equal(
                jax.random.key_data(again[name]), jax.random.key_data(state[name])
            )
    assert jax.random.bits(again["one"]) == jax.random.bits(key)


def test_64_bits_survive_without_jax_enable_x64():
    x = np.array([0.1, np.pi])
    assert not jax.config.jax_enable_x64
    again = through_a_file({"x": x, "n": np.float64(1 / 3)})
    assert type(again["n"]) is np.float64
    assert (again["x"].dtype, bits(again["x"]), again["n"]) == (np.float64, bits(x), 1 / 3)


def test_the_other_byte_order_comes_back_in_this_machines():
    x = np.array([1.5, -2e300], ">f8")
    again = through_a_file([x], like=[x.astype(float)])
    assert again[0].dtype.isnative
    np.testing.assert_array_equal(again[0], x)


def test_python_numbers_become_what_jax_makes_of_them():
    state = {"rate": 0.1, "step": 7, "on": True, "z": 1j, "nothing": None}
    again = through_a_file(state)
    assert again["nothing"] is None
    for name in ("rate", "step", "on", "z"):
        expected = jnp.asarray(state[name])
        assert (again[name].dtype, again[name].weak_type) == (expected.dtype, expected.weak_type)
        assert again[name] == expected


def test_weak_types_are_those_of_the_state_that_goes_on():
    # A weak float32 times a bfloat16 is a bfloat16; another float32 would change every step.
    state = [jnp.asarray(0.1), jnp.broadcast_to(jnp.asarray(np.nan), (2, 2)), jnp.float32(0.1)]
    for like in (state, jax.eval_shape(lambda: state)):
        again = through_a_file(state, like=like)
        assert [leaf.weak_type for leaf in again] == [True, True, False]
        assert [bits(leaf) for leaf in again] == [bits(leaf) for leaf in state]


LEAVES = st.sampled_from(["bool", "int4", "float32", "bfloat16", "complex128", "uint16"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(
        lambda shape: any_bits(dtype, tuple(shape))
    )
)
NAMES = st.text(min_size=1, max_size=6).filter(lambda s: "." not in s and s != "__metadata__")
TREES = st.recursive(
    LEAVES | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(TREES)
def test_every_tree_comes_back(tree):
    again = through_a_file(tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for found, leaf in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert (found.dtype, found.shape, bits(found)) == (leaf.dtype, leaf.shape, bits(leaf))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=3))
def test_what_is_no_array_comes_back_exactly(about):
    _, found = decode(b"".join(encode({}, about)), "a file")
    assert repr(found) == repr(about)  # of floats the shortest text that gives them back, and nan


@pytest.mark.parametrize("about", [{"x": (1, 2)}, {1: 2}, {"x": np.float64(1)}, {"x": b""}, [1]])
def test_what_json_would_change_is_refused(about):
    with pytest.raises(RunFolderError) as error:
        encode({}, about)
    assert str(error.value) == (
        f"encode: about must hold dicts with text as keys, lists, text, numbers, booleans and "
        f"None, and it is {about!r}; turn tuples and arrays into lists, keys into text"
    )


def test_plain_safetensors_reads_it(tmp_path):
    ordinary = [d for d in NARROW if re.fullmatch(r"bool|u?int(8|16|32)|b?float(16|32)", d)]
    ordinary += ["int64", "uint64", "float64", "float8_e4m3fn", "float8_e5m2"]
    state = {dtype: any_bits(dtype, (2, 3)) for dtype in ordinary}
    path = tmp_path / "step-1.safetensors"
    write_checkpoint(path, snapshot({**state, "z": np.array([1 + 2j])}), {"step": 1})
    tensors = safetensors.torch.load_file(path)
    for dtype, array in state.items():
        assert str(tensors[dtype].dtype) == f"torch.{dtype}"
        assert tensors[dtype].view(torch.uint8).numpy().tobytes() == bits(array)
    assert tensors["z"].tolist() == [[1, 2]]
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "feedax checkpoint 1"
    assert json.loads(metadata["dtypes"]) == {"z": "complex128"}
    assert json.loads(metadata["about"]) == {"step": 1}
    # The digest covers the whole file, as anybody can check.
    content = path.read_bytes()
    digest = metadata["sha256"].encode()
    assert int(metadata["size"]) == len(content)
    zeroed = content.replace(digest, b"0" * 64, 1)
    assert hashlib.sha256(zeroed).hexdigest().encode() == digest


def test_a_snapshot_keeps_its_numbers_when_the_state_is_donated():
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    host = np.arange(1000.0, dtype=np.float32)
    state = {"a": jnp.arange(1 << 16, dtype=jnp.float32), "b": jnp.array(host)}
    before = {name: leaf.unsafe_buffer_pointer() for name, leaf in state.items()}
    taken = snapshot({**state, "host": host})
    after = step(state)
    jax.block_until_ready(after)
    host[:] = -1
    # The buffers were taken: what aliased them would hold -1 now.
    assert {name: leaf.unsafe_buffer_pointer() for name, leaf in after.items()} == before
    np.testing.assert_array_equal(taken["a"].numbers, np.arange(1 << 16))
    np.testing.assert_array_equal(taken["b"].numbers, np.arange(1000))
    np.testing.assert_array_equal(taken["host"].numbers, np.arange(1000))
    # Nor does a restored state share memory with the snapshot that it came from.
    restored = restore(taken, {**after, "host": host})
    jax.block_until_ready(step({name: restored[name] for name in "ab"}))
    restored["host"][:] = -1
    np.testing.assert_array_equal(taken["a"].numbers, np.arange(1 << 16))
    np.testing.assert_array_equal(taken["host"].numbers, np.arange(1000))


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        ("text", "a str"),
        (object(), "a object"),
        (2**40, "a int"),
        (2**70, "an array of object"),
        (np.array(["a"]), "an array of <U1"),
        (np.array([None]), "an array of object"),
        (np.zeros(2, "datetime64[s]"), "an array of datetime64[s]"),
        (ShapeDtypeStruct((2,), jnp.float32), "a ShapeDtypeStruct"),
    ],
)
def test_a_leaf_that_is_no_array_is_refused(leaf, found):
    with pytest.raises(RunFolderError) as error:
        snapshot({"net": {"w": leaf}})
    assert str(error.value) == (
        f"snapshot: every leaf must be an array of numbers or random keys, and net.w is {found}; "
        f"take it out of the tree"
    )


def test_names_that_a_file_cannot_hold_are_refused():
    one = np.ones(1)
    with pytest.raises(RunFolderError, match=r"^snapshot: every array .* two are named 'a\.b'; "):
        snapshot({"a.b": one, "a": {"b": one}})
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(RunFolderError) as error:
            snapshot({name: one})
        assert str(error.value) == (
            f"snapshot: every array needs a name that safetensors can hold, and one is named "
            f"{name!r}; give it another key"
        )


def test_a_dtype_that_jax_has_not_is_refused():
    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("a long double is a double here")
    with pytest.raises(RunFolderError, match=r"^encode: an array must have one of JAX's dtypes, "):
        encode(snapshot({"w": np.ones(1, np.longdouble)}), {})


STATE = {
    "params": {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)},
    "key": jax.random.key(0),
    "step": jnp.int32(4),
}
SETTINGS = "resume with the model, the optimizer and the settings that it was saved with"


def changed(**leaves):
    return {**STATE, **leaves}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            changed(extra=1.0, params=[1.0]),
            "runs/7 must hold the arrays of the state, and it lacks extra, params.0 and "
            f"also holds params.b, params.w; {SETTINGS}",
        ),
        (
            {name: STATE[name] for name in ("params", "step")},
            f"runs/7 must hold the arrays of the state, and it also holds key; {SETTINGS}",
        ),
        (
            changed(params={"w": np.ones((3, 2), np.float32), "b": jnp.ones(3, jnp.bfloat16)}),
            "params.b of runs/7 must be bfloat16 (3,), and it is float32 (3,) (1 more differ); "
            + SETTINGS,
        ),
        (
            changed(key=jax.random.key(0, impl="rbg")),
            f"key of runs/7 must be key<rbg> (), and it is key<threefry2x32> (); {SETTINGS}",
        ),
        (
            changed(key=jax.random.PRNGKey(0)),
            f"key of runs/7 must be uint32 (2,), and it is key<threefry2x32> (); {SETTINGS}",
        ),
        (
            changed(step=np.int64(4)),
            "step of runs/7 must be int64 (), and it is int32 (); resume with JAX_ENABLE_X64=0, as "
            "it was saved",
        ),
    ],
)
def test_another_states_arrays_are_named(like, message):
    with pytest.raises(CheckpointError) as error:
        restore(snapshot(STATE), like, source="runs/7")
    assert str(error.value) == f"restore: {message}"


def test_float64_is_not_made_float32_silently():
    with jax.enable_x64(True):
        taken = snapshot({"w": jnp.ones(2)})
    for like in (jnp.ones(2), ShapeDtypeStruct((2,), np.float64)):  # JAX would make it float32
        with pytest.raises(CheckpointError) as error:
            restore(taken, {"w": like})
        assert str(error.value) == (
            "restore: w of the checkpoint must be float32 (2,), and it is float64 (2,); resume "
            "with JAX_ENABLE_X64=1, as it was saved"
        )


SMALL = b"".join(
    encode(
        snapshot({"w": np.arange(3, dtype=np.float32), "k": jax.random.key(1), "e": np.ones(0)}),
        {"step": 3},
    )
)


def refusal(content: bytes) -> str:
    with pytest.raises(CheckpointError) as error:
        decode(content, "a file")
    start, end = "read_checkpoint: a file must be a whole checkpoint, and ", "; use an earlier one"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(end)
    return str(error.value)[len(start) : -len(end)]


def test_a_file_cut_short_anywhere_is_refused():
    for length in range(len(SMALL)):
        said = refusal(SMALL[:length])
        rest = f" instead of {len(SMALL)}" if "instead" in said else ""
        assert said == f"it ends after {length} bytes{rest}"
    assert rest  # most lengths say how much is missing
    assert refusal(SMALL + b"\0") == f"it has {len(SMALL) + 1} bytes instead of {len(SMALL)}"


def test_every_flipped_bit_is_noticed():
    said = set()
    for position in range(len(SMALL)):
        for bit in range(8):
            flipped = bytearray(SMALL)
            flipped[position] ^= 1 << bit
            said.add(re.sub(r"\d{2,}", "N", refusal(bytes(flipped))))
    assert said == {
        "its content is not what was written (SHA-N)",
        "it is not one",
        "it has N bytes instead of N",
        "it ends after N bytes instead of N",
    }


def test_lost_blocks_and_other_files_are_refused(tmp_path):
    # What a crash leaves where the file system gave the length before the bytes.
    large = b"".join(encode(snapshot({"w": np.random.default_rng(0).random(3000)}), {}))
    for start in range(0, len(large), 4096):
        block = large[start : start + 4096]
        assert refusal(large[:start] + bytes(len(block)) + large[start + 4096 :]) in (
            "its content is not what was written (SHA-256)",
            "it is not one",
        )
    other = b"".join(encode(snapshot({"w": np.random.default_rng(1).random(3000)}), {}))
    assert len(other) == len(large)
    assert refusal(large[:4096] + other[4096:]) == "its content is not what was written (SHA-256)"
    for content in (safetensors.torch.save({"w": torch.ones(100)}), b"{}" * 100, bytes(1000)):
        assert refusal(content) == "it is not one"
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "none")
    assert str(error.value) == (
        f"read_checkpoint: {tmp_path / 'none'} must be a whole checkpoint, and it is not there; "
        f"use an earlier one"
    )
    with pytest.raises(CheckpointError, match="and the system says 'Is a directory'; use an"):
        read_checkpoint(tmp_path)


def forged(header=None, *, data=b"", length=None, version=1, **metadata) -> bytes:
    """A file whose size and digest are right, whatever else it says."""
    metadata = {"dtypes": "{}", "about": "{}"} | metadata
    begin = (
        f'{{"__metadata__":{{"format":"feedax checkpoint {version}","size":"%016d","sha256":"%s"'
    )
    rest = "," + json.dumps({"__metadata__": metadata, **(header or {})})[18:]

    def content(size: int, digest: str) -> bytes:
        text = (begin % (size, digest) + rest).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + data

    size = len(content(0, "0" * 64))
    return content(size, hashlib.sha256(content(size, "0" * 64)).hexdigest())


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_a_forged_file_that_is_laid_out_rightly_is_only_data():
    arrays, about = decode(forged(entry(), data=bytes(8), about='{"a": 1}'), "a file")
    assert bits(arrays["w"].numbers) == bytes(8)
    assert about == {"a": 1}


@pytest.mark.parametrize(
    "content",
    [
        forged(length=2**63 - 1),
        forged(length=2**64 - 1),
        forged(length=10**7),
        forged(length=0),
        forged(entry(shape=(2**62, 2**62)), data=bytes(8)),
        forged(entry(shape=(2**40,), offsets=(0, 2**42)), data=bytes(8)),
        forged(entry(shape=(-2,)), data=bytes(8)),
        forged(entry(offsets=(8, 0)), data=bytes(8)),
        forged(entry(dtype="F8_E8M0", shape=(8,)), data=bytes(8)),
        forged(entry(dtype="PICKLE"), data=bytes(8)),
        forged(entry(), data=bytes(9)),
        forged(entry(), data=bytes(8), dtypes='{"w": "object"}'),
        forged(entry(), data=bytes(8), dtypes='{"w": "complex128"}'),
        forged(entry("F32", (1, 2)), data=bytes(8), dtypes='{"w": ["complex64"]}'),
        forged(entry("F32", (2, 1)), data=bytes(8), dtypes='{"w": "complex64"}'),
        forged(entry("U32", (2,)), data=bytes(8), dtypes='{"w": "key<rbg>"}'),
        forged(entry("U32", (2,)), data=bytes(8), dtypes='{"w": "key<os.system>"}'),
        forged(entry("F32", (2,)), data=bytes(8), dtypes='{"w": "key<threefry2x32>"}'),
        forged(about="[]"),
        forged(about="__import__('os')"),
        forged(about="[" * 100_000),
        forged(about="9" * 10_000),
        forged(dtypes="[1]", header=entry(), data=bytes(8)),
    ],
    ids=range(23),
)
def test_a_forged_file_is_refused(content):
    assert refusal(content).startswith("its layout is wrong (")


def test_a_later_version_is_named_before_its_content_is_believed():
    with pytest.raises(CheckpointError) as error:
        decode(forged(version=2), "a file")
    assert str(error.value) == (
        "read_checkpoint: a file must have format 1, and it has 2; use the version of feedax that "
        "wrote it"
    )
    assert refusal(forged(version=2)[:-1] + b" ").startswith("its content is not")


# --- the file system and other processes ----------------------------------------------------------


WRITE = """
import resource, sys
import numpy as np
from feedax.errors import RunFolderError
from feedax.storage.checkpoint_file import write_checkpoint
from feedax.storage.snapshot import HostArray

folder, limit = sys.argv[1], int(sys.argv[2])
write_checkpoint(f"{folder}/old", {"w": HostArray(np.arange(10.0))}, {"step": 1})
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name in ("old", "new"):
    try:
        write_checkpoint(f"{folder}/{name}", {"w": HostArray(np.ones(1 << 18))}, {"step": 2})
    except RunFolderError as error:
        print(error)
"""


def refuses_to_write(folder, reason):
    return [
        f"write_checkpoint: {folder}/{name} must be writable, and the system says {reason!r}; "
        "free some space or choose another folder"
        for name in ("old", "new")
    ]


def test_a_disk_that_takes_no_more_keeps_the_old_checkpoint_and_nothing_else(tmp_path):
    command = [sys.executable, "-c", WRITE, tmp_path, str(1 << 20)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = refuses_to_write(tmp_path, os.strerror(errno.EFBIG))
    assert done.stdout.splitlines() == said, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert read_checkpoint(tmp_path / "old")[1] == {"step": 1}


def test_a_full_file_system_keeps_the_old_checkpoint_and_nothing_else(tmp_path):
    # A mount of the child's own, which ends with it.
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
    may_mount = shutil.which("unshare") and subprocess.run(
        [*mount, tmp_path, "true"], capture_output=True
    )
    if not may_mount or may_mount.returncode:
        pytest.skip("this user may not mount a file system")
    look = f"{WRITE}\nimport os; print(os.listdir(folder))\nfrom feedax.storage.checkpoint_file"
    look += ' import read_checkpoint; print(read_checkpoint(f"{folder}/old")[1])'
    command = [*mount, tmp_path, sys.executable, "-c", look, tmp_path, "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *refuses_to_write(tmp_path, os.strerror(errno.ENOSPC)),
        "['old']",
        "{'step': 1}",
    ], done.stderr


def test_a_folder_that_is_not_there_is_an_error_of_the_run_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("none", "file"):
        with pytest.raises(RunFolderError, match=r"^write_checkpoint: .* must be writable"):
            write_checkpoint(tmp_path / folder / "step-1", {}, {})


REWRITE = """
import sys
import numpy as np
from feedax.storage.checkpoint_file import write_checkpoint
from feedax.storage.snapshot import HostArray

path, size, times, mark = sys.argv[1], *map(int, sys.argv[2:])
array = {"w": HostArray(np.full(size, mark, np.float32))}
print("ready", flush=True)
sys.stdin.readline()
for step in range(times):
    write_checkpoint(path, array, {"mark": mark, "step": step})
"""


def rewriting(path, *, size, times, mark):
    """A process that is about to write a file again and again."""
    command = [sys.executable, "-c", REWRITE, path, str(size), str(times), str(mark)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "step-5.safetensors"
    write_checkpoint(path, {"w": HostArray(np.zeros(4))}, {"mark": 0})
    with rewriting(path, size=1 << 24, times=1, mark=1) as child:
        pattern = f".{path.name}.*.{child.pid}.part"
        child.stdout.readline()
        child.stdin.write(b"\n")
        child.stdin.flush()
        while not (found := list(tmp_path.glob(pattern))):
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    (aside,) = found
    assert aside.stat().st_size < 1 << 26
    assert read_checkpoint(path)[1] == {"mark": 0}
    assert remove_leftovers(tmp_path) == [aside]
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = [f".a.{ended.pid}.part", f".b.{os.getpid()}.part"]
    kept = [f".a.{os.getppid()}.part", ".a.1.part", ".a.part", "a.part", ".a.x.part", "a.1"]
    for name in gone + kept:
        (tmp_path / name).touch()
    assert [path.name for path in remove_leftovers(tmp_path)] == sorted(gone)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    pieces = [bytes(1 << 20)] * 4000  # 4 GB, were it not interrupted
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            replace_file(tmp_path / "large", *pieces)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_one_path_leave_one_whole_file(tmp_path):
    path = tmp_path / "latest.safetensors"
    sizes = {1: 100_000, 2: 150_000}
    children = [rewriting(path, size=sizes[mark], times=20, mark=mark) for mark in sizes]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write(b"\n")
        child.stdin.flush()
    seen = 0
    while any(child.poll() is None for child in children):
        if path.exists():
            arrays, about = read_checkpoint(path)  # whole at every moment
            assert np.array_equal(
                arrays["w"].numbers, np.full(sizes[about["mark"]], about["mark"], np.float32)
            )
            seen += 1
        time.sleep(0.001)
    assert [child.wait() for child in children] == [0, 0]
    assert seen > 1
    assert read_checkpoint(path)[1]["step"] == 19
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    for child in children:
        child.stdin.close()
        child.stdout.close()


HOST = """
import sys
import jax, jax.numpy as jnp, numpy as np

host, port = int(sys.argv[1]), sys.argv[2]
sys.stdout = open(sys.argv[3], "w")  # Gloo prints on the process's own
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, host)

from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from feedax.errors import RunFolderError
from feedax.storage.snapshot import snapshot

here, everywhere = (Mesh(np.array(d), ("data",)) for d in (jax.local_devices(), jax.devices()))
state = jax.jit(
    lambda: {"w": jnp.arange(4.0), "key": jax.random.key(5)},
    out_shardings=NamedSharding(everywhere, P()),
)()
assert not state["w"].is_fully_addressable
state["split"] = jax.device_put(np.arange(8), NamedSharding(here, P("data")))
state["copies"] = jax.device_put(np.arange(8), NamedSharding(here, P()))
spread = jax.jit(lambda: jnp.arange(4.0), out_shardings=NamedSharding(everywhere, P("data")))()
if host == 0:  # alone: a snapshot asks nothing of the others
    print({name: array.numbers.tolist() for name, array in snapshot(state).items()})
    try:
        snapshot({"net": [spread]})
    except RunFolderError as error:
        print(error)
sys.stdout.flush()
"""


def test_process_0_alone_takes_what_is_replicated_over_hosts(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(host), str(port), tmp_path / f"{host}"],
            stdout=subprocess.DEVNULL,
        )
        for host in (0, 1)
    ]
    assert [host.wait(timeout=120) for host in hosts] == [0, 0]
    key_data = np.asarray(jax.random.key_data(jax.random.key(5))).tolist()
    eight = list(range(8))
    assert (tmp_path / "0").read_text().splitlines() == [
        str({"copies": eight, "key": key_data, "split": eight, "w": [0.0, 1.0, 2.0, 3.0]}),
        "snapshot: every array must be whole in every process, and net.0 is spread over several; "
        "replicate it with jax.device_put first",
    ]
