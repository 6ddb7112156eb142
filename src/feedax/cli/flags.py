"""The flags of `feedax train`: their values, their help, their defaults.

They are dataclasses that check their values when they are built. A field is a flag, its docstring
(or ``help``, where it is long) is the flag's help. What a network is trained like has the defaults
of `feedax.presets`. Nothing heavy is imported here.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from feedax.cli import UsageError
from feedax.cli.parse import changed, flag, flag_values, given_flags, read_words, spelled
from feedax.errors import RunFolderError
from feedax.presets import (
    DECAY_EPOCHS,
    DESCRIPTIONS,
    PRESETS,
    WEIGHT_DECAY,
    OptimizerName,
    Recipe,
    ScheduleName,
)
from feedax.storage.plain_json import Rule

if TYPE_CHECKING:  # predict and --help do without what it loads
    from feedax.report.run_folder import RunFolder

arg = tyro.conf.arg


def at_least(least: int) -> Rule:
    return f"at least {least}", lambda value: value >= least


ABOVE_ZERO: Rule = ("a finite number above 0", lambda value: 0 < value < math.inf)
FROM_ZERO_ON: Rule = ("a finite number from 0 on", lambda value: 0 <= value < math.inf)
FRACTION: Rule = ("a fraction from 0 to below 1", lambda value: 0 <= value < 1)


def check(flags: Any, rule: Rule, *names: str) -> None:
    """Refuse fields of a dataclass of flags that are given and break a rule."""
    what, holds = rule
    for name in names:
        value = getattr(flags, name)
        if value is not None and not holds(value):
            raise UsageError(f"{flag(name)} must be {what}, and it is {value}")


def optional(metavar: str, hint: str, help: str | None = None) -> Any:
    """Of a flag that need not be given; its help ends in the hint, or in a preset's value."""
    return arg(
        metavar=metavar,
        help=help,
        help_behavior_hint=lambda value: f"({hint})" if value == "None" else f"(default: {value})",
    )


DATASETS = (
    "mnist, fashion_mnist, kmnist, emnist, emnist:letters, qmnist, cifar10, cifar100, svhn, "
    "imagefolder:DIR, npz:FILE, or my.module:make_dataset."
)


@dataclass(frozen=True)
class DataFlags:
    """Which examples, in which batches."""

    dataset: Annotated[str, arg(metavar="NAME", help=DATASETS)] = "mnist"
    root: Annotated[Path | None, optional("DIR", "default: a cache")] = None
    """Folder for a dataset that is downloaded or unpacked."""
    batch_size: int = Recipe.batch_size
    """Examples in one step."""
    shuffle: bool = Recipe.shuffle
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
        check(self, at_least(1), "batch_size")
        check(self, at_least(0), "num_workers", "seed")
        check(self, FRACTION, "validation")
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be below 2**32, and it is {self.seed}")
        if not self.dataset.strip():
            raise UsageError("--dataset must be a name, and it is empty; leave it out for mnist")


