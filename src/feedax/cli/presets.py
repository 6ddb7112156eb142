"""The defaults of `feedax train`: presets, which the other flags override, and what follows."""

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from feedax.cli import UsageError
from feedax.cli.augment_flags import AugmentFlags
from feedax.cli.flag_words import flag_values, given_flags, spelled
from feedax.cli.flags import (
    HIDDEN,
    DataFlags,
    ModelFlags,
    OptimizerFlags,
    TrainFlags,
    TrainingFlags,
)

TUTORIAL = TrainFlags(
    model=ModelFlags(hidden=HIDDEN), training=TrainingFlags(preset="tutorial", epochs=8)
)
MODERN = TrainFlags(
    data=DataFlags(batch_size=256, shuffle=True),
    model=ModelFlags(hidden=(512, 512), initialisation="he", scale_pixels=True),
    training=TrainingFlags(preset="modern", epochs=9, loss="cross_entropy", label_smoothing=0.1),
    augment=AugmentFlags(rotation=10.0, scaling=0.1, shear=0.1, translation=1.5),
    optimizer=OptimizerFlags(
        optimizer="adamw",
        learning_rate=0.004,
        schedule="cosine",
        warmup_share=0.05,
        weight_decay=0.1,
    ),
)
BEST = replace(
    MODERN,
    model=replace(MODERN.model, hidden=(1500, 1000, 500)),
    training=replace(MODERN.training, preset="best", epochs=100),
    augment=AugmentFlags(
        rotation=15.0,
        scaling=0.15,
        shear=0.1,
        translation=2.0,
        elastic_alpha=36.0,
        elastic_sigma=5.0,
    ),
    optimizer=replace(MODERN.optimizer, learning_rate=0.002),
)
PRESETS = {"tutorial": TUTORIAL, "modern": MODERN, "best": BEST}

WHAT = {
    "tutorial": "the JAX tutorial's job, number for number",
    "modern": "the same network, trained as networks are trained today",
    "best": "a larger network, trained for longer: the highest accuracy, at many times the cost",
}
"""Each preset in words."""

DECAY_EPOCHS = 30
WEIGHT_DECAY = {"adamw": 1e-4}
"""Of the optimizers that decay the weights unless told otherwise."""


def defaults(arguments: Sequence[str]) -> TrainFlags:
    """The flags that a command line starts from: those of the preset that it names.

    What is given in place of one of them takes it away: ``--steps`` the epochs, say.

    Args:
        arguments: what follows ``feedax train``.
    """
    # A name that is none is refused when all flags are parsed.
    flags = PRESETS.get(_last(arguments, "--preset"), TUTORIAL)
    given = given_flags(arguments)
    if "--steps" in given:
        flags = replace(flags, training=replace(flags.training, epochs=None))
    if "--layers" in given or "--initial-params" in given:
        flags = replace(flags, model=replace(flags.model, hidden=None))
    if _last(arguments, "--loss") == "tutorial":
        flags = replace(flags, training=replace(flags.training, label_smoothing=0.0))
    if "--warmup-steps" in given or _last(arguments, "--schedule") == "one_cycle":
        flags = replace(flags, optimizer=replace(flags.optimizer, warmup_share=0.0))
    return flags


def complete(flags: TrainFlags) -> TrainFlags:
    """The same flags with defaults in place that depend on other flags.

    Raises:
        UsageError: one of them is of no use beside another.
    """
    optimizer, selection = flags.optimizer, flags.selection
    if optimizer.schedule != "step" and optimizer.decay_epochs is not None:
        raise UsageError(
            f"--decay-epochs is for --schedule step, and the schedule is {optimizer.schedule}; "
            "leave it out"
        )
    if optimizer.schedule == "step" and optimizer.decay_epochs is None:
        optimizer = replace(optimizer, decay_epochs=DECAY_EPOCHS)
    if optimizer.weight_decay is None:
        decay = WEIGHT_DECAY.get(optimizer.optimizer, 0.0)
        optimizer = replace(optimizer, weight_decay=decay)
    if selection.best is None and flags.data.validation:
        selection = replace(selection, best="validation_accuracy")
    return replace(flags, optimizer=optimizer, selection=selection)


def preset_flags(name: str) -> list[str]:
    """What a preset sets otherwise than the tutorial, as a command line."""
    tutorial = flag_values(TUTORIAL)
    words: list[str] = []
    for flag, value in flag_values(PRESETS[name]).items():
        if flag != "--preset" and value != tutorial[flag]:
            words += spelled(flag, value)
    return words


def description() -> str:
    """The part of the help that says what every preset sets."""
    lines = ["presets, whose values the other flags override:"]
    for name, what in WHAT.items():
        lines.append(f"  --preset {name}: {what}")
        # A flag and its values stay on one line.
        flags = " ".join(preset_flags(name)).replace(" --", "\n--").splitlines()
        filled = textwrap.wrap(
            " ".join(flag.replace(" ", "\0") for flag in flags), 74, break_on_hyphens=False
        )
        lines += [f"    {line}".replace("\0", " ") for line in filled]
    return "\n".join(lines)


def _last(arguments: Sequence[str], name: str) -> str:
    """The last value of a flag in a command line; empty where it is not given."""
    found = ""
    for word, following in itertools.pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        if flag == name:
            found = value or following
    return found
