"""Checkpoints of 8 MB: what each part takes, beside Orbax, and whether flipped bits are noticed.

The state is that of the tutorial's network under Adam, parameters and both moments, filled with
random numbers. In turn each side saves it and reads it back, into a folder of its own on the disk
of --folder: feedax as `fit` does, in its parts, the file synced to the disk; Orbax by
`StandardCheckpointer`, its save until it returns and until it is finished.

Then, again and again, one bit of one file is flipped, each file as likely as it is long, and the
checkpoint is read. It is refused, or it gives the state that was saved, or another one without a
word.

    python benchmarks/checkpoints.py [--repetitions 20] [--folder FOLDER] [--quick]
"""

import importlib.util
import logging
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import timing

import feedax
from feedax.files import replace_file
from feedax.storage.checkpoint_file import decode, encode
from feedax.storage.snapshot import restore, snapshot

SIZES = (784, 512, 512, 10)
ABOUT = {"run": "0123456789abcdef", "step": 469, "epoch": 1}

Times = dict[str, list[float]]


def random_state() -> Any:
    """8 MB of random numbers in the shapes of the tutorial's network and its Adam."""
    params = feedax.init_network_params(SIZES, jax.random.key(0))
    leaves, structure = jax.tree.flatten({"params": params, "opt": optax.adam(1.0).init(params)})
    keys = jax.random.split(jax.random.key(1), len(leaves))
    filled = [
        jax.random.normal(key, leaf.shape) if leaf.ndim else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.block_until_ready(jax.tree.unflatten(structure, filled))


class Feedax:
    """A checkpoint of feedax, part by part."""

    name = "feedax"

    def __init__(self, folder: Path, state: Any) -> None:
        self.folder, self.state = folder, state
        self.path = folder / "step-000000469.safetensors"
        self.seconds: Times = {}

    def save(self) -> None:
        started = time.perf_counter()
        arrays = snapshot(self.state)
        copied = time.perf_counter()
        pieces = encode(arrays, ABOUT)
        hashed = time.perf_counter()
        replace_file(self.path, *pieces)
        ended = time.perf_counter()
        self._add("snapshot: all that training waits for", copied - started)
        self._add("header and SHA-256", hashed - copied)
        self._add("write and sync", ended - hashed)
        self._add("saved", ended - started)

    def read(self) -> Any:
        started = time.perf_counter()
        content = self.path.read_bytes()
        opened = time.perf_counter()
        arrays, _ = decode(content, self.path)
        decoded = time.perf_counter()
        state = jax.block_until_ready(restore(arrays, like=self.state))
        ended = time.perf_counter()
        self._add("read the file", opened - started)
        self._add("verify and decode", decoded - opened)
        self._add("restored", ended - started)
        return state

    def _add(self, part: str, seconds: float) -> None:
        self.seconds.setdefault(part, []).append(seconds)


class Orbax:
    """A checkpoint of Orbax's StandardCheckpointer."""

    name = "Orbax"

    def __init__(self, folder: Path, state: Any) -> None:
        from orbax.checkpoint import StandardCheckpointer

        self.folder, self.state = folder, state
        self.path = folder / "469"
        self.seconds: Times = {"save returns": [], "saved": [], "restored": []}
        self._checkpointer = StandardCheckpointer()
        self._like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
        )

    def save(self) -> None:
        started = time.perf_counter()
        self._checkpointer.save(self.path, self.state, force=True)
        returned = time.perf_counter()
        self._checkpointer.wait_until_finished()
        self.seconds["save returns"].append(returned - started)
        self.seconds["saved"].append(time.perf_counter() - started)

    def read(self) -> Any:
        started = time.perf_counter()
        state = jax.block_until_ready(self._checkpointer.restore(self.path, self._like))
        self.seconds["restored"].append(time.perf_counter() - started)
        return state


Side = Feedax | Orbax


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same to the bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def files(side: Side) -> list[Path]:
    return [path for path in side.folder.rglob("*") if path.is_file()]


def flipped(side: Side, generator: random.Random) -> str:
    """Flip one bit of the checkpoint, read it, and put the bit back."""
    sizes = [(path, path.stat().st_size) for path in files(side)]
    [(path, size)] = generator.choices(sizes, [size for _, size in sizes])
    place, bit = generator.randrange(size), 1 << generator.randrange(8)

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(place)
            [byte] = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ bit]))

    flip()
    try:
        return "the same state" if equal(side.read(), side.state) else "another state"
    except Exception:  # of whatever type: it was noticed
        return "refused"
    finally:
        flip()


def turn(side: Side) -> None:
    """Save and read once."""
    if side.path.is_dir():
        shutil.rmtree(side.path)
    side.save()
    assert equal(side.read(), side.state), side.name


def main() -> None:
    parser = timing.parser(__doc__, "--repetitions", 20, quick="2 repetitions")
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder if not")
    options = parser.parse_args()
    repetitions = 2 if options.quick else options.rounds

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    kinds = [Feedax, Orbax] if importlib.util.find_spec("orbax") else [Feedax]
    state = random_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(timing.machine("orbax-checkpoint"))
        print(f"{_file_system(Path(folder))}\n", flush=True)
        sides: list[Side] = []
        for kind in kinds:
            own = Path(folder) / kind.name
            own.mkdir()
            sides.append(kind(own, state))
        for repetition in range(-1, repetitions):  # the first ones start threads and fill caches
            for side in sides:
                turn(side)
            if repetition < 0:
                for side in sides:
                    side.seconds = {part: [] for part in side.seconds}
        print(f"| {size / 1e6:.1f} MB, {repetitions} times | ms | least | most |")
        print("|---|---:|---:|---:|")
        for side in sides:
            for part, seconds in side.seconds.items():
                print(f"| {side.name}: {part} | {timing.spread([1e3 * s for s in seconds], 1)} |")

        print("\n| one bit flipped | files | bytes | refused | the same state | another state |")
        print("|---|---:|---:|---:|---:|---:|")
        for side in sides:
            generator = random.Random(0)
            counts = Counter(flipped(side, generator) for _ in range(repetitions))
            found = files(side)
            cells = (len(found), sum(path.stat().st_size for path in found))
            outcomes = (counts[what] for what in ("refused", "the same state", "another state"))
            print(f"| {side.name} | {' | '.join(f'{n:,}' for n in (*cells, *outcomes))} |")


def _file_system(path: Path) -> str:
    """The type of the file system that holds a folder."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    holding = [mount for mount in mounts if path.resolve().is_relative_to(mount[0])]
    return max(holding, key=lambda mount: len(mount[0]))[1]


if __name__ == "__main__":
    main()
