"""``--resume``: what the folder of a run or a sweep records, and what may be changed in it.

The folder may come from somebody else. Of what its flags name, a person names again what would run
code, read or write outside of the folder, or start many processes.
"""

import os
import shlex
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from feedax import datasets
from feedax.cli import UsageError, say
from feedax.cli.flags import (
    CheckpointFlags,
    DataFlags,
    ModelFlags,
    OptimizerFlags,
    TrainFlags,
    recorded_flags,
)
from feedax.cli.parse import (
    OLD_NAMES,
    changed,
    command_line,
    field_of,
    flag,
    flag_values,
    given_flags,
    read_words,
    spelled,
)
from feedax.cli.sweep_flags import (
    MOST_NETWORKS,
    Combination,
    ManyFlags,
    SweepFlags,
    setting_of,
    several_flags,
)
from feedax.errors import RunFolderError, printable, shown
from feedax.machine import usable_cpus
from feedax.presets import TUTORIAL
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import SweepFolder
from feedax.train import Checkpoints
from feedax.train.environment import software_and_machine
from feedax.train.optimizers import depends_on_length

MANY_PROCESSES = max(16, usable_cpus())
"""Workers that a folder may start without being asked."""

FREE = (
    "--resume",
    "--devices",
    "--coordinator",
    "--processes",
    "--process",
    "--checkpoint-every-steps",
    "--checkpoint-every-seconds",
    "--checkpoint-every-epochs",
    "--keep-checkpoints",
    "--report",
    "--log",
)
"""Flags that say where and how a run is continued, and not what it computes."""

SENT = {"wandb", "mlflow"}
"""Logs that an account or a server may get."""

LENGTHS = ("--epochs", "--steps")
MANY = ("--seeds", "--together")
"""Flags that may be raised where a run, or a sweep, is resumed."""


def resumed_run(folder: RunFolder, flags: TrainFlags, arguments: Sequence[str]) -> TrainFlags:
    """The flags of a run that is resumed; says what is read that its folder names.

    Args:
        folder: of the run.
        flags: those that are given now.
        arguments: the words that they come from.

    Raises:
        UsageError: one of them contradicts the run.
        RunFolderError: the run's own flags cannot be read, or name what a person has to name.
    """
    given = given_flags(arguments)
    recorded = recorded_flags(folder)
    _refuse_others("run", [recorded], [flags], [name for name in given if name not in LENGTHS])
    was, now = flag_values(recorded), flag_values(flags)
    for name in LENGTHS:
        if name in given:
            _refuse_length(name, was[name], now[name], recorded.optimizer)
    refuse_unnamed(folder.path, recorded.data, given, "feedax train")
    _refuse_unnamed_log(folder.path, recorded.output.log, given)
    return changed(recorded, **_free_values(flags, given, *LENGTHS))


def resumed_sweep(
    folder: SweepFolder,
    flags: SweepFlags,
    combinations: Sequence[Combination],
    arguments: Sequence[str],
) -> tuple[ManyFlags, list[Combination]]:
    """The networks of a sweep that is resumed; as `resumed_run`.

    Args:
        folder: of the sweep.
        flags: those that are given now.
        combinations: what they make.
        arguments: the words that they come from.
    """
    given = given_flags(arguments)
    many, found = _recorded_sweep(folder, _free_values(flags, given))
    was, now = ([one.flags for one in some] for some in (found, combinations))
    recorded_log = was[0].output.log
    _refuse_others("sweep", was, now, [name for name in given if name not in MANY])
    if "--seeds" in given and flags.sweep.seeds < many.seeds:
        raise UsageError(
            f"--seeds must be at least the sweep's own {many.seeds}, and it is "
            f"{flags.sweep.seeds}; raise it"
        )
    many = changed(
        many, **{name: value for name, value in vars(flags.sweep).items() if flag(name) in given}
    )
    for data in dict.fromkeys(one.data for one in was):
        refuse_unnamed(folder.path, data, given, "feedax sweep")
    _refuse_unnamed_log(folder.path, recorded_log, given)
    return many, found


def _refuse_others(
    what: str, was: Sequence[TrainFlags], now: Sequence[TrainFlags], given: Sequence[str]
) -> None:
    """Refuse given flags, not the free ones, whose values in a run or a sweep were others."""
    others = []
    for name in given:
        before, after = _values(was, name), _values(now, name)
        if name not in FREE and before != after:
            others.append(f"{name} was {before} and is {after}")
    if others:
        raise UsageError(
            f"a {what} is resumed with the flags that it began with, and {'; '.join(others)}; "
            f"leave {'it' if len(others) == 1 else 'them'} out, or start a new {what}"
        )


