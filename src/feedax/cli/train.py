"""``feedax train``."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from feedax.cli.flags import DataFlags, TrainFlags, command_line
from feedax.cli.parse import parse
from feedax.errors import NotANumberError

DESCRIPTION = """\
Train a network. Without flags this is the JAX tutorial: MNIST, 784 512 512 10, 8 epochs.

examples:
  feedax train
  feedax train --epochs 2 --hidden 256 --name small
  feedax train --optimizer adam --step-size 0.001 --loss cross_entropy --shuffle
  feedax train --dataset npz:digits.npz --out runs/digits

Standard output gets three lines an epoch; the run's folder gets the configuration, the metrics, the
curves and the parameters. Ctrl-C stops in good order: what is trained so far is saved."""


def run(arguments: Sequence[str]) -> int:
    """Train, and return the exit code."""
    flags = parse(TrainFlags, arguments, "train", DESCRIPTION)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    from feedax.cli.examples import Examples
    from feedax.cli.network import (
        LOSSES,
        OPTIMIZERS,
        initial_params,
        load_params,
        predict,
        resolve_layers,
    )
    from feedax.cli.progress import Progress
    from feedax.cli.stop import StopRequest
    from feedax.report.environment import environment
    from feedax.report.run_folder import RunFolder
    from feedax.train import fit
    from feedax.train.events import EpochEnded, Event

    flags = dataclasses.replace(flags, data=_from_anywhere(flags.data))
    examples = Examples.open(flags.data)
    start = flags.model.initial_params
    other = None if start is None else RunFolder.open(start)
    layers = resolve_layers(flags.model, examples, other)
    params = None if other is None else load_params(other, layers)
    loaders = examples.loaders()
    folder = RunFolder.create(
        {
            "command": shlex.join(["feedax", "train", *arguments]),
            "started": started,
            "flags": dataclasses.asdict(flags),
            "dataset": flags.data.dataset,
            "loss": flags.training.loss,
            "layers": layers,
            "input_shape": examples.input_shape,
            "image_shape": examples.image_shape,
            "class_names": examples.class_names,
            "plan": str(loaders["train"].plan()),
            **environment(),
        },
        path=flags.output.out,
        name=flags.output.name or examples.name,
    )
    note(f"the run's folder is {folder.path}")

    def keep(event: Event) -> None:
        if isinstance(event, EpochEnded):
            folder.save_params(event.params)
            folder.append_row(event.row)

    with StopRequest() as stop:
        failure = None
        try:
            with Progress(note, stop) as progress:
                params, history = fit(
                    predict,
                    initial_params(layers, flags.data.seed) if params is None else params,
                    loaders["train"],
                    loss=LOSSES[flags.training.loss],
                    optimizer=OPTIMIZERS[flags.training.optimizer](flags.training.step_size),
                    epochs=flags.training.epochs,
                    evaluate=loaders,
                    callbacks=(keep, progress, stop),
                )
        except NotANumberError as error:
            params, history, failure = error.params, error.history, error
        folder.save_params(params)
        folder.save_curves()

    if failure is not None:
        note(f"{failure}; the parameters from the start of that epoch are in {folder.path}")
        return 1
    if stop.stopped_at is not None:
        rest = _remaining(flags, folder.path, flags.training.epochs - len(history))
        note(
            f"stopped by {stop.by} {stop.stopped_at}; the parameters are in {folder.path}; go on "
            f"with: {rest}"
        )
        return stop.exit_code
    note(f"done; the parameters, the metrics and curves.png are in {folder.path}")
    return stop.exit_code  # not 0 when the request came too late to stop anything


def note(sentence: str) -> None:
    """Say something that is not one of the lines of an epoch."""
    print(f"feedax train: {sentence}", file=sys.stderr, flush=True)


def _from_anywhere(data: DataFlags) -> DataFlags:
    """The same data for whoever reads the run's folder from another one."""
    from feedax.datasets import from_anywhere

    root = None if data.root is None else data.root.absolute()
    return dataclasses.replace(data, dataset=from_anywhere(data.dataset), root=root)


def _remaining(flags: TrainFlags, run: Path, epochs: int) -> str:
    """The command that trains what a stopped run has left."""
    # The folder and the layers come with the run that is gone on with.
    rest = dataclasses.replace(
        flags,
        training=dataclasses.replace(flags.training, epochs=epochs),
        model=dataclasses.replace(flags.model, initial_params=run),
        output=dataclasses.replace(flags.output, out=None),
    )
    return shlex.join(["feedax", "train", *command_line(rest)])
