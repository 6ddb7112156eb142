"""How networks are trained, as values: the presets, and what each of them sets.

>>> from dataclasses import replace
>>> replace(MODERN, epochs=3).learning_rate
0.004

Nothing heavy is imported here; `feedax.fit_arguments` makes the arguments of `fit` of a recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "BEST",
    "DECAY_EPOCHS",
    "DESCRIPTIONS",
    "MODERN",
    "PRESETS",
    "TUTORIAL",
    "TUTORIAL_TABLE",
    "WEIGHT_DECAY",
    "OptimizerName",
    "Recipe",
    "ScheduleName",
]

OptimizerName = Literal[
    "sgd",
    "momentum",
    "nesterov",
    "rmsprop",
    "adagrad",
    "adam",
    "adamw",
    "nadam",
    "radam",
    "adabelief",
    "lion",
]
"""The optimizers of `feedax.build_optimizer`."""

ScheduleName = Literal["constant", "cosine", "one_cycle", "step"]
"""The schedules of `feedax.build_schedule`."""

WEIGHT_DECAY: Mapping[str, float] = {"adamw": 1e-4}
"""Of the optimizers that decay the weights unless told otherwise."""

DECAY_EPOCHS = 30
"""Epochs between two falls of the learning rate, of the schedule ``"step"``."""


@dataclass(frozen=True)
class Recipe:
    """How a fully connected network is made and trained. Without arguments: the tutorial's way.

    Attributes:
        batch_size: examples in one step.
        shuffle: whether every epoch has a new random order.
        hidden: sizes of the hidden layers.
        initialisation: how parameters are drawn, see `feedax.init_mlp`.
        scale_pixels: whether inputs are divided by 255.
        dropout: the fraction of every hidden layer's outputs that is dropped in training, from 0 to
            below 1.
        epochs: times to go through the training set, or None.
        steps: steps to train for in place of epochs, or None.
        loss: ``"tutorial"`` or ``"cross_entropy"``.
        label_smoothing: the fraction of the target that is spread over all classes, from 0 to
            below 1; for the cross-entropy.
        precision: the dtype that the network computes in.
        optimizer: see `feedax.build_optimizer`, as the others to `clip_norm`.
        learning_rate: at its peak.
        schedule: of the learning rate.
        warmup_steps: first steps, in which the learning rate rises from 0.
        warmup_fraction: in place of `warmup_steps`: the same as a fraction of all steps.
        decay_epochs: of the schedule ``"step"``: epochs from one fall to the next; None for 30.
        decay_rate: of the schedule ``"step"``: the factor by which the learning rate falls.
        weight_decay: None for that of the optimizer.
        clip_norm: the largest norm of gradients, or None.
        rotation: random changes of images, see `feedax.augment`, as the others to `contrast`: the
            largest angle in degrees.
        scaling: the largest change of height and width, as a fraction.
        shear: the largest slope.
        translation: the largest shift in pixels.
        elastic_alpha: the strength of a smooth distortion.
        elastic_sigma: how smooth it is.
        crop_padding: pixels that every side is padded by before the image's size is cut out.
        flip: whether half of the images are mirrored.
        cutout: the side of a square that is blanked out.
        brightness: the largest change, as a fraction.
        contrast: the largest change, as a fraction.
        mixup: alpha, see `feedax.augment.mixup`.
    """

    batch_size: int = 128
    shuffle: bool = False
    hidden: tuple[int, ...] = (512, 512)
    initialisation: Literal["tutorial", "he"] = "tutorial"
    scale_pixels: bool = False
    dropout: float = 0.0
    epochs: int | None = 8
    steps: int | None = None
    loss: Literal["tutorial", "cross_entropy"] = "tutorial"
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.01
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    warmup_fraction: float = 0.0
    decay_epochs: int | None = None
    decay_rate: float = 0.1
    weight_decay: float | None = None
    clip_norm: float | None = None
    rotation: float = 0.0
    scaling: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    elastic_alpha: float = 0.0
    elastic_sigma: float = 4.0
    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    mixup: float = 0.0


TUTORIAL = Recipe()
"""The JAX tutorial's job, number for number."""

MODERN = Recipe(
    batch_size=256,
    shuffle=True,
    initialisation="he",
    scale_pixels=True,
    epochs=9,
    loss="cross_entropy",
    label_smoothing=0.1,
    optimizer="adamw",
    learning_rate=0.004,
    schedule="cosine",
    warmup_fraction=0.05,
    weight_decay=0.1,
    rotation=10.0,
    scaling=0.1,
    shear=0.1,
    translation=1.5,
)
"""The same network, trained as networks are trained today."""

BEST = replace(
    MODERN,
    hidden=(1500, 1000, 500),
    epochs=100,
    learning_rate=0.002,
    rotation=15.0,
    scaling=0.15,
    translation=2.0,
    elastic_alpha=36.0,
    elastic_sigma=5.0,
)
"""A larger network, trained for longer."""

PRESETS: Mapping[str, Recipe] = {"tutorial": TUTORIAL, "modern": MODERN, "best": BEST}
"""The recipes of ``feedax train --preset``, by name."""

DESCRIPTIONS: Mapping[str, str] = {
    "tutorial": "the JAX tutorial's job, number for number",
    "modern": "the same network, trained as networks are trained today",
    "best": "a larger network, trained for longer: the highest accuracy, at many times the cost",
}
"""What each of these recipes is, by name."""

TUTORIAL_TABLE: Mapping[str, tuple[float, ...]] = {
    "train_accuracy": (
        0.9157500267028809,
        0.9372166991233826,
        0.9491666555404663,
        0.9568166732788086,
        0.9631333351135254,
        0.9675000309944153,
        0.9708333611488342,
        0.9737166762351990,
    ),
    "test_accuracy": (
        0.9195000529289246,
        0.9384000301361084,
        0.9469000697135925,
        0.9534000158309937,
        0.9577000737190247,
        0.9616000652313232,
        0.9650000333786011,
        0.9672000408172607,
    ),
}
"""What the JAX tutorial prints, of 2020: the accuracies after each of its 8 epochs."""
