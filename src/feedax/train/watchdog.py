"""All processes that train together end when one fails.

JAX ends every process when one dies or stops (`docs/training.md` has the measurements), but it does
not tell them why one failed. So that one writes the reason into JAX's key-value store, where a
thread in each of the other processes looks for it.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from types import TracebackType

import jax

from feedax.errors import FeedaxError, ProcessError
from feedax.train import processes

LOGGER = logging.getLogger("feedax")
LOOK_SECONDS = 0.25
"""Between two looks into the key-value store."""
GRACE_SECONDS = 2.0
"""When one process has failed, others may be about to fail by themselves, for the same reason."""


class Watchdog:
    """A context manager around what several processes do together.

    Leaving it waits for the other processes; leaving it by an exception ends them, with the reason.
    With one process it does nothing. Enter it right after `feedax.train.processes.join`.
    """

    _entered = 0
    _ending = threading.Lock()

    def __init__(self) -> None:
        self._left = threading.Event()
        self._key = ""

    def __enter__(self) -> None:
        if processes.count() == 1:
            return
        Watchdog._entered += 1
        self._key = f"watchdog/{Watchdog._entered}"
        if not self._meet("entered", processes.JOIN_SECONDS):
            raise ProcessError(
                "processes: at least one process has not started to train within "
                f"{processes.JOIN_SECONDS} s; see its output"
            )
        threading.Thread(target=self._watch, name="feedax watchdog", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if processes.count() == 1:
            return
        try:
            if error is None:
                self._meet("left")
        except BaseException as interrupted:
            self._fail(interrupted)
            raise
        if error is not None:
            self._fail(error)
        self._left.set()

    def _meet(self, where: str, seconds: float = float("inf")) -> bool:
        """Wait for the other processes; whether they came. A barrier that Ctrl-C interrupts."""
        until = time.monotonic() + seconds
        processes.publish(f"{self._key}/{where}/{processes.index()}", "")
        while len(processes.published(f"{self._key}/{where}")) < processes.count():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _fail(self, error: BaseException) -> None:
        """Tell the other processes why this one fails."""
        failure = f"process {processes.index()} failed: {_in_one_line(error)}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails when another process does: then JAX, or the thread, ends this one.
            seconds = processes.HEARTBEAT_SECONDS + 5
            LOGGER.warning(
                f"processes: {failure}; waiting up to {seconds} s to learn whether another process "
                "is the reason"
            )
            time.sleep(seconds)
        self._left.set()
        processes.publish(f"{self._key}/failed/{processes.index()}", failure)
        # Before JAX's own end, which first waits for computations that need the other processes.
        atexit.register(jax.distributed.shutdown)

    def _watch(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            failures = processes.published(f"{self._key}/failed")
            # The lock: `fit` has a watchdog inside that of the command.
            if failures and not self._left.wait(GRACE_SECONDS) and Watchdog._ending.acquire(False):
                os.write(2, f"feedax: {failures[0]}\n".encode())
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stdout.flush()
                try:
                    # Waits for all processes, the failed one too: JAX aborts whom another leaves.
                    jax.distributed.shutdown()
                finally:
                    os._exit(1)  # the main thread may wait in a collective for ever


def _in_one_line(error: BaseException) -> str:
    match error:
        case FeedaxError():
            return " ".join(str(error).split())
        case KeyboardInterrupt():
            return "it was stopped by Ctrl-C"
        case SystemExit():
            return f"it ended with exit code {error.code or 0}"
        case _:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
