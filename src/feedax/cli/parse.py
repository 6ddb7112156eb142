"""From command-line arguments to flags; what is wrong with them in one sentence."""

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from feedax.cli import UsageError
from feedax.cli.flag_words import flag_names
from feedax.errors import shortened

Flags = TypeVar("Flags")


def parse(
    kind: type[Flags],
    arguments: Sequence[str],
    command: str,
    description: str,
    default: Flags | None = None,
) -> Flags:
    """Build the flags of a command.

    Args:
        kind: the dataclass of its flags.
        arguments: what follows the command.
        command: its name.
        description: opens its ``--help``.
        default: the flags that hold where the arguments say nothing; those of `kind` if None.

    Raises:
        UsageError: the arguments are wrong.
        SystemExit: code 0, after ``--help`` was printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags, unknown = tyro.cli(
                kind,
                args=list(arguments),
                prog=f"feedax {command}",
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                # --batch-size, not --data.batch-size; and no word None as a value.
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_sentence(said.getvalue())}; see feedax {command} --help") from None
    if unknown:
        raise UsageError(_unknown(unknown, flag_names(kind), command))
    return flags


def _unknown(words: list[str], known: list[str], command: str) -> str:
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return f"there is nothing to do with {word!r}; see feedax {command} --help"
    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, [*known, "--help"], n=1)
    remedy = f"did you mean {near[0]}?" if near else f"see feedax {command} --help"
    return f"there is no flag {shortened(name)}; {remedy}"


def _sentence(box: str) -> str:
    """What tyro says in a box of several lines, drawn with Unicode or with ASCII."""
    lines = [line.strip("│| ") for line in box.strip().splitlines()][1:]
    # Between the title and the first rule; what follows that is the help of the flag.
    parts = itertools.groupby(lines, key=lambda line: bool(line) and not line.strip("─-╰╯"))
    text = next(" ".join(filter(None, part)) for is_rule, part in parts if not is_rule)
    if match := re.match(r"Error parsing (\S+): .*\bint\(\).*: ('.*')", text):
        return f"{match[1]} must be a whole number, and it is {shortened(match[2])}"
    if match := re.match(r"Error parsing (\S+): could not convert string to float: ('.*')", text):
        return f"{match[1]} must be a number, and it is {shortened(match[2])}"
    if match := re.match(r"Error parsing (\S+): no type matching .* from \[(.*?)\]", text):
        found = shortened(match[2].replace("'", ""))
        return f"{match[1]} must be whole numbers, and it is {found}"
    if match := re.match(
        r"invalid choice ('.*') for argument '(.*)'. Expected one of \((.*)\)", text
    ):
        return f"{match[2]} must be one of {match[3].replace(chr(39), '')}, and it is {match[1]}"
    if match := re.match(r"Missing value for argument '(.*?)'", text):
        return f"{match[1]} must be followed by its value"
    if match := re.match(r"Missing from [^:]*: (\S+)", text):
        return f"{match[1]} must be given"
    return text
