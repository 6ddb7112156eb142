"""Ctrl-C and SIGTERM end a run in good order."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from feedax.train.events import EpochEnded, Event, Started, Stepped, StopTraining

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
ONE_PRESS_SECONDS = 0.5
"""Signals this close are one: `timeout` and `make` hand on what a terminal has sent already."""


class StopRequest:
    """Turns the first signal into a request that the next event grants; the second one acts.

    A context manager, for the time of training and saving, and a callback of `fit`.

    Attributes:
        by: what asked to stop, in words, or None.
        exit_code: of a process that stops for it.
        stopped_at: where training stopped, in words, or None if it did not.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self.exit_code = 0
        self.stopped_at: str | None = None
        self._epochs = 0
        self._asked: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in NAMES:
            # A process started in the background ignores Ctrl-C, and goes on doing so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self, event: Event) -> None:
        match event:
            case Started(epochs=epochs):
                self._epochs = epochs
            case Stepped(epoch=epoch, step=step) if self.by:
                self.stopped_at = f"in epoch {epoch} after {step} steps"
                raise StopTraining
            # After the last epoch there is nothing left to stop.
            case EpochEnded(epoch=epoch) if self.by and epoch + 1 < self._epochs:
                self.stopped_at = f"after epoch {epoch}"
                raise StopTraining

    def ask(self, by: str, exit_code: int) -> None:
        """Ask training to stop at the next event."""
        self.by, self.exit_code = by, exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            self.ask(NAMES[signal.Signals(number)], 128 + number)
        elif now - self._asked >= ONE_PRESS_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
