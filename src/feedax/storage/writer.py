"""A thread that writes files while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Writer:
    """Writes one thing after another in a thread of its own.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Wait for the write before this one, and begin with this one.

        Raises:
            Exception: what went wrong with the one before.
        """
        self.wait()
        self._pending = self._thread.submit(write, *arguments)

    def look(self) -> None:
        """Raise what went wrong with the last write, if that is known."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last write, and raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> BaseException | None:
        """End the thread with its last write; what went wrong with that, if nobody has asked."""
        self._thread.shutdown()
        return None if self._pending is None else self._pending.exception()
