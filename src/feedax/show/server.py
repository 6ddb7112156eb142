"""A port of this machine, and the server that listens there."""

import contextlib
import os
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

PORT = 8642
"""The first that is tried."""

TRIED = 100
"""Ports that are tried before none is taken for free."""


def listen(port: int | None) -> socket.socket:
    """Listen on a port of 127.0.0.1, which nobody else can reach.

    Args:
        port: the one, or None for the next free one from `PORT` on.

    Raises:
        OSError: it is taken, or not this user's to have.
    """
    *others, last = range(PORT, PORT + TRIED) if port is None else [port]
    for one in others:
        with contextlib.suppress(OSError):
            return _listen(one)
    return _listen(last)


def _listen(port: int) -> socket.socket:
    found = socket.socket()
    try:
        if os.name == "posix":  # elsewhere it would take the port of another server
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
        found.listen(64)
    except BaseException:
        found.close()
        raise
    return found


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until this process is stopped, by Ctrl-C say; signals are the caller's."""
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
    )
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends at once: a browser that asks again and again would keep it waiting for its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
