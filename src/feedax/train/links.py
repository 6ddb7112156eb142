"""Connections between process 0 and every other one, and the frames that they carry."""

import contextlib
import enum
import ipaddress
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait

import jax

from feedax.errors import ProcessError
from feedax.train import processes

HEADER = struct.Struct(">BQ")
PIECE = 1 << 20
"""Bytes sent or received in one call."""
SENTENCE = 1 << 16
"""The most bytes of a sentence."""
GREETING_SECONDS = 5.0
"""Who connects to process 0 must have said within this time who it is."""
STRANGERS = 256
"""The most connections of whom nothing is known yet."""


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


FROM_CLIENTS = {Frame.BEAT: 0, Frame.FAILED: SENTENCE, Frame.LOST: SENTENCE, Frame.FLAG: 1,
                Frame.DONE: 0}  # fmt: skip
"""What process 0 hears, and how long it may be, in bytes."""
FROM_PROCESS_0 = FROM_CLIENTS | {Frame.VALUE: 1 << 48, Frame.OVER: 0}


class Link:
    """One end of a connection; any thread sends, one receives.

    Args:
        connection: a connected socket.
        limits: the kinds of frames that may come, and their most bytes.

    Attributes:
        heard: the `time.monotonic` of the last byte that came.
        open: whether the other end has not closed yet.
    """

    def __init__(self, connection: socket.socket, limits: dict[Frame, int]) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self.heard = time.monotonic()
        self.open = True
        self._socket = connection
        self._limits = limits
        self._sending = threading.Lock()
        self._header = bytearray()
        self._kind = Frame.BEAT
        self._size: int | None = None
        self._body = bytearray()

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
            if self._size is None:
                self._header += self._read(HEADER.size - len(self._header))
                if len(self._header) < HEADER.size:
                    return
                kind, size = HEADER.unpack(self._header)
                if size > self._limits.get(kind, -1):
                    raise ValueError("no frame of ours")
                self._kind, self._size = Frame(kind), size
                self._header.clear()
            while len(self._body) < self._size:  # what is announced alone takes no memory
                self._body += (piece := self._read(min(PIECE, self._size - len(self._body))))
                if not piece:
                    return
            body, self._body, self._size = bytes(self._body), bytearray(), None
            yield self._kind, body
        except BlockingIOError:
            pass  # the rest is on its way
        except (OSError, ValueError):
            self.open = False

    def _read(self, count: int) -> bytes:
        data = self._socket.recv(count, socket.MSG_DONTWAIT)
        self.open = len(data) > 0
        self.heard = time.monotonic()
        return data


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
        return {0: Link(connection, FROM_PROCESS_0)}
    except (OSError, jax.errors.JaxRuntimeError) as error:
        raise ProcessError(
            f"processes: all must be connected to process 0 within {timeout:g} s, and process "
            f"{index} is not ({' '.join(str(error).split())[:200]}); open the ports between them"
        ) from error


def _accept(key: str, count: int, until: float) -> dict[int, Link]:
    # Whoever knows the token has it from JAX's own service.
    token = secrets.token_hex(16)
    links: dict[int, Link] = {}
    greetings: dict[socket.socket, bytearray] = {}
    began: dict[socket.socket, float] = {}
    with _listening() as server:
        server.setblocking(False)
        processes.publish(key, f"{server.getsockname()[1]} {token}")
        try:
            while len(links) < count - 1:
                now = time.monotonic()
                if now > until:
                    raise TimeoutError("timed out")
                for one in wait([server, *greetings], min(until - now, 1.0)):
                    assert isinstance(one, socket.socket)
                    if one is server:
                        with contextlib.suppress(OSError):
                            came, _ = server.accept()
                            came.setblocking(False)
                            greetings[came], began[came] = bytearray(), now
                        continue
                    said, size = greetings[one], len(token) + 9
                    piece = b""
                    with contextlib.suppress(OSError):
                        piece = one.recv(size - len(said))
                    said += piece
                    if piece and len(said) < size:
                        continue
                    del greetings[one]
                    who = _who(bytes(said), token, count)
                    if who is None or who in links:
                        one.close()
                    else:
                        links[who] = Link(one, FROM_CLIENTS)
                late = [x for x in greetings if now - began[x] > GREETING_SECONDS]
                for stranger in late or list(greetings)[: max(0, len(greetings) - STRANGERS)]:
                    del greetings[stranger]
                    stranger.close()
        finally:
            for stranger in greetings:
                stranger.close()
    return links


def _who(said: bytes, token: str, count: int) -> int | None:
    """The process that a greeting is from, if it is one's."""
    index = said[len(token) :].strip()
    if not secrets.compare_digest(said[: len(token)], token.encode()) or not index.isdigit():
        return None
    return int(index) if 0 < int(index) < count else None


def _listening() -> socket.socket:
    """A server at the coordinator's address, or everywhere where that is only a name.

    Other hosts may know this one by another address than it does itself.
    """
    host = processes.coordinator_host()
    with contextlib.suppress(ValueError, OSError):
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        return socket.create_server((str(address), 0), family=family, backlog=STRANGERS)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=STRANGERS)
