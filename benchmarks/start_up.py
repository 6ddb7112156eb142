"""The first and the second start of `feedax train`: seconds from the process's start to a step.

Every pair has a cache folder of its own, empty at first: the first start compiles all programs and
keeps them there, the second one finds them. Both are the default job for an epoch, on MNIST or on a
file of 10,000 of its digits as arrays (`npz:`). The clock starts with the process, the
interpreter's own start included, and stops when the first compiled steps are done and their results
are there: on the CPU one loop of eight steps, some 20 ms. One more pair, not counted, comes before
the others, so that no start waits for the disk.

Beside it stand the parts that the command itself names, and how many programs were not in the
cache.

    python benchmarks/start_up.py [--pairs 5] [--quick]
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timing

import feedax.datasets

STARTS = ("first", "second")
PARTS = ("imports", "data", "compile")


def child(report: str, out: str, dataset: str, started: float) -> int:
    """Run the command in this process, and report when its first steps were done."""
    # All of it the command imports too, without garbage being collected meanwhile, and it counts:
    # the clock starts with the process.
    gc.disable()
    from jax import block_until_ready, monitoring

    from feedax.__main__ import main as command
    from feedax.cli import train  # noqa: F401
    from feedax.train.steps import Steps

    gc.freeze()
    gc.enable()
    said: dict[str, Any] = {"misses": 0}
    run = Steps.run

    def first_run(self: Any, *arguments: Any) -> Any:
        state = block_until_ready(run(self, *arguments))
        said["first_step"] = time.time() - started
        Steps.run = run  # type: ignore[method-assign]
        return state

    def on_event(event: str, **_: Any) -> None:
        said["misses"] += event == "/jax/compilation_cache/cache_misses"

    Steps.run = first_run  # type: ignore[method-assign]
    monitoring.register_event_listener(on_event)
    code = command(["train", "--dataset", dataset, "--epochs", "1", "--out", out])
    Path(report).write_text(json.dumps(said))
    return code


def start(cache: Path, dataset: str) -> dict[str, float]:
    """Start the command in a process of its own; its seconds by name, and its misses."""
    with tempfile.TemporaryDirectory() as folder:
        report, out = Path(folder) / "report.json", Path(folder) / "run"
        done = subprocess.run(
            [sys.executable, __file__, "--child", report, out, dataset, str(time.time())],
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"feedax train ended with {done.returncode}:\n{done.stderr}")
        said: dict[str, float] = json.loads(report.read_text())
    parts = ", ".join(rf"{part} (\S+)" for part in PARTS)
    found = re.search(rf"start-up \S+ s: {parts}$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return {**said, **dict(zip(PARTS, map(float, found.groups()), strict=True))}


def arrays(folder: Path) -> Path:
    """A file of digits as arrays, for `npz:`."""
    digits, path = feedax.datasets.mnist(train=False), folder / "digits.npz"
    if not path.exists():
        x, y = digits.data.numpy(), digits.targets.numpy()
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


def main() -> int:
    parser = timing.parser(__doc__, "--pairs", 5, quick="one pair, and none before it")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        report, out, dataset, started = options.child
        return child(report, out, dataset, float(started))

    print(f"{timing.machine()}\n", flush=True)
    pairs = 1 if options.quick else options.rounds
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(-1 + options.quick, pairs):
            for kind, dataset in (("mnist", "mnist"), ("npz", f"npz:{arrays(Path(folder))}")):
                with tempfile.TemporaryDirectory() as cache:
                    for name in STARTS:
                        said = start(Path(cache), dataset)
                        if pair >= 0:
                            found.setdefault(f"{kind}, {name}", []).append(said)

    print(
        f"| start, {pairs} pairs | first step after, s | least | most | imports, s | data, s | "
        "compile, s | not in the cache |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, starts in found.items():
        seconds = timing.spread([one["first_step"] for one in starts], 2)
        parts = [f"{statistics.median(one[part] for one in starts):.1f}" for part in PARTS]
        misses = sorted({int(one["misses"]) for one in starts})
        shown = " to ".join(map(str, dict.fromkeys((misses[0], misses[-1]))))
        print(f"| {name} | {seconds} | {' | '.join(parts)} | {shown} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