@dataclass(frozen=True)
class ModelFlags:
    """A fully connected network with ReLU between its layers."""

    hidden: Annotated[tuple[int, ...] | None, arg(metavar="SIZE ...")] = None
    """Sizes of the hidden layers; input and output come from the data."""
    layers: Annotated[tuple[int, ...] | None, optional("SIZE ...", "or --hidden")] = None
    """All sizes, input and output too: 784 512 512 10."""
    initial_params: Annotated[
        Path | None,
        optional(
            "RUN",
            "default: drawn from --seed",
            "Start from the parameters of another run, with its layers if none are given; "
            "the optimizer starts afresh.",
        ),
    ] = None
    initialisation: Literal["tutorial", "he"] = Recipe.initialisation
    """tutorial: normal, of 0.01. he: weights of sqrt(2 / inputs), as for ReLU; biases are 0."""
    scale_pixels: bool = Recipe.scale_pixels
    """Divide the inputs by 255, so that pixels lie in 0 to 1."""
    dropout: Annotated[float, arg(metavar="RATE")] = Recipe.dropout
    """Share of every hidden layer's outputs that are left out at random in training."""

    def __post_init__(self) -> None:
        check(self, FRACTION, "dropout")
        if self.hidden is not None and self.layers is not None:
            raise UsageError(
                "--hidden and --layers must not be given together: --layers has the hidden sizes "
                "too; leave one out"
            )
        for name, sizes in (("--hidden", self.hidden), ("--layers", self.layers)):
            for size in sizes or ():
                if size < 1:
                    raise UsageError(f"every size of {name} must be at least 1, and it is {size}")
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
    steps: Annotated[int | None, optional("INT", "or --epochs")] = None
    """Steps to train for, in place of --epochs."""
    loss: Literal["tutorial", "cross_entropy"] = Recipe.loss
    """tutorial is the mean over the classes too: a tenth of the cross-entropy for 10 classes."""
    label_smoothing: Annotated[float, arg(metavar="SHARE")] = Recipe.label_smoothing
    """With --loss cross_entropy: share of the target that is spread over all classes."""
    precision: Literal["float32", "bfloat16"] = Recipe.precision
    """What the network computes in; parameters stay float32. bfloat16 is slower on a CPU."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps must not be given together; leave one out")
        check(self, at_least(1), "epochs", "steps")
        check(self, FRACTION, "label_smoothing")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise UsageError(
                "--label-smoothing is for --loss cross_entropy, and the loss is "
                f"{self.loss}; set it to 0, or change the loss"
            )


@dataclass(frozen=True)
class AugmentFlags:
    """Random changes of every image that is trained on, afresh in each epoch. 0 is none."""

    rotation: Annotated[float, arg(metavar="DEGREES")] = Recipe.rotation
    """Turn by up to this angle, either way."""
    scaling: Annotated[float, arg(metavar="SHARE")] = Recipe.scaling
    """Stretch or shrink height and width by up to this share, each by its own."""
    shear: Annotated[float, arg(metavar="SLOPE")] = Recipe.shear
    """Slant by up to this slope, either way."""
    translation: Annotated[float, arg(metavar="PIXELS")] = Recipe.translation
    """Move by up to so many pixels, fractions too, along height and width."""
    elastic_alpha: Annotated[float, arg(metavar="PIXELS")] = Recipe.elastic_alpha
    """Strength of a smooth random distortion, as of handwriting: 34 is strong."""
    elastic_sigma: Annotated[float, arg(metavar="PIXELS")] = Recipe.elastic_sigma
    """How smooth that distortion is: the standard deviation of a Gaussian."""
    crop_padding: Annotated[int, arg(metavar="PIXELS")] = Recipe.crop_padding
    """Pad every side by so many pixels, and cut the image's size out of that anywhere."""
    flip: bool = Recipe.flip
    """Exchange left and right in half of the images."""
    cutout: Annotated[int, arg(metavar="PIXELS")] = Recipe.cutout
    """Blank out a square with sides of so many pixels."""
    brightness: Annotated[float, arg(metavar="SHARE")] = Recipe.brightness
    """Lighten or darken by up to this share."""
    contrast: Annotated[float, arg(metavar="SHARE")] = Recipe.contrast
    """Raise or lower the contrast by up to this share."""
    mixup: Annotated[float, arg(metavar="ALPHA")] = Recipe.mixup
    """Mix each example with another of its batch, in shares drawn from a Beta(ALPHA, ALPHA)."""

    def __post_init__(self) -> None:
        check(self, at_least(0), "crop_padding", "cutout")
        check(self, ABOVE_ZERO, "elastic_sigma")
        check(self, FROM_ZERO_ON, *vars(self))


