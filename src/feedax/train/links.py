"""Connections between process 0 and every other one, and the frames that they carry."""

import enum
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import jax

from feedax.errors import ProcessError
from feedax.train import processes

HEADER = struct.Struct(">BQ")
PIECE = 1 << 20
"""Bytes sent or received in one call."""


class Frame(enum.IntEnum):
    """What a frame says."""

    BEAT = 0
    FAILED = 1
    """A process failed, and ends by itself: the sentence."""
    LOST = 2
    """A process has died or stands still: the sentence."""
    VALUE = 3
    FLAG = 4
    DONE = 5
    OVER = 6


class Link:
    """One end of a connection; any thread sends, one receives.

    Args:
        connection: a connected socket.

    Attributes:
        heard: the `time.monotonic` of the last byte that came.
        open: whether the other end has not closed yet.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self.heard = time.monotonic()
        self.open = True
        self._socket = connection
        self._sending = threading.Lock()
        self._header = bytearray()
        self._kind = Frame.BEAT
        self._body: bytearray | None = None
        self._filled = 0

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, kind: Frame, body: bytes = b"") -> None:
        """Send one frame, however long that takes.

        Raises:
            OSError: the other end is gone.
        """
        with self._sending:
            self._socket.sendall(HEADER.pack(kind, len(body)))
            view = memoryview(body)
            for start in range(0, len(view), PIECE):
                self._socket.sendall(view[start : start + PIECE])

    def try_to_send(self, kind: Frame, body: bytes = b"", seconds: float = 0.0) -> None:
        """Send a short frame, unless that takes longer: the other end may be gone or stopped."""
        if self._sending.acquire(timeout=seconds):
            try:
                # A stopped process empties its buffer no more.
                if select.select([], [self._socket], [], seconds)[1]:
                    self._socket.send(HEADER.pack(kind, len(body)) + body, socket.MSG_DONTWAIT)
            except (OSError, ValueError):
                pass  # who receives will see that it is gone
            finally:
                self._sending.release()

    def receive(self) -> Iterator[tuple[Frame, bytes]]:
        """The frames that are complete after one reading; for a socket that is ready."""
        try:
            if self._body is None:
                self._header += self._read(HEADER.size - len(self._header))
                if len(self._header) < HEADER.size:
                    return
                kind, size = HEADER.unpack(self._header)
                self._kind, self._body, self._filled = Frame(kind), bytearray(size), 0
                self._header.clear()
            while self._filled < len(self._body):
                into = memoryview(self._body)[self._filled : self._filled + PIECE]
                count = self._socket.recv_into(into, 0, socket.MSG_DONTWAIT)
                self._hear(count)
                if not count:
                    return
                self._filled += count
            body, self._body = bytes(self._body), None
            yield self._kind, body
        except BlockingIOError:
            pass  # the rest is on its way
        except (OSError, ValueError):
            self.open = False

    def _read(self, count: int) -> bytes:
        data = self._socket.recv(count, socket.MSG_DONTWAIT)
        self._hear(len(data))
        return data

    def _hear(self, count: int) -> None:
        self.open = count > 0
        self.heard = time.monotonic()


def connect(key: str, index: int, count: int, timeout: float) -> dict[int, Link]:
    """A link to each client, or a client's to process 0.

    Args:
        key: of this group of links; all give the same, and never twice.
        index: which process this is.
        count: how many they are.
        timeout: seconds to wait for the others.

    Raises:
        ProcessError: they are not connected within that time.
    """
    until = time.monotonic() + timeout
    try:
        if index == 0:
            return _accept(key, count, until)
        port, token = processes.published(key, timeout).split()
        left = max(1.0, until - time.monotonic())
        connection = socket.create_connection((processes.coordinator_host(), int(port)), left)
        connection.sendall(f"{token} {index:8}".encode())
        return {0: Link(connection)}
    except (OSError, jax.errors.JaxRuntimeError) as error:
        raise ProcessError(
            f"processes: all must be connected to process 0 within {timeout:g} s, and process "
            f"{index} is not ({' '.join(str(error).split())[:200]}); open the ports between them"
        ) from error


def _accept(key: str, count: int, until: float) -> dict[int, Link]:
    # Whoever knows the token has it from JAX's own service.
    token = secrets.token_hex(16)
    both = socket.has_dualstack_ipv6()
    with socket.create_server(
        ("", 0),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
        backlog=count,
    ) as server:
        processes.publish(key, f"{server.getsockname()[1]} {token}")
        links: dict[int, Link] = {}
        while len(links) < count - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            connection, _ = server.accept()
            connection.settimeout(5.0)
            said = connection.recv(len(token) + 9, socket.MSG_WAITALL).decode(errors="replace")
            if said[: len(token)] == token and said[len(token) :].strip().isdecimal():
                links[int(said[len(token) :])] = Link(connection)
            else:
                connection.close()
    return links
