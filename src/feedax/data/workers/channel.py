"""Both ends of what ties a worker to the trainer: one socket, and slots of shared memory.

They have the shape of the queues and of the event that torch expects: in the trainer a `Channel`
for each worker and one `TrainerEnd` over all of them, in a worker a `WorkerEnd`.
"""

import contextlib
import io
import os
import pickle
import queue
import socket
import sys
import threading
import time
import weakref
from multiprocessing import connection
from typing import Any, NamedTuple

from torch._utils import ExceptionWrapper

from feedax.data.workers.pickling import dumps, in_one_line, loads, refuse, refuse_arrived, unfit
from feedax.data.workers.slots import Slot, TrainerSlots, WorkerSlots
from feedax.errors import WorkerError

DONE = b"done"
"""Tells a worker to skip the tasks that it still has: nobody waits for them."""

_TASK = "what the sampler yields"


class Ready(NamedTuple):
    """A worker can begin, since this `time.monotonic()`."""

    since: float


class TaskHeader(NamedTuple):
    """Precedes a task, or another message of torch's, which has no batch number."""

    number: int | None
    freed: list[Slot]  # that may be filled again


class Unreadable(NamedTuple):
    """A worker cannot unpickle a task, or what all workers get, which has no batch number."""

    number: int | None
    failure: str


class BatchHeader(NamedTuple):
    """Precedes a batch. Its large arrays may lie in a slot, each from start to stop, in bytes."""

    number: Any
    slot: Slot | None
    places: list[tuple[int, int]]
    has_jax: bool


def framed(header: NamedTuple, rest: bytes) -> bytes:
    """A message: a header for us, then a pickle for torch."""
    return pickle.dumps(header) + rest


def unframed(message: bytes) -> tuple[Any, memoryview]:
    file = io.BytesIO(message)
    header = pickle.load(file)
    return header, memoryview(message)[file.tell() :]


def _wrapped(error: WorkerError) -> ExceptionWrapper:
    return ExceptionWrapper((type(error), error, None), "in the trainer")


class Refused(Exception):
    """A worker cannot unpickle what all workers get."""


class Gone(Exception):
    """A worker closed its end although there was work for it."""


class _Queue:
    """What torch asks of a queue at its end; ours have no feeder thread."""

    def cancel_join_thread(self) -> None:
        pass

    def close(self) -> None:
        pass


class Channel(_Queue):
    """One worker: what torch takes for its queue of indices, and the results that come back.

    Attributes:
        worker_id: 0 to the number of workers - 1.
        tasks: what the worker was given and has not answered, oldest first, by batch number.
        ready_since: when it could begin, by `time.monotonic`, once it has said so.
        is_open: whether more can come from it.
        has_jax: whether its dataset has brought JAX along.
    """

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.tasks: dict[int, Any] = {}
        self.ready_since: float | None = None
        self.is_open = True
        self.has_jax = False
        self.slots = TrainerSlots()
        self._may_end = False
        ours, theirs = socket.socketpair()
        self._connection = connection.Connection(ours.detach())
        self._theirs = connection.Connection(theirs.detach())
        _channels.add(self)

    def worker_fds(self) -> list[int]:
        return [self._theirs.fileno(), self.slots.fd]

    def started(self) -> None:
        """Close the trainer's copy of the worker's end."""
        self._theirs.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def put(self, message: Any) -> None:
        """Send a task `(batch number, indices)`, or another message of torch's, to the worker."""
        number, task = message if isinstance(message, tuple) else (None, None)
        self._may_end = self._may_end or message is None
        try:
            data = dumps(message)
        except Exception as error:
            raise refuse({_TASK: message}, error) from error
        if number is not None:
            self.tasks[number] = task
        self.send(framed(TaskHeader(number, self.slots.freed()), data))

    def send(self, data: bytes) -> None:
        # `receive` finds out that a worker is gone; a forked copy of the trainer has none.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(data)

    def receive(self) -> Any:
        """The next `(batch number, batch)`, or None for another message of the worker's."""
        try:
            header, rest = unframed(self._connection.recv_bytes())
        except (EOFError, OSError):
            self.is_open = False
            if self._may_end:
                return None
            raise Gone(self.worker_id) from None
        if isinstance(header, Ready):
            self.ready_since = header.since
            return None
        task = self.tasks.pop(header.number, None)
        if isinstance(header, Unreadable):
            if header.number is None:
                raise Refused(header.failure)
            sampled = {_TASK: getattr(task, "indices", task)}
            return header.number, _wrapped(refuse_arrived(sampled, header.failure))
        self.has_jax = header.has_jax
        buffers = self.slots.views(header.slot, header.places) if header.slot else ()
        try:
            return header.number, loads(rest, buffers)
        except Exception as error:
            # Raised where this batch is asked for, like an error in the worker.
            batch = f"a batch of worker {self.worker_id}"
            return header.number, _wrapped(unfit("the trainer", batch, in_one_line(error)))

    def close(self) -> None:
        self.is_open = False
        self._connection.close()


