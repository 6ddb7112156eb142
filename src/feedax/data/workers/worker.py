"""A worker's end: what runs in the process that loads examples."""

import os
import queue
import sys
import threading
import time
from multiprocessing import connection, forkserver
from typing import Any

from torch._utils import ExceptionWrapper

from feedax.data.workers import forking
from feedax.data.workers.channel import DONE, Answer, Ready, Unfit, framed, unframed
from feedax.data.workers.ring import WorkerRing
from feedax.data.workers.travel import Cargo, dumps, in_one_line, loads, receive_classes, refuse

ring: WorkerRing | None = None
"""This process's ring, where it is a worker that has one."""


def run(cargo: Cargo, own: bytes, fds: list[int], environment: dict[str, str]) -> None:
    """Do a worker's work: torch's own loop, between our ends of its queues."""
    global ring
    os.environ.clear()
    os.environ.update(environment)
    # A dataset may bring JAX along, and a worker has no business on the trainer's accelerator.
    os.environ["JAX_PLATFORMS"] = "cpu"
    inherited: Any = forkserver.get_inherited_fds()
    socket_fd, ring_fd = (inherited[i] for i in fds)
    ring = WorkerRing(ring_fd)
    end = _End(socket_fd, ring)
    try:
        heavy = cargo._replace(fd=inherited[cargo.fd]).unpack(forking.held)
        target, args = loads(own, known=[*heavy, end, end, end])
        receive_classes()
    except Exception as error:
        end.send(Unfit(None, in_one_line(error)))
        return
    end.send(Ready(time.monotonic()))
    target(*args)


class _End:
    """The worker's end of its channel: torch's queues and its event in one.

    A thread takes in what the trainer sends, also while an example is being loaded: the trainer
    never waits for room in the socket, and its end is noticed at once.
    """

    def __init__(self, fd: int, ring: WorkerRing) -> None:
        self._connection = connection.Connection(fd)
        self._ring = ring
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_done = False
        threading.Thread(target=self._take_in, daemon=True, name="feedax-take-in").start()

    def _take_in(self) -> None:
        while True:
            try:
                data = self._connection.recv_bytes()
            except (EOFError, OSError):
                os._exit(1)  # the trainer is no more, and nobody else needs what we are doing
            if data == DONE:
                self._is_done = True
            else:
                self._arrived.put(data)

    def get(self, timeout: float | None = None) -> Any:
        while True:
            sent, rest = unframed(self._arrived.get(timeout=timeout))
            self._ring.free(sent.freed)
            try:
                return loads(rest)
            except Exception as error:
                self.send(Unfit(sent.number, in_one_line(error)))

    def put(self, message: Any) -> None:
        """Send `(batch number, batch)`: large arrays in the ring, or all by the socket."""
        number, batch = message
        try:
            answer, pickled = self._packed(number, batch)
        except Exception as error:
            self._ring.clear()
            try:
                raise refuse(getattr(batch, "batch", batch), "the batch", error) from error
            except Exception:
                failure = ExceptionWrapper(where="where a worker pickles a batch")
            answer, pickled = self._packed(number, failure)
        self.send(answer, pickled)

    def _packed(self, number: Any, batch: Any) -> tuple[Answer, bytes]:
        large: list[Any] = []
        has_jax = "jax" in sys.modules
        pickled = dumps(batch, large)
        placed = self._ring.place([buffer.raw() for buffer in large]) if large else None
        if placed is not None:
            return Answer(number, *placed, has_jax), pickled
        self._ring.clear()
        return Answer(number, None, [], has_jax), dumps(batch) if large else pickled

    def send(self, header: Any, rest: bytes = b"") -> None:
        message = framed(header, rest)
        try:
            self._connection.send_bytes(message)
        except OSError:
            os._exit(1)  # the trainer is no more; see _take_in

    def is_set(self) -> bool:
        return self._is_done

    def cancel_join_thread(self) -> None:
        """torch says so to a queue's feeder thread; there is none."""

    def close(self) -> None:
        """The process ends next."""
