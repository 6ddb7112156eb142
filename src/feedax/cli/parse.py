"""Flags: from the words of a command line to values in dataclasses, and back to words.

`parse` reads what a person types, and says in one sentence what is wrong with it. `read_words`
reads what `command_line` wrote into a config.json.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from feedax.cli import UsageError
from feedax.errors import printable, shortened

Flags = TypeVar("Flags")

OLD_NAMES = {"--warmup-share": "--warmup-fraction"}
"""Names that flags had in earlier versions, and the names they have now."""


def flag(name: str) -> str:
    """The flag of a field: ``--batch-size`` of ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def field_of(name: str) -> str:
    """The field of a flag: ``batch_size`` of ``--batch-size``."""
    return name.removeprefix("--").replace("-", "_")


def fields_of(kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every flag of a dataclass of flags: its name, its type, and the dataclass it stands in."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(one.default_factory):
            yield from fields_of(one.default_factory)
        elif one.default is not MISSING:  # a positional argument has none
            yield flag(one.name), hints[one.name], kind


def flag_values(flags: Any) -> dict[str, Any]:
    """The value of every ``--flag``."""
    values: dict[str, Any] = {}
    for name, value in vars(flags).items():
        values |= flag_values(value) if is_dataclass(value) else {flag(name): value}
    return values


def changed(flags: Flags, **values: Any) -> Flags:
    """The same flags with other values, by the names of the fields in whatever group they are."""
    changes = {
        name: changed(value, **values) if is_dataclass(value) else values.get(name, value)
        for name, value in vars(flags).items()
    }
    return replace(flags, **changes)  # type: ignore[type-var]


def command_line(flags: Any) -> list[str]:
    """The words that give these flags again, whatever the defaults are by then."""
    return [word for name, value in flag_values(flags).items() for word in spelled(name, value)]


def spelled(name: str, value: Any) -> list[str]:
    """The words that set a flag; none for a flag that is not given."""
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [name, *map(str, value)]
    return [] if value is None else [name, str(value)]


def given_flags(words: Sequence[str]) -> list[str]:
    """The names of the flags in a command line, as they are documented."""
    names = []
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            names.append(name.replace("--no-", "--", 1))
    return list(dict.fromkeys(names))


def words_by_flag(words: Sequence[str]) -> dict[str, list[str]]:
    """Each flag of a command line with its values, the last one of a flag; "" for words before it.

    >>> words_by_flag(["RUN", "--hidden", "8", "9", "--dropout=0.1", "--shuffle"])
    {'': ['RUN'], '--hidden': ['--hidden', '8', '9'], '--dropout': ['--dropout=0.1'], \
'--shuffle': ['--shuffle']}
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if names := given_flags([word]):
            name = names[0]
            found.pop(name, None)
        found.setdefault(name, []).append(word)
    return found


def renamed(words: Sequence[str]) -> list[str]:
    """The words of a command line with the names that flags have now.

    >>> renamed(["--warmup-share", "0.1", "--warmup_share=0.1"])
    ['--warmup-fraction', '0.1', '--warmup-fraction=0.1']
    """
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        now = OLD_NAMES.get(name.replace("_", "-"))
        found.append(word if now is None else f"{now}{equals}{value}")
    return found


def read_words(kind: type[Flags], words: Sequence[str]) -> Flags:
    """The flags that `command_line` made these words of, in this version or an earlier one.

    They are not parsed as a person's: a value may begin with a dash, and ``--help`` is refused.

    Raises:
        UsageError: they are others.
    """
    hints = {name: hint for name, hint, _ in fields_of(kind)}
    texts: dict[str, list[str]] = {}
    given = ""
    for word in renamed(words):
        if word.startswith("--") or not given:
            given = word
            texts[given] = []
        else:
            texts[given].append(word)
    values: dict[str, Any] = {}
    for given, some in texts.items():
        name = given if given in hints else given.replace("--no-", "--", 1)
        if name not in hints:
            raise UsageError(f"there is no flag {printable(given)}")
        values[field_of(name)] = _value(given, hints[name], some)
    return changed(kind(), **values)


def _value(given: str, hint: Any, texts: list[str]) -> Any:
    """The value of a flag of some type, of the words that follow its name."""
    if hint is bool:
        if texts:
            raise UsageError(f"{given} must stand alone, and {shortened(texts[0])} follows it")
        return not given.startswith("--no-")
    kinds = [one for one in get_args(hint) or [hint] if one is not NoneType]
    if (kind := _of_tuple(hint)) is not None:
        return tuple(_value(given, kind, [text]) for text in texts)
    if len(texts) != 1:
        raise UsageError(f"{given} must have one value, and it has {len(texts)}")
    text = texts[0]
    if get_origin(hint) is Literal:
        if text not in kinds:
            raise UsageError(f"{given} must be one of {', '.join(kinds)}, and it is {text!r}")
        return text
    try:
        return kinds[0](text)
    except ValueError:
        what = "a whole number" if kinds[0] is int else "a number"
        raise UsageError(f"{given} must be {what}, and it is {shortened(repr(text))}") from None


class UnknownWordsError(UsageError):
    """Words of a command line that are neither flags of the command nor their values."""

    def __init__(self, words: list[str]) -> None:
        self.word = next((word for word in words if word.startswith("-")), words[0])
        self.name = self.word.partition("=")[0]
        self.is_flag = self.word.startswith("-")
        what = (
            f"no flag {shortened(self.name)}"
            if self.is_flag
            else f"nothing to do with {self.word!r}"
        )
        super().__init__(f"there is {what}")


def refuse_commas(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuse values of these flags, which may have several, that commas separate.

    >>> refuse_commas(["--hidden", "10,20"], ["--hidden"])
    Traceback (most recent call last):
    feedax.cli.UsageError: --hidden must have spaces between its values, and it is 10,20; \
give --hidden 10 20
    """
    for name, (word, *values) in words_by_flag(arguments).items():
        text = " ".join(filter(None, [word.partition("=")[2], *values]))
        separated = " ".join(re.split(r"[\s,]+", text.strip("[](), ")))
        if name in names and "," in text and separated:
            raise UsageError(
                f"{name} must have spaces between its values, and it is {shortened(text)}; give "
                f"{shortened(f'{name} {separated}')}"
            )


def _of_tuple(hint: Any) -> Any:
    """The type of each value of a flag that has several; None for the other flags."""
    found = (one for one in (hint, *get_args(hint)) if get_origin(one) is tuple)
    return next((get_args(one)[0] for one in found), None)


def parse(
    kind: type[Flags],
    arguments: Sequence[str],
    command: str,
    description: str,
    default: Flags | None = None,
) -> Flags:
    """Build the flags of a command; `default` has those that the arguments leave out.

    Raises:
        UsageError: the arguments are wrong.
        UnknownWordsError: there are others among them.
        SystemExit: code 0, after ``--help`` was printed.
    """
    several = [name for name, hint, _ in fields_of(kind) if _of_tuple(hint) is not None]
    refuse_commas(arguments, several)
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
        raise UnknownWordsError(unknown)
    return flags


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