_channels: "weakref.WeakSet[Channel]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked copy of the trainer: close its sockets, or workers would not notice its end."""
    for channel in list(_channels):
        channel.close()


os.register_at_fork(after_in_child=_leave_to_parent)


class TrainerEnd(_Queue):
    """torch's queue of results, from any worker, and its event, for all of them."""

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        self._is_set = False

    def get(self, timeout: float | None = None) -> Any:
        """The next `(batch number, batch)`, or `queue.Empty` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            still_open: Any = [channel for channel in self._channels if channel.is_open]
            ready: Any = connection.wait(still_open, left)
            if not ready:
                raise queue.Empty
            message = ready[0].receive()
            if message is not None:
                return message

    def set(self) -> None:
        """The iterator is no longer wanted."""
        self._is_set = True
        for channel in self._channels:
            channel.send(DONE)

    def is_set(self) -> bool:
        return self._is_set


class WorkerEnd(_Queue):
    """The worker's end of its channel: torch's queues and its event in one.

    A thread receives what the trainer sends, even while an example is loaded: the trainer never
    waits for room in the socket, and the worker notices at once when it ends.
    """

    def __init__(self, fd: int, slots: WorkerSlots) -> None:
        self._connection = connection.Connection(fd)
        self._slots = slots
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_done = False
        threading.Thread(target=self._receive_ahead, daemon=True, name="feedax-receive").start()

    def _receive_ahead(self) -> None:
        while True:
            try:
                data = self._connection.recv_bytes()
            except (EOFError, OSError):
                os._exit(1)  # the trainer has ended: nobody needs the batches
            if data == DONE:
                self._is_done = True
            else:
                self._arrived.put(data)

    def get(self, timeout: float | None = None) -> Any:
        while True:
            sent, rest = unframed(self._arrived.get(timeout=timeout))
            self._slots.free(sent.freed)
            try:
                return loads(rest)
            except Exception as error:
                self.send(Unreadable(sent.number, in_one_line(error)))

    def put(self, message: Any) -> None:
        """Send `(batch number, batch)`: large arrays in a slot, or all by the socket."""
        number, batch = message
        try:
            answer, pickled = self._packed(number, batch)
        except Exception as error:
            self._slots.clear()
            try:
                raise refuse({"the batch": getattr(batch, "batch", batch)}, error) from error
            except Exception:
                failure = ExceptionWrapper(where="where a worker pickles a batch")
            answer, pickled = self._packed(number, failure)
        self.send(answer, pickled)

    def _packed(self, number: Any, batch: Any) -> tuple[BatchHeader, bytes]:
        large: list[Any] = []
        has_jax = "jax" in sys.modules
        pickled = dumps(batch, large)
        placed = self._slots.place([buffer.raw() for buffer in large]) if large else None
        if placed is not None:
            return BatchHeader(number, *placed, has_jax), pickled
        self._slots.clear()
        return BatchHeader(number, None, [], has_jax), dumps(batch) if large else pickled

    def send(self, header: Any, rest: bytes = b"") -> None:
        message = framed(header, rest)
        try:
            self._connection.send_bytes(message)
        except OSError:
            os._exit(1)  # see _receive_ahead

    def is_set(self) -> bool:
        return self._is_done
