"""``feedax train --resume RUN``: the flags of a run, and what may be changed in them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from feedax.cli import UsageError
from feedax.cli.flag_words import flag_values, given_flags
from feedax.cli.flags import OptimizerFlags, TrainFlags
from feedax.cli.recorded import recorded_flags, refuse_unnamed
from feedax.errors import printable

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
    """The flags of a run that goes on; says what is read that its folder names.

    Args:
        folder: of the run.
        flags: those that are given now.
        arguments: the words that they come from.

    Raises:
        UsageError: one of them contradicts the run.
        RunFolderError: the run's own flags cannot be read, or name what a person has to name.
    """
    recorded = recorded_flags(folder)
    was, now = flag_values(recorded), flag_values(from_anywhere(flags))
    given = given_flags(arguments)
    others = [
        f"{name} was {in_words(was[name])} and is {in_words(now[name])}"
        for name in given
        if name not in (*FREE, *LENGTHS) and now[name] != was[name]
    ]
    if others:
        raise UsageError(
            f"a run goes on with the flags that it began with, and {'; '.join(others)}; leave "
            f"{'it' if len(others) == 1 else 'them'} out, or start a new run"
        )
    for name in LENGTHS:
        if name in given:
            _refuse_length(name, was[name], now[name], recorded.optimizer)
    refuse_unnamed(folder.path, recorded.data, given, "feedax train")
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


def _refuse_length(name: str, was: int | None, now: int, optimizer: OptimizerFlags) -> None:
    from feedax.train.optimizers import depends_on_length

    if was is None:
        other = next(other for other in LENGTHS if other != name)
        raise UsageError(
            f"{name} must not be given where {other} says how long the run is, as it does for this "
            f"one; leave it out, or give a higher {other}"
        )
    if now < was:
        raise UsageError(f"{name} must be at least the run's own {was}, and it is {now}; raise it")
    is_laid_out = depends_on_length(optimizer.schedule)
    if now > was and (is_laid_out or optimizer.warmup_share):
        what = f"schedule {optimizer.schedule}" if is_laid_out else "warm-up of --warmup-share"
        raise UsageError(
            f"the {what} is laid out over the whole run, so with {name} {now} in "
            f"place of {was} the learning rate of every step would have been another one; leave it "
            "out, or start a new run with --initial-params"
        )


def _changed(flags: Flags, changes: dict[str, object]) -> Flags:
    names = {one.name for one in dataclasses.fields(flags)}  # type: ignore[arg-type]
    mine = {name: value for name, value in changes.items() if name in names}
    return dataclasses.replace(flags, **mine)  # type: ignore[type-var]


def in_words(value: Any) -> str:
    """The value of a flag, as a sentence has it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return printable(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
