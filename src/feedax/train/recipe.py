"""From a recipe to the arguments of `fit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from feedax.augment import geometry, pixels
from feedax.errors import ModelError, OptimizerError
from feedax.presets import DECAY_EPOCHS, Recipe
from feedax.train.losses import cross_entropy, smoothed_cross_entropy, tutorial_loss
from feedax.train.mlp import mlp, mlp_with_dropout
from feedax.train.optimizers import Optimizer, build_optimizer, build_schedule

LOSSES: dict[str, Callable[..., Any]] = {
    "tutorial": tutorial_loss,
    "cross_entropy": cross_entropy,
}
WARPS = ("rotation", "scaling", "shear", "translation", "elastic_alpha")
IMAGE_HYPERPARAMS = (*WARPS, "brightness", "contrast")
"""Changes of images that are hyperparameters of `fit`; the others are fixed in the program."""
CHANGES = (*IMAGE_HYPERPARAMS, "flip", "crop_padding", "cutout")

CHANNELS = (1, 3)
"""How many an image may have."""


def fit_arguments(
    recipe: Recipe,
    *,
    steps_per_epoch: int | None = None,
    image_shape: Sequence[int] | None = None,
    white: float | None = None,
) -> dict[str, Any]:
    """The arguments of `fit` that say how a network is trained; of `sweep` too.

    Parameters, sets and ``key`` are not among them.

    Args:
        recipe: see `feedax.presets`.
        steps_per_epoch: the batches of an epoch; None for a stream that does not know.
        image_shape: `(height, width)` of the examples' images, with channels last or first where
            they have 1 or 3; the examples may be flat. Needed where the recipe changes images.
        white: the largest value of a pixel; None for 1 of floats and 255 of uint8.

    Raises:
        ModelError: the recipe changes images and there is no `image_shape`, a fraction is out of
            range, or the loss does not exist.
        OptimizerError: the schedule needs the length of an epoch, or does not fit it.

    >>> import feedax
    >>> arguments = fit_arguments(feedax.presets.MODERN, steps_per_epoch=235, image_shape=(28, 28))
    >>> arguments["epochs"], arguments["learning_rate"], arguments["hyperparams"]["rotation"]
    (9, 0.004, 10.0)
    """
    return evaluate_arguments(recipe) | {
        "augment": _augment(recipe, image_shape, white),
        "mixup": recipe.mixup,
        "optimizer": _optimizer(recipe, steps_per_epoch),
        "learning_rate": recipe.learning_rate,
        "epochs": recipe.epochs,
        "steps": recipe.steps,
    }


def evaluate_arguments(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `evaluate` that say what the network is and how it is scored.

    The loss is that of training, with label smoothing, as in the rows of a run.
    """
    for name in ("dropout", "label_smoothing"):
        if not 0 <= (value := getattr(recipe, name)) < 1:
            raise ModelError(
                f"fit_arguments: {name} must be a fraction from 0 to below 1, and it is {value!r}; "
                "give 0.1, say"
            )
    if recipe.loss not in LOSSES or (recipe.label_smoothing and recipe.loss != "cross_entropy"):
        raise ModelError(
            f"fit_arguments: loss must be one of {', '.join(LOSSES)}, the last one with label "
            f"smoothing, and it is {recipe.loss!r}; give 'cross_entropy', say"
        )
    predict = mlp_with_dropout if recipe.dropout else mlp
    return {
        "predict": partial(predict, divisor=255) if recipe.scale_pixels else predict,
        "loss": smoothed_cross_entropy if recipe.label_smoothing else LOSSES[recipe.loss],
        "hyperparams": hyperparams(recipe),
        "precision": recipe.precision,
    }


def hyperparams(recipe: Recipe) -> dict[str, float]:
    """The scalars that are arguments of the compiled step, where they are not 0.

    What is 0 is left out of the program too.
    """
    names = ("dropout", "label_smoothing", "weight_decay", *IMAGE_HYPERPARAMS)
    return {name: value for name in names if (value := getattr(recipe, name))}


def are_channels_first(shape: Sequence[int]) -> bool:
    """Whether an image has 1 or 3 channels before its height, and not after its width."""
    return len(shape) == 3 and shape[0] in CHANNELS


