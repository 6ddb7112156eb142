"""Sides that take turns: their medians and ranges, and the ratios of one to the others.

The 95 % interval of a median ratio comes from 10,000 bootstrap resamples of the rounds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 10_000

Side = Callable[[], float]
"""Does its work once and returns the seconds that count."""


def in_turn(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Every side's seconds, one number a round; the order moves on by one from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides)
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for name in order:
            seconds[name].append(sides[name]())
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


def verdict(ours: Sequence[float], theirs: Sequence[float], at_most: float) -> str:
    """Whether the median ratio keeps the aim; missed when its interval lies wholly above."""
    found = np.array(ratios(ours, theirs))
    draws = np.random.default_rng(0).integers(0, len(found), (RESAMPLES, len(found)))
    low, high = np.quantile(np.median(found[draws], -1), [0.025, 0.975])
    if low > at_most:
        kept = "**missed**"
    else:
        kept = "kept" if high <= at_most else "within the interval: not missed"
    return (
        f"median of {len(found)} ratios {np.median(found):.3f}, 95 % {low:.3f} to {high:.3f}, "
        f"aim at most {at_most:g}: {kept}"
    )
