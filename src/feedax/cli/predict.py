"""``feedax predict``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from feedax.cli import UsageError, say
from feedax.cli.parse import parse
from feedax.cli.recorded import recorded_flags
from feedax.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

arg = tyro.conf.arg

DESCRIPTION = """\
Say what a trained run sees in image files: one line an image, with the likeliest class.

An image is prepared as the training examples were. For MNIST and its kin that means: made grey,
inverted if it is dark on light, cropped to the ink, scaled, and centred in 28 x 28.

examples:
  feedax predict runs/20260131-142501-mnist seven.png
  feedax predict runs/20260131-142501-mnist scans/*.jpg"""


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


def run(arguments: Sequence[str]) -> int:
    """Predict, and return the exit code: 1 if an image could not be used."""
    flags = parse(PredictFlags, arguments, "predict", DESCRIPTION)

    import numpy as np

    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.network import build_predict, load_params
    from feedax.report.image import prepare_image
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
    names = folder.setting("class_names")
    params = load_params(folder, folder.setting("layers"))
    dataset = folder.setting("dataset").partition(":")[0].replace("-", "_")
    failed = False
    for path in flags.images:
        try:
            image = prepare_image(path, tuple(shape), dataset)
        except ImageError as error:
            # The other images can still be seen.
            say("feedax predict", str(error))
            failed = True
            continue
        if image.notes:
            say("feedax predict", f"{path} is {'; '.join(image.notes)}")
        # As FlattenAndCast gave it in training; that would load PyTorch for this line.
        probabilities = np.exp(predict(params, np.ravel(image.pixels).astype(np.float32)))
        print(f"{path}: {_ranking(probabilities, names)}", flush=True)
    return 1 if failed else 0


def _ranking(probabilities: "np.ndarray", names: Sequence[str] | None) -> str:
    """The likeliest class and the runner-up, in words."""
    said = []
    for label in (-probabilities).argsort(kind="stable")[:2]:
        # A network may have more outputs than the dataset has names.
        name = names[label] if names is not None and label < len(names) else f"class {label}"
        said.append(f"{name} with probability {probabilities[label]:.4f}")
    return ", then ".join(said)
