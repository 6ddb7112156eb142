"""What a sweep of many seeds costs, as a ratio to one: one after another, and side by side.

Each turn trains 1, 2, 4, 8 and 16 of the tutorial's networks for an epoch of MNIST in batches of
128, each on the examples in an order of its own. The seconds are those of training: compilation is
apart, and nothing is evaluated. One after another is how a CPU trains them, side by side is how
accelerators do; here both are asked for.

    python benchmarks/sweep.py [--turns 3] [--most 16]
"""

from functools import partial

import jax
import optax
import timing

import feedax

SIZES = [784, 512, 512, 10]


def trained(train: feedax.NumpyLoader, count: int, together: int, compiling: list[float]) -> float:
    """Seconds of training one epoch of so many networks; those of compiling are appended."""
    found = feedax.sweep(
        feedax.predict,
        lambda key: feedax.init_network_params(SIZES, key),
        train,
        seeds=count,
        together=together,
        loss=feedax.tutorial_loss,
        optimizer=optax.sgd(0.01),
    )
    # Side by side the clock of each row is that of all of them together.
    groups = [network.history[-1] for network in found.networks][::together]
    compiling.append(sum(row["compile_seconds"] for row in groups))
    return sum(row["seconds"] for row in groups)


def main() -> None:
    parser = timing.parser(__doc__, "--turns", 3)
    parser.add_argument("--most", type=int, default=16, help="the most networks")
    arguments = parser.parse_args()
    counts = [count for count in (1, 2, 4, 8, 16) if count <= arguments.most]

    print(timing.machine())
    print(f"backend: {jax.default_backend()}, devices: {jax.local_device_count()}\n")
    train = feedax.NumpyLoader(feedax.datasets.mnist(), batch_size=128, shuffle=True, seed=0)
    cases = [("one after another", count, 1) for count in counts]
    cases += [("side by side", count, count) for count in counts]
    compiling: dict[tuple[str, int, int], list[float]] = {case: [] for case in cases}
    seconds = timing.in_turn(
        {case: partial(trained, train, *case[1:], compiling[case]) for case in cases},
        arguments.rounds,
    )
    print(f"| {arguments.rounds} turns | networks | s | least | most ", end="")
    print("| of one | least | most | compile, s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for (name, count, together), values in seconds.items():
        ratios = timing.ratios(values, seconds[name, 1, 1])
        cells = f"{timing.spread(values, 2)} | {timing.spread(ratios, 2)}"
        print(f"| {name} | {count} | {cells} | {compiling[name, count, together][0]:.2f} |")


if __name__ == "__main__":
    main()
