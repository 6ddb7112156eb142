"""What a person sees of a sweep."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from feedax.cli.progress import REFRESHES, Progress
from feedax.cli.stop import StopRequest
from feedax.cli.sweep_groups import Group
from feedax.report.sweep_folder import Record, columns, mean_seconds, name_of, summaries
from feedax.train.events import NetworkEnded, NetworksStarted, Stepped, StopTraining

LABELS = {"test": "test set", "validation": "validation set", "train": "training set"}
ROUNDED = 5
"""Decimals of an accuracy: one example of 100,000."""


class SweepProgress(Progress):
    """Prints a line for every network that has ended, on a terminal with a bar below.

    A context manager, as `Progress`; `watch` gives the callback for a group of networks.

    Args:
        note: says what does not belong to the lines.
        stop: what asks to stop.
        names: of all networks.
        keep: is given what is to be written down of a network that has ended.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        stop: StopRequest,
        names: Sequence[str],
        keep: Callable[[Record], None],
    ) -> None:
        super().__init__(note, stop)
        self._count = len(names)
        self._width = max(map(len, names))
        self._keep = keep
        self._started = NetworksStarted([], 0, 0, None, None)

    def watch(self, group: Group, before: int) -> Callable[[Any], None]:
        """A callback of `feedax.sweep`.

        Args:
            group: what is trained.
            before: how many networks earlier groups have.
        """

        def tell(event: NetworksStarted | Stepped | NetworkEnded) -> None:
            match event:
                case NetworksStarted() | Stepped() if self._stop.by:
                    raise StopTraining
                case NetworksStarted():
                    self._started = event
                    self._show(before + event.ended, "")
                case Stepped(epoch=epoch, loss=loss):
                    done = before + self._started.ended + self._share(event)
                    self._show(done, f"{len(self._started.names)} at once  ", epoch, loss)
                case NetworkEnded(network=network):
                    record = group.record(network, len(self._started.names))
                    self._keep(record)
                    self._print(network_line(record, self._width))

        return tell

    def _share(self, event: Stepped) -> float:
        """How many networks' worth of the work of those at work is done."""
        started = self._started
        if started.epochs is None or not started.steps:
            return 0.0
        done = event.epoch + event.step / started.steps
        return len(started.names) * min(1.0, done / started.epochs)

    def _show(self, done: float, said: str, epoch: int = 0, loss: float | None = None) -> None:
        if self._bar is None and sys.stdout.isatty():
            self._start_bar(self._count)
        if self._bar is None:
            return
        said = said if len(self._started.names) > 1 else ""
        if loss is not None:
            said += f"epoch {epoch}  loss {loss:.4f}"
        # Whole networks are counted; the bar shows the rest.
        self._bar.update(
            self._task, completed=done, said=said, description=f"{int(done)}/{self._count} networks"
        )

    def _start_bar(self, steps: int | None) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            refresh_per_second=REFRESHES,
        )
        self._task = self._bar.add_task("", total=steps, said="")
        self._bar.start()


def network_line(record: Record, width: int) -> str:
    """One network that has ended: its name, its seconds of training and its accuracies."""
    start = f"{record['name']:<{width}}  {record['seconds']:8.2f} sec"
    if record["error"] is not None:
        return f"{start}  {record['error']}"
    scores = [
        f"{_label(column)} {record['result'][column]:.{ROUNDED}f}"
        for column in columns([record])
        if column.endswith("accuracy")
    ]
    return "  ".join([start, *scores])


def tables(records: Sequence[Record]) -> list[str]:
    """The lines of a table for each accuracy: what the networks of each setting have in common."""
    lines = []
    for column in columns(records):
        if not column.endswith("accuracy"):
            continue
        rows = [["networks", "mean", "sd", "min", "max", "failed", "sec each"]]
        names = [_label(column)]
        for one in summaries(records, column):
            some = [record for record in records if record["setting"] == one.setting]
            numbers = [_number(value) for value in (one.mean, one.sd, one.minimum, one.maximum)]
            seconds = _number(mean_seconds(some), 2)
            rows.append([str(one.count), *numbers, str(one.failed), seconds])
            names.append(name_of(one.setting) or "every network")
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        first = max(map(len, names))
        lines.append("")
        for name, row in zip(names, rows, strict=True):
            cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([f"{name:<{first}}", *cells]))
    return lines


def _label(column: str) -> str:
    name, _, measure = column.rpartition("_")
    return f"{LABELS.get(name, name)} {measure}" if name else f"{measure} while training"


def _number(value: float, decimals: int = ROUNDED) -> str:
    return f"{value:.{decimals}f}" if value == value else "-"
