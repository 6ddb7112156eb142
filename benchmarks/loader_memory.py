"""The memory of a long streamed run: does it end where it stood near its beginning?

    python benchmarks/loader.py --memory

Two runs of 50,000 batches with 2 workers, each in a process of its own: a loop over the loader, and
`feedax.fit`. The memory is the sum of the proportional set sizes (PSS) of the process that trains
and of all processes below it: a page that several share is counted once. It is taken after 1,000
batches and at the end, before the workers stop. What lies in ``/dev/shm`` is shown too: a file left
there belongs to no process. Linux only.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from feedax.data import NumpyLoader

BATCHES, EARLY, LIMIT = 50_000, 1_000, 50
"""Batches of a run, those before the first look, and the megabytes that it may grow by."""

BATCH_SIZE = 32
MODES = ("loop", "fit")


class Small(Dataset[Any]):
    """Pictures of 64 x 64 x 3 uint8; a batch of 32 has 0.4 MB."""

    def __init__(self, count: int) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pictures[index % 64], index % 10


def table(quick: bool = False) -> str:
    """Both runs, as Markdown."""
    batches = BATCHES // 10 if quick else BATCHES
    lines = [
        f"Megabytes after {EARLY:,} and after {batches:,} batches of 32 x 64 x 64 x 3 uint8\n",
        f"| run, 2 workers | PSS after {EARLY:,} | at the end | growth | limit | "
        "`/dev/shm`, growth | open files, growth |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for mode in MODES:
        print(f"memory: {mode}, {batches:,} batches", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, mode, str(batches)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        early, late = json.loads(done.stdout.splitlines()[-1])
        growth = late["pss"] - early["pss"]
        lines.append(
            f"| {mode} | {early['pss']:.1f} | {late['pss']:.1f} | {growth:+.1f} | at most {LIMIT}: "
            f"{'kept' if growth <= LIMIT else '**missed**'} | {late['shm'] - early['shm']:+.1f} | "
            f"{late['files'] - early['files']:+d} |"
        )
    return "\n".join(lines)


def taken() -> dict[str, Any]:
    """The memory of this process and of those below it, in MB, and this one's open files."""
    pss = 0
    for pid in _family(os.getpid()):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        # Not the libraries' code: how much of it counts depends on who else runs it.
        own = ("Pss_Anon:", "Pss_Shmem:")
        pss += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(own))
    return {
        "pss": pss * 1024 / 1e6,
        "shm": shutil.disk_usage("/dev/shm").used / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
    }


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return family


def run_loop(loader: NumpyLoader, batches: int) -> list[dict[str, Any]]:
    looks = []
    for done, (x, _) in enumerate(loader, 1):
        x.sum()
        if done in (EARLY, batches):
            looks.append(taken())
    return looks


def run_fit(loader: NumpyLoader, batches: int) -> list[dict[str, Any]]:
    import jax.numpy as jnp

    import feedax

    looks: list[dict[str, Any]] = []

    def look(event: Any) -> None:
        # Steps are told a few times a second: the last one comes shortly before the end.
        if isinstance(event, feedax.Stepped) and event.step >= EARLY:
            looks.append(taken())

    def predict(w: Any, x: Any) -> Any:
        return w @ (x.mean((0, 1)) / 255)

    feedax.fit(predict, jnp.zeros((10, 3)), loader, callbacks=[look])
    return [looks[0], looks[-1]]


def main() -> None:
    mode, batches = sys.argv[1], int(sys.argv[2])
    loader = NumpyLoader(Small(batches * BATCH_SIZE), BATCH_SIZE, num_workers=2)
    run = {"loop": run_loop, "fit": run_fit}[mode]
    print(json.dumps(run(loader, batches)))


if __name__ == "__main__":
    main()
