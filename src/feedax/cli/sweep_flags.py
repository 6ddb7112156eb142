"""The flags of `feedax sweep`: those of `feedax train`, some with several values."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from feedax.cli import UsageError
from feedax.cli.flags import (
    CheckpointFlags,
    DeviceFlags,
    ModelFlags,
    TrainFlags,
    at_least,
    check,
    complete,
    defaults,
    optional,
)
from feedax.cli.parse import (
    OLD_NAMES,
    changed,
    field_of,
    fields_of,
    flag,
    flag_values,
    given_flags,
    parse,
    refuse_commas,
    words_by_flag,
)

MOST_NETWORKS = 100_000
"""Of one sweep; each has files of its own in one folder."""

Setting = dict[str, Any]
"""The values of the flags that differ within a sweep, by name."""


@dataclass(frozen=True)
class ManyFlags:
    """Which networks."""

    seeds: int = 5
    """Networks of each setting; their seeds count up from --seed."""
    together: Annotated[
        int | None,
        optional("INT", "default: 1 on a CPU, else as many as have room"),
    ] = None
    """Networks that are trained side by side."""

    def __post_init__(self) -> None:
        check(self, at_least(1), "seeds", "together")


@dataclass(frozen=True)
class SweepModelFlags(ModelFlags):
    __doc__ = ModelFlags.__doc__

    initial_params: tyro.conf.Suppress[Path | None] = None


@dataclass(frozen=True)
class SweepCheckpointFlags(CheckpointFlags):
    """What is saved, so that a sweep that was stopped or killed can be resumed: its networks, and
    checkpoints of those that are being trained."""

    resume: Annotated[
        Path | None,
        optional(
            "SWEEP",
            "default: a new sweep",
            "Resume the sweep in this folder, as if it had never stopped. It needs no "
            "other flag; a higher --seeds adds networks.",
        ),
    ] = None


@dataclass(frozen=True)
class SweepDeviceFlags(DeviceFlags):
    """What they are trained on."""

    coordinator: tyro.conf.Suppress[str | None] = None
    processes: tyro.conf.Suppress[int | None] = None
    process: tyro.conf.Suppress[int | None] = None


@dataclass(frozen=True)
class SweepFlags(TrainFlags):
    sweep: ManyFlags = field(default_factory=ManyFlags)
    model: ModelFlags = field(default_factory=SweepModelFlags)
    checkpoint: CheckpointFlags = field(default_factory=SweepCheckpointFlags)
    device: DeviceFlags = field(default_factory=SweepDeviceFlags)


_ONE_PROCESS = "one process trains all networks of a sweep"
REFUSED = {
    "--initial-params": "every network of a sweep starts from parameters of its own seed",
    "--coordinator": _ONE_PROCESS,
    "--processes": _ONE_PROCESS,
    "--process": _ONE_PROCESS,
}
"""Flags of `feedax train` that a sweep has no use for, and why."""

SINGLE = ("--seed", "--num-workers", "--plan")
"""Numbers and choices that make no other networks, or that --seeds is for."""


@dataclass(frozen=True)
class Combination:
    """One setting of a sweep, the values of flags that have several, and all its flags."""

    setting: Setting
    flags: TrainFlags


def parse_sweep(
    arguments: Sequence[str], description: str
) -> tuple[SweepFlags, Sequence[Combination]]:
    """Every combination of values in a command line.

    Each is parsed as a command line of its own, so that a value means what it means alone; the
    flags of the first are returned, too. For the arguments, see `parse`.
    """
    for name in given_flags(arguments):
        if name in REFUSED:
            raise UsageError(f"{name} must not be given, since {REFUSED[name]}; leave it out")
    refuse_commas(arguments, several_flags(SweepFlags))
    swept, lines = command_lines(arguments)
    parsed = [parse(SweepFlags, line, "sweep", description, _defaults(line)) for line in lines]
    groups = [one.name for one in fields(TrainFlags)]
    found = [
        Combination(
            setting_of(flags, [*map(field_of, swept)]),
            complete(TrainFlags(**{name: getattr(flags, name) for name in groups})),
        )
        for flags in parsed
    ]
    for i, one in enumerate(found):
        if any(one.setting == other.setting for other in found[:i]):
            values = " ".join(f"{name} {value}" for name, value in one.setting.items())
            raise UsageError(
                f"every combination of values must be there once, and {values} is there twice; "
                "give each value once"
            )
    return parsed[0], found


def command_lines(arguments: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The flags with several values, and the command lines in which each has one.

    >>> command_lines(["--dropout", "0", "0.1", "--hidden", "8", "9", "--seed", "3"])[0]
    ['--dropout']
    >>> for line in command_lines(["--dropout", "0", "0.1", "--hidden", "8", "9"])[1]:
    ...     print(*line)
    --dropout 0 --hidden 8 9
    --dropout 0.1 --hidden 8 9
    """
    names = several_flags(SweepFlags)
    parts = words_by_flag(arguments)
    swept = [name for name, words in parts.items() if name in names and len(words) > 2]
    choices = [
        [[words[0], value] for value in words[1:]] if name in swept else [words]
        for name, words in parts.items()
    ]
    products = itertools.product(*choices)
    return swept, [[word for words in product for word in words] for product in products]


def several_flags(kind: Any) -> list[str]:
    """Every ``--flag`` of one number or one choice, of a dataclass of flags."""
    outside = (ManyFlags, SweepCheckpointFlags, SweepDeviceFlags)
    return [
        name
        for name, hint, group in fields_of(kind)
        if group not in outside and name not in SINGLE and _is_one_value(hint)
    ]


def _is_one_value(kind: Any) -> bool:
    kinds = [kind] if get_origin(kind) is Literal else get_args(kind) or [kind]
    return all(one in (int, float, NoneType) or get_origin(one) is Literal for one in kinds)


def _defaults(arguments: Sequence[str]) -> SweepFlags:
    values = flag_values(defaults(arguments))
    return changed(SweepFlags(), **{field_of(name): value for name, value in values.items()})


def setting_of(flags: TrainFlags, swept: Sequence[str]) -> Setting:
    """The values of some flags by the names of their fields, or by names these had earlier."""
    values = flag_values(flags)
    return {name: values[OLD_NAMES.get(flag(name), flag(name))] for name in swept}
