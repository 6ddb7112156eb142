"""``feedax train --resume RUN``: the flags of a run, and what may be changed in them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from feedax.cli import UsageError
from feedax.cli.flags import TrainFlags, flag_names, flag_values
from feedax.cli.parse import parse
from feedax.errors import RunFolderError

if TYPE_CHECKING:
    from feedax.report.run_folder import RunFolder

Flags = TypeVar("Flags")

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
)
"""Flags that say where and how a run goes on, and not what it computes."""

LENGTHS = ("--epochs", "--steps")


def resumed_flags(folder: "RunFolder", flags: TrainFlags, arguments: Sequence[str]) -> TrainFlags:
    """The flags of a run that goes on.

    Args:
        folder: of the run.
        flags: those that are given now.
        arguments: the words that they come from.

    Raises:
        UsageError: one of them contradicts the run.
        RunFolderError: the run's own flags cannot be read, or would run code.
    """
    from feedax.datasets import is_code

    recorded = recorded_flags(folder)
    was, now = flag_values(recorded), flag_values(from_anywhere(flags))
    given = given_flags(arguments)
    others = [
        f"{name} was {_in_words(was[name])} and is {_in_words(now[name])}"
        for name in given
        if name not in (*FREE, *LENGTHS) and now[name] != was[name]
    ]
    if others:
        raise UsageError(
            f"a run goes on with the flags that it began with, and {'; '.join(others)}; leave "
            f"{'it' if len(others) == 1 else 'them'} out, or start a new run"
        )
    if is_code(recorded.data.dataset) and "--dataset" not in given:
        raise RunFolderError(
            f"run folder: code must be named by you, not by a file, and the dataset of "
            f"{folder.path} is made by {recorded.data.dataset}; add --dataset "
            f"{recorded.data.dataset}"
        )
    for name in LENGTHS:
        if name in given:
            _refuse_length(name, was[name], now[name], recorded.optimizer.schedule)
    changes = {
        name.removeprefix("--").replace("-", "_"): now[name]
        for name in given
        if name in (*FREE, *LENGTHS)
    }
    return dataclasses.replace(
        recorded,
        training=_changed(recorded.training, changes),
        checkpoint=_changed(recorded.checkpoint, changes),
        device=_changed(recorded.device, changes),
    )


def recorded_flags(folder: "RunFolder") -> TrainFlags:
    """The flags that a run was started with.

    Raises:
        RunFolderError: they cannot be read.
    """
    arguments = folder.setting("arguments")
    try:
        words = [str(word) for word in arguments]
        # The parser has flags of its own too, such as --help and one that writes a file.
        foreign = {"-h"}.intersection(words)
        foreign |= set(given_flags(words)) - set(flag_names(TrainFlags))
        if foreign:
            raise UsageError(f"there is no flag {min(foreign)}")
        return parse(TrainFlags, words, "train", "")
    except (UsageError, TypeError) as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the flags of feedax train, and "
            f"they cannot be read ({error}); use the version of feedax that wrote it"
        ) from error


def recorded_layers(folder: "RunFolder") -> list[int]:
    """The sizes of the layers of a run.

    Raises:
        RunFolderError: config.json has no such list.
    """
    layers = folder.setting("layers")
    sizes = layers if isinstance(layers, list) else []
    if len(sizes) < 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise RunFolderError(
            f"run folder: 'layers' of {folder.path / 'config.json'} must be a list of sizes, and "
            f"it is {layers!r}; restore the file from a copy or train again"
        )
    return sizes


def given_flags(arguments: Sequence[str]) -> list[str]:
    """The names of the flags in a command line, as they are documented."""
    names = []
    for word in arguments:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            names.append(name.replace("--no-", "--", 1))
    return list(dict.fromkeys(names))


def from_anywhere(flags: TrainFlags) -> TrainFlags:
    """The same flags for whoever reads the run's folder from another one."""
    from feedax import datasets

    data, model = flags.data, flags.model
    root = None if data.root is None else data.root.absolute()
    dataset = datasets.from_anywhere(data.dataset)
    data = dataclasses.replace(data, dataset=dataset, root=root)
    if model.initial_params is not None:
        model = dataclasses.replace(model, initial_params=model.initial_params.absolute())
    return dataclasses.replace(flags, data=data, model=model)


def _refuse_length(name: str, was: int | None, now: int, schedule: str) -> None:
    from feedax.train.optimizers import depends_on_length

    if was is None:
        other = next(other for other in LENGTHS if other != name)
        raise UsageError(
            f"{name} must not be given where {other} says how long the run is, as it does for this "
            f"one; leave it out, or give a higher {other}"
        )
    if now < was:
        raise UsageError(f"{name} must be at least the run's own {was}, and it is {now}; raise it")
    if now > was and depends_on_length(schedule):
        raise UsageError(
            f"the schedule {schedule} is laid out over the whole run, so with {name} {now} in "
            f"place of {was} the learning rate of every step would have been another one; leave it "
            "out, or start a new run with --initial-params"
        )


def _changed(flags: Flags, changes: dict[str, object]) -> Flags:
    names = {one.name for one in dataclasses.fields(flags)}  # type: ignore[arg-type]
    mine = {name: value for name, value in changes.items() if name in names}
    return dataclasses.replace(flags, **mine)  # type: ignore[type-var]


def _in_words(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
