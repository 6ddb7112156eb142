"""Who may connect to process 0, and what it takes from them: real sockets, honest and others."""

import contextlib
import socket
import struct
import threading
import time
import tracemalloc

import pytest

from feedax.train import links, processes
from feedax.train.links import FROM_CLIENTS, FROM_PROCESS_0, HEADER, Frame, Link


class Port:
    """Process 0 while it waits for two others; JAX's service tells them its port and its token."""

    def __init__(self, monkeypatch, host="127.0.0.1"):
        told = threading.Event()

        def publish(key, value):
            self.port, self.token = value.split()
            told.set()

        monkeypatch.setattr(processes, "publish", publish)
        monkeypatch.setattr(processes, "coordinator_host", lambda: host)
        self.stack = contextlib.ExitStack()
        self.thread = threading.Thread(target=self.wait)
        self.thread.start()
        assert told.wait(10)

    def wait(self):
        self.links = links._accept("key", 3, time.monotonic() + 60)

    def connect(self, *said):
        connection = self.stack.enter_context(
            socket.create_connection(("127.0.0.1", int(self.port)), 10)
        )
        for part in said:
            connection.sendall(part.encode())
        return connection

    def greet(self, index):
        return self.connect(f"{self.token} {index:8}")

    def end(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert sorted(self.links) == [1, 2]


@pytest.fixture
def port(monkeypatch):
    port = Port(monkeypatch)
    with port.stack:
        yield port
    for link in getattr(port, "links", {}).values():
        link.close()


def resets(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_turned_away(connection):
    connection.settimeout(10)
    return connection.recv(1) == b""


def test_strangers_neither_end_the_beginning_nor_delay_it(port):
    silent = [port.connect() for _ in range(links.STRANGERS + 50)]
    resets(port.connect())
    resets(port.connect("half of"))
    wrong = port.connect("0" * len(port.token), f" {1:8}")
    half = port.connect(port.token[:5])
    http = port.connect("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + " " * 100)
    began = time.monotonic()
    first = port.connect(port.token[:7])
    time.sleep(0.2)
    first.sendall(f"{port.token[7:]} {1:8}".encode())
    assert is_turned_away(wrong)
    with contextlib.suppress(ConnectionResetError):
        assert is_turned_away(http)
    second = port.greet(2)
    port.end()
    assert time.monotonic() - began < links.GREETING_SECONDS
    assert is_turned_away(half)
    assert is_turned_away(silent[-1])
    for index, client in ((1, first), (2, second)):
        Link(client, FROM_PROCESS_0).send(Frame.FLAG, b"\1")
        client.setblocking(True)
        assert links.wait([port.links[index]], 10)
        assert list(port.links[index].receive()) == [(Frame.FLAG, b"\1")]
    with pytest.raises(ConnectionRefusedError):
        port.connect()


@pytest.mark.parametrize("index", ["0", "3", "-1", "99999999", "x", "", "1 1", "1_0"])
def test_an_index_out_of_range_is_turned_away(port, index):
    assert is_turned_away(port.connect(f"{port.token} {index:8}"))
    port.greet(1)
    port.greet(2)
    port.end()


def test_an_index_that_is_taken_is_turned_away(port):
    port.greet(1)
    assert is_turned_away(port.greet(1))
    port.greet(2)
    port.end()


def test_a_silent_stranger_is_let_go_after_a_while(port, monkeypatch):
    monkeypatch.setattr(links, "GREETING_SECONDS", 0.2)
    assert is_turned_away(port.connect(port.token))
    port.greet(1)
    port.greet(2)
    port.end()


@pytest.mark.parametrize(
    ("kind", "size", "limits"),
    [
        (Frame.VALUE, 2**31, FROM_CLIENTS),
        (Frame.FAILED, 2**31, FROM_CLIENTS),
        (Frame.FLAG, 2, FROM_CLIENTS),
        (Frame.OVER, 0, FROM_CLIENTS),
        (99, 0, FROM_PROCESS_0),
        (Frame.BEAT, 2**63, FROM_PROCESS_0),
    ],
)
def test_a_frame_of_another_kind_or_size_ends_the_connection(kind, size, limits):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        link = Link(_tcp(ours), limits)
        theirs.sendall(HEADER.pack(kind, size))
        assert list(link.receive()) == []
        assert not link.open
        link.close()


class _tcp(socket.socket):
    """One end of a pair, without the option that only TCP has."""

    def __init__(self, connection):
        super().__init__(fileno=connection.detach())

    def setsockopt(self, *arguments):
        pass


def test_what_is_only_announced_takes_no_memory_and_a_large_value_comes_whole():
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(_tcp(ours), FROM_PROCESS_0)
        content = bytes(range(256)) * 20_000
        theirs.sendall(HEADER.pack(Frame.VALUE, 2**31))
        tracemalloc.start()
        assert list(link.receive()) == []
        assert tracemalloc.get_traced_memory()[1] < 4 * links.PIECE
        tracemalloc.stop()
        assert link.open
        link.close()
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(_tcp(ours), FROM_PROCESS_0)
        frame = HEADER.pack(Frame.VALUE, len(content)) + content
        sender = threading.Thread(target=theirs.sendall, args=(frame,))
        sender.start()
        got = []
        while not got:
            links.wait([link], 10)
            got = list(link.receive())
        sender.join()
        assert got == [(Frame.VALUE, content)]
        link.close()


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("a name", None), ("192.0.2.1", None)],
)
def test_process_0_listens_only_where_the_others_come(monkeypatch, host, address):
    monkeypatch.setattr(processes, "coordinator_host", lambda: host)
    with links._listening() as server:
        assert server.getsockname()[0] == (address or ("::" if socket.has_dualstack_ipv6() else ""))
