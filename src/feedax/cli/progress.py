"""What a person sees while a network trains."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from feedax.cli.stop import StopRequest
from feedax.train.events import EpochEnded, Event, Started, Stepped

TITLES = {"train": "Training", "test": "Test"}


def accuracy_lines(row: Mapping[str, float]) -> list[str]:
    """The tutorial's lines for one row: an accuracy is printed as the float32 that it was there."""
    return [
        f"{title} set accuracy {float(np.float32(row[f'{name}_accuracy']))}"
        for name, title in TITLES.items()
        if f"{name}_accuracy" in row
    ]


class Progress:
    """Prints the tutorial's lines for every epoch, on a terminal with a bar above the next one.

    A context manager and a callback of `fit`. Standard output gets the lines and nothing else.

    Args:
        note: says what does not belong to the lines.
        stop: is asked to stop when nobody reads the lines any more.
    """

    def __init__(self, note: Callable[[str], None], stop: StopRequest) -> None:
        self._note = note
        self._stop = stop
        self._bar: Any = None
        self._task: Any = None
        self._epochs = 0
        self._steps: int | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Started(epochs=epochs, steps=steps, how=how):
                self._epochs, self._steps = epochs, steps
                self._note(how)
                if sys.stdout.isatty():
                    self._start_bar()
            case Stepped() if self._bar is not None:
                self._bar.update(
                    self._task,
                    completed=event.step,
                    said=f"{event.examples_per_second:,.0f} examples/s  loss {event.loss:.4f}",
                )
            case EpochEnded(epoch=epoch, row=row):
                for line in (f"Epoch {epoch} in {row['seconds']:.2f} sec", *accuracy_lines(row)):
                    self._print(line)
                if self._bar is not None:
                    self._bar.reset(
                        self._task, total=self._steps, description=self._title(epoch + 1)
                    )

    def _print(self, line: str) -> None:
        try:
            if self._bar is None:
                print(line, flush=True)
            else:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except BrokenPipeError:
            self._stop.ask("the end of its output", 141)

    def _title(self, epoch: int) -> str:
        return f"Epoch {min(epoch + 1, self._epochs)} of {self._epochs}"

    def _start_bar(self) -> None:
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
        )
        self._task = self._bar.add_task(self._title(0), total=self._steps, said="")
        self._bar.start()
