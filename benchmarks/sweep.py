"""What a sweep of many seeds costs, as a ratio to one: one after another, and side by side.

Each turn trains 1, 2, 4, 8 and 16 of the tutorial's networks for an epoch of MNIST in batches of
128, each on the examples in an order of its own. The seconds are those of training: compilation is
apart, and nothing is evaluated. One after another is how a CPU trains them, side by side is how
accelerators do; here both are asked for.

    python benchmarks/sweep.py [--turns 3] [--most 16]
"""

import argparse
import statistics

import jax
import machine
import optax

import feedax

SIZES = [784, 512, 512, 10]


def seconds(train: feedax.NumpyLoader, count: int, together: int) -> tuple[float, float]:
    """Seconds of training one epoch of so many networks, and of compiling."""
    found = feedax.sweep(
        feedax.predict,
        lambda key: feedax.init_network_params(SIZES, key),
        train,
        seeds=count,
        together=together,
        loss=feedax.tutorial_loss,
        optimizer=optax.sgd(0.01),
    )
    rows = [network.history[-1] for network in found.networks]
    # Side by side the clock of each row is that of all of them together.
    groups = rows[::together]
    return sum(row["seconds"] for row in groups), sum(row["compile_seconds"] for row in groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="how many times each is timed")
    parser.add_argument("--most", type=int, default=16, help="the most networks")
    arguments = parser.parse_args()
    counts = [count for count in (1, 2, 4, 8, 16) if count <= arguments.most]

    print(machine.describe())
    print(f"backend: {jax.default_backend()}, devices: {jax.local_device_count()}")
    train = feedax.NumpyLoader(feedax.datasets.mnist(), batch_size=128, shuffle=True, seed=0)
    forms = {"one after another": lambda count: 1, "side by side": lambda count: count}
    taken: dict[tuple[str, int], list[float]] = {}
    compiled: dict[tuple[str, int], float] = {}
    for _ in range(arguments.turns):
        for name, together in forms.items():
            for count in counts:
                trained, compiling = seconds(train, count, together(count))
                taken.setdefault((name, count), []).append(trained)
                compiled.setdefault((name, count), compiling)
    print(f"{arguments.turns} turns            networks  median s  of one  spread       compile s")
    for (name, count), values in taken.items():
        ratios = [a / b for a, b in zip(values, taken[name, 1], strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(
            f"{name:<18} {count:9} {statistics.median(values):9.2f} "
            f"{statistics.median(ratios):7.2f}  {spread:<12} {compiled[name, count]:.2f}"
        )


if __name__ == "__main__":
    main()