@dataclass(frozen=True)
class OptimizerFlags:
    """How a step changes the parameters."""

    optimizer: OptimizerName = Recipe.optimizer
    """The update rule; momentum and nesterov are sgd with a momentum of 0.9."""
    learning_rate: float = Recipe.learning_rate
    """The step size at its highest; adam and its kin want about 0.001."""
    schedule: ScheduleName = Recipe.schedule
    """Of the learning rate: cosine falls to 0 at the end, one_cycle rises before, step falls."""
    warmup_steps: int = Recipe.warmup_steps
    """First steps, in which the learning rate rises from 0; one_cycle has its own."""
    warmup_fraction: Annotated[float, arg(metavar="FRACTION")] = Recipe.warmup_fraction
    """In place of --warmup-steps: the same as a fraction of the steps of the whole run."""
    decay_epochs: Annotated[int | None, optional("INT", "default: 30")] = None
    """With --schedule step: the learning rate falls after each so many epochs."""
    decay_rate: float = Recipe.decay_rate
    """With --schedule step: the factor by which it falls."""
    weight_decay: Annotated[float | None, optional("FLOAT", "default: 0, adamw: 0.0001")] = None
    """Fraction of every parameter that a step takes off it, times the learning rate."""
    clip_norm: Annotated[float | None, optional("FLOAT", "default: no clipping")] = None
    """Gradients of a larger norm are scaled down to this one."""

    def __post_init__(self) -> None:
        check(self, ABOVE_ZERO, "learning_rate", "decay_rate", "clip_norm")
        check(self, at_least(0), "warmup_steps")
        check(self, FRACTION, "warmup_fraction")
        if self.warmup_steps and self.warmup_fraction:
            raise UsageError(
                "--warmup-steps and --warmup-fraction must not be given together; leave one out"
            )
        if self.schedule == "one_cycle" and self.warmup_fraction:
            raise UsageError(
                "--warmup-fraction must be 0 with --schedule one_cycle, which has a warm-up of its "
                f"own, and it is {self.warmup_fraction}; set it to 0, or choose another schedule"
            )
        check(self, at_least(1), "decay_epochs")
        check(self, FROM_ZERO_ON, "weight_decay")


@dataclass(frozen=True)
class SelectionFlags:
    """Which parameters are kept. The test set chooses nothing."""

    best: Annotated[
        str | None,
        optional(
            "COLUMN",
            "default: the first with --validation, else the last epoch's",
            "Keep the parameters of the epoch that is best in this column of metrics.jsonl: "
            "validation_accuracy, validation_loss or loss.",
        ),
    ] = None
    patience: Annotated[int | None, optional("EPOCHS", "default: never")] = None
    """Stop after so many epochs in a row without a better one."""

    def __post_init__(self) -> None:
        check(self, at_least(1), "patience")
        if self.best is not None and self.best.startswith("test_"):
            raise UsageError(
                f"--best must not be chosen by the test set, and it is {self.best}; give "
                "--validation 0.1 and --best validation_accuracy"
            )


@dataclass(frozen=True)
class CheckpointFlags:
    """What is saved, so that a run that was stopped or killed can be resumed."""

    resume: Annotated[
        Path | None,
        optional(
            "RUN",
            "default: a new run",
            "Resume the run in this folder, as if it had never stopped. It needs no "
            "other flag but --dataset for your own data; a higher --epochs or --steps extends it.",
        ),
    ] = None
    checkpoint_every_steps: Annotated[int | None, optional("INT", "default: not by steps")] = None
    """Save after each so many steps."""
    checkpoint_every_seconds: Annotated[float | None, optional("FLOAT", "default: not by time")] = (
        None
    )
    """Save when so many seconds have passed since the last save."""
    checkpoint_every_epochs: Annotated[
        int | None,
        optional("INT", "default: 1, unless one of those is given"),
    ] = None
    """Save after each so many epochs."""
    keep_checkpoints: int = 3
    """How many to keep, the latest; the best epoch's is kept besides."""

    def __post_init__(self) -> None:
        check(
            self,
            at_least(1),
            "checkpoint_every_steps",
            "checkpoint_every_epochs",
            "keep_checkpoints",
        )
        check(self, ABOVE_ZERO, "checkpoint_every_seconds")


@dataclass(frozen=True)
class DeviceFlags:
    """What it is trained on. Several processes find each other under SLURM, Open MPI and
    Kubernetes; elsewhere by the last three flags, given together."""

    devices: Annotated[int | None, optional("INT", "default: all accelerators, or 1 CPU")] = None
    """Devices of this process that share each batch."""
    coordinator: Annotated[str | None, optional("HOST:PORT", "default: a single process")] = None
    """Where process 0 listens for the others."""
    processes: Annotated[int | None, optional("INT", "with --coordinator")] = None
    """How many processes train together."""
    process: Annotated[int | None, optional("INT", "with --coordinator")] = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        check(self, at_least(1), "devices")
        three = (self.coordinator, self.processes, self.process)
        if None in three and three != (None, None, None):
            raise UsageError(
                "--coordinator, --processes and --process must be given together; add those that "
                "are missing"
            )
        check(self, at_least(1), "processes")
        check(self, at_least(0), "process")


