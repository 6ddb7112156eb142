"""``feedax train``."""

import dataclasses
import secrets
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedax.cli import say
from feedax.cli.flag_words import command_line, given_flags
from feedax.cli.flags import TrainFlags
from feedax.cli.parse import parse
from feedax.cli.presets import complete, defaults, description
from feedax.cli.startup import StartUp
from feedax.errors import NotANumberError

if TYPE_CHECKING:
    from feedax.cli.examples import Examples
    from feedax.report.run_folder import RunFolder
    from feedax.train import Checkpoints

DESCRIPTION = f"""\
Train a network. Without flags this is the JAX tutorial: MNIST, 784 512 512 10, 8 epochs.

examples:
  feedax train
  feedax train --epochs 2 --hidden 256 --name small
  feedax train --optimizer adam --learning-rate 0.001 --loss cross_entropy --shuffle
  feedax train --preset modern --epochs 3
  feedax train --dataset npz:digits.npz --out runs/digits
  feedax train --resume runs/digits

{description()}

Standard output gets three lines an epoch; the run's folder gets the configuration, the metrics, the
curves, the parameters and checkpoints. Ctrl-C stops in good order. Where a run stopped, or was
killed, --resume goes on as if nothing had happened."""


def run(arguments: Sequence[str]) -> int:
    """Train, and return the exit code."""
    flags = parse(TrainFlags, arguments, "train", DESCRIPTION, defaults(arguments))
    start_up = StartUp()

    from feedax.train import processes
    from feedax.train.watchdog import Watchdog

    device = flags.device
    if device.coordinator is not None or processes.found():
        processes.keep_stdout_clean()
    processes.join(device.coordinator, device.processes, device.process)
    with Watchdog():
        return _train(flags, arguments, start_up)


def _train(flags: TrainFlags, arguments: Sequence[str], start_up: StartUp) -> int:
    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.examples import Examples
    from feedax.cli.network import (
        are_saved,
        check_layers,
        initial_params,
        load_params,
        resolve_layers,
    )
    from feedax.cli.progress import Progress
    from feedax.cli.recipe import fit_arguments
    from feedax.cli.record import Record
    from feedax.cli.recorded import recorded_layers, refuse_unnamed_start, to_name
    from feedax.cli.resume import from_anywhere, resumed_flags
    from feedax.cli.stop import StopRequest
    from feedax.feed import Devices
    from feedax.report.environment import environment
    from feedax.report.run_folder import RunFolder
    from feedax.train import fit, processes
    from feedax.train.history import Best

    use_compilation_cache()
    begun = {
        "command": shlex.join(["feedax", "train", *arguments]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **environment(),
    }
    start_up.ends("imports")
    folder = layers = None
    goes_on_from_checkpoint = False
    if processes.index() == 0:
        if flags.checkpoint.resume is not None:
            folder = RunFolder.open(flags.checkpoint.resume)
            flags = resumed_flags(folder, flags, arguments)
            layers = recorded_layers(folder, flags.model)
            # It does without the parameters that it began with.
            goes_on_from_checkpoint = are_saved(_checkpoints(flags, folder), layers)
            if not goes_on_from_checkpoint:
                given = given_flags(arguments)
                refuse_unnamed_start(folder.path, flags.model.initial_params, given)
        flags = complete(from_anywhere(flags))
    # The other processes may not see that folder.
    words, layers, goes_on_from_checkpoint = processes.broadcast(
        [command_line(flags), layers, goes_on_from_checkpoint]
    )
    flags = flags if processes.index() == 0 else parse(TrainFlags, words, "train", DESCRIPTION)
    examples = Examples.open(flags.data)
    loaders = examples.loaders()
    computed = fit_arguments(flags, examples, loaders["train"])
    start = flags.model.initial_params
    if layers is None:
        other = None if start is None else RunFolder.open(start)
        layers = list(resolve_layers(flags.model, examples, other))
    else:
        check_layers(layers, examples)
    params = initial_params(layers, flags.data.seed, flags.model.initialisation)
    if start is not None and not goes_on_from_checkpoint:
        params = load_params(RunFolder.open(start), layers)
    # What `fit` would refuse is refused before there is a folder.
    Devices(flags.device.devices)
    Best(flags.selection.best, flags.selection.patience).check(loaders)
    start_up.ends("data")

    goes_on = None if folder is None else (command_line(flags), begun)
    if processes.index() == 0 and folder is None:
        config = _config(flags, examples, layers, str(loaders["train"].plan()))
        out, name = flags.output.out, flags.output.name or examples.name
        folder = RunFolder.create({**config, **begun}, path=out, name=name)
    record = None if folder is None else Record(folder, flags.selection.best, note, goes_on)
    speaks = note if folder is not None else _silence
    speaks(f"the run's folder is {folder.path}" if folder is not None else "")

    with StopRequest(preemptible=processes.count() > 1) as stop:
        failure = None
        try:
            with Progress(speaks, stop, quiet=folder is None) as progress:
                params, _ = fit(
                    params=params,
                    train=loaders["train"],
                    **computed,
                    evaluate=loaders,
                    callbacks=(*([record] if record else []), progress, stop),
                    best=flags.selection.best,
                    patience=flags.selection.patience,
                    checkpoints=_checkpoints(flags, folder),
                    devices=flags.device.devices,
                )
        except NotANumberError as error:
            params, failure = error.params, error
        if record is not None:
            record.end(params, failed=failure is not None)
            start_up.seconds["compile"] = record.compile_seconds

    if folder is None:
        return 1 if failure else stop.exit_code
    if failure is not None:
        note(f"{failure}; the parameters from the start of that epoch are in {folder.path}")
        return 1
    if stop.stopped_at is not None:
        named = to_name(folder.path, flags.data)
        rest = shlex.join(["feedax", "train", "--resume", str(folder.path), *named])
        note(
            f"stopped by {stop.by} {stop.stopped_at}; the checkpoint and the parameters are in "
            f"{folder.path}; go on with: {rest}"
        )
        return stop.exit_code
    if record is not None and record.found_the_end(flags.training.steps):
        note("the run had reached its end already, and there was nothing left to train")
    note(f"done; the parameters, the metrics and curves.png are in {folder.path}")
    note(f"{start_up}")
    return stop.exit_code  # not 0 when the request came too late to stop anything


def note(sentence: str) -> None:
    """Say something that is not one of the lines of an epoch."""
    say("feedax train", sentence)


def _silence(sentence: str) -> None:
    """What is said by one of several processes need not be said by all."""


def _config(
    flags: TrainFlags, examples: "Examples", layers: Sequence[int], plan: str
) -> dict[str, Any]:
    """What config.json says of a run, besides where and when."""
    return {
        "run": secrets.token_hex(8),
        "arguments": command_line(flags),
        "flags": dataclasses.asdict(flags),
        "dataset": flags.data.dataset,
        "loss": flags.training.loss,
        "layers": layers,
        "input_shape": examples.input_shape,
        "image_shape": examples.image_shape,
        "class_names": examples.class_names,
        "plan": plan,
    }


def _checkpoints(flags: TrainFlags, folder: "RunFolder | None") -> "Checkpoints":
    from feedax.train import Checkpoints

    given = flags.checkpoint
    found = Checkpoints(
        "elsewhere" if folder is None else folder.path,
        every_steps=given.checkpoint_every_steps,
        every_seconds=given.checkpoint_every_seconds,
        every_epochs=given.checkpoint_every_epochs,
        keep=given.keep_checkpoints,
        run="" if folder is None else folder.setting("run"),
    )
    return found if folder is None else found.within(folder.checkpoints_path.name)
