"""``feedax predict``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from feedax.cli import say
from feedax.cli.commands import PredictFlags
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.flags import recipe_of, recorded_flags
from feedax.cli.network import load_params
from feedax.errors import ImageError, printable
from feedax.predicting import UNSURE, prepare_image
from feedax.report.run_folder import RunFolder
from feedax.train import evaluate_arguments


def run(flags: PredictFlags, arguments: Sequence[str]) -> int:
    """Predict, and return the exit code: 1 if an image could not be used."""
    use_compilation_cache()
    folder = RunFolder.open(flags.run)
    shape = folder.setting("image_shape")
    if shape is None:
        raise ImageError(
            f"the run must be trained on the plain pixels of images, and the examples of "
            f"{folder.setting('dataset')} are not known to be that; predict in Python"
        )
    # Nothing is left out of a network that only predicts.
    recipe = replace(recipe_of(recorded_flags(folder)), dropout=0.0)
    predict = evaluate_arguments(recipe)["predict"]
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
