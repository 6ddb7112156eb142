"""The history of a network: its rows, the best of them, and the clock that they are read off."""

import html
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, overload

import jax
import numpy as np

from feedax.errors import ModelError, shown
from feedax.feed import CHUNK_STEPS
from feedax.train import processes
from feedax.train.step import TrainState
from feedax.train.steps import CHUNK_SECONDS, Steps

Row = dict[str, float]
"""One epoch of the history: plain names and plain numbers."""

LOW_IS_BEST = ("loss", "error")
"""Endings of the names of columns that are to be low; all others are to be high."""

TIMES = (
    "seconds",
    "compile_seconds",
    "wait_seconds",
    "load_seconds",
    "transfer_seconds",
    "start_seconds",
    "evaluate_seconds",
    "examples_per_second",
)
"""Columns about time; of these a table shows the seconds alone."""
SHOWN_ROWS = 20
"""Of a longer history, a table shows so many rows, the first and the last ones."""


class History(list[Row]):
    """The rows of a run: a list of dicts, a row for each epoch, that prints as a table.

    In a notebook the table has a small curve of each column. `feedax.plot` draws them large.

    >>> history = History([{"epoch": 0, "seconds": 1.5, "loss": 0.25, "accuracy": 0.9}])
    >>> print(history)
    epoch    loss  accuracy  seconds
        0  0.2500    0.9000     1.50
    >>> history[-1]
    {'epoch': 0, 'seconds': 1.5, 'loss': 0.25, 'accuracy': 0.9}
    """

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return History(found) if isinstance(index, slice) else found

    def __str__(self) -> str:
        if not self:
            return "no epoch has ended"
        cells = list(zip(*_cells(self), strict=True))
        widths = [max(map(len, column)) for column in cells]
        lines = (
            "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            for row in zip(*cells, strict=True)
        )
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython, in a terminal."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_table(self, curves=True) if self else str(self)


# As a list is one.
jax.tree_util.register_pytree_node(
    History, lambda rows: (list(rows), None), lambda _, rows: History(rows)
)


def html_table(rows: Sequence[Mapping[str, Any]], curves: bool = False) -> str:
    """Rows as an HTML table of their main columns, with a small curve of each if asked for."""
    head, *body = _cells(rows)
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)]
    if curves and len(rows) > 1:
        of = [[] if name == "epoch" else [row.get(name) for row in rows] for name in head]
        lines.append("".join(f"<td>{_curve(values)}</td>" for values in of))
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def line_of(row: Mapping[str, Any]) -> str:
    """The main columns of a row, in a line.

    >>> line_of({"epoch": 0, "seconds": 1.5, "wait_seconds": 0.5, "loss": 0.25})
    'epoch 0  loss 0.2500  seconds 1.50'
    """
    return "  ".join(f"{name} {_cell(name, row[name])}" for name in _columns([row]))


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that a table shows."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in TIMES] + [*{"seconds"} & names.keys()]


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A table: the names of its columns, and then the cells of each row."""
    columns, half = _columns(rows), SHOWN_ROWS // 2
    cells = [columns]
    cells += [[_cell(name, row.get(name)) for name in columns] for row in rows]
    if len(rows) > SHOWN_ROWS:
        cells[half + 1 : -half] = [["..."] * len(columns)]
    return cells


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if name == "seconds":
        return f"{value:.2f}"
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else f"{value:.3g}"


def _curve(values: Sequence[Any]) -> str:
    """A small curve, as SVG."""
    points = [
        (i, float(value))
        for i, value in enumerate(values)
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    if len(points) < 2:
        return ""
    low = min(value for _, value in points)
    size = max(value for _, value in points) - low or 1.0
    width, height = 72.0, 24.0
    path = " ".join(
        f"{2 + i * width / (len(values) - 1):.1f},{2 + height - (value - low) * height / size:.1f}"
        for i, value in points
    )
    return (
        f'<svg width="76" height="28"><polyline points="{path}" fill="none" stroke="#1f6fb4" '
        'stroke-width="1.5"/></svg>'
    )


class EpochClock:
    """The clock of one epoch: it stands still while something is compiled.

    Args:
        seconds: of this epoch, trained before the run was resumed from a checkpoint.
        interval: seconds between two reports.
    """

    def __init__(self, steps: Steps, seconds: float = 0.0, interval: float = CHUNK_SECONDS) -> None:
        self._steps = steps
        self._interval = interval
        self._compiled_before = steps.compile_seconds
        self._reported = time.perf_counter()
        self._started = self._reported - seconds

    @property
    def compile_seconds(self) -> float:
        return self._steps.compile_seconds - self._compiled_before

    @property
    def seconds(self) -> float:
        """Of training, in this epoch so far."""
        return time.perf_counter() - self._started - self.compile_seconds

    def is_due(self) -> bool:
        """Whether the last report was long ago."""
        return time.perf_counter() - self._reported >= self._interval

    def reported(self) -> None:
        self._reported = time.perf_counter()


class ReportInterval:
    """When a run reports: a few times a second, on all processes after the same step.

    One process looks at its clock. Several cannot: process 0 tells the other processes how many
    steps to do until the next report.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._length = self._left = 1
        self._since = time.perf_counter()

    def most_steps(self) -> int:
        """How many steps may be done before the next report."""
        return self._steps.chunk_length if processes.count() == 1 else self._left

    def is_due(self, count: int, clock: EpochClock) -> bool:
        """Whether to report after so many more steps."""
        self._left -= count
        return clock.is_due() if processes.count() == 1 else self._left <= 0

    def next(self, save: bool) -> bool:
        """Agree on the steps until the next report; whether process 0 wants to save now."""
        if processes.count() == 1:
            return save
        done, now = max(1, self._length - self._left), time.perf_counter()
        fitting = int(done * CHUNK_SECONDS / (now - self._since))
        length = max(1, min(fitting, 2 * self._length, CHUNK_STEPS))
        save, self._length = processes.broadcast([save, length])
        self._left, self._since = self._length, now
        return save


