"""What every command says in its ``--help``, and its flags. Nothing heavy is imported here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from feedax.cli import UsageError
from feedax.cli.flags import DataFlags, TrainFlags, defaults, description, optional
from feedax.cli.parse import UnknownWordsError, parse, renamed
from feedax.cli.suggestions import remedy
from feedax.cli.sweep_flags import SweepFlags, parse_sweep

__all__ = ["parsed", "renamed"]

arg = tyro.conf.arg

TRAIN = f"""\
Train a network. Without flags this is the JAX tutorial: MNIST, 784 512 512 10, 8 epochs.

examples:
  feedax train
  feedax train --epochs 2 --hidden 256 --name small
  feedax train --optimizer adam --learning-rate 0.001 --loss cross_entropy --shuffle
  feedax train --preset modern --epochs 3
  feedax train --dataset npz:digits.npz --out runs/digits
  feedax train --resume runs/digits

{description()}

Standard output gets three lines an epoch; the run's folder gets the configuration, the metrics, the
curves, the parameters and checkpoints. Ctrl-C stops in good order. A run that was stopped
or killed is resumed by --resume as if nothing had happened."""

SWEEP = f"""\
Train many networks: every combination of the values that are given, many seeds each. A flag of one
number or one choice can have several values.

examples:
  feedax sweep --preset modern --seeds 20
  feedax sweep --learning-rate 0.0005 0.001 0.002 --optimizer adam --loss cross_entropy --seeds 5
  feedax sweep --preset modern --dropout 0 0.1 --batch-size 128 256 --validation 0.1
  feedax sweep --resume runs/20260131-142501-mnist

{description()}

The network of a seed is the one that feedax train trains with it. Standard output gets a line a
network, and tables of what the networks of each setting have in common; the sweep's folder gets
the configuration, networks.jsonl, summary.json, the curves, and the parameters of every network.
Ctrl-C stops in good order. A sweep that was stopped or killed is resumed by --resume as if nothing
had happened."""

EVALUATE = """\
Loss and accuracy of a trained run on its training and test set.

examples:
  feedax evaluate runs/20260131-142501-mnist
  feedax evaluate runs/20260131-142501-mnist --dataset qmnist"""

PREDICT = """\
Say what a trained run sees in image files: one line an image, with the likeliest class.

An image is prepared as the training examples were. For MNIST and its kin that means: made grey,
taken off its paper, inverted if it is dark on light, cropped to the ink, scaled, and centred in
28 x 28. What was done, and what is doubtful, is said on standard error.

