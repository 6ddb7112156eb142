"""The flags of `feedax train` that change its images at random. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from feedax.cli.bounds import above_zero, at_least, from_zero_on

arg = tyro.conf.arg


@dataclass(frozen=True)
class AugmentFlags:
    """Random changes of every image that is trained on, afresh in each epoch. 0 is none."""

    rotation: Annotated[float, arg(metavar="DEGREES")] = 0.0
    """Turn by up to this angle, either way."""
    scaling: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Stretch or shrink height and width by up to this share, each by its own."""
    shear: Annotated[float, arg(metavar="SLOPE")] = 0.0
    """Slant by up to this slope, either way."""
    translation: Annotated[float, arg(metavar="PIXELS")] = 0.0
    """Move by up to so many pixels, fractions too, along height and width."""
    elastic_alpha: Annotated[float, arg(metavar="PIXELS")] = 0.0
    """Strength of a smooth random distortion, as of handwriting: 34 is strong."""
    elastic_sigma: Annotated[float, arg(metavar="PIXELS")] = 4.0
    """How smooth that distortion is: the standard deviation of a Gaussian."""
    crop_padding: Annotated[int, arg(metavar="PIXELS")] = 0
    """Pad every side by so many pixels, and cut the image's size out of that anywhere."""
    flip: bool = False
    """Exchange left and right in half of the images."""
    cutout: Annotated[int, arg(metavar="PIXELS")] = 0
    """Blank out a square with sides of so many pixels."""
    brightness: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Lighten or darken by up to this share."""
    contrast: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Raise or lower the contrast by up to this share."""
    mixup: Annotated[float, arg(metavar="ALPHA")] = 0.0
    """Mix each example with another of its batch, in shares drawn from a Beta(ALPHA, ALPHA)."""

    def __post_init__(self) -> None:
        from_zero_on("--rotation", self.rotation)
        from_zero_on("--scaling", self.scaling)
        from_zero_on("--shear", self.shear)
        from_zero_on("--translation", self.translation)
        from_zero_on("--elastic-alpha", self.elastic_alpha)
        above_zero("--elastic-sigma", self.elastic_sigma)
        at_least("--crop-padding", self.crop_padding, 0)
        at_least("--cutout", self.cutout, 0)
        from_zero_on("--brightness", self.brightness)
        from_zero_on("--contrast", self.contrast)
        from_zero_on("--mixup", self.mixup)
