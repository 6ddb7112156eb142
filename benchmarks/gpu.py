"""The GPU's table of README.md: what the other scripts here measure, on this machine's NVIDIA GPU.

Sides take turns, and every clock stops after `block_until_ready`. Compilation is in no row's time;
where `fit` or `sweep` tells it, it stands beside it. An epoch by plan is the last of several epochs
of a run. `modern` and `sweep` are scored on the test set after every epoch; no row's time has that.
`inf` says that 99 % was not reached.

    python benchmarks/gpu.py [--rounds 7]
    python benchmarks/gpu.py --quick    # a part of everything, on whatever device JAX has
    python benchmarks/gpu.py --name     # the GPU's name, and nothing else
"""

import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import fit_overhead
import jax
import modern
import timing
import tutorial_script
from loader_scenarios import Pictures
from torch.utils.data import DataLoader, Subset
from tutorial_epoch import feedax_epochs, plain_epoch
from tutorial_script import BATCH_SIZE, numpy_collate, one_hot

import feedax
from feedax.feed import Devices
from feedax.presets import MODERN, Recipe

PLANS = ("resident", "vectorised", "streamed")
LOOP = "the tutorial's loop"
ENOUGH = 0.99


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: how often everything is timed, but for the sweep.
        epochs: of a run whose last one is timed.
        fit_epochs: by plan, how many count in a turn of `fit_overhead`.
        recipe: of `modern` and of the sweep.
        seeds: of the sweep.
        batches: of 256 pictures.
    """

    rounds: int
    epochs: int = 5
    fit_epochs: tuple[int, ...] = (20, 3)
    recipe: Recipe = MODERN
    seeds: int = 200
    batches: int = 16


QUICK = Size(2, 2, (2, 1), replace(MODERN, epochs=1), 2, 2)


def line(
    what: str,
    values: Sequence[float],
    digits: int,
    *,
    at_least: float = 0,
    at_most: float = math.inf,
    compiling: Sequence[float] = (),
) -> str:
    """A row of the table."""
    aim, found = "", ""
    if at_least or at_most < math.inf:
        middle = statistics.median(values)
        aim = f"at least {at_least:g}" if at_least else f"at most {at_most:g}"
        found = timing.judged(middle, middle, at_least, at_most)
    apart = f"{statistics.median(compiling):.1f}" if compiling else ""
    cells = what, timing.spread(values, digits), len(values), apart, aim, found
    return f"| {' | '.join(map(str, cells))} |"


def epochs_by_plan(mnist: Any, size: Size) -> Iterator[str]:
    start = tutorial_script.init(jax.random.key(0))
    loader = DataLoader(mnist, batch_size=BATCH_SIZE, collate_fn=numpy_collate)
    compiling: dict[str, list[float]] = {plan: [] for plan in PLANS}

    def by_fit(plan: Any) -> float:
        ours = feedax.NumpyLoader(mnist, batch_size=BATCH_SIZE, plan=plan)
        _, history, _ = feedax_epochs(ours, start, size.epochs)
        compiling[plan].append(total(history, "compile_seconds"))
        return float(history[-1]["seconds"])

    plain_epoch(loader, start)  # compiles both sizes of a batch
    sides: dict[str, timing.Side] = {plan: partial(by_fit, plan) for plan in PLANS}
    seconds = timing.in_turn({**sides, LOOP: lambda: plain_epoch(loader, start)[1]}, size.rounds)
    for name, values in seconds.items():
        aim = {"at_most": 10.0} if name == "resident" else {}
        apart = compiling.get(name, ())
        yield line(f"an epoch, {name}, ms", [1e3 * s for s in values], 1, **aim, compiling=apart)
    for plan in PLANS:
        aim = {"at_least": 100.0} if plan == "resident" else {}
        yield line(f"{LOOP} / {plan}", timing.ratios(seconds[LOOP], seconds[plan]), 1, **aim)


def of_modern(mnist: Any, test: feedax.NumpyLoader, size: Size) -> Iterator[str]:
    histories = [
        modern.by_preset(size.recipe, mnist, seed, evaluate={"test": test})[1]
        for seed in range(size.rounds)
    ]
    compiling = [total(history, "compile_seconds") for history in histories]
    seconds = [total(history, "seconds") for history in histories]
    yield line("`modern`, training, s", seconds, 2, compiling=compiling)
    accuracies = [100 * history[-1]["test_accuracy"] for history in histories]
    yield line("`modern`, test accuracy, %", accuracies, 2)
    yield line("`modern`, to 99 %, s", list(map(seconds_to_enough, histories)), 2)


def of_sweep(mnist: Any, test: feedax.NumpyLoader, size: Size) -> Iterator[str]:
    groups: list[str] = []  # the first network of each: all that are side by side have its clock

    def look(event: Any) -> None:
        if isinstance(event, feedax.NetworksStarted):
            groups.append(event.names[0])

    found = feedax.sweep(
        init=partial(modern.init, size.recipe),
        seeds=size.seeds,
        evaluate={"test": test},
        callbacks=[look],
        **modern.arguments_of(size.recipe, mnist, seed=0),
    )
    clocks = [network.history for network in found.networks if network.name in groups]
    compiling = [sum(total(history, "compile_seconds") for history in clocks)]
    each = sum(total(history, "seconds") for history in clocks) / size.seeds
    what = f"`sweep` of {size.seeds} seeds"
    yield line(f"{what}, training of one, s", [each], 3, at_most=1, compiling=compiling)
    accuracies = [100 * network.history[-1]["test_accuracy"] for network in found.networks]
    yield line(f"{what}, test accuracy, %", accuracies, 2)
    yield line(f"{what}, its mean, %", [statistics.mean(accuracies)], 2, at_least=100 * ENOUGH)


def of_fit(mnist: Any, size: Size) -> Iterator[str]:
    for plan, epochs in zip(fit_overhead.PLANS, size.fit_epochs, strict=True):
        seconds = fit_overhead.seconds_of("sgd", plan, mnist, size.rounds, epochs)
        ratios = timing.ratios(seconds[fit_overhead.FIT], seconds[fit_overhead.BARE])
        yield line(f"`fit` / bare loop, {plan}", ratios, 3, at_most=fit_overhead.AIM)


def of_prefetching(size: Size) -> Iterator[str]:
    """Pictures of two workers into a loop of one's own: an epoch with and without prefetching."""
    pictures = Pictures(256 * size.batches)
    loader = feedax.NumpyLoader(pictures, 256, num_workers=2, persistent_workers=True)
    start = feedax.init_network_params((224 * 224 * 3, 64, 10), jax.random.key(0))

    @jax.jit
    def update(params: Any, x: Any, y: Any) -> Any:
        return tutorial_script.update(params, x.reshape(len(x), -1) / 255, one_hot(y % 10, 10))

    def epoch(batches: Iterable[Any]) -> float:
        started, params = time.perf_counter(), start
        for x, y in batches:
            params = update(params, x, y)
        jax.block_until_ready(params)
        return time.perf_counter() - started

    sides: dict[str, timing.Side] = {
        "prefetched": lambda: epoch(feedax.prefetch_to_device(loader)),
        "bare": lambda: epoch(loader),
    }
    timing.in_turn(sides, 1)  # compiles, and starts the workers
    seconds = timing.in_turn(sides, size.rounds)
    ratios = timing.ratios(seconds["prefetched"], seconds["bare"])
    yield line("`prefetch_to_device` / bare loader", ratios, 3, at_most=1)


