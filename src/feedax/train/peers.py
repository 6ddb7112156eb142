"""What the processes that train together decide together, and how all of them end when one fails.

JAX ends every process when one dies or stops (`docs/training.md` has the measurements). It does not
tell the other processes why one failed. So that one writes the reason into JAX's key-value store,
where each of them has a thread that looks.
"""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from feedax.errors import FeedaxError, ProcessError
from feedax.train import processes

LOGGER = logging.getLogger("feedax")
LOOK_SECONDS = 0.25
"""Between two looks into the key-value store."""
GRACE_SECONDS = 2.0
"""When one process has failed, others may be about to fail by themselves, for the same reason."""
HEAD, PIECE = 1 << 10, 1 << 22
"""How many bytes `broadcast_bytes` sends at once: first these few, then the rest."""


class Peers:
    """All processes end when one does: a context manager around what they do together.

    Leaving it waits for the other processes; leaving it by an exception ends them, with the reason.
    With one process it does nothing. Enter it right after `feedax.train.processes.join`.

    Args:
        timeout: seconds to wait for the other processes at the beginning.

    Attributes:
        index: which process this is, from 0.
        count: how many they are.

    >>> with Peers() as peers:
    ...     peers.broadcast({"chunk": 8}), peers.any_process(False)
    ({'chunk': 8}, False)
    """

    _entered = 0
    _ending = threading.Lock()

    def __init__(self, timeout: float = processes.JOIN_SECONDS) -> None:
        self.index, self.count = processes.index(), processes.count()
        self._timeout = timeout
        self._left = threading.Event()
        self._key = ""
        self._calls = 0

    def __enter__(self) -> "Peers":
        if self.count > 1:
            Peers._entered += 1
            self._key = f"peers/{Peers._entered}"
            if not self._meet("entered", self._timeout):
                raise ProcessError(
                    f"processes: all must get here within {self._timeout:g} s, and at least one "
                    "has not; see what it says"
                )
            threading.Thread(target=self._watch, name="feedax watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.count == 1:
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

    def broadcast(self, value: Any) -> Any:
        """Process 0's value, to all; a few numbers or words, such as JSON has."""
        if self.count == 1:
            return value
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def broadcast_bytes(self, content: bytes) -> bytes:
        """Process 0's bytes, to all; hundreds of megabytes too."""
        if self.count == 1:
            return content
        head = _broadcast(len(content).to_bytes(8, "big") + content[:HEAD], 8 + HEAD)
        size = int.from_bytes(head[:8], "big")
        rest = [_broadcast(content[at : at + PIECE], PIECE) for at in range(HEAD, size, PIECE)]
        return b"".join([head[8:], *rest])[:size]

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so, the same on all of them. All must ask."""
        return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))

    def reached_preemption(self) -> bool:
        """Whether one of several processes got SIGTERM, and all stop here: JAX's preemption sync.

        All must ask equally often; the answer is True at the same call on all of them. Python must
        not have a handler of its own for SIGTERM.
        """
        self._calls += 1
        return self.count > 1 and bool(multihost_utils.reached_preemption_sync_point(self._calls))

    def _meet(self, where: str, seconds: float = float("inf")) -> bool:
        """Wait for the other processes, and whether they came; Ctrl-C interrupts it."""
        until = time.monotonic() + seconds
        processes.publish(f"{self._key}/{where}/{self.index}", "")
        while len(processes.published(f"{self._key}/{where}")) < self.count:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _fail(self, error: BaseException) -> None:
        """Tell the other processes why this one fails."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails when another process does: then JAX, or the watch, ends this one.
            seconds = processes.HEARTBEAT_SECONDS + 5
            LOGGER.warning(
                f"processes: process {self.index} has failed ({_in_one_line(error)}); waiting up "
                f"to {seconds} s to learn whether another process is the reason"
            )
            time.sleep(seconds)
        self._left.set()
        processes.publish(
            f"{self._key}/failed/{self.index}",
            f"process {self.index} failed: {_in_one_line(error)}",
        )
        # Before JAX's own end, which first waits for computations that need the other processes.
        atexit.register(jax.distributed.shutdown)

    def _watch(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            failed = processes.published(f"{self._key}/failed")
            # The lock: a run inside a command has a watch of its own.
            if failed and not self._left.wait(GRACE_SECONDS) and Peers._ending.acquire(False):
                os.write(2, f"feedax: {failed[0]}\n".encode())
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stdout.flush()
                try:
                    # All wait there, the failed one too: JAX aborts those whom another leaves.
                    jax.distributed.shutdown()
                finally:
                    os._exit(1)  # the main thread may wait for ever in a collective


def _broadcast(content: bytes, size: int) -> bytes:
    array = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(array))


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
