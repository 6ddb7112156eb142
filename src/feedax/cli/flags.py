"""The flags of every command, as dataclasses that check their values when they are built.

A field is a flag, its docstring (or ``help``, where it is long) is the flag's help. Nothing heavy
is imported here.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from feedax.cli import UsageError

arg = tyro.conf.arg

DATASETS = (
    "mnist, fashion_mnist, kmnist, emnist, emnist:letters, qmnist, cifar10, cifar100, svhn, "
    "imagefolder:DIR, npz:FILE, or my.module:make_dataset."
)


@dataclass(frozen=True)
class DataFlags:
    """Which examples, in which batches."""

    dataset: Annotated[str, arg(metavar="NAME", help=DATASETS)] = "mnist"
    root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: a cache)")] = None
    """Folder for a dataset that is downloaded or unpacked."""
    batch_size: int = 128
    """Examples in one step."""
    shuffle: bool = False
    """A new random order every epoch, drawn from --seed."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is short."""
    num_workers: int = 0
    """Processes that load examples, where a Python call is needed for each."""
    cache: bool = False
    """Keep loaded examples in memory; the dataset must yield the same ones each time."""
    plan: Literal["auto", "resident", "vectorised", "streamed"] = "auto"
    """How batches are made; auto takes the fastest way that gives the same batches."""
    seed: int = 0
    """Of the initial parameters, of the order and of each example's random numbers."""

    def __post_init__(self) -> None:
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--num-workers", self.num_workers, 0)
        _at_least("--seed", self.seed, 0)
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be below 2**32, and it is {self.seed}")
        if not self.dataset.strip():
            raise UsageError("--dataset must be a name, and it is empty; leave it out for mnist")


@dataclass(frozen=True)
class ModelFlags:
    """A fully connected network with ReLU between its layers."""

    hidden: Annotated[
        tuple[int, ...] | None, arg(metavar="SIZE ...", help_behavior_hint="(default: 512 512)")
    ] = None
    """Sizes of the hidden layers; input and output come from the data."""
    layers: Annotated[
        tuple[int, ...] | None, arg(metavar="SIZE ...", help_behavior_hint="(or --hidden)")
    ] = None
    """All sizes, input and output too: 784 512 512 10."""
    initial_params: Annotated[
        Path | None,
        arg(
            metavar="RUN",
            help="Start from the parameters of another run, with its layers if none are given; "
            "the optimizer starts afresh.",
            help_behavior_hint="(default: drawn from --seed)",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.hidden is not None and self.layers is not None:
            raise UsageError(
                "--hidden and --layers must not be given together: --layers has the hidden sizes "
                "too; leave one out"
            )
        for flag, sizes in (("--hidden", self.hidden), ("--layers", self.layers)):
            for size in sizes or ():
                _at_least(f"every size of {flag}", size, 1)
        if self.layers is not None and len(self.layers) < 2:
            raise UsageError(
                f"--layers must have at least two sizes, input and output, and it has "
                f"{len(self.layers)}; give for example --layers 784 512 512 10"
            )


@dataclass(frozen=True)
class TrainingFlags:
    """How it is trained."""

    preset: Literal["tutorial"] = "tutorial"
    """The defaults to start from: tutorial is the JAX tutorial's job, number for number."""
    epochs: int = 8
    """Times to go through the training set."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "sgd"
    """momentum is sgd with momentum 0.9."""
    step_size: float = 0.01
    """The learning rate; adam and adamw want about 0.001."""
    loss: Literal["tutorial", "cross_entropy"] = "tutorial"
    """tutorial is the mean over the classes too: a tenth of the cross-entropy for 10 classes."""

    def __post_init__(self) -> None:
        _at_least("--epochs", self.epochs, 1)
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise UsageError(f"--step-size must be a number above 0, and it is {self.step_size}")


@dataclass(frozen=True)
class OutputFlags:
    """Where the run is kept."""

    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/TIME-NAME)")
    ] = None
    """The run's folder; it must not hold a run."""
    name: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the dataset's)")
    ] = None
    """Ends the name of the run's folder."""

    def __post_init__(self) -> None:
        if self.name is None:
            return
        if self.out is not None:
            raise UsageError("--out and --name must not be given together; --out has the name")
        if not self.name or "/" in self.name or "\0" in self.name:
            raise UsageError(f"--name must be part of a file name, and it is {self.name!r}")


@dataclass(frozen=True)
class TrainFlags:
    data: DataFlags = field(default_factory=DataFlags)
    model: ModelFlags = field(default_factory=ModelFlags)
    training: TrainingFlags = field(default_factory=TrainingFlags)
    output: OutputFlags = field(default_factory=OutputFlags)


@dataclass(frozen=True)
class PlanFlags:
    data: DataFlags = field(default_factory=DataFlags)


@dataclass(frozen=True)
class EvaluateFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    dataset: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the run's)")
    ] = None
    """Another dataset with examples of the same size."""
    root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the run's)")] = (
        None
    )
    """Folder for a dataset that is downloaded or unpacked."""


@dataclass(frozen=True)
class PredictFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        arg(metavar="IMAGE ...", help_behavior_hint="(required)"),
    ]
    """PNG or JPEG files of any size."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError(
                "at least one IMAGE must be given after RUN; see feedax predict --help"
            )


def command_line(flags: Any) -> list[str]:
    """The arguments that give these flags again: those that differ from their defaults."""
    words: list[str] = []
    for one in fields(flags):
        value = getattr(flags, one.name)
        flag = one.name.replace("_", "-")
        if is_dataclass(value):
            words += command_line(value)
        elif value == one.default:
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words


def flag_names(kind: Any) -> list[str]:
    """Every ``--flag`` of a dataclass of flags."""
    names: list[str] = []
    for one in fields(kind):
        nested = one.default_factory if is_dataclass(one.default_factory) else None
        names += flag_names(nested) if nested else [f"--{one.name.replace('_', '-')}"]
    return names


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{flag} must be at least {least}, and it is {value}")
