"""The flags of `feedax train`, as dataclasses that check their values when they are built.

A field is a flag, its docstring (or ``help``, where it is long) is the flag's help. Nothing heavy
is imported here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from feedax.cli import UsageError
from feedax.cli.augment_flags import AugmentFlags
from feedax.cli.bounds import above_zero, at_least, from_zero_on, share

arg = tyro.conf.arg


def default_or(hint: str) -> Callable[[str], str]:
    """The hint of a flag that is not given by default: what holds then, or a preset's value."""
    return lambda value: f"(default: {hint if value == 'None' else value})"


DATASETS = (
    "mnist, fashion_mnist, kmnist, emnist, emnist:letters, qmnist, cifar10, cifar100, svhn, "
    "imagefolder:DIR, npz:FILE, or my.module:make_dataset."
)


HIDDEN = (512, 512)


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
    validation: float = 0.0
    """Share of the training set to validate with and not to train on; the same for every --seed."""
    seed: int = 0
    """Of the initial parameters, of the order and of all random numbers of training."""

    def __post_init__(self) -> None:
        at_least("--batch-size", self.batch_size, 1)
        at_least("--num-workers", self.num_workers, 0)
        at_least("--seed", self.seed, 0)
        share("--validation", self.validation)
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be below 2**32, and it is {self.seed}")
        if not self.dataset.strip():
            raise UsageError("--dataset must be a name, and it is empty; leave it out for mnist")


@dataclass(frozen=True)
class ModelFlags:
    """A fully connected network with ReLU between its layers."""

    hidden: Annotated[tuple[int, ...] | None, arg(metavar="SIZE ...")] = None
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
    initialisation: Literal["tutorial", "he"] = "tutorial"
    """tutorial: normal, of 0.01. he: weights of sqrt(2 / inputs), as for ReLU; biases are 0."""
    scale_pixels: bool = False
    """Divide the inputs by 255, so that pixels lie in 0 to 1."""
    dropout: Annotated[float, arg(metavar="RATE")] = 0.0
    """Share of every hidden layer's outputs that are left out at random in training."""

    def __post_init__(self) -> None:
        share("--dropout", self.dropout)
        if self.hidden is not None and self.layers is not None:
            raise UsageError(
                "--hidden and --layers must not be given together: --layers has the hidden sizes "
                "too; leave one out"
            )
        for flag, sizes in (("--hidden", self.hidden), ("--layers", self.layers)):
            for size in sizes or ():
                at_least(f"every size of {flag}", size, 1)
        if self.layers is not None and len(self.layers) < 2:
            raise UsageError(
                f"--layers must have at least two sizes, input and output, and it has "
                f"{len(self.layers)}; give for example --layers 784 512 512 10"
            )