@dataclass(frozen=True)
class OutputFlags:
    """Where the run is kept."""

    out: Annotated[Path | None, optional("DIR", "default: runs/TIME-NAME")] = None
    """The run's folder; it must not hold a run."""
    name: Annotated[str | None, optional("NAME", "default: the dataset's")] = None
    """Ends the name of the run's folder."""
    report: bool = True
    """Write report.html, a page about what was trained."""
    log: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        arg(metavar="LOGGER ...", help_behavior_hint="(default: none)"),
    ] = ()
    """Log to TensorBoard, Weights & Biases or MLflow: tensorboard, wandb, mlflow."""

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


PRESET_FLAGS = {
    name: changed(TrainFlags(), preset=name, **vars(recipe)) for name, recipe in PRESETS.items()
}


def recipe_of(flags: TrainFlags) -> Recipe:
    """How the network is trained; without sizes of hidden layers where --layers has them."""
    values = flag_values(flags)
    given = {one.name: values[flag(one.name)] for one in fields(Recipe)}
    return Recipe(**given | {"hidden": given["hidden"] or ()})


def defaults(arguments: Sequence[str]) -> TrainFlags:
    """The flags that a command line starts from: those of the preset that it names.

    What is given in place of one of them takes it away: ``--steps`` the epochs, say.
    """
    # A name that is none is refused when all flags are parsed.
    flags = PRESET_FLAGS.get(_last(arguments, "--preset"), PRESET_FLAGS["tutorial"])
    given = given_flags(arguments)
    if "--steps" in given:
        flags = changed(flags, epochs=None)
    if "--layers" in given or "--initial-params" in given:
        flags = changed(flags, hidden=None)
    if _last(arguments, "--loss") == "tutorial":
        flags = changed(flags, label_smoothing=0.0)
    if "--warmup-steps" in given or _last(arguments, "--schedule") == "one_cycle":
        flags = changed(flags, warmup_fraction=0.0)
    return flags


def complete(flags: TrainFlags) -> TrainFlags:
    """The same flags with defaults in place that depend on other flags."""
    optimizer = flags.optimizer
    if optimizer.schedule != "step" and optimizer.decay_epochs is not None:
        raise UsageError(
            f"--decay-epochs is for --schedule step, and the schedule is {optimizer.schedule}; "
            "leave it out"
        )
    if optimizer.schedule == "step" and optimizer.decay_epochs is None:
        flags = changed(flags, decay_epochs=DECAY_EPOCHS)
    if optimizer.weight_decay is None:
        flags = changed(flags, weight_decay=WEIGHT_DECAY.get(optimizer.optimizer, 0.0))
    if flags.selection.best is None and flags.data.validation:
        flags = changed(flags, best="validation_accuracy")
    return flags


def preset_flags(name: str) -> list[str]:
    """What a preset sets otherwise than the tutorial, as a command line."""
    tutorial = flag_values(PRESET_FLAGS["tutorial"])
    words: list[str] = []
    for given, value in flag_values(PRESET_FLAGS[name]).items():
        if given != "--preset" and value != tutorial[given]:
            words += spelled(given, value)
    return words


def description() -> str:
    """The part of the help that says what every preset sets."""
    lines = ["presets, whose values the other flags override:"]
    for name, what in DESCRIPTIONS.items():
        lines.append(f"  --preset {name}: {what}")
        # A flag and its values stay on one line.
        given = " ".join(preset_flags(name)).replace(" --", "\n--").splitlines()
        filled = textwrap.wrap(
            " ".join(one.replace(" ", "\0") for one in given), 74, break_on_hyphens=False
        )
        lines += [f"    {line}".replace("\0", " ") for line in filled]
    return "\n".join(lines)


def _last(arguments: Sequence[str], name: str) -> str:
    """The last value of a flag in a command line; empty where it is not given."""
    found = ""
    for word, following in itertools.pairwise([*arguments, ""]):
        given, _, value = word.partition("=")
        if given == name:
            found = value or following
    return found


def recorded_flags(folder: "RunFolder") -> TrainFlags:
    """The flags that a run was started with.

    All of them are recorded, so a later change of its preset or of a default changes none.

    Raises:
        RunFolderError: they cannot be read.
    """
    try:
        return read_words(TrainFlags, folder.setting("arguments"))
    except UsageError as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the flags of feedax train, and "
            f"they cannot be read ({error}); use the version of feedax that wrote it"
        ) from error
