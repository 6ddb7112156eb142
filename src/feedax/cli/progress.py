"""What a person sees while networks train, the tables of a sweep, and how both are stopped."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, Self

import numpy as np

from feedax.cli import forget, in_flags
from feedax.cli.examples import TITLES
from feedax.errors import FeedaxError
from feedax.report.columns import column_label
from feedax.report.sweep_folder import Record, columns, mean_seconds, summaries
from feedax.train.events import (
    EpochEnded,
    Event,
    NetworkEnded,
    NetworksStarted,
    Started,
    Stepped,
    Stopped,
    StopTraining,
)
from feedax.train.networks import Network, setting_name
from feedax.train.progress import ProgressBar, is_terminal

SHOWN_SHARE, SHOWN_SECONDS = 0.05, 0.1
"""Waiting for data is shown from this share of an epoch on, and from so many seconds."""
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
ONE_PRESS_SECONDS = 0.5
"""Signals this close are one: `timeout` and `make` hand on what a terminal has sent already."""
ROUNDED = 5
"""Decimals of an accuracy in a sweep: one example of 100,000."""


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


class StopRequest:
    """Turns the first signal into a request that the next event grants; the second one acts.

    A context manager, for the time of training and saving, and a callback of `fit`.

    Args:
        preemptible: whether SIGTERM is left to JAX.

    Attributes:
        by: what asked to stop, in words, or None.
        exit_code: of a process that stops for it.
        stopped_at: where training stopped, in words, or None if it did not.
    """

    def __init__(self, preemptible: bool = False) -> None:
        self.by: str | None = None
        self.exit_code = 0
        self.stopped_at: str | None = None
        self._asked: float | None = None
        # With several processes JAX hears SIGTERM, and stops all of them at the same step.
        self._heard = [signal.SIGINT] if preemptible else list(SIGNALS)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._heard:
            # A process started in the background ignores Ctrl-C, and still does.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def __call__(self, event: Event) -> None:
        match event:
            # After the last epoch there is nothing left to stop.
            case Stepped() | EpochEnded(is_last=False) if self.by:
                raise StopTraining
            case Stopped(epoch=epoch, step=step, preempted=preempted):
                if preempted:
                    self.ask(SIGNALS[signal.SIGTERM], 128 + signal.SIGTERM)
                self.by = self.by or "another process"
                after = f"after epoch {epoch - 1}"
                self.stopped_at = f"in epoch {epoch} after {step} steps" if step else after

    def ask(self, by: str, exit_code: int) -> None:
        """Ask training to stop at the next event."""
        self.by, self.exit_code = by, exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            self.ask(SIGNALS[signal.Signals(number)], 128 + number)
        elif now - self._asked >= ONE_PRESS_SECONDS:
            self._restore()
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # workers and the terminal are left in good order
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class _Notes(logging.Handler):
    """Says in a line what feedax has to say."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        said: Any = record.msg
        self._note(in_flags(said) if isinstance(said, FeedaxError) else record.getMessage())


class Progress:
    """Prints the tutorial's lines for every epoch, on a terminal with a bar above the next one.

    A context manager and a callback of `fit`. Standard output gets the lines and nothing else.

    Args:
        note: says what does not belong to the lines.
        stop: is asked to stop when the lines cannot be written any more.
        quiet: whether another process says it all.
        shorter: what is said in place of some texts.
        steps: how many were asked for in all, or None.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        stop: StopRequest,
        quiet: bool = False,
        shorter: Mapping[str, str] | None = None,
        steps: int | None = None,
    ) -> None:
        self._shorter = shorter or {}
        self._note = note
        self._stop = stop
        self._quiet = quiet
        is_shown = is_terminal(sys.stdout) and not quiet
        self._bar = ProgressBar(steps, sys.stdout, says_rows=False) if is_shown else None
        self._notes = _Notes(self._say)
        self._log = logging.getLogger("feedax")

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
            case Started(how=how):
                self._say(self._shorter.get(how, how))
            case EpochEnded(row=row) if not self._quiet:
                for line in (epoch_line(row), *accuracy_lines(row)):
                    self._print(line)
        if self._bar is not None:
            self._bar(event)

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            self._note(sentence)

    def _print(self, line: str) -> None:
        try:
            if self._bar is None:
                print(line, flush=True)
            else:
                self._bar.print(line)
        except OSError as error:
            forget(sys.stdout)
            code = 141 if isinstance(error, BrokenPipeError) else 1
            self._stop.ask(f"its standard output ({error.strerror})", code)


class SweepProgress(Progress):
    """Prints a line for every network that has ended, on a terminal with a bar below.

    A context manager, as `Progress`; `watch` gives the callback for a group of networks.

    Args:
        note, stop: as of `Progress`.
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
        self._at_once = 1

    def watch(
        self, record_of: Callable[[Network, int], Record], before: int
    ) -> Callable[[Any], None]:
        """A callback of `feedax.sweep`.

        Args:
            record_of: what is written down of a network that was trained with so many at a time.
            before: how many networks were trained by earlier calls.
        """

        def tell(event: NetworksStarted | Stepped | NetworkEnded) -> None:
            match event:
                case NetworksStarted() | Stepped() if self._stop.by:
                    raise StopTraining
                case NetworksStarted(names=names, ended=ended):
                    self._at_once = len(names)
                    event = replace(event, ended=before + ended, count=self._count)
                case NetworkEnded(network=network):
                    record = record_of(network, self._at_once)
                    self._keep(record)
                    self._print(network_line(record, self._width))
            if self._bar is not None:
                self._bar(event)

        return tell


def network_line(record: Record, width: int) -> str:
    """One network that has ended: its name, its seconds of training and its accuracies."""
    start = f"{record['name']:<{width}}  {record['seconds']:8.2f} sec"
    if record["error"] is not None:
        return f"{start}  {record['error']}"
    scores = [
        f"{column_label(column)} {record['result'][column]:.{ROUNDED}f}"
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
        names = [column_label(column)]
        for one in summaries(records, column):
            some = [record for record in records if record["setting"] == one.setting]
            numbers = [_number(value) for value in (one.mean, one.sd, one.minimum, one.maximum)]
            seconds = _number(mean_seconds(some), 2)
            rows.append([str(one.count), *numbers, str(one.failed), seconds])
            names.append(setting_name(one.setting) or "every network")
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        first = max(map(len, names))
        lines.append("")
        for name, row in zip(names, rows, strict=True):
            cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([f"{name:<{first}}", *cells]))
    return lines


def _number(value: float, decimals: int = ROUNDED) -> str:
    return f"{value:.{decimals}f}" if value == value else "-"