@dataclass(frozen=True)
class TrainingFlags:
    """How it is trained."""

    preset: Literal["tutorial", "modern", "best"] = "tutorial"
    """The defaults, see above; tutorial is the JAX tutorial's job, number for number."""
    epochs: Annotated[int | None, arg(metavar="INT")] = None
    """Times to go through the training set."""
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(or --epochs)")] = None
    """Steps to train for, in place of --epochs."""
    loss: Literal["tutorial", "cross_entropy"] = "tutorial"
    """tutorial is the mean over the classes too: a tenth of the cross-entropy for 10 classes."""
    label_smoothing: Annotated[float, arg(metavar="SHARE")] = 0.0
    """With --loss cross_entropy: share of the target that is spread over all classes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters stay float32. bfloat16 is slower on a CPU."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps must not be given together; leave one out")
        at_least("--epochs", self.epochs, 1)
        at_least("--steps", self.steps, 1)
        share("--label-smoothing", self.label_smoothing)
        if self.label_smoothing and self.loss != "cross_entropy":
            raise UsageError(
                "--label-smoothing is for --loss cross_entropy, and the loss is "
                f"{self.loss}; set it to 0, or change the loss"
            )


@dataclass(frozen=True)
class OptimizerFlags:
    """How a step changes the parameters."""

    optimizer: Literal[
        "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "nadam", "radam",
        "adabelief", "lion",
    ] = "sgd"  # fmt: skip
    """The update rule; momentum and nesterov are sgd with a momentum of 0.9."""
    learning_rate: float = 0.01
    """The step size at its highest; adam and its kin want about 0.001."""
    schedule: Literal["constant", "cosine", "one_cycle", "step"] = "constant"
    """Of the learning rate: cosine falls to 0 at the end, one_cycle rises before, step falls."""
    warmup_steps: int = 0
    """First steps, in which the learning rate rises from 0; one_cycle has its own."""
    warmup_share: Annotated[float, arg(metavar="SHARE")] = 0.0
    """In place of --warmup-steps: the same as a share of the steps of the whole run."""
    decay_epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint=default_or("30"))] = (
        None
    )
    """With --schedule step: the learning rate falls after each so many epochs."""
    decay_rate: float = 0.1
    """With --schedule step: the factor by which it falls."""
    weight_decay: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint=default_or("0, adamw: 0.0001"))
    ] = None
    """Fraction of every parameter that a step takes off it, times the learning rate."""
    clip_norm: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint=default_or("no clipping"))
    ] = None
    """Gradients of a larger norm are scaled down to this one."""

    def __post_init__(self) -> None:
        above_zero("--learning-rate", self.learning_rate)
        above_zero("--decay-rate", self.decay_rate)
        above_zero("--clip-norm", self.clip_norm)
        at_least("--warmup-steps", self.warmup_steps, 0)
        share("--warmup-share", self.warmup_share)
        if self.warmup_steps and self.warmup_share:
            raise UsageError(
                "--warmup-steps and --warmup-share must not be given together; leave one out"
            )
        if self.schedule == "one_cycle" and self.warmup_share:
            raise UsageError(
                "--warmup-share must be 0 with --schedule one_cycle, which has a warm-up of its "
                f"own, and it is {self.warmup_share}; set it to 0, or choose another schedule"
            )
        at_least("--decay-epochs", self.decay_epochs, 1)
        from_zero_on("--weight-decay", self.weight_decay)


@dataclass(frozen=True)
class SelectionFlags:
    """Which parameters are kept. The test set chooses nothing."""

    best: Annotated[
        str | None,
        arg(
            metavar="COLUMN",
            help="Keep the parameters of the epoch that is best in this column of metrics.jsonl: "
            "validation_accuracy, validation_loss or loss.",
            help_behavior_hint="(default: the first with --validation, else the last epoch's)",
        ),
    ] = None
    patience: Annotated[
        int | None, arg(metavar="EPOCHS", help_behavior_hint="(default: never)")
    ] = None
    """Stop after so many epochs in a row without a better one."""

    def __post_init__(self) -> None:
        at_least("--patience", self.patience, 1)
        if self.best is not None and self.best.startswith("test_"):
            raise UsageError(
                f"--best must not be chosen by the test set, and it is {self.best}; give "
                "--validation 0.1 and --best validation_accuracy"
            )


@dataclass(frozen=True)
class CheckpointFlags:
    """From what a run goes on that was stopped or killed."""

    resume: Annotated[
        Path | None,
        arg(
            metavar="RUN",
            help="Go on with the run in this folder, as if it had never stopped. It needs no "
            "other flag but --dataset for your own data; a higher --epochs or --steps extends it.",
            help_behavior_hint="(default: a new run)",
        ),
    ] = None
    checkpoint_every_steps: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: not by steps)")
    ] = None
    """Save after each so many steps."""
    checkpoint_every_seconds: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: not by time)")
    ] = None
    """Save when so many seconds have passed since the last save."""
    checkpoint_every_epochs: Annotated[
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: 1, unless one of those is given)"),
    ] = None
    """Save after each so many epochs."""
    keep_checkpoints: int = 3
    """How many to keep, the latest; the best epoch's is kept besides."""

    def __post_init__(self) -> None:
        at_least("--checkpoint-every-steps", self.checkpoint_every_steps, 1)
        at_least("--checkpoint-every-epochs", self.checkpoint_every_epochs, 1)
        above_zero("--checkpoint-every-seconds", self.checkpoint_every_seconds)
        at_least("--keep-checkpoints", self.keep_checkpoints, 1)


@dataclass(frozen=True)
class DeviceFlags:
    """What it is trained on. Several processes find each other under SLURM, Open MPI and
    Kubernetes; elsewhere by the last three flags, given together."""

    devices: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: all accelerators, or 1 CPU)")
    ] = None
    """Devices of this process that share each batch."""
    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: a single process)")
    ] = None
    """Where process 0 listens for the others."""
    processes: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(with --coordinator)")
    ] = None
    """How many processes train together."""
    process: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(with --coordinator)")
    ] = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        at_least("--devices", self.devices, 1)
        three = (self.coordinator, self.processes, self.process)
        if None in three and three != (None, None, None):
            raise UsageError(
                "--coordinator, --processes and --process must be given together; add those that "
                "are missing"
            )
        at_least("--processes", self.processes, 1)
        at_least("--process", self.process, 0)


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
    augment: AugmentFlags = field(default_factory=AugmentFlags)
    optimizer: OptimizerFlags = field(default_factory=OptimizerFlags)
    selection: SelectionFlags = field(default_factory=SelectionFlags)
    checkpoint: CheckpointFlags = field(default_factory=CheckpointFlags)
    device: DeviceFlags = field(default_factory=DeviceFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
