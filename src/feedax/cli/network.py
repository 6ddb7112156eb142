"""The network of the command line: its sizes, its arguments of `fit`, its saved parameters."""

import contextlib
import itertools
from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.cli import UsageError
from feedax.cli.flags import ModelFlags, TrainFlags, recipe_of, recorded_flags
from feedax.cli.parse import flag
from feedax.errors import (
    CheckpointError,
    DatasetError,
    ModelError,
    OptimizerError,
    RunFolderError,
    printable,
    shown,
)
from feedax.presets import TUTORIAL
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import Record, SweepFolder
from feedax.report.trained_run import TrainedRun
from feedax.storage.params_file import load_params as read_params
from feedax.storage.safetensors_file import arrays_by_name
from feedax.storage.snapshot import Snapshot
from feedax.train import Checkpoints, evaluate_arguments
from feedax.train import fit_arguments as arguments_of_fit
from feedax.train.checkpoints import most_bytes
from feedax.train.recipe import CHANGES, CHANNELS, are_channels_first

if TYPE_CHECKING:  # it loads PyTorch, which `feedax predict` does without
    from feedax.cli.examples import Examples


def fit_arguments(flags: TrainFlags, examples: "Examples", loader: Sized) -> dict[str, Any]:
    """The arguments of `fit` and `sweep` that say how these flags train on these examples.

    Parameters, sets and ``key`` are not among them. The flags are complete, and the loader is that
    of the training set. What does not fit the examples is refused.
    """
    length = None
    with contextlib.suppress(TypeError):  # a stream may not know
        length = len(loader)
    given, dataset = flags.optimizer, flags.data.dataset
    if length == 0:
        raise DatasetError(
            "feedax: with --drop-last the training set must fill a batch, and that of "
            f"{dataset} has fewer than {flags.data.batch_size} examples; lower --batch-size, or "
            "leave --drop-last out"
        )
    if length is None and given.schedule == "step":
        raise OptimizerError(
            f"optimizer: --decay-epochs counts epochs, and the stream {dataset} does not know its "
            "length; choose another --schedule"
        )
    if length is None and flags.training.steps is None and given.warmup_fraction:
        raise OptimizerError(
            f"optimizer: --warmup-fraction is a fraction of the run, and the stream {dataset} does "
            "not know its length; give --warmup-steps or --steps"
        )
    shape, white = _images(flags, examples)
    return arguments_of_fit(
        recipe_of(flags), steps_per_epoch=length, image_shape=shape, white=white
    )


def _images(flags: TrainFlags, examples: "Examples") -> tuple[tuple[int, ...] | None, float | None]:
    """The shape of the images and the largest value of a pixel; None where nothing changes them."""
    given = flags.augment
    asked = [flag(name) for name in CHANGES if getattr(given, name)]
    if not asked:
        return None, None
    shape = examples.input_shape
    images = shape if len(shape) in (2, 3) else examples.flattened_shape
    if images is None:
        raise ModelError(
            f"the network: {asked[0]} changes images, and the examples of "
            f"{examples.flags.dataset}, of shape {shape}, are not known to be that; "
            "leave it out, or use examples of (height, width) or (height, width, channels)"
        )
    if len(images) == 3 and (images[0] in CHANNELS) == (images[2] in CHANNELS):
        raise ModelError(
            f"the network: {asked[0]} changes images of 1 or 3 channels, first or last, and "
            f"those of {examples.flags.dataset} have the shape {images}; leave it out, or let the "
            "dataset yield such images"
        )
    height, width = images[1:] if are_channels_first(images) else images[:2]
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
    return images, 255.0 if is_0_to_255 else None


def resolve_layers(
    flags: ModelFlags, examples: "Examples", other: RunFolder | None
) -> tuple[int, ...]:
    """The sizes of all layers, checked; `other` is the run whose parameters are the first ones."""
    if flags.layers is not None:
        layers = flags.layers
    elif flags.hidden is None and other is not None:
        layers = tuple(other.setting("layers"))
    else:
        hidden = TUTORIAL.hidden if flags.hidden is None else flags.hidden
        return (examples.values, *hidden, examples.class_count)
    check_layers(layers, examples)
    return layers


