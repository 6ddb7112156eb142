"""What is seen of `fit` and `sweep` while they run: a bar, and a line of each epoch or network."""

import contextlib
import datetime
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, TextIO

from feedax.train import processes
from feedax.train.events import (
    EpochEnded,
    Event,
    NetworkEnded,
    NetworksStarted,
    Started,
    Stepped,
)
from feedax.train.history import html_table, line_of

INTERVAL = 0.2
"""Seconds between two drawings of the bar, and between two lines: some short epochs have none."""

_SCREEN = threading.Lock()
"""Held while there is a bar: one call within another, or beside it, shows none."""


@contextlib.contextmanager
def progress_bar(progress: bool | None, steps: Any = None) -> Iterator[tuple["ProgressBar", ...]]:
    """The callbacks that show a call of `fit` or `sweep`: a bar, or none.

    Args:
        progress: whether to show one; None where somebody looks: at a notebook, or a terminal.
        steps: as in `fit`.
    """
    is_shown = _is_looked_at() if progress is None else progress
    # Of several processes one shows it.
    if not is_shown or processes.index() > 0 or not _SCREEN.acquire(blocking=False):
        yield ()
        return
    try:
        with ProgressBar(steps) as bar:
            yield (bar,)
    finally:
        _SCREEN.release()


class ProgressBar:
    """Shows how far a run is; a callback of `fit` and `sweep`, and a context manager.

    No run ends because nothing can be shown.

    Args:
        steps: how many steps were asked for in all, or None.
        stream: what it is drawn on; None for the notebook that this is, or standard error.
        says_rows: whether it shows the row of each epoch or network too.
    """

    def __init__(
        self, steps: int | None = None, stream: TextIO | None = None, says_rows: bool = True
    ) -> None:
        self._steps = steps
        self._says_rows = says_rows
        self._display: _Display | None = None
        if stream is None and _is_notebook():
            self._display = _Notebook()
        elif (stream := stream or sys.stderr) is not None:
            self._display = _Terminal(stream) if is_terminal(stream) else _Lines(stream)
        self._epochs: int | None = None
        self._length: int | None = None  # steps of an epoch
        self._networks = NetworksStarted([], 0, 0, None, None)
        self._began: tuple[float, float] | None = None  # when, and the share that was done then
        self._drawn = self._said = -INTERVAL
        self._unsaid: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        with self._quietly():
            if self._unsaid is not None:
                self._say(self._unsaid)
        with self._quietly():
            if self._display is not None:
                self._display.stop()

    def __call__(self, event: Event) -> None:
        with self._quietly():
            self._show(event)

    def print(self, line: str) -> None:
        """Print a line above the bar.

        Raises:
            OSError: it cannot be written.
        """
        if self._display is not None:
            self._display.print(line)

    def _show(self, event: Event) -> None:
        match event:
            case Started(epochs=epochs, steps=length, history=history):
                self._epochs, self._length = epochs, length
                self._draw(f"epoch {len(history)}", "", None)
            case NetworksStarted(epochs=epochs, steps=length):
                self._networks, self._epochs, self._length = event, epochs, length
                self._draw_networks(0.0)
            case Stepped(epoch=epoch, step=step, loss=loss):
                done = self._share(epoch, step)
                said = f"loss {loss:.4f}  {event.examples_per_second:,.0f} examples/s"
                if self._networks.count:
                    self._draw_networks(done or 0.0, f"epoch {epoch}  {said}")
                else:
                    if done is None:
                        said = f"step {step}  {said}"
                    self._draw(f"epoch {epoch}", said, done)
            case EpochEnded(row=row):
                self._say_soon(row, event.is_last)
            case NetworkEnded(network=network):
                about = {"network": network.name}
                if network.error is not None:
                    self._say(about | {"error": str(network.error)})
                else:
                    self._say(about | (network.result or {}))

    def _share(self, epoch: int, step: int) -> float | None:
        """How much of a network's training is done; None where nobody knows how much there is."""
        shares = []
        if self._epochs and (self._length or self._epochs > 1):
            shares.append((epoch + step / (self._length or step + 1)) / self._epochs)
        if self._steps and (self._length or epoch == 0):
            shares.append((epoch * (self._length or 0) + step) / self._steps)
        return min(1.0, max(shares)) if shares else None

    def _draw_networks(self, done: float, said: str = "") -> None:
        """Draw the bar of a sweep, where so much of the networks at work is done."""
        now = self._networks
        together = len(now.names)
        if together > 1:
            said = f"{together} at once  {said}"
        whole = now.ended + together * done
        self._draw(f"{now.ended}/{now.count} networks", said, whole / now.count)

    def _draw(self, title: str, said: str, share: float | None) -> None:
        now = time.monotonic()
        if self._display is None or now - self._drawn < INTERVAL:
            return
        self._drawn = now
        if share is not None and said:
            if self._began is None:
                self._began = now, share
            since, before = self._began
            if share > before:
                left = (now - since) * (1 - share) / (share - before)
                said += f"  {datetime.timedelta(seconds=round(left))} left"
        self._display.draw(title, said, share)

    def _say_soon(self, row: Mapping[str, Any], at_once: bool) -> None:
        """Show a row, unless another one was shown a moment ago; then the last one of them."""
        if at_once or time.monotonic() - self._said >= INTERVAL:
            self._say(row)
        else:
            self._unsaid = row

    def _say(self, row: Mapping[str, Any]) -> None:
        self._unsaid = None
        self._said = time.monotonic()
        if self._says_rows and self._display is not None:
            self._display.say(row)

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Show nothing any more where that fails: the screen may be closed, or gone."""
        try:
            yield
        except (OSError, ValueError):
            self._display = None


class _Display(Protocol):
    """Where a bar is drawn."""

    def draw(self, title: str, said: str, share: float | None) -> None: ...

    def say(self, row: Mapping[str, Any]) -> None: ...

    def print(self, line: str) -> None: ...

    def stop(self) -> None: ...


class _Lines:
    """A file or a pipe: lines, and no bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def draw(self, title: str, said: str, share: float | None) -> None:
        pass

    def say(self, row: Mapping[str, Any]) -> None:
        self.print(line_of(row))

    def print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def stop(self) -> None:
        pass


