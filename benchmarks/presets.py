"""What each choice of a preset is worth: the preset with one thing changed, a row each.

Every row trains some seeds on 50,000 of MNIST's training images and evaluates them, after the last
epoch, on the other 10,000, which were drawn once. The test set is not looked at. Seconds are those
of training one network, without compilation and evaluation.

    python benchmarks/presets.py modern [--seeds 3]
    python benchmarks/presets.py best --seeds 1 --epochs 20
"""

import argparse
import statistics

import machine

import feedax
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags
from feedax.cli.parse import parse
from feedax.cli.presets import complete, defaults
from feedax.cli.recipe import fit_arguments
from feedax.cli.sweep_groups import build_init

HELD_OUT = 1 / 6

MODERN = [
    "",
    "--epochs 18",
    "--rotation 0 --scaling 0 --shear 0 --translation 0",
    "--rotation 5 --scaling 0.05 --shear 0.05 --translation 1",
    "--rotation 15 --scaling 0.15 --shear 0.15 --translation 2",
    "--elastic-alpha 20",
    "--label-smoothing 0",
    "--dropout 0.1",
    "--weight-decay 0.01",
    "--learning-rate 0.002",
    "--learning-rate 0.008",
    "--schedule constant",
    "--batch-size 128",
    "--batch-size 512",
    "--initialisation tutorial",
    "--optimizer nesterov --learning-rate 0.4 --weight-decay 0.00005",
]
BEST = [
    "",
    "--hidden 1024 1024",
    "--hidden 512 512",
    "--elastic-alpha 0",
    "--rotation 10 --scaling 0.1 --translation 1.5",
]
ROWS = {"modern": MODERN, "best": BEST}


def validated(preset: str, change: str, more: list[str], seeds: int) -> tuple[list[float], float]:
    """The accuracy of every seed on the held-out images, and seconds of training one."""
    words = ["--preset", preset, "--validation", str(HELD_OUT), *more, *change.split()]
    flags = complete(parse(TrainFlags, words, "train", "", default=defaults(words)))
    examples = Examples.open(flags.data)
    loaders = examples.loaders()
    arguments = fit_arguments(flags, examples, loaders["train"])
    del arguments["key"]
    found = feedax.sweep(
        init=build_init(flags, examples),
        train=loaders["train"],
        evaluate={"validation": loaders["validation"]},
        seeds=seeds,
        **arguments,
    )
    rows = [network.history for network in found.networks if network.error is None]
    seconds = [sum(row["seconds"] for row in history) for history in rows]
    return [one[-1]["validation_accuracy"] for one in rows], statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of every row, in place of the preset's")
    arguments = parser.parse_args()
    more = [] if arguments.epochs is None else ["--epochs", str(arguments.epochs)]

    print(machine.describe())
    print(f"{arguments.preset}, {arguments.seeds} seeds, {HELD_OUT:.4f} held out")
    print("\n| change | wrong of 10,000 | sd | least | most | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for change in ROWS[arguments.preset]:
        accuracies, seconds = validated(arguments.preset, change, more, arguments.seeds)
        wrong = [10_000 * (1 - accuracy) for accuracy in accuracies]
        sd = f"{statistics.stdev(wrong):.1f}" if len(wrong) > 1 else ""
        name = f"`{change}`" if change else "the preset"
        print(
            f"| {name} | {statistics.fmean(wrong):.1f} | {sd} | {min(wrong):.0f} | "
            f"{max(wrong):.0f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