def check_layers(layers: Sequence[int], examples: "Examples", are_recorded: bool = False) -> None:
    """Refuse layers whose ends do not fit the examples, given by flags or recorded of a run."""

    def remedy(change: str) -> str:
        if are_recorded:
            return "give a dataset with examples like those that the run was trained on"
        return f"{change}, or give --hidden sizes only"

    values = examples.values
    if layers[0] != values:
        raise ModelError(
            f"the network: the first layer must have the {values} values of one example of "
            f"{examples.flags.dataset}, and it has {layers[0]}; "
            f"{remedy(f'start --layers with {values}')}"
        )
    names = examples.class_names
    if names is not None and layers[-1] < len(names):
        raise ModelError(
            f"the network: the last layer must have an output for each of the {len(names)} classes "
            f"of {examples.flags.dataset}, and it has {layers[-1]}; "
            f"{remedy(f'end --layers with {len(names)}')}"
        )


def trained_run(path: Path) -> TrainedRun:
    """The run in a folder, with its network."""
    folder = RunFolder.open(path)
    flags = recorded_flags(folder)
    layers, shape = folder.setting("layers"), folder.setting("image_shape")
    params = load_params(folder, layers)
    return trained_network(folder, flags, layers, params, shape, folder.setting("class_names"))


def network_of_sweep(
    folder: SweepFolder, record: Record, flags: TrainFlags, examples: "Examples"
) -> TrainedRun:
    """One of a sweep's networks, trained by these flags on these examples."""
    path = folder.path / record["params"]
    # A file may say anything.
    if not path.resolve().is_relative_to(folder.path.resolve()):
        raise RunFolderError(
            f"run folder: the parameters of {shown(record['name'])} must lie in {folder.path}, and "
            f"{folder.metrics_path} names {shown(record['params'])}; restore it from a copy"
        )
    layers = resolve_layers(flags.model, examples, None)
    params = read_params(path, {"params": _shapes(layers)})["params"]
    return trained_network(
        folder, flags, layers, params, examples.image_shape, examples.class_names
    )


def trained_network(
    folder: RunFolder,
    flags: TrainFlags,
    layers: Sequence[int],
    params: Any,
    image_shape: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> TrainedRun:
    """A network of these flags with its parameters."""
    # Nothing is left out of a network that only predicts.
    recipe = replace(recipe_of(flags), dropout=0.0)
    names = [printable(name) for name in class_names or ()]
    # A network may have more outputs than the dataset has names.
    names += [f"class {label}" for label in range(len(names), layers[-1])]
    shape = None if image_shape is None else tuple(image_shape)
    predict = evaluate_arguments(recipe)["predict"]
    return TrainedRun(folder, predict, params, tuple(layers), shape, names)


def load_params(run: RunFolder, layers: Sequence[int]) -> Any:
    """The parameters of a run whose network has these layers."""
    return run.load_params(like=_shapes(layers))


def are_saved(checkpoints: Checkpoints, layers: Sequence[int]) -> bool:
    """Whether there is a checkpoint to resume from; one of other layers is refused.

    It is looked at before the parameters are drawn: a folder can ask for any number of them.
    """
    found = checkpoints.newest(most_bytes(_shapes(layers)), says=False)
    if found is not None:
        refuse_other_layers(found.arrays, layers, found.path)
    return found is not None


def refuse_other_networks(checkpoints: Checkpoints, layers: Sequence[int], count: int) -> None:
    """Refuse saved networks of a sweep of `count` that have other layers; one of them tells."""
    most = most_bytes(_shapes(layers))
    for name in checkpoints.names():
        arrays = None
        if name.endswith(".safetensors"):
            with contextlib.suppress(CheckpointError):  # it is trained again, which is said then
                arrays, _ = checkpoints.read(name, most) or (None, {})
        elif name.startswith("."):
            continue  # half a file
        elif found := checkpoints.within(name).newest(count * most, says=False):
            arrays = found.arrays
        if arrays is not None:
            return refuse_other_layers(arrays, layers, checkpoints.folder / name)


def refuse_other_layers(arrays: Snapshot, layers: Sequence[int], path: Path) -> None:
    """Refuse saved arrays that are not those of a network, or of many, with these layers."""
    shapes = arrays_by_name({"params": _shapes(layers)}, who="feedax")
    saved = {name.removeprefix("state."): array.shape for name, array in arrays.items()}
    for name, leaf in shapes.items():
        # A first axis is for many networks.
        if saved.get(name, ())[-leaf.ndim :] != leaf.shape:
            raise CheckpointError(
                f"feedax: {path} must hold a network with the layers {shown(list(layers))}, and "
                f"its {name} is {shown(saved.get(name))} in place of {leaf.shape}; restore the "
                "folder as it was, or train again"
            )


def _shapes(layers: Sequence[int]) -> Any:
    """What stands for the parameters, without a number of them."""
    return [
        tuple(jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in (sizes, sizes[:1]))
        for inputs, outputs in itertools.pairwise(layers)
        for sizes in [(outputs, inputs)]
    ]
