"""What the benchmarks share: arguments, the machine, sides that take turns, and their tables.

A 95 % interval comes from 10,000 bootstrap resamples of the rounds.
"""

import argparse
import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import feedax

RESAMPLES = 10_000

Side = Callable[[], float]
"""Does its work once and returns the seconds that count."""

Trained = tuple[Any, float]
"""What was trained, and the seconds that count."""


def parser(doc: str, flag: str, rounds: int, quick: str = "") -> argparse.ArgumentParser:
    """A parser with a flag for the `rounds`, and `--quick` if there is help for it."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    help_ = "how many times each is timed"
    made.add_argument(flag, type=int, default=rounds, dest="rounds", help=help_)
    if quick:
        made.add_argument("--quick", action="store_true", help=f"{quick}: to try it out")
    return made


def machine(*packages: str) -> str:
    """The machine, the versions, and those of other packages, on a line each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    today = datetime.date.today().isoformat()
    versions = map(_version, ("feedax", "jax", "torch", "torchvision", "numpy"))
    lines = [
        f"{_processor()}, {cores} usable cores, {platform.system()}, {today}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        *filter(None, [", ".join(map(_version, packages))]),
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Clock:
    """A callback of `fit` whose clock starts when the first epoch, which compiles, has ended."""

    started = 0.0

    def __call__(self, event: Any) -> None:
        if isinstance(event, feedax.EpochEnded) and event.epoch == 0:
            self.start()

    def start(self) -> None:
        self.started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started


def in_turn(sides: Mapping[Any, Side], rounds: int) -> dict[Any, list[float]]:
    """Every side's seconds, one number a round; the order moves on by one from round to round."""
    seconds: dict[Any, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides)
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for name in order:
            seconds[name].append(sides[name]())
    return seconds


def train_in_turn(
    sides: Mapping[str, Callable[[], Trained]], rounds: int, tolerance: float
) -> dict[str, list[float]]:
    """As `in_turn`, of sides that must have trained the same network in the last round."""
    import jax  # not above: `start_up` times this import in another process

    trained: dict[str, Any] = {}

    def timed(name: str) -> float:
        trained[name], seconds = sides[name]()
        return seconds

    seconds = in_turn({name: lambda name=name: timed(name) for name in sides}, rounds)
    first = next(iter(sides))
    for name in sides:
        for a, b in zip(*map(jax.tree.leaves, (trained[first], trained[name])), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
    return seconds


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """One ratio a round: what drifts from round to round drops out."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, least and most, as cells of a table."""
    three = statistics.median(values), min(values), max(values)
    return " | ".join(f"{value:.{digits}f}" for value in three)


def table(title: str, seconds: Mapping[str, Sequence[float]]) -> str:
    """A row for every side, in milliseconds; the first one's ratio to each of the others."""
    (first, ours), *others = seconds.items()
    lines = [
        f"| {title} | ms | least | most | {first} / it | least | most |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| {first} | {spread([1e3 * s for s in ours], 1)} | | | |",
    ]
    for name, theirs in others:
        times = spread([1e3 * s for s in theirs], 1)
        lines.append(f"| {name} | {times} | {spread(ratios(ours, theirs), 3)} |")
    return "\n".join(lines)


def interval(rounds: int, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """The 95 % interval of a statistic of rounds, a function of their indices, `(resamples, n)`."""
    draws = np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))
    low, high = np.quantile(statistic(draws), [0.025, 0.975])
    return float(low), float(high)


def judged(low: float, high: float, at_least: float = 0, at_most: float = math.inf) -> str:
    """Whether an interval keeps a limit: it misses one that it lies wholly beyond."""
    if high < at_least or low > at_most:
        return "**missed**"
    is_kept = low >= at_least and high <= at_most
    return "kept" if is_kept else "within the interval: not missed"


def verdict(ours: Sequence[float], theirs: Sequence[float], at_most: float) -> str:
    """Whether the median ratio keeps the aim."""
    found = np.array(ratios(ours, theirs))
    low, high = interval(len(found), lambda draws: np.median(found[draws], -1))
    return (
        f"median of {len(found)} ratios {np.median(found):.3f}, 95 % {low:.3f} to {high:.3f}, "
        f"aim at most {at_most:g}: {judged(low, high, at_most=at_most)}"
    )
