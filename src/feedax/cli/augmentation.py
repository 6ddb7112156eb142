"""The random changes of images that the flags ask for, as a function of one example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from feedax.cli import UsageError
from feedax.cli.augment_flags import AugmentFlags
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags
from feedax.errors import ModelError

WARPS = ("rotation", "scaling", "shear", "translation", "elastic_alpha")
IMAGE_HYPERPARAMS = (*WARPS, "brightness", "contrast")
"""The flags that can be hyperparameters of `fit`; the others are fixed when it is compiled."""
CHANGES = (*IMAGE_HYPERPARAMS, "flip", "crop_padding", "cutout")

CHANNELS = (1, 3)
"""How many an image may have."""


def build_augment(flags: TrainFlags, examples: Examples) -> Callable[..., jax.Array] | None:
    """The ``augment`` of `fit` for these examples, or None where nothing is asked for.

    Raises:
        ModelError: the examples are not known to be images.
        UsageError: --cutout is larger than the images.
    """
    given = flags.augment
    asked = [f"--{name.replace('_', '-')}" for name in CHANGES if getattr(given, name)]
    if not asked:
        return None
    shape = _shape(examples)
    if shape is None:
        raise ModelError(
            f"the network: {asked[0]} changes images, and the examples of "
            f"{examples.flags.dataset}, of shape {examples.input_shape}, are not known to be that; "
            "leave it out, or use examples of (height, width) or (height, width, channels)"
        )
    if len(shape) == 3 and (shape[0] in CHANNELS) == (shape[2] in CHANNELS):
        raise ModelError(
            f"the network: {asked[0]} changes images of 1 or 3 channels, first or last, and "
            f"those of {examples.flags.dataset} have the shape {shape}; leave it out, or let the "
            "dataset yield such images"
        )
    height, width = shape[1:] if _channels_first(shape) else shape[:2]
    if given.cutout > min(height, width):
        raise UsageError(
            f"--cutout must be no larger than the images of {height} x {width} pixels, and it is "
            f"{given.cutout}"
        )
    is_0_to_255 = flags.model.scale_pixels or examples.image_shape is not None
    first = examples.first_input
    if not is_0_to_255 and first.dtype != np.uint8:
        for name in ("brightness", "contrast"):
            if getattr(given, name) and not (first.min() >= 0 and first.max() <= 1):
                raise ModelError(
                    f"the network: --{name} wants pixels from 0 to 1, and those of the first "
                    f"example of {examples.flags.dataset} go from {first.min()} to {first.max()}; "
                    "leave it out, or give --scale-pixels for pixels from 0 to 255"
                )
    return _augmentation(given, shape, white=255.0 if is_0_to_255 else None)


def _augmentation(
    given: AugmentFlags, shape: tuple[int, ...], white: float | None
) -> Callable[..., jax.Array]:
    """The function itself.

    Args:
        given: what is asked for.
        shape: of the images.
        white: the largest value of a pixel; if None, 1 for floats and 255 for uint8.
    """
    from feedax import augment as images

    channel_axis = 0 if _channels_first(shape) else -1

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
        axis: dict[str, Any] = {"channel_axis": channel_axis}
        keys = jax.random.split(key, 6)
        image = jnp.reshape(example, shape)
        if given.flip:
            image = images.flip(keys[0], image, **axis)
        if given.crop_padding:
            image = images.crop(keys[1], image, padding=given.crop_padding, **axis)
        if any(getattr(given, name) for name in WARPS):
            image = images.warp(
                keys[2],
                image,
                rotation=rotation,
                scale=scaling,
                shear=shear,
                translation=translation,
                alpha=elastic_alpha,
                sigma=given.elastic_sigma,
                **axis,
            )
        if given.brightness:
            image = images.brightness(keys[3], image, strength=brightness, white=white, **axis)
        if given.contrast:
            image = images.contrast(keys[4], image, strength=contrast, white=white, **axis)
        if given.cutout:
            image = images.cutout(keys[5], image, size=given.cutout, **axis)
        return jnp.reshape(image, jnp.shape(example))

    return augment


def _shape(examples: Examples) -> tuple[int, ...] | None:
    """The shape of the examples as images, or None where it is not known."""
    shape = examples.input_shape
    return shape if len(shape) in (2, 3) else examples.flattened_shape


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image has 1 or 3 channels before its height, and not after its width."""
    return len(shape) == 3 and shape[0] in CHANNELS
