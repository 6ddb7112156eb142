"""``feedax train``."""

import contextlib
import dataclasses
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from feedax import datasets
from feedax.cli import and_listed, say
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.ending import process_started, run_ending
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags, complete
from feedax.cli.loggers import loggers_of, pictures_of, refuse_missing
from feedax.cli.network import (
    are_saved,
    check_layers,
    fit_arguments,
    load_params,
    resolve_layers,
    trained_network,
)
from feedax.cli.parse import command_line, given_flags, read_words
from feedax.cli.progress import Progress, StopRequest
from feedax.cli.report import try_to_write, write_run_report
from feedax.cli.resume import (
    begun,
    checkpoints_of,
    evaluate_command,
    from_anywhere,
    recorded_layers,
    refuse_unnamed_start,
    resume_command,
    resumed_run,
)
from feedax.errors import NotANumberError
from feedax.feed import Devices
from feedax.report.recorder import Recorder
from feedax.report.run_folder import REPORT, RunFolder
from feedax.train import fit, init_mlp, processes
from feedax.train.history import Best, best_row
from feedax.train.progress import is_terminal

note = partial(say, "feedax train")
"""Says what is not one of the lines of an epoch."""


def run(flags: TrainFlags, arguments: Sequence[str]) -> int:
    """Train, and return the exit code."""
    start_up = StartUp()
    device = flags.device
    if device.coordinator is not None or processes.found():
        processes.keep_stdout_clean()
    processes.join(device.coordinator, device.processes, device.process)
    with processes.Watchdog():
        return _train(flags, arguments, start_up)


def _train(flags: TrainFlags, arguments: Sequence[str], start_up: "StartUp") -> int:
    use_compilation_cache()
    start = begun("train", arguments)
    start_up.ends("imports")
    folder = layers = None
    has_checkpoint = False
    if processes.index() == 0:
        if flags.checkpoint.resume is not None:
            folder = RunFolder.open(flags.checkpoint.resume)
            flags = resumed_run(folder, flags, arguments)
            layers = recorded_layers(folder, flags.model)
            # Then the parameters that it began with are not needed.
            has_checkpoint = are_saved(checkpoints_of(flags.checkpoint, folder), layers)
            if not has_checkpoint:
                given = given_flags(arguments)
                refuse_unnamed_start(folder.path, flags.model.initial_params, given)
        flags = complete(from_anywhere(flags))
    # The other processes may not see that folder.
    words, layers, has_checkpoint = processes.broadcast(
        [command_line(flags), layers, has_checkpoint]
    )
    flags = flags if processes.index() == 0 else read_words(TrainFlags, words)
    examples = Examples.open(flags.data)
    loaders = examples.loaders()
    computed = fit_arguments(flags, examples, loaders["train"])
    initial = flags.model.initial_params
    if layers is None:
        other = None if initial is None else RunFolder.open(initial)
        layers = list(resolve_layers(flags.model, examples, other))
    else:
        check_layers(layers, examples, are_recorded=True)
    params: Any = init_mlp(layers, jax.random.key(flags.data.seed), flags.model.initialisation)
    if initial is not None and not has_checkpoint:
        params = load_params(RunFolder.open(initial), layers)
    # What `fit` would refuse is refused before there is a folder.
    devices = Devices(flags.device.devices)
    Best(flags.selection.best, flags.selection.patience).check(loaders)
    if processes.index() == 0:
        refuse_missing(flags.output.log)
    start_up.ends("data")

    resumed = None if folder is None else (command_line(flags), start)
    if processes.index() == 0 and folder is None:
        config = _config(flags, examples, layers, str(loaders["train"].plan()))
        out, name = flags.output.out, flags.output.name or examples.name
        folder = RunFolder.create({**config, **start}, path=out, name=name)
    recorder = None if folder is None else Recorder(folder, flags.selection.best, note, resumed)
    if folder is not None:
        note(f"the run's folder is {folder.path}; it trains on {devices}")

    # Of the datasets that feedax knows by name, their labels' dtype is nobody's concern.
    plan, name = loaders["train"].plan(), flags.data.dataset
    is_own = datasets.is_code(name) or datasets.is_path(name)
    shorter = {str(plan): str(plan.shorter(dtypes=is_own))}
    with StopRequest(preemptible=processes.count() > 1) as stop, contextlib.ExitStack() as logs:
        failure = None
        loggers = []
        if folder is not None and flags.output.log:
            found = trained_network(
                folder, flags, layers, params, examples.image_shape, examples.class_names
            )
            pictures = pictures_of(found, flags, examples)
            loggers = loggers_of(flags.output.log, folder, flags, pictures)
        try:
            with Progress(note, stop, folder is None, shorter, flags.training.steps) as shown:
                params, rows = fit(
                    params=params,
                    train=loaders["train"],
                    **computed,
                    key=jax.random.key(flags.data.seed),
                    evaluate=loaders,
                    callbacks=(
                        *([recorder] if recorder else []),
                        *map(logs.enter_context, loggers),
                        shown,
                        stop,
                    ),
                    best=flags.selection.best,
                    patience=flags.selection.patience,
                    checkpoints=checkpoints_of(flags.checkpoint, folder),
                    devices=flags.device.devices,
                    progress=False,
                )
        except NotANumberError as error:
            params, failure = error.params, error
        if recorder is not None:
            recorder.end(params, failed=failure is not None)
            start_up.seconds["compile"] = recorder.compile_seconds

    if folder is None:
        return 1 if failure else stop.exit_code
    if failure is not None:
        note(f"{failure}; the parameters from the start of that epoch are in {folder.path}")
        return 1
    if stop.stopped_at is not None:
        rest = resume_command("train", folder.path, flags)
        note(
            f"stopped by {stop.by} {stop.stopped_at}; the checkpoint and the parameters are in "
            f"{folder.path}; resume it with: {rest}"
        )
        return stop.exit_code
    if recorder is not None and recorder.found_the_end(flags.training.steps):
        note("the run had reached its end already, and there was nothing left to train")
    files = ["the parameters", "the metrics", "curves.png"]
    if flags.output.report:
        found = trained_network(
            folder, flags, layers, params, examples.image_shape, examples.class_names
        )
        write = partial(write_run_report, found, examples, folder.report_path)
        files += [REPORT] * try_to_write(write, folder, note)
    if is_terminal(sys.stdout):
        kept = best_row(rows, flags.selection.best)
        then = evaluate_command(folder.path, flags.data)
        if examples.image_shape is not None:
            then = shlex.join(["feedax", "predict", str(folder.path), "seven.png"])
        print("\n".join(run_ending(folder.path, rows, kept, then)))
        return stop.exit_code
    if "test" not in loaders:
        note(f"{flags.data.dataset} has no test set, so there is no test accuracy")
    note(f"done; {and_listed(files)} are in {folder.path}")
    note(f"{start_up}")
    return stop.exit_code  # not 0 when the request came too late to stop anything


def _config(
    flags: TrainFlags, examples: Examples, layers: Sequence[int], plan: str
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


class StartUp:
    """Splits the time since the process started into named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = process_started()

    def ends(self, part: str) -> None:
        """Name what has been done since the last part ended."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"start-up {sum(self.seconds.values()):.1f} s: {parts}"