class _Terminal:
    """A terminal, drawn on by rich, without a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        from rich import console, progress

        self._console = console.Console(file=stream, force_jupyter=False)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[said]}", markup=False),
            console=self._console,
            transient=True,
            auto_refresh=False,
            # What others print goes above the bar, where it is on the same screen.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        self._task = self._bar.add_task("", said="")

    def draw(self, title: str, said: str, share: float | None) -> None:
        total = None if share is None and said else 1.0
        self._bar.update(
            self._task, description=title, said=said, completed=share or 0.0, total=total
        )
        if not self._bar.live.is_started:
            self._bar.start()
            self._console.show_cursor()  # which nobody could do who is killed
        self._bar.refresh()

    def say(self, row: Mapping[str, Any]) -> None:
        self.print(line_of(row))

    def print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()


class _Notebook:
    """A cell of a notebook: a table that grows, and the bar below it."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._bar = ""
        self._handle: Any = None

    def draw(self, title: str, said: str, share: float | None) -> None:
        value = "" if share is None and said else f' value="{share or 0.0:.4f}"'
        self._bar = f'<div>{title} <progress max="1"{value}></progress> {said}</div>'
        self._display()

    def say(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self._display()

    def print(self, line: str) -> None:
        print(line)

    def stop(self) -> None:
        self._bar = ""
        if self._handle is not None:
            self._display()

    def _display(self) -> None:
        from IPython.display import display

        bundle = {
            "text/html": (html_table(self._rows) if self._rows else "") + self._bar,
            "text/plain": line_of(self._rows[-1]) if self._rows else "",
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal on which a bar can be drawn."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _is_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _is_looked_at() -> bool:
    # A process that another one started shares its terminal with others like it.
    is_first = multiprocessing.parent_process() is None
    return is_first and (_is_notebook() or is_terminal(sys.stderr))
