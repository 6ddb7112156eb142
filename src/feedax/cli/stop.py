"""Ctrl-C and SIGTERM end a run in good order."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from feedax.train.events import EpochEnded, Event, Stepped, Stopped, StopTraining

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
ONE_PRESS_SECONDS = 0.5
"""Signals this close are one: `timeout` and `make` hand on what a terminal has sent already."""


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
        self._heard = [signal.SIGINT] if preemptible else list(NAMES)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in self._heard:
            # A process started in the background ignores Ctrl-C, and still does.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped() if self.by:
                raise StopTraining
            # After the last epoch there is nothing left to stop.
            case EpochEnded(is_last=False) if self.by:
                raise StopTraining
            case Stopped(epoch=epoch, step=step, preempted=preempted):
                if preempted:
                    self.ask(NAMES[signal.SIGTERM], 128 + signal.SIGTERM)
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
            self.ask(NAMES[signal.Signals(number)], 128 + number)
        elif now - self._asked >= ONE_PRESS_SECONDS:
            self._restore()
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # workers and the terminal are left in good order
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
