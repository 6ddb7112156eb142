"""Flags as words: from dataclasses of flags to a command line, and from words to names."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def command_line(flags: Any) -> list[str]:
    """The arguments that give these flags again, whatever the defaults are by then."""
    words: list[str] = []
    for name, value in flag_values(flags).items():
        words += spelled(name, value)
    return words


def spelled(name: str, value: Any) -> list[str]:
    """The words that set a flag; none for a flag that is not given."""
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [name, *map(str, value)]
    return [] if value is None else [name, str(value)]


def flag_values(flags: Any) -> dict[str, Any]:
    """The value of every ``--flag``."""
    values: dict[str, Any] = {}
    for one in fields(flags):
        value = getattr(flags, one.name)
        if is_dataclass(value):
            values |= flag_values(value)
        else:
            values[f"--{one.name.replace('_', '-')}"] = value
    return values


def flag_names(kind: Any) -> list[str]:
    """Every ``--flag`` of a dataclass of flags."""
    names: list[str] = []
    for one in fields(kind):
        nested = one.default_factory if is_dataclass(one.default_factory) else None
        names += flag_names(nested) if nested else [f"--{one.name.replace('_', '-')}"]
    return names


def given_flags(arguments: Sequence[str]) -> list[str]:
    """The names of the flags in a command line, as they are documented."""
    names = []
    for word in arguments:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            names.append(name.replace("--no-", "--", 1))
    return list(dict.fromkeys(names))
