"""JSON of a file that somebody else may have written: one meaning, and no surprises."""

import json
import math
from typing import Any


def load_json(content: bytes, finite: bool = True) -> Any:
    """Parse JSON, where it says one thing.

    Args:
        content: in UTF-8.
        finite: whether every number must be a finite one; JSON itself knows no others.

    Raises:
        ValueError: it is none, it has two values of one name, a number that no float can hold, or
            more lists within lists than a program can walk through.

    >>> load_json(b'{"epoch": 0, "loss": null}')
    {'epoch': 0, 'loss': None}
    >>> load_json(b'{"epoch": 0, "epoch": 1}')
    Traceback (most recent call last):
    ValueError: there are two values of the name 'epoch'
    """
    try:
        return json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
    except RecursionError:
        raise ValueError("it has too many lists or objects within each other") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"there are two values of the name {name[:80]!r}")
        found[name] = value
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:80]} is no number")
    return number
