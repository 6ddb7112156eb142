"""The columns of rows: what they measure, of which set, and what a person reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from feedax.train.history import TIMES

OTHERS = ("epoch", "skipped_steps", *TIMES)
"""Columns that measure no set."""


def measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows measure: their columns without the names of sets.

    >>> measures([{"epoch": 0, "seconds": 1.0, "loss": 0.5, "test_loss": 0.6, "test_top_5": 0.9}])
    ['loss', 'test_top_5']
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in OTHERS)
    known = [*names, "loss", "accuracy"]
    return list(
        dict.fromkeys(
            next((one for one in known if name.endswith(f"_{one}")), name) for name in names
        )
    )


def columns_of(rows: Sequence[Mapping[str, Any]], measure: str) -> list[str]:
    """The columns of a measure: while training, and of each set.

    >>> columns_of([{"loss": 0.5, "test_loss": 0.6, "accuracy": 0.9}], "loss")
    ['loss', 'test_loss']
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in OTHERS)
    return [name for name in names if name == measure or name.endswith(f"_{measure}")]


def column_of(
    rows: Sequence[Mapping[str, Any]],
    measure: str,
    sets: Sequence[str] = ("test", "validation"),
) -> str | None:
    """A measure of the first of these sets that the rows have; else the one while training.

    >>> column_of([{"loss": 0.5, "test_loss": 0.6}], "loss")
    'test_loss'
    """
    names = {name for row in rows for name in row}
    wanted = (*(f"{name}_{measure}" for name in sets), measure)
    return next((name for name in wanted if name in names), None)


def column_label(column: str, measure: str | None = None) -> str:
    """A column of losses or metrics, as a person reads it.

    Args:
        column: its name.
        measure: the part of it that is no name of a set; what follows its last ``_`` if None.

    >>> column_label("train_loss"), column_label("accuracy"), column_label("test_top_5", "top_5")
    ('training set loss', 'accuracy while training', 'test set top_5')
    """
    measure = column.rpartition("_")[2] if measure is None else measure
    name = column.removesuffix(measure).removesuffix("_")
    name = "training" if name == "train" else name
    return f"{name} set {measure}" if name else f"{measure} while training"
