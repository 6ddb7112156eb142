"""The whole default job, `feedax train`, beside the tutorial's own script: processes in turn.

Both train the same network on the same digits for 8 epochs, and measure the accuracy on all
70,000 after each. Both clocks run from the process's start to its end: imports, data, compilation,
training, evaluation; `feedax train` also writes checkpoints, metrics and curves. Each side keeps
its compiled programs as a user has them: feedax in its own cache, filled by a start that does not
count; the tutorial's script keeps none.

    python benchmarks/whole_job.py [--pairs 5]
"""

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import timing

import feedax.datasets

SCRIPT = Path(__file__).with_name("tutorial_script.py")


class Cost(NamedTuple):
    """Of a process from its start to its end."""

    wall: float
    cpu: float
    megabytes: float


def cost(command: Sequence[str], variables: dict[str, str]) -> tuple[Cost, str]:
    """Run a command; what it cost and printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=out, stderr=log, cwd=variables["HOME"]
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}:\n{log.read()}")
        printed = out.read()
    megabytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(wall, usage.ru_utime + usage.ru_stime, megabytes), printed


def unpack(root: Path) -> None:
    """The package's MNIST, as torchvision keeps it."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (Path(feedax.datasets.__file__).parent / "shipped_mnist").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))


def last_accuracy(printed: str) -> float:
    return float(printed.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="how many times each runs")
    pairs = parser.parse_args().pairs
    print(f"{timing.machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(folder)
        variables = {"HOME": name, "XDG_CACHE_HOME": str(folder / "cache")}
        commands = {
            "feedax train": [sys.executable, "-m", "feedax", "train", "--out"],
            "the tutorial's script": [sys.executable, str(SCRIPT), str(folder)],
        }
        costs: dict[str, list[Cost]] = {side: [] for side in commands}
        accuracies = {}
        for pair in range(-1, pairs):  # the first fills the disk's and feedax's caches
            order = list(commands) if pair % 2 else list(reversed(commands))
            for side in order:
                run = [str(folder / f"run-{pair}")] if side == "feedax train" else []
                one, printed = cost([*commands[side], *run], variables)
                accuracies[side] = last_accuracy(printed)
                if pair >= 0:
                    costs[side].append(one)
    columns = ("wall, s", "CPU, s", "peak, MB")
    print(f"| whole process | {' | least | most | '.join(columns)} | least | most |")
    print("|---|" + "---:|" * 9)
    for side, found in costs.items():
        parts = zip(*found, strict=True)
        cells = [timing.spread(of, digits) for of, digits in zip(parts, (1, 1, 0), strict=True)]
        print(f"| {side} | {' | '.join(cells)} |")
    ours, theirs = (list(zip(*costs[side], strict=True)) for side in commands)
    print()
    for what, mine, other, aim in zip(Cost._fields, ours, theirs, (0.5, 1, 1), strict=True):
        print(f"{what}: {timing.verdict(mine, other, aim)}")
    shown = ", ".join(f"{side} {value:.4f}" for side, value in accuracies.items())
    print(f"test accuracy: {shown}")


if __name__ == "__main__":
    main()