examples:
  feedax predict runs/20260131-142501-mnist seven.png
  feedax predict runs/20260131-142501-mnist scans/*.jpg
  feedax predict runs/20260131-142501-mnist photo.webp --show seen.png"""

REPORT = """\
Write a page about a trained run: how it learned, where it errs, what its first layer looks for, and
a canvas to write on that the network reads. Of several runs, or of a sweep, the page compares them.

The page is one file that needs no network. feedax train and feedax sweep write it too.

examples:
  feedax report runs/20260131-142501-mnist
  feedax report runs/first runs/second --out compared.html"""

SHOW = """\
Serve a page over a folder of runs: the list, curves that grow while a run trains, runs compared,
and pictures answered by their networks. Only this machine can reach it, and it changes no run.

examples:
  feedax show
  feedax show --open
  feedax show experiments/runs --port 9000
  feedax show runs/20260131-142501-mnist

The address is printed on standard output. Ctrl-C ends it."""

PLAN = """\
Say how a dataset's batches would be made, and why; train nothing.

examples:
  feedax plan
  feedax plan --dataset my.module:make_dataset --num-workers 4"""


@dataclass(frozen=True)
class EvaluateFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    dataset: Annotated[str | None, optional("NAME", "default: the run's")] = None
    """Another dataset with examples of the same size."""
    root: Annotated[Path | None, optional("DIR", "default: the run's")] = None
    """Folder for a dataset that is downloaded or unpacked."""


@dataclass(frozen=True)
class PredictFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        arg(metavar="IMAGE ...", help_behavior_hint="(required)"),
    ]
    """PNG, JPEG, WebP, BMP, GIF, TIFF or PPM files of any size."""
    show: Annotated[Path | None, optional("FILE.png", "default: nothing")] = None
    """Draw what the network saw, beside its probabilities."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError(
                "at least one IMAGE must be given after RUN; see feedax predict --help"
            )
        if self.show is None:
            return
        if self.show.suffix.lower() != ".png":
            raise UsageError(f"--show must name a .png file, not {self.show}; call it seen.png")
        if len(self.images) > 100:
            raise UsageError(
                f"--show must have at most 100 images to draw, not {len(self.images)}; name fewer"
            )
        if any(self.show.resolve() == image.resolve() for image in self.images):
            raise UsageError(
                f"--show must name a file of its own, and {self.show} is one of the images; "
                "call it seen.png"
            )


@dataclass(frozen=True)
class ReportFlags:
    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        arg(metavar="RUN ...", help_behavior_hint="(required)"),
    ]
    """Folders of runs, or the folder of one sweep."""
    out: Annotated[
        Path | None, optional("FILE.html", "default: report.html in the run's folder")
    ] = None
    """The page."""
    dataset: Annotated[str | None, optional("NAME", "default: the run's")] = None
    """The dataset, where the run's is of your own code or files."""
    root: Annotated[Path | None, optional("DIR", "default: the run's")] = None
    """Folder for a dataset that is downloaded or unpacked."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("at least one RUN must be given; see feedax report --help")
        if self.out is not None and self.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out must name an .html file, not {self.out}; call it report.html")
        if len(self.runs) > 1 and self.out is None:
            raise UsageError(
                "--out must name the page that compares several runs; give --out compared.html"
            )
        if len(self.runs) > 1 and (self.dataset is not None or self.root is not None):
            raise UsageError(
                "--dataset and --root are for the page of one run, and there are "
                f"{len(self.runs)}; leave them out"
            )


@dataclass(frozen=True)
class ShowFlags:
    # Of an optional one alone, tyro loses sight where a flag is mistyped.
    folders: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        arg(metavar="[RUN | FOLDER]", help_behavior_hint="(default: runs)"),
    ] = ()
    """The folder of a run, or a folder of runs."""
    open: Annotated[bool, arg(help_behavior_hint="(default: off)")] = False
    """Open the page in the browser."""
    port: Annotated[int | None, optional("N", "default: the next free one from 8642 on")] = None
    """Of this machine, from 1 to 65535."""

    def __post_init__(self) -> None:
        if len(self.folders) > 1:
            raise UsageError(
                f"one RUN or FOLDER must be given, and there are {len(self.folders)}; give the "
                "folder that they lie in"
            )
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UsageError(f"--port must be from 1 to 65535, and it is {self.port}")


@dataclass(frozen=True)
class PlanFlags:
    data: DataFlags = field(default_factory=DataFlags)


KINDS: Mapping[str, Any] = {
    "train": TrainFlags,
    "sweep": SweepFlags,
    "evaluate": EvaluateFlags,
    "predict": PredictFlags,
    "report": ReportFlags,
    "show": ShowFlags,
    "plan": PlanFlags,
}
"""The flags of every command."""

PARSERS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "train": lambda words: parse(TrainFlags, words, "train", TRAIN, defaults(words)),
    "sweep": lambda words: parse_sweep(words, SWEEP),
    "evaluate": lambda words: parse(EvaluateFlags, words, "evaluate", EVALUATE),
    "predict": lambda words: parse(PredictFlags, words, "predict", PREDICT),
    "report": lambda words: parse(ReportFlags, words, "report", REPORT),
    "show": lambda words: parse(ShowFlags, words, "show", SHOW),
    "plan": lambda words: parse(PlanFlags, words, "plan", PLAN),
}


def parsed(command: str, words: Sequence[str]) -> Any:
    """From the words after a command to what its module is run with.

    Raises:
        UsageError: they are wrong.
        SystemExit: code 0, after ``--help`` was printed.
    """
    try:
        return PARSERS[command](words)
    except UnknownWordsError as unknown:
        raise UsageError(f"{unknown}{remedy(unknown, command, KINDS)}") from None