def _augment(
    recipe: Recipe, image_shape: Sequence[int] | None, white: float | None
) -> Callable[..., jax.Array] | None:
    """The ``augment`` of `fit`, or None where the recipe changes no images."""
    asked = [name for name in CHANGES if getattr(recipe, name)]
    if not asked:
        return None
    if image_shape is None:
        raise ModelError(
            f"fit_arguments: image_shape must be given where {asked[0]} changes images, and it is "
            "None; give (28, 28), say"
        )
    shape = tuple(image_shape)
    axis: dict[str, Any] = {"channel_axis": 0 if are_channels_first(shape) else -1}

    # What is off is 0 here too, so that nothing is compiled for it.
    def augment(
        key: jax.Array,
        example: ArrayLike,
        rotation: ArrayLike = 0.0,
        scaling: ArrayLike = 0.0,
        shear: ArrayLike = 0.0,
        translation: ArrayLike = 0.0,
        elastic_alpha: ArrayLike = 0.0,
        brightness: ArrayLike = 0.0,
        contrast: ArrayLike = 0.0,
    ) -> jax.Array:
        keys = jax.random.split(key, 6)
        image = jnp.reshape(example, shape)
        if recipe.flip:
            image = pixels.flip(keys[0], image, **axis)
        if recipe.crop_padding:
            image = pixels.crop(keys[1], image, padding=recipe.crop_padding, **axis)
        if any(getattr(recipe, name) for name in WARPS):
            image = geometry.warp(
                keys[2],
                image,
                rotation=rotation,
                scale=scaling,
                shear=shear,
                translation=translation,
                alpha=elastic_alpha,
                sigma=recipe.elastic_sigma,
                **axis,
            )
        if recipe.brightness:
            image = pixels.brightness(keys[3], image, strength=brightness, white=white, **axis)
        if recipe.contrast:
            image = pixels.contrast(keys[4], image, strength=contrast, white=white, **axis)
        if recipe.cutout:
            image = pixels.cutout(keys[5], image, size=recipe.cutout, **axis)
        return jnp.reshape(image, jnp.shape(example))

    return augment


def learning_rates(recipe: Recipe, steps_per_epoch: int, epochs: int) -> list[float]:
    """The learning rate of the last step of each epoch; the last epoch of a run of steps is short.

    >>> import feedax
    >>> [round(rate, 5) for rate in learning_rates(feedax.presets.MODERN, 235, 9)][::4]
    [0.00396, 0.0018, 0.0]
    >>> short = feedax.presets.Recipe(epochs=None, steps=3, schedule="cosine")
    >>> [round(rate, 5) for rate in learning_rates(short, 2, 2)]
    [0.0075, 0.0025]
    """
    factor = build_schedule(**_schedule(recipe, steps_per_epoch))
    last = jnp.arange(1, epochs + 1) * steps_per_epoch - 1
    if recipe.steps is not None:
        last = jnp.minimum(last, recipe.steps - 1)
    return [recipe.learning_rate * float(factor(step)) for step in last]


def _optimizer(recipe: Recipe, steps_per_epoch: int | None) -> Optimizer:
    """The transformation; with weight decay, the function that makes it."""
    build = partial(
        build_optimizer,
        name=recipe.optimizer,
        clip_norm=recipe.clip_norm,
        **_schedule(recipe, steps_per_epoch),
    )
    plain = build(weight_decay=recipe.weight_decay)
    return (lambda weight_decay: build(weight_decay=weight_decay)) if recipe.weight_decay else plain


def _schedule(recipe: Recipe, steps_per_epoch: int | None) -> dict[str, Any]:
    """The arguments of `build_schedule`."""
    decay_steps, warmup_steps, steps = None, recipe.warmup_steps, recipe.steps
    if steps is None and steps_per_epoch is not None and recipe.epochs is not None:
        steps = recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        if steps_per_epoch is None:
            raise OptimizerError(
                "fit_arguments: steps_per_epoch must be given with schedule 'step', whose "
                "decay_epochs counts epochs, and it is None; give it, or choose another schedule"
            )
        decay_steps = steps_per_epoch * (recipe.decay_epochs or DECAY_EPOCHS)
    if recipe.warmup_fraction:
        if steps is None:
            raise OptimizerError(
                "fit_arguments: the number of steps must be known with warmup_fraction, and it is "
                "not; give steps_per_epoch, or a recipe with warmup_steps or steps"
            )
        warmup_steps = int(recipe.warmup_fraction * steps)
    return {
        "schedule": recipe.schedule,
        "steps": steps,
        "warmup_steps": warmup_steps,
        "decay_steps": decay_steps,
        "decay_rate": recipe.decay_rate,
    }
