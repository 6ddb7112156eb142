"""What a person sees while a network trains."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from feedax.cli import forget
from feedax.cli.examples import TITLES
from feedax.cli.stop import StopRequest
from feedax.train.events import EpochEnded, Event, Started, Stepped

SHOWN_SHARE, SHOWN_SECONDS = 0.05, 0.1
"""Waiting for data is shown from this share of an epoch on, and from so many seconds."""
REFRESHES = 4
"""Times a second that the bar is drawn; training says as often what is new, and wants the CPU."""


def accuracy_lines(row: Mapping[str, float]) -> list[str]:
    """The tutorial's lines for one row: an accuracy is printed as the float32 that it was there."""
    return [
        f"{title} set accuracy {float(np.float32(row[f'{name}_accuracy']))}"
        for name, title in TITLES.items()
        if f"{name}_accuracy" in row
    ]


def epoch_line(row: Mapping[str, float]) -> str:
    """The tutorial's line for one row, with the waiting for data where it matters."""
    line = f"Epoch {row['epoch']} in {row['seconds']:.2f} sec"
    waited = row["wait_seconds"]
    if waited < SHOWN_SECONDS or waited <= SHOWN_SHARE * row["seconds"]:
        return line
    return f"{line}, {waited:.2f} of them waiting for data"


class _Notes(logging.Handler):
    """Says in a line what feedax has to say."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(record.getMessage())


class Progress:
    """Prints the tutorial's lines for every epoch, on a terminal with a bar above the next one.

    A context manager and a callback of `fit`. Standard output gets the lines and nothing else.

    Args:
        note: says what does not belong to the lines.
        stop: is asked to stop when the lines cannot be written any more.
        quiet: whether another process prints the lines.
    """

    def __init__(self, note: Callable[[str], None], stop: StopRequest, quiet: bool = False) -> None:
        self._note = note
        self._stop = stop
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._notes = _Notes(note)
        self._log = logging.getLogger("feedax")
        self._log_before = self._log.level, self._log.propagate

    def __enter__(self) -> Self:
        self._log_before = self._log.level, self._log.propagate
        self._log.addHandler(self._notes)
        self._log.setLevel(logging.INFO)
        self._log.propagate = False  # what is said here is not said again by others
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self._notes)
        self._log.setLevel(self._log_before[0])
        self._log.propagate = self._log_before[1]
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Started(steps=steps, how=how):
                self._note(how)
                if sys.stdout.isatty() and not self._quiet:
                    self._start_bar(steps)
            case Stepped() if self._bar is not None:
                self._bar.update(
                    self._task,
                    completed=event.step,
                    said=f"{event.examples_per_second:,.0f} examples/s  loss {event.loss:.4f}",
                )
            case EpochEnded(epoch=epoch, row=row) if not self._quiet:
                for line in (epoch_line(row), *accuracy_lines(row)):
                    self._print(line)
                if self._bar is not None:
                    self._bar.reset(self._task, description=f"Epoch {epoch + 1}", said="")

    def _print(self, line: str) -> None:
        try:
            if self._bar is None:
                print(line, flush=True)
            else:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except OSError as error:
            forget(sys.stdout)
            code = 141 if isinstance(error, BrokenPipeError) else 1
            self._stop.ask(f"its standard output ({error.strerror})", code)

    def _start_bar(self, steps: int | None) -> None:
        # Only here: piped output does without rich.
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[said]}"),
            TimeElapsedColumn(),
            transient=True,
            refresh_per_second=REFRESHES,
        )
        self._task = self._bar.add_task("Epoch 0", total=steps, said="")
        self._bar.start()
