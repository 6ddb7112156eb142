"""``feedax predict``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feedax.cli import say
from feedax.cli.commands import PredictFlags
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.network import trained_run
from feedax.errors import ImageError
from feedax.predicting import doubts


def run(flags: PredictFlags, arguments: Sequence[str]) -> int:
    """Predict, and return the exit code: 1 if an image could not be used."""
    use_compilation_cache()
    trained = trained_run(flags.run)
    trained.known_image_shape()
    names = trained.class_names
    failed, seen = False, []
    for path in flags.images:
        try:
            image = trained.prepare(path)
        except ImageError as error:
            # The other images can still be seen.
            say("feedax predict", str(error))
            failed = True
            continue
        probabilities = trained.probabilities(image.pixels)
        if notes := (*image.notes, *doubts(probabilities)):
            say("feedax predict", f"{path} is {'; '.join(notes)}")
        print(f"{path}: {_ranking(probabilities, names)}", flush=True)
        seen.append((path.name, image.pixels, probabilities))
    if flags.show is not None and seen:
        _draw(flags.show, seen, names)
    return 1 if failed else 0


def _draw(
    file: Path, seen: Sequence[tuple[str, np.ndarray, np.ndarray]], names: Sequence[str]
) -> None:
    from feedax.report.figures import seen_png

    try:
        file.write_bytes(seen_png(seen, names))
    except OSError as error:
        raise ImageError(
            f"--show must name a file that can be written, and {file} cannot ({error.strerror}); "
            f"name another one"
        ) from error
    say("feedax predict", f"what the network saw is in {file}")


def _ranking(probabilities: np.ndarray, names: Sequence[str]) -> str:
    """The likeliest class and the runner-up, in words."""
    likeliest = (-probabilities).argsort(kind="stable")[:2]
    return ", then ".join(
        f"{names[label]} with probability {probabilities[label]:.4f}" for label in likeliest
    )
