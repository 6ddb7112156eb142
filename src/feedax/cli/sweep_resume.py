"""``feedax sweep --resume SWEEP``: the settings of a sweep, and what may be changed in it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from feedax.cli import UsageError
from feedax.cli.flag_words import command_line, flag_values, given_flags, spelled
from feedax.cli.parse import parse
from feedax.cli.recorded import recorded_flags, refuse_unnamed
from feedax.cli.resume import FREE, from_anywhere, in_words
from feedax.cli.sweep_flags import (
    MOST_NETWORKS,
    Combination,
    ManyFlags,
    SweepFlags,
    setting_of,
    several_flags,
)
from feedax.errors import RunFolderError, shown
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import SweepFolder

MANY = ("--seeds", "--together")


def recorded(many: ManyFlags, combinations: Sequence[Combination]) -> dict[str, Any]:
    """What config.json says of the networks of a sweep."""
    return {
        "arguments": command_line(many),
        "settings": [
            {"setting": one.setting, "arguments": command_line(one.flags)} for one in combinations
        ],
    }


def resumed(
    folder: SweepFolder,
    flags: SweepFlags,
    given: Sequence[Combination],
    arguments: Sequence[str],
) -> tuple[ManyFlags, list[Combination]]:
    """The networks of a sweep that goes on; says what is read that its folder names.

    Args:
        folder: of the sweep.
        flags: those that are given now.
        given: the combinations that they make.
        arguments: the words that they come from.

    Raises:
        UsageError: one of them contradicts the sweep.
        RunFolderError: the sweep's own flags cannot be read, or name what a person has to name.
    """
    names, now = given_flags(arguments), flag_values(flags)
    free = [word for name in names if name in FREE for word in spelled(name, now[name])]
    many, combinations = _read(folder, free)
    fixed = [name for name in names if name not in (*FREE, *MANY)]
    pairs = [(name, _values(combinations, name), _values(given, name)) for name in fixed]
    others = [f"{name} was {was} and is {is_now}" for name, was, is_now in pairs if was != is_now]
    if others:
        raise UsageError(
            f"a sweep goes on with the flags that it began with, and {'; '.join(others)}; leave "
            f"{'it' if len(others) == 1 else 'them'} out, or start a new sweep"
        )
    if "--seeds" in names:
        if flags.sweep.seeds < many.seeds:
            raise UsageError(
                f"--seeds must be at least the sweep's own {many.seeds}, and it is "
                f"{flags.sweep.seeds}; raise it"
            )
        many = replace(many, seeds=flags.sweep.seeds)
    if "--together" in names:
        many = replace(many, together=flags.sweep.together)
    for data in dict.fromkeys(one.flags.data for one in combinations):
        refuse_unnamed(folder.path, data, names, "feedax sweep")
    return many, combinations


def _read(folder: SweepFolder, more: Sequence[str]) -> tuple[ManyFlags, list[Combination]]:
    """What `recorded` has written, with more words after those of each setting."""
    try:
        words = [str(word) for word in folder.setting("arguments")]
        # The parser has flags of its own too, such as --help and one that writes a file.
        if foreign := {word for word in words if word.startswith("-")} - set(MANY):
            raise UsageError(f"there is no flag {min(foreign)}")
        many = parse(ManyFlags, words, "sweep", "")
        settings = [(one["setting"], one["arguments"]) for one in folder.setting("settings")]
        if not settings:
            raise ValueError("there is no setting")
        if (count := many.seeds * len(settings)) > MOST_NETWORKS:
            raise ValueError(f"they are {count} networks")
        # Files are named after the settings, so that these are made again of the flags.
        swept = [f"--{name.replace('_', '-')}" for name in settings[0][0]]
        if foreign := set(swept) - set(several_flags(SweepFlags)):
            raise ValueError(f"{shown(min(foreign))} has one value in a sweep")
        found: list[Combination] = []
        for setting, arguments in settings:
            # Each was written down as a run is.
            run = RunFolder(folder.path, {"arguments": [*arguments, *more]})
            flags = recorded_flags(run)
            one = Combination(setting_of(flags, swept), flags)
            if one.setting != setting:
                raise ValueError(f"{shown(setting)} is {shown(one.setting)} by its flags")
            if any(one.setting == other.setting for other in found):
                raise ValueError(f"{shown(setting)} is there twice")
            found.append(one)
    except (UsageError, ValueError) as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the settings of a sweep, and "
            f"they cannot be read ({error}); use the version of feedax that wrote "
            "it"
        ) from error
    return many, found


def _values(combinations: Sequence[Combination], name: str) -> str:
    """The values of a flag in words."""
    found = [flag_values(from_anywhere(one.flags))[name] for one in combinations]
    return " and ".join(dict.fromkeys(map(in_words, found)))
