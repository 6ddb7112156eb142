"""A watch over the processes that train together, and what they decide together.

A collective waits for ever for a process that does not come, and JAX needs minutes to notice. So
every process has a thread that hears from the others: each client is connected to process 0, which
passes on what it hears. It works while the main thread computes, compiles, loads or hangs.
"""

import atexit
import json
import os
import queue
import selectors
import sys
import threading
import time
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from feedax.errors import FeedaxError, ProcessError
from feedax.train import processes
from feedax.train.links import SENTENCE, Frame, Link, connect

BEAT_SECONDS = 2.0
"""Between two signs of life."""
SILENCE_SECONDS = 15.0
"""A process that gives no sign of life for so long is given up."""
GRACE_SECONDS = 2.0
"""When one process has failed, others may be about to end by themselves, of the same cause."""
LINGER_SECONDS = 10.0
"""Process 0 ends last, as JAX aborts the others when it does; it waits for them no longer."""


class Peers:
    """All processes end when one does: a context manager around what they do together.

    Leaving it waits for the others; leaving it by an exception ends them with a sentence. With one
    process it does nothing. Enter it right after `feedax.train.processes.join`.

    Args:
        beat: seconds between two signs of life.
        silence: seconds without one after which a process is given up.
        timeout: seconds to wait for the others at the beginning.

    Attributes:
        index: which process this is, from 0.
        count: how many they are.

    >>> with Peers() as peers:
    ...     peers.broadcast({"chunk": 8}), peers.any_process(False)
    ({'chunk': 8}, False)
    """

    _entered = 0
    _ending = threading.Lock()

    def __init__(
        self,
        beat: float = BEAT_SECONDS,
        silence: float = SILENCE_SECONDS,
        timeout: float = processes.JOIN_SECONDS,
    ) -> None:
        self.index, self.count = processes.index(), processes.count()
        self._beat, self._silence, self._timeout = beat, silence, timeout
        self._links: dict[int, Link] = {}
        self._values: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._flags: dict[int, queue.SimpleQueue[bool]] = {}
        self._done: set[int] = set()
        self._all_done = threading.Event()
        self._over = threading.Event()
        self._told = threading.Event()
        self._sentence, self._end_at = "", 0.0
        self._failing = False
        self._calls = 0

    def __enter__(self) -> "Peers":
        if self.count > 1:
            Peers._entered += 1
            key = f"peers/{Peers._entered}"
            self._links = connect(key, self.index, self.count, self._timeout)
            self._flags = {peer: queue.SimpleQueue() for peer in self._links}
            threading.Thread(target=self._watch, name="feedax peers", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.count == 1:
            return
        if error is not None:
            self._fail(error)
            return
        try:
            self._wait_for_the_others()
        except BaseException as interrupted:
            self._fail(interrupted)
            raise

    def _wait_for_the_others(self) -> None:
        if self.index == 0:
            self._all_done.wait()
            self._tell(Frame.OVER)
            self._over.set()
        else:
            self._send(self._links[0], Frame.DONE)
            self._over.wait()

    def broadcast(self, value: Any) -> Any:
        """Process 0's value, to all; a few numbers or words, such as JSON has."""
        if self.count == 1:
            return value
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def broadcast_bytes(self, content: bytes) -> bytes:
        """Process 0's bytes, to all; hundreds of megabytes too."""
        if self.count == 1:
            return content
        if self.index:
            return self._values.get()
        for link in self._links.values():
            self._send(link, Frame.VALUE, content)
        return content

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so, the same on all of them. All must ask."""
        if self.index:
            self._send(self._links[0], Frame.FLAG, bytes([flag]))
        flags = [flag, *(said.get() for said in self._flags.values())] if self.index == 0 else []
        return bool(self.broadcast(any(flags)))

    def reached_preemption(self) -> bool:
        """Whether one of several processes got SIGTERM, and all stop here: JAX's preemption sync.

        All must ask equally often; the answer is True at the same call on all of them. Python must
        not have a handler of its own for SIGTERM.
        """
        self._calls += 1
        return self.count > 1 and bool(multihost_utils.reached_preemption_sync_point(self._calls))

    def _send(self, link: Link, kind: Frame, body: bytes = b"") -> None:
        try:
            link.send(kind, body)
        except OSError as error:
            self._leave_it_to_the_watch()
            raise ProcessError("processes: the connection to another one is lost") from error

    def _tell(self, kind: Frame, sentence: str = "", but: int | None = None) -> None:
        for peer, link in self._links.items():
            if peer != but:
                link.try_to_send(kind, sentence.encode()[:SENTENCE], seconds=1.0)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails when another process does, and that is the one to name.
            self._leave_it_to_the_watch()
        self._failing = True
        self._tell(Frame.FAILED, f"process {self.index} failed: {_in_one_line(error)}")
        atexit.register(self._end_by_itself)

    def _leave_it_to_the_watch(self) -> None:
        """Stay here if the watch is about to end this process."""
        if self._told.wait(GRACE_SECONDS):
            time.sleep(GRACE_SECONDS + LINGER_SECONDS)

    def _end_by_itself(self) -> None:
        until = time.monotonic() + LINGER_SECONDS
        while self.index == 0 and self._awaits_others(until):
            time.sleep(0.05)
        processes.abandon()

    def _awaits_others(self, until: float) -> bool:
        now = time.monotonic()
        return now < until and any(
            link.open and now - link.heard < 3 * self._beat for link in self._links.values()
        )

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, peer)
            turned = beaten = time.monotonic()
            while not self._over.is_set():
                self._turn(selector)
                now = time.monotonic()
                if now - turned > 2 * self._beat:
                    # This process itself stood still: that says nothing about the others.
                    for link in self._links.values():
                        link.heard = max(link.heard, now)
                turned = now
                if now - beaten >= self._beat:
                    beaten = now
                    for link in self._links.values():
                        link.try_to_send(Frame.BEAT)
                # Whoever is done may be gone.
                if not (self._failing or self._all_done.is_set() or self._over.is_set()):
                    self._judge(now, selector)
        for link in self._links.values():
            link.close()

    def _turn(self, selector: selectors.BaseSelector) -> None:
        """Hear what there is to hear, for half a beat at most."""
        if not selector.get_map():
            time.sleep(self._beat / 2)
        for key, _ in selector.select(self._beat / 2):
            link, peer = key.fileobj, key.data
            assert isinstance(link, Link)
            for kind, body in link.receive():
                self._hear(peer, kind, body)
            if not link.open:
                selector.unregister(link)

    def _hear(self, peer: int, kind: Frame, body: bytes) -> None:
        match kind:
            case Frame.VALUE:
                self._values.put(body)
            case Frame.FLAG:
                self._flags[peer].put(body != b"\0")
            case Frame.DONE:
                self._done.add(peer)
                if len(self._done) == len(self._links):
                    self._all_done.set()
            case Frame.OVER:
                self._over.set()
            case Frame.FAILED | Frame.LOST if not self._told.is_set():
                self._sentence = body.decode(errors="replace")
                self._end_at = time.monotonic() + GRACE_SECONDS * (kind == Frame.FAILED)
                self._told.set()
                if self.index == 0:
                    self._tell(kind, self._sentence, but=peer)

    def _judge(self, now: float, selector: selectors.BaseSelector) -> None:
        if self._told.is_set():
            if now >= self._end_at:
                self._end(self._sentence, selector)
            return
        for peer, link in self._links.items():
            if not link.open:
                sentence = f"process {peer} has died without a word"
            elif now - link.heard > self._silence:
                sentence = f"process {peer} has given no sign of life for {self._silence:g} s"
            else:
                continue
            self._end(sentence, selector, lost=True)

    def _end(self, sentence: str, selector: selectors.BaseSelector, lost: bool = False) -> None:
        """End this process, whatever its main thread waits for."""
        # One sentence, where a run inside a command has a watch of its own.
        if not Peers._ending.acquire(blocking=False):
            return
        # First of all: JAX aborts this process milliseconds after process 0 has died.
        os.write(2, f"feedax: {sentence}\n".encode())
        if lost:
            # The lost one too: it may only be stopped, and go on.
            self._tell(Frame.LOST, sentence)
        # Whoever should read the output may be stopped as well.
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(1.0)
        until = time.monotonic() + LINGER_SECONDS
        while self.index == 0 and self._awaits_others(until):
            self._turn(selector)
        os._exit(1)


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
