"""What a checkpoint says besides its arrays, checked before a run goes on from it.

Its SHA-256 keeps out accidents, and nothing that somebody wrote with intent.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedax.errors import CheckpointError
from feedax.storage.plain_json import (
    COUNT,
    TEXT,
    WORDS,
    Rule,
    broken_rule,
    is_count,
    is_list_of,
    is_number,
    is_row,
    is_text,
    or_none,
)


def _is_position(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return (
        isinstance(value["loader"], dict) if "loader" in value else is_count(value.get("batches"))
    )


def _is_best(value: Any) -> bool:
    names = ("column", "value", "epoch", "step")
    if not isinstance(value, dict) or value.keys() != set(names):
        return False
    column, number, *counts = (value[name] for name in names)
    return (
        (column is None or is_text(column))
        and (number is None or is_number(number))
        and all(one == -1 or is_count(one) for one in counts)
    )


def _are_values(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name.isprintable() and (one is None or is_text(one) or is_number(one) or type(one) is bool)
        for name, one in value.items()
    )


def _is_error(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and is_text(value[0])
        and value[0].isprintable()
        and all(map(is_count, value[1:]))
    )


def _is_end(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not is_count(value[0]):
        return False
    return value[1] is None or (is_list_of(is_count)(value[1]) and len(value[1]) == 2)


_ROWS: Rule = ("a list of rows", is_list_of(is_row))
_PLACE: dict[str, Rule] = {
    "epoch": COUNT,
    "step": COUNT,
    "epoch_step": COUNT,
    "seconds": ("a number", is_number),
    "metrics": WORDS,
    "environment": ("values by name", _are_values),
}
RUN: dict[str, Rule] = _PLACE | {
    "position": ("a place in an epoch", _is_position),
    "best": ("a column with its best value", _is_best),
    "history": _ROWS,
    "form": or_none(TEXT),
}
"""Of one run."""

TOGETHER: dict[str, Rule] = _PLACE | {
    "networks": WORDS,
    "size": COUNT,
    "positions": ("a list of places in an epoch", is_list_of(_is_position)),
    "best": ("a list of columns with their best values", is_list_of(_is_best)),
    "histories": ("a list of lists of rows", is_list_of(is_list_of(is_row))),
    "copies": WORDS,
    "ended": ("a list of networks that have ended", is_list_of(_is_end)),
}
"""Of networks side by side."""

ENDED: dict[str, Rule] = {
    "history": _ROWS,
    "error": or_none(("a message, an epoch and a step", _is_error)),
}
"""Of a network of a sweep that has ended."""


def refuse_broken(about: dict[str, Any], rules: Mapping[str, Rule], path: Path) -> None:
    """Refuse a checkpoint that says something else than checkpoints say.

    Raises:
        CheckpointError: it does.
    """
    broken = broken_rule(about, rules, path)
    if broken is None and (lacking := rules.keys() - about.keys()):
        broken = f"{path} must say {min(lacking)!r}, and it does not"
    if broken is None and rules is RUN and len(about["history"]) != about["epoch"]:
        count = len(about["history"])
        broken = f"'history' of {path} must have a row for each epoch, and it has {count}"
    if broken is None and rules is TOGETHER:
        lists = [about[name] for name in ("networks", "positions", "best", "histories")]
        ends = [index for index, _ in about["ended"]]
        if len({len(one) for one in lists}) > 1 or not set(ends) <= set(range(len(lists[0]))):
            broken = f"{path} must say of each network how it stands, and it does not"
    if broken is not None:
        raise CheckpointError(f"fit: {broken}; use an earlier checkpoint")