def total(history: Sequence[Any], column: str) -> float:
    return float(sum(row[column] for row in history))


def seconds_to_enough(history: Sequence[Any]) -> float:
    """Training until the accuracy on the test set was enough for the first time."""
    passed = itertools.accumulate(row["seconds"] for row in history)
    enough = (row["test_accuracy"] >= ENOUGH for row in history)
    return next(itertools.compress(passed, enough), math.inf)


def main() -> None:
    parser = timing.parser(__doc__, "--rounds", 7, quick="a part of everything, on any device")
    parser.add_argument("--name", action="store_true", help="print the GPU's name and nothing else")
    options = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # every side has one GPU

    if jax.default_backend() != "gpu" and not options.quick:
        sys.exit(
            f"gpu.py: JAX finds no GPU, only the {jax.default_backend()}; go to a machine with an "
            "NVIDIA GPU, or, if nvidia-smi lists one here, install JAX's plugin for it with: "
            "python3 scripts/install.py test"
        )
    print(Devices())
    if options.name:
        return
    plugins = [f"jax-cuda{cuda}-plugin" for cuda in (12, 13)]
    print(f"{timing.machine(*plugins)}\n")
    print("| what | median | least | most | n | compiling, s | aim | |")
    print("|---|---:|---:|---:|---:|---:|---|---|", flush=True)
    size, mnist = Size(options.rounds), feedax.datasets.mnist()
    if options.quick:
        size, mnist = QUICK, Subset(mnist, range(6_400 + 96))
    test = feedax.NumpyLoader(feedax.datasets.mnist(train=False), batch_size=1_000)
    rows = (
        epochs_by_plan(mnist, size),
        of_modern(mnist, test, size),
        of_sweep(mnist, test, size),
        of_fit(mnist, size),
        of_prefetching(size),
    )
    for row in itertools.chain(*rows):
        print(row, flush=True)


if __name__ == "__main__":
    main()
