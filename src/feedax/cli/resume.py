"""``feedax train --resume RUN``: the flags of a run, and what may be changed in them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from feedax.cli import UsageError
from feedax.cli.flags import TrainFlags, flag_values
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
    from feedax.datasets import from_anywhere, is_code

    recorded = recorded_flags(folder)
    was, now = flag_values(recorded), flag_values(flags)
    now["--dataset"] = from_anywhere(flags.data.dataset)
    given = given_flags(arguments)
    if is_code(recorded.data.dataset) and "--dataset" not in given:
        raise RunFolderError(
            f"run folder: code must be named by you, not by a file, and the dataset of "
            f"{folder.path} is made by {recorded.data.dataset}; add --dataset "
            f"{recorded.data.dataset}"
        )
    others = [
        f"{name} was {was[name]} and is {now[name]}"
        for name in given
        if name not in (*FREE, *LENGTHS) and now[name] != was[name]
    ]
    if others:
        raise UsageError(
            f"a run goes on with the flags that it began with, and {'; '.join(others)}; leave "
            f"{'it' if len(others) == 1 else 'them'} out, or start a new run"
        )
    changes = {
        name.removeprefix("--").replace("-", "_"): now[name]
        for name in given
        if name in (*FREE, *LENGTHS)
    }
    for name in LENGTHS:
        if name in given:
            _refuse_length(name, was[name], now[name], recorded.optimizer.schedule)
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
        return parse(TrainFlags, [str(word) for word in arguments], "train", "")
    except (UsageError, TypeError) as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the flags of feedax train, and "
            f"they cannot be read ({error}); use the version of feedax that wrote it"
        ) from error


def given_flags(arguments: Sequence[str]) -> list[str]:
    """The names of the flags in a command line, as they are documented."""
    names = []
    for word in arguments:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            names.append(name.replace("--no-", "--", 1))
    return list(dict.fromkeys(names))


def _refuse_length(name: str, was: int | None, now: int | None, schedule: str) -> None:
    if was is None or now is None or now < was:
        ended_by = "this run is" if was is None else f"this one has {name} {was}; give more"
        raise UsageError(
            f"{name} can make a run longer that is as long as {name} says, and "
            + (f"{ended_by} not; leave it out" if was is None else ended_by)
        )
    if now > was and schedule in ("cosine", "one_cycle"):
        raise UsageError(
            f"the schedule {schedule} is laid out over the whole run, so with {name} {now} in "
            f"place of {was} the learning rate of every step would have been another one; leave it "
            "out, or start a new run with --initial-params"
        )


def _changed(flags: Flags, changes: dict[str, object]) -> Flags:
    names = {one.name for one in dataclasses.fields(flags)}  # type: ignore[arg-type]
    mine = {name: value for name, value in changes.items() if name in names}
    return dataclasses.replace(flags, **mine)  # type: ignore[type-var]