def _values(flags: Sequence[TrainFlags], name: str) -> str:
    """The values of a flag in words."""
    found = [flag_values(from_anywhere(one))[name] for one in flags]
    return " and ".join(dict.fromkeys(map(in_words, found)))


def _free_values(flags: TrainFlags, given: Sequence[str], *more: str) -> dict[str, Any]:
    """The given values of flags that may be changed, by the names of their fields."""
    values = flag_values(flags)
    return {field_of(name): values[name] for name in given if name in (*FREE, *more)}


def from_anywhere(flags: TrainFlags) -> TrainFlags:
    """The same flags for whoever reads the run's folder from another one."""
    root, start = flags.data.root, flags.model.initial_params
    return changed(
        flags,
        dataset=datasets.from_anywhere(flags.data.dataset),
        root=root and root.absolute(),
        initial_params=start and start.absolute(),
    )


def _refuse_length(name: str, was: int | None, now: int, optimizer: OptimizerFlags) -> None:
    if was is None:
        other = next(other for other in LENGTHS if other != name)
        raise UsageError(
            f"{name} must not be given where {other} says how long the run is, as it does for this "
            f"one; leave it out, or give a higher {other}"
        )
    if now < was:
        raise UsageError(f"{name} must be at least the run's own {was}, and it is {now}; raise it")
    is_laid_out = depends_on_length(optimizer.schedule)
    if now > was and (is_laid_out or optimizer.warmup_fraction):
        what = f"schedule {optimizer.schedule}" if is_laid_out else "warm-up of --warmup-fraction"
        raise UsageError(
            f"the {what} is laid out over the whole run, so with {name} {now} in "
            f"place of {was} the learning rate of every step would have been another one; leave it "
            "out, or start a new run with --initial-params"
        )


