"""The server that workers are forked from, and those of its children that hold a part of a dataset.

A request comes, with file descriptors, over a socket that has no name and whose other end is the
trainer's alone: when that closes, the server ends.
"""

import gc
import importlib
import mmap
import os
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker, spawn, util
from typing import Any

FORK, HOLD = b"f", b"h"
MOST_FDS = 253
"""The kernel passes no more in one message."""

held: list[Any] = []
"""In a process that holds a part of a dataset, and in its workers: that part."""


def main(fd: int, preload: Sequence[str]) -> None:
    """Run the server, with modules imported that all workers need."""
    for name in preload:
        with suppress(ImportError):
            importlib.import_module(name)
    util._close_stdin()  # type: ignore[attr-defined]
    with socket.socket(fileno=fd) as control:
        _serve(control)


def _serve(control: socket.socket) -> None:
    """Fork a process for each request, and tell how each has ended."""
    told: dict[int, int] = {}
    wakes, waker = os.pipe()
    for end in (wakes, waker):
        os.set_blocking(end, False)
    handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGCHLD, _wake), (signal.SIGINT, signal.SIG_IGN))
    }
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    while True:
        ready = connection.wait([control, wakes])
        if wakes in ready:
            os.read(wakes, 1 << 16)
            _tell_ends(told)
        if control not in ready:
            continue
        kind, fds, flags, _ = socket.recv_fds(control, 1, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not kind:
            return  # the trainer is no more, or needs us no more
        if flags & socket.MSG_CTRUNC:  # too many files are open: the trainer sees them closed
            for end in fds:
                os.close(end)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                control.close()
                for end in (wakes, waker, *told.values()):
                    os.close(end)
                code = _hold(*fds) if kind == HOLD else _work(*fds)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(code)
        if kind == FORK:
            told[pid] = fds.pop(0)
            with suppress(BrokenPipeError):
                forkserver.write_signed(told[pid], pid)
        for end in fds:
            os.close(end)


def _wake(*_: Any) -> None:
    """Let the signal be heard: its number is written to the pipe that wakes the server."""


def _tell_ends(told: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if (end := told.pop(pid, None)) is not None:
            with suppress(BrokenPipeError):
                code = os.waitstatus_to_exitcode(status)
                forkserver.write_signed(end, code)
            os.close(end)


def _work(told: int, call: int, tracker: int, *fds: int) -> int:
    """Run the process that comes through a pipe, as multiprocessing's own server does."""
    os.close(told)
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    forkserver._forkserver._inherited_fds = list(fds)  # type: ignore[attr-defined]
    return spawn._main(call, os.dup(call))


def _hold(control: int, memory: int) -> int:
    """Unpickle a part of a dataset, and fork workers that have it already."""
    gc.disable()  # it would look through all of it again and again
    with mmap.mmap(memory, 0, access=mmap.ACCESS_READ) as pickled:
        held[:] = pickle.loads(pickled)
    os.close(memory)
    gc.enable()
    gc.freeze()  # or the first collection in each worker would copy every page of it
    with socket.socket(fileno=control) as own:
        _serve(own)
    return 0
