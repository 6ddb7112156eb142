"""The best parameters of a run, and when it stops getting better."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from feedax.errors import ModelError, shown
from feedax.train.events import Row

LOW_IS_BEST = ("loss", "error")
"""Endings of the names of columns that are to be low; all others are to be high."""


def best_row(rows: Sequence[Row], column: str | None) -> Row | None:
    """The row of the epoch whose parameters `fit` returns: the last one where no column chooses.

    >>> rows = [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.75}]
    >>> best_row(rows, "loss")["epoch"], best_row(rows, None)["epoch"]
    (1, 2)
    """
    best, found = Best(column, None), rows[-1] if rows else None
    for row in rows:
        if best.is_beaten_by(row):
            best.keep(row, 0, None)
            found = row
    return found


class Best:
    """Keeps what had the best value of one column of the rows.

    Args:
        column: its name, ``"validation_accuracy"`` say; None to keep nothing. Names that end in
            "loss" or "error" are to be low, all others high.
        patience: how many epochs in a row may pass without a better one; None for any number.

    Attributes:
        value: the best so far, or None.
        epoch: the epoch that it was reached in.
        step: the steps done by then.
        kept: the parameters and the model's state of then, or None.
    """

    def __init__(self, column: str | None, patience: int | None) -> None:
        self.column = column
        self.patience = patience
        self.value: float | None = None
        self.epoch = self.step = -1
        self.kept: Any = None

    def check(self, sets: Collection[str], metrics: Collection[str] = ()) -> None:
        """Refuse a column that no row will have, before any time is spent on training.

        Raises:
            ModelError: there is no such set, or the patience is not for anything.
        """
        if self.patience is not None and (self.column is None or self.patience < 1):
            raise ModelError(
                "fit: patience must be 1 or more epochs in which best=, the name of a column, gets "
                f"no better, and it is {self.patience!r} with best={self.column!r}; give both"
            )
        if self.column is None or self.column in ("loss", "accuracy", *metrics):
            return
        if not any(self.column.startswith(f"{name}_") for name in sets):
            raise ModelError(
                f"fit: best must name a column of the rows, of one of the sets {sorted(sets)}, and "
                f"it is {shown(self.column)}; give evaluate={{'validation': ...}} and "
                "best='validation_loss', say"
            )

    def is_beaten_by(self, row: Row) -> bool:
        """Whether a row has a better value; the first one always has.

        Raises:
            ModelError: it has no such column.
        """
        if self.column is None:
            return False
        if self.column not in row:
            raise ModelError(
                f"fit: best must name a column of the rows, and it is {self.column!r}; they have "
                f"{', '.join(row)}"
            )
        value = row[self.column]
        if self.value is None or math.isnan(self.value):
            return True
        return value < self.value if self.column.endswith(LOW_IS_BEST) else value > self.value

    def keep(self, row: Row, step: int, kept: Any) -> None:
        """Keep what has the best value so far."""
        assert self.column is not None
        self.value, self.epoch, self.step = row[self.column], int(row["epoch"]), step
        self.kept = kept

    def is_over(self, epochs: int) -> bool:
        """Whether patience has ended after so many epochs."""
        return self.patience is not None and epochs - 1 - self.epoch >= self.patience

    def about(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the arrays."""
        return {name: getattr(self, name) for name in ("column", "value", "epoch", "step")}

    def go_on(self, about: dict[str, Any]) -> None:
        """Go on from a checkpoint; what was kept comes with its arrays.

        Raises:
            ModelError: it was made for another column.
        """
        if about["column"] != self.column:
            raise ModelError(
                "fit: a run goes on with the best= that it began with, and that was "
                f"{shown(about['column'])} but is {self.column!r}; give the same, or another folder"
            )
        self.value, self.epoch, self.step = about["value"], about["epoch"], about["step"]