def in_words(value: Any) -> str:
    """The value of a flag, as a sentence has it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return printable(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def begun(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What config.json says of each start of a command: when and where it was."""
    return {
        "command": shlex.join(["feedax", command, *arguments]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **software_and_machine(),
    }


def checkpoints_of(flags: CheckpointFlags, folder: RunFolder | None) -> Checkpoints:
    """Where and when a run or a sweep saves; `folder` is None where another process saves."""
    found = Checkpoints(
        "elsewhere" if folder is None else folder.path,
        every_steps=flags.checkpoint_every_steps,
        every_seconds=flags.checkpoint_every_seconds,
        every_epochs=flags.checkpoint_every_epochs,
        keep=flags.keep_checkpoints,
        run="" if folder is None else folder.setting("run"),
    )
    return found if folder is None else found.within(folder.checkpoints_path.name)


def recorded_layers(folder: RunFolder, flags: ModelFlags) -> list[int]:
    """The sizes of the layers of a run, which have to agree with its flags."""
    layers: list[int] = folder.setting("layers")
    expected: Sequence[int] = layers  # those of the other run, with --initial-params alone
    if flags.layers is not None:
        expected = flags.layers
    elif flags.hidden is not None or flags.initial_params is None:
        hidden = TUTORIAL.hidden if flags.hidden is None else flags.hidden
        expected = [layers[0], *hidden, layers[-1]]
    if layers != [*expected]:
        raise RunFolderError(
            f"run folder: 'layers' of {folder.path / 'config.json'} must be those of its flags, "
            f"and it is {shown(layers)}; restore the file from a copy or train again"
        )
    return layers


def refuse_unnamed(folder: Path, flags: DataFlags, given: Collection[str], who: str) -> None:
    """Refuse flags of a run's folder that a person has to name, and has not given.

    `who` says what is read in the folder.
    """
    reasons = {name: why for name, why in _reasons(folder, flags).items() if name not in given}
    if reasons:
        words = shlex.join(_words(flags, list(reasons)))
        raise RunFolderError(f"run folder: {next(iter(reasons.values()))}; add {words}")
    if "--dataset" not in given and datasets.is_path(flags.dataset):
        say(who, f"reads {printable(flags.dataset)}, which {folder} names")


def _refuse_unnamed_log(folder: Path, log: Sequence[str], given: Collection[str]) -> None:
    """Refuse to send a log elsewhere in the name of a person who has not said so."""
    if set(log) & SENT and "--log" not in given:
        words = shlex.join(spelled("--log", log))
        raise RunFolderError(
            "run folder: a log that may be sent elsewhere must be named by you, not by a file, and "
            f"{folder} has {words}; add {words}, or --log without a value"
        )


def refuse_unnamed_start(folder: Path, start: Path | None, given: Collection[str]) -> None:
    """Refuse to begin with the parameters of another run that a person has not named."""
    if start is not None and "--initial-params" not in given:
        raise RunFolderError(
            "run folder: parameters of another run must be named by you, not by a file, and those "
            f"that {folder} begins with are {printable(str(start))}; add "
            f"{shlex.join(['--initial-params', str(start)])}"
        )


def resume_command(command: str, folder: Path, flags: TrainFlags) -> str:
    """The command line that resumes a run or a sweep, with what a person has to name again."""
    named = _words(flags.data, list(_reasons(folder, flags.data)))
    if SENT & set(flags.output.log):
        named += spelled("--log", flags.output.log)
    return shlex.join(["feedax", command, "--resume", str(folder), *named])


def evaluate_command(folder: Path, flags: DataFlags) -> str:
    """The command line that evaluates a run, with what a person has to name again."""
    named = _words(flags, list(_reasons(folder, flags)))
    return shlex.join(["feedax", "evaluate", str(folder), *named])


def _words(flags: DataFlags, names: list[str]) -> list[str]:
    values = flag_values(flags)
    return [word for name in names for word in spelled(name, values[name])]


def _reasons(folder: Path, flags: DataFlags) -> dict[str, str]:
    """The flags that a person has to name, and why."""
    reasons, dataset = {}, printable(flags.dataset)
    if datasets.is_code(flags.dataset):
        reasons["--dataset"] = (
            f"code must be named by you, not by a file, and the dataset of {folder} is made by "
            f"{dataset}"
        )
    elif datasets.is_path(flags.dataset) and not _is_inside(
        folder, flags.dataset.partition(":")[2]
    ):
        reasons["--dataset"] = (
            "data outside of a run's folder must be named by you, not by a file, and the dataset "
            f"of {folder} is {dataset}"
        )
    if flags.root is not None:
        reasons["--root"] = (
            "a folder that data are read from and written to must be named by you, not by a file, "
            f"and that of {folder} is {printable(str(flags.root))}"
        )
    if flags.num_workers > MANY_PROCESSES:
        reasons["--num-workers"] = (
            f"more than {MANY_PROCESSES} processes must be asked for by you, not by a file, and "
            f"{folder} asks for {flags.num_workers}"
        )
    return reasons


def _is_inside(folder: Path, path: str) -> bool:
    """Whether a path leads into a folder, and nothing in it out again."""
    place, within = Path(path).expanduser().resolve(), folder.resolve()
    if not place.is_relative_to(within):
        return False
    return not any(
        os.path.islink(os.path.join(top, name))
        for top, folders, files in os.walk(place)
        for name in (*folders, *files)
    )


def sweep_record(many: ManyFlags, combinations: Sequence[Combination]) -> dict[str, Any]:
    """What config.json says of the networks of a sweep."""
    return {
        "arguments": command_line(many),
        "settings": [
            {"setting": one.setting, "arguments": command_line(one.flags)} for one in combinations
        ],
    }


def _recorded_sweep(
    folder: SweepFolder, changes: dict[str, Any]
) -> tuple[ManyFlags, list[Combination]]:
    """What `sweep_record` has written, with other values of some flags."""
    found: list[Combination] = []
    try:
        many = read_words(ManyFlags, folder.setting("arguments"))
        settings = folder.setting("settings")
        if not settings:
            raise ValueError("there is no setting")
        if (count := many.seeds * len(settings)) > MOST_NETWORKS:
            raise ValueError(f"they are {count} networks")
        # Files are named after the settings, so these are made again of the flags.
        swept = list(settings[0]["setting"])
        foreign = {flag(name) for name in swept}.difference(several_flags(SweepFlags), OLD_NAMES)
        if foreign:
            raise ValueError(f"{shown(min(foreign))} has one value in a sweep")
        for recorded in settings:
            flags = changed(read_words(TrainFlags, recorded["arguments"]), **changes)
            setting = setting_of(flags, swept)
            if setting != recorded["setting"]:
                raise ValueError(f"{shown(recorded['setting'])} is {shown(setting)} by its flags")
            if any(setting == other.setting for other in found):
                raise ValueError(f"{shown(setting)} is there twice")
            found.append(Combination(setting, flags))
    except (UsageError, ValueError) as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the settings of a sweep, and "
            f"they cannot be read ({error}); use the version of feedax that wrote it"
        ) from error
    return many, found
