"""What the tests of several folders share.

Heavy libraries are imported in functions only: worker processes import this module too.
"""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import feedax

# Which cases are run


def slow(*values: Any) -> Any:
    """A case of a parametrized test that only make test-all runs."""
    import pytest

    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, of which make test runs only those that are named."""
    fast = list(fast)
    more = [case for case in cases if case not in fast]
    return [*fast, *(slow(*case) if isinstance(case, tuple) else slow(case) for case in more)]


# What is trained


def problem(
    seed: int = 0, count: int = 52, features: int = 6, classes: int = 3, shift: float = 2,
    dtype: Any = np.float32,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A small problem that can be learned: classes are shifted clouds."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.normal(0, 1, (count, features))
    x[np.arange(count), y] += shift
    return x.astype(dtype), y


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def linear(w, x):
    return w @ x


def squared(prediction, target):
    return (prediction - target) ** 2


def save_digits(path: Path, train: int, test: int) -> Path:
    """Real digits of 8 x 8, as bytes, in an npz file."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.uint8(images * (255 / 16)).reshape(-1, 8, 8)
    parts = {"train": slice(train), "test": slice(train, train + test)}
    arrays = {f"x_{name}": images[part] for name, part in parts.items()}
    np.savez(path, **arrays, **{f"y_{name}": labels[part] for name, part in parts.items()})
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    """An array as a file in MNIST's format."""
    codes = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{array.ndim}i", 0, 0, codes[array.dtype], array.ndim, *array.shape)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def draw() -> tuple[float, float, float]:
    """A number from each of the three random states."""
    import torch

    return random.random(), np.random.random(), float(torch.rand(()))


def aligned(shape, value, dtype=np.float32):
    """An array from an address on that JAX would take as its own memory."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(count + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + count].view(dtype).reshape(shape)
    array[...] = value
    return array


# What is compared


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """The leaves of a tree, to the bit."""
    import jax

    leaves = map(np.asarray, jax.tree.leaves(tree))
    return [(leaf.dtype.str, leaf.shape, leaf.tobytes()) for leaf in leaves]


def assert_same_batch(ours: Any, theirs: Any) -> None:
    """The same types, and the same values to the bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
        assert ours.flags.c_contiguous == theirs.flags.c_contiguous
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same_batch(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_batch(a, b)
    else:
        assert ours == theirs


def timeless(value: Any) -> Any:
    """A row, or a history, but for what the clock says."""
    if isinstance(value, dict):
        times = ("seconds", "examples_per_second")
        return {name: timeless(one) for name, one in value.items() if not name.endswith(times)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def message(kind: type[Exception], call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """What a call says when it fails."""
    try:
        call(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")


# Commands, scripts and processes


def run_command(capture: Any, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of feedax, in this process; `capture` is the fixture capfd or capsys."""
    from feedax.cli import main

    code = main(arguments)
    said = capture.readouterr()
    return subprocess.CompletedProcess(arguments, code, said.out, said.err)


def change_config(folder: Path | str, **entries: Any) -> None:
    """Change entries of a run's or a sweep's config.json."""
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def run_script(folder: Path, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, to its end; warnings are errors."""
    options = {"timeout": 120, "check": False, "env": _with_feedax(), **options}
    return subprocess.run(_script(folder, text), capture_output=True, text=True, **options)


def start_script(folder: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script in a session of its own; warnings are errors."""
    return subprocess.Popen(
        [*_script(folder, text), *arguments], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_with_feedax(),
    )  # fmt: skip


def _script(folder: Path, text: str) -> list[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    return [sys.executable, "-W", "error", str(script)]


def _with_feedax() -> dict[str, str]:
    source = str(Path(feedax.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def pretend_gpu(setattr):
    """Let torch believe that there is a GPU, and fail where anybody wants a part of it."""
    import torch

    def refuse(*_):
        raise AssertionError("torch would take a part of the GPU's memory")

    setattr(torch.cuda, "is_available", lambda: True)
    setattr(torch.cuda, "device_count", lambda: 1)
    setattr(torch.cuda, "_lazy_init", refuse)
    setattr(torch.accelerator, "is_available", lambda: True)
    setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    setattr(torch.accelerator, "current_device_index", refuse)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def processes_of_session(leader: int) -> list[int]:
    """The processes of a session that are not yet gone."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, *ids = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if int(ids[2]) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def left_over(leader: int, seconds: float = 60) -> list[int]:
    """What is still there of a session a while after its leader's end."""
    deadline = time.monotonic() + seconds
    while processes_of_session(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_of_session(leader)


def transfer_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("feedax-transfer")]