def epoch_rows(
    epoch: int, clock: EpochClock, state: TrainState, columns: Mapping[str, float]
) -> list[Row]:
    """The row of the epoch so far, of each network that a state holds."""
    seconds, rows = clock.seconds, []
    metrics, skipped = jax.tree.map(np.atleast_1d, jax.device_get((state.metrics, state.skipped)))
    for i, count in enumerate(metrics["loss"].count):
        means = {
            name: float(metric.sum[i]) / int(metric.count[i]) if metric.count[i] else math.nan
            for name, metric in metrics.items()
        }
        row = {
            "epoch": epoch,
            "seconds": seconds,
            "compile_seconds": clock.compile_seconds,
            "evaluate_seconds": 0.0,
            **columns,
            **({} if skipped is None else {"skipped_steps": int(skipped[i])}),
            "examples_per_second": int(count) / seconds,
            "loss": means.pop("loss"),
            **means,
        }
        rows.append(row)
    return rows


class Best:
    """The best value of one column of the rows, and when it stops getting better.

    Args:
        column: its name, ``"validation_accuracy"`` say; None for no column. Names that end in
            "loss" or "error" are to be low, all others high.
        patience: how many epochs in a row may pass without a better value; None for any number.
        who: the public function that was called; it speaks, in an error.

    Attributes:
        value: the best so far, or None.
        epoch: the epoch that it was reached in.
        step: the steps done by then.
    """

    def __init__(self, column: str | None, patience: int | None = None, who: str = "fit") -> None:
        self.column = column
        self.patience = patience
        self.who = who
        self.value: float | None = None
        self.epoch = self.step = -1

    def check(self, sets: Collection[str], metrics: Collection[str] = ()) -> None:
        """Refuse a column that no row will have, before any time is spent on training.

        Raises:
            ModelError: there is no such set, or the patience is not for anything.
        """
        if self.patience is not None and (self.column is None or self.patience < 1):
            raise ModelError(
                who=self.who,
                rule="patience=N must be 1 or more epochs in which best=COLUMN gets no better",
                found=f"patience is {self.patience!r} and best is {self.column!r}",
                remedy="give both, best='validation_loss' and patience=3 say",
            )
        if self.column is None or self.column in ("loss", "accuracy", *metrics):
            return
        if not any(self.column.startswith(f"{name}_") for name in sets):
            raise ModelError(
                who=self.who,
                rule="best=COLUMN must name a column of the rows, of one of the sets "
                f"{sorted(sets)}",
                found=f"it is {shown(self.column)}",
                remedy="give evaluate={'validation': ...} and best='validation_loss', say",
            )

    def update(self, row: Row, step: int) -> bool:
        """Take over the value of a row if it is better, as the first one is; whether it is.

        Raises:
            ModelError: it has no such column.
        """
        if self.column is None:
            return False
        if self.column not in row:
            raise ModelError(
                who=self.who,
                rule="best=COLUMN must name a column of the rows",
                found=f"it is {self.column!r}",
                remedy=f"they have {', '.join(row)}",
            )
        # JSON has no NaN: a row that was read has None.
        value = math.nan if row[self.column] is None else row[self.column]
        best = self.value
        is_low_best = self.column.endswith(LOW_IS_BEST)
        if best is None or math.isnan(best) or (value < best if is_low_best else value > best):
            self.value, self.epoch, self.step = value, int(row["epoch"]), step
            return True
        return False

    def is_exhausted(self, epochs: int) -> bool:
        """Whether the patience has ended after so many epochs."""
        return self.patience is not None and epochs - 1 - self.epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        names = ("column", "value", "epoch", "step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint says of the same column."""
        if state["column"] != self.column:
            raise ModelError(
                f"{self.who}: a resumed run must have the best= that it began with, and it was "
                f"{shown(state['column'])} but is {self.column!r}; give the same, or another folder"
            )
        self.value, self.epoch, self.step = state["value"], state["epoch"], state["step"]


def best_row(rows: Sequence[Row], column: str | None) -> Row | None:
    """The row of the epoch whose parameters `fit` returns: the last one where no column chooses.

    >>> rows = [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.75}]
    >>> best_row(rows, "loss")["epoch"], best_row(rows, None)["epoch"]
    (1, 2)
    """
    best, found = Best(column), rows[-1] if rows else None
    for row in rows:
        if best.update(row, 0):
            found = row
    return found
