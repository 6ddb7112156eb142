"""JSON in files: written so that every reader can read it, and checked when it is read."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feedax.errors import shortened, shown

MAX_DEPTH = 100
"""Lists and objects within each other: what reads them recurses."""

_TOO_DEEP = f"it has more than {MAX_DEPTH} lists or objects within each other"


def load_json(content: bytes, finite: bool = True) -> Any:
    """Parse JSON that has one meaning.

    Args:
        content: in UTF-8.
        finite: whether every number must be finite, as JSON itself demands.

    Raises:
        ValueError: it is not JSON, has two values of one name, a number that no float can hold, or
            too many lists and objects within each other.

    >>> load_json(b'{"epoch": 0, "loss": null}')
    {'epoch': 0, 'loss': None}
    >>> load_json(b'{"epoch": 0, "epoch": 1}')
    Traceback (most recent call last):
    ValueError: there are two values of the name 'epoch'
    """
    try:
        found = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        # Half of a surrogate pair is not text.
        "".join(one for one in level if isinstance(one, str)).encode()
        objects = [one for one in level if isinstance(one, dict)]
        lists = [*objects, *(one.values() for one in objects)]
        lists += [one for one in level if isinstance(one, list)]
        level = [one for some in lists for one in some]
        if not level:
            return found
    raise ValueError(_TOO_DEEP)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """One line of JSON, or several with `indent`; NaN and infinity, which JSON lacks, are null.

    >>> json_bytes({"loss": math.nan, "run": Path("runs/a")})
    b'{"loss": null, "run": "runs/a"}\\n'
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"there are two values of the name {shown(name)}")
        found[name] = value
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shortened(text)} is not a finite number")
    return number


Rule = tuple[str, Callable[[Any], bool]]
"""What a value must be: in words, and the check."""


def broken_rule(found: Any, rules: Mapping[str, Rule], path: Path) -> str | None:
    """The first rule that an object of a file breaks, with the value, in words; None if none.

    >>> broken_rule({"step": -1}, {"step": COUNT}, Path("a"))
    "'step' of a must be a whole number from 0 on, and it is -1"
    """
    for name, (words, holds) in rules.items():
        if name in found and not holds(found[name]):
            return f"{name!r} of {path} must be {words}, and it is {shown(found[name])}"
    return None


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether a float holds it; NaN counts."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _can_be_drawn(value: Any) -> bool:
    """Whether computing the axes of a plot does not make the number infinite."""
    return is_number(value) and not 1e300 < abs(value) < math.inf


def is_row(value: Any) -> bool:
    """Whether it is the numbers of an epoch by name, null where JSON has no such number."""
    return (
        isinstance(value, dict)
        and is_count(value.get("epoch"))
        and all(one is None or _can_be_drawn(one) for one in value.values())
        and all(name.isprintable() for name in value)
    )


COUNT: Rule = ("a whole number from 0 on", is_count)
TEXT: Rule = ("text", is_text)
WORDS: Rule = ("a list of words", is_list_of(is_text))


def or_none(rule: Rule) -> Rule:
    words, holds = rule
    return f"{words} or null", lambda value: value is None or holds(value)
