"""``feedax predict``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from feedax.cli import UsageError, say
from feedax.cli.parse import parse
from feedax.cli.recorded import recorded_flags
from feedax.errors import ImageError, printable

if TYPE_CHECKING:
    import numpy as np

arg = tyro.conf.arg

DESCRIPTION = """\
Say what a trained run sees in image files: one line an image, with the likeliest class.

An image is prepared as the training examples were. For MNIST and its kin that means: made grey,
taken off its paper, inverted if it is dark on light, cropped to the ink, scaled, and centred in
28 x 28. What was done, and what is doubtful, is said on standard error.

examples:
  feedax predict runs/20260131-142501-mnist seven.png
  feedax predict runs/20260131-142501-mnist scans/*.jpg
  feedax predict runs/20260131-142501-mnist photo.webp --show seen.png"""

UNSURE = 0.7
"""Where the likeliest class has less, a network errs in every second to fourth photograph."""


@dataclass(frozen=True)
class PredictFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        arg(metavar="IMAGE ...", help_behavior_hint="(required)"),
    ]
    """PNG, JPEG, WebP, BMP, GIF, TIFF or PPM files of any size."""
    show: Annotated[
        Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: nothing)")
    ] = None
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


def run(arguments: Sequence[str]) -> int:
    """Predict, and return the exit code: 1 if an image could not be used."""
    flags = parse(PredictFlags, arguments, "predict", DESCRIPTION)

    import numpy as np

    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.network import build_predict, load_params
    from feedax.predicting.image import prepare_image
    from feedax.report.run_folder import RunFolder

    use_compilation_cache()
    folder = RunFolder.open(flags.run)
    shape = folder.setting("image_shape")
    if shape is None:
        raise ImageError(
            f"the run must be trained on the plain pixels of images, and the examples of "
            f"{folder.setting('dataset')} are not known to be that; predict in Python"
        )
    # Nothing is left out of a network that only predicts.
    predict = build_predict(replace(recorded_flags(folder).model, dropout=0.0))
    layers = folder.setting("layers")
    params = load_params(folder, layers)
    names = [printable(name) for name in folder.setting("class_names") or ()]
    # A network may have more outputs than the dataset has names.
    names += [f"class {label}" for label in range(len(names), layers[-1])]
    dataset = folder.setting("dataset").partition(":")[0].replace("-", "_")
    failed, seen = False, []
    for path in flags.images:
        try:
            image = prepare_image(path, tuple(shape), dataset)
        except ImageError as error:
            # The other images can still be seen.
            say("feedax predict", str(error))
            failed = True
            continue
        # As FlattenAndCast gave it in training; that would load PyTorch for this line.
        probabilities = np.exp(predict(params, np.ravel(image.pixels).astype(np.float32)))
        notes = list(image.notes)
        if probabilities.max() < UNSURE:
            notes.append(
                f"uncertain to the network, whose likeliest class has a probability below {UNSURE}"
            )
        if notes:
            say("feedax predict", f"{path} is {'; '.join(notes)}")
        print(f"{path}: {_ranking(probabilities, names)}", flush=True)
        seen.append((path.name, image.pixels, probabilities))
    if flags.show is not None and seen:
        _draw(flags.show, seen, names)
    return 1 if failed else 0


def _draw(
    file: Path, seen: "Sequence[tuple[str, np.ndarray, np.ndarray]]", names: Sequence[str]
) -> None:
    from feedax.predicting.shown import seen_png

    try:
        file.write_bytes(seen_png(seen, names))
    except OSError as error:
        raise ImageError(
            f"--show must name a file that can be written, and {file} cannot ({error.strerror}); "
            f"name another one"
        ) from error
    say("feedax predict", f"what the network saw is in {file}")


def _ranking(probabilities: "np.ndarray", names: Sequence[str]) -> str:
    """The likeliest class and the runner-up, in words."""
    likeliest = (-probabilities).argsort(kind="stable")[:2]
    return ", then ".join(
        f"{names[label]} with probability {probabilities[label]:.4f}" for label in likeliest
    )
