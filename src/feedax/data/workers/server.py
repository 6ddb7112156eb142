"""How worker processes are started, for torch's DataLoader as it asks for them.

Workers are forked from a server of our own that has imported what they all need, and never JAX.
A request comes, with file descriptors, over a socket that has no name and whose other end is the
trainer's alone: when that closes, the server ends. Each worker is tied to the trainer by one
socket and by slots of shared memory, and by nothing that has a name: no semaphore, no file. When
one side ends, the socket tells the other at once.
"""

import gc
import importlib
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from multiprocessing import connection, forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.context import ForkServerProcess, set_spawning_popen
from multiprocessing.forkserver import read_signed
from multiprocessing.popen_forkserver import Popen
from typing import Any

from feedax.data.workers import pickling, slots
from feedax.data.workers.channel import Channel, Ready, TrainerEnd, Unreadable, WorkerEnd
from feedax.data.workers.pickling import (
    PlainParts,
    SharedPickle,
    candidates_in,
    classes_by_value,
    dumps,
    in_one_line,
    loads,
    receive_classes,
    refuse,
    refuse_arrived,
)
from feedax.errors import WorkerError

FORK, HOLD = b"f", b"h"
MOST_FDS = 253
"""The kernel passes no more in one message."""

PRELOADED = ["torch", "feedax.data"]

_NO_SERVER = (
    "NumpyLoader: the server that workers are forked from must import feedax.data and live, and it "
    "has ended; see that a plain `python -c 'import feedax.data'` works in this environment, and "
    "that there is memory for it"
)


class _Forking:
    """A process that forks others, at the other end of a socket that has no name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pair()

    def pair(self) -> None:
        """Make both ends of the socket; `theirs` is closed once the process has it."""
        self.control, self.theirs = socket.socketpair()
        weakref.finalize(self, self.control.close)
        weakref.finalize(self, self.theirs.close)

    def fork(self, fds: list[int]) -> tuple[int, int]:
        """Fork a process; a pipe for its number and its exit code, and one for its work."""
        status, to_status = os.pipe()
        work, to_work = os.pipe()
        try:
            tracker: Any = resource_tracker.getfd()
            self.send(FORK, [to_status, work, tracker, *fds])
        except BaseException:
            _close(status, to_work)
            raise
        finally:
            _close(to_status, work)
        return status, to_work

    def send(self, kind: bytes, fds: list[int]) -> None:
        with self.lock:
            socket.send_fds(self.control, [kind], fds)


class _Server(_Forking):
    """A process that has imported what workers need; it starts with the first of them."""

    pid: int | None = None

    def send(self, kind: bytes, fds: list[int]) -> None:
        with self.lock:
            self._ensure_running()
        super().send(kind, fds)

    def _ensure_running(self) -> None:
        """Start the server with Ctrl-C blocked, as its workers will have it when they begin.

        It finds modules where this process does, though it runs none of this process's code.
        """
        resource_tracker.ensure_running()  # the server needs it, and its start unblocks Ctrl-C
        if self.pid is not None:
            # No such child: the program ignores SIGCHLD, or has waited for it itself.
            with suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    return
            self.control.close()
            self.pair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        fd = self.theirs.fileno()
        path = [entry for entry in sys.path if isinstance(entry, str)]  # Python skips the rest
        code = f"import sys; sys.path[:] = {path}; "
        code += f"from feedax.data.workers.server import main; main({fd}, {PRELOADED})"
        python: Any = spawn.get_executable()
        # As multiprocessing starts its own server, with the -O, -W and -X of this process.
        arguments = [python, *util._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]
        try:
            self.pid = util.spawnv_passfds(python, arguments, [fd])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.theirs.close()


class _Holder(_Forking):
    """A process, forked from the server, whose workers have the plain parts of a dataset."""

    def __init__(self, plain: PlainParts) -> None:
        super().__init__()
        self.plain = plain
        memory = os.memfd_create("feedax-plain")
        try:
            with open(memory, "wb", closefd=False) as file:
                pickle.dump(plain.parts, file, protocol=5)
            _server.send(HOLD, [self.theirs.fileno(), memory])
        finally:
            _close(memory)
            self.theirs.close()

    def is_of(self, candidates: list[Any]) -> bool:
        """Whether it has what these are now, and still lives."""
        if not self.plain.is_unchanged(candidates):
            return False
        return not connection.wait([self.control], timeout=0)  # it says nothing but its end


_server = _Server()
_holders: dict[int, _Holder] = {}
"""By the id of the loader that each belongs to; a loader need not be hashable."""


def _keep(loader: Any, holder: _Holder | None) -> None:
    """Keep a loader's holder until the loader is gone, or has another one."""
    if holder is None:
        _holders.pop(id(loader), None)
        return
    if id(loader) not in _holders:
        weakref.finalize(loader, _holders.pop, id(loader), None).atexit = False
    _holders[id(loader)] = holder


def _leave_to_parent() -> None:
    """In a forked copy of the trainer: close its servers' sockets, or they miss its end."""
    global _server
    for forking in (_server, *_holders.values()):
        forking.control.close()
        forking.theirs.close()
    _holders.clear()
    _server = _Server()


os.register_at_fork(after_in_child=_leave_to_parent)


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class WorkerContext:
    """Stands where torch's iterator expects a multiprocessing context; made for one iterator.

    torch asks it for one queue of results and one event and then, for each worker, for a queue of
    indices and a process. Every worker gets what is `heavy`, which is pickled only once for them
    all; `named` is what of it is the user's, for messages.
    """

    def __init__(self, loader: Any, heavy: list[Any], named: dict[str, Any]) -> None:
        self.channels: list[Channel] = []
        self.launched = time.monotonic()
        self.source: _Forking = _server
        self._loader: Any = loader
        self._heavy = heavy
        self._named = named
        self._end = TrainerEnd(self.channels)
        self._has_results = False
        self._shared: SharedPickle | None = None
        self._inherited: list[int] = []

    def Queue(self) -> Any:
        if not self._has_results:
            self._has_results = True
            return self._end
        self.channels.append(Channel(len(self.channels)))
        return self.channels[-1]

    def Event(self) -> Any:
        return self._end

    def Process(self, target: Any, args: tuple[Any, ...]) -> Any:
        return WorkerProcess(self, target, args)

    def pack(self, popen: Any, call: Any) -> tuple[SharedPickle, bytes]:
        """A worker's call, in two parts: what all workers share, and what is its own.

        The first part is packed for the first worker; the other workers get the very same handles.
        """
        if self._shared is None:
            try:
                self._shared = self._packed()
            except Exception as error:
                raise refuse({**self._named, "the loader": self._heavy}, error) from error
            weakref.finalize(self, os.close, self._shared.fd)
            self._classes = classes_by_value()
            self._inherited = [*popen._fds, self._shared.fd]
        popen._fds = list(self._inherited)
        # The worker has its own ends of the queues.
        known = [*self._heavy, self.channels[-1], self._end]
        return self._shared._replace(fd=len(self._inherited) - 1), dumps(call, known=known)

    def _packed(self) -> SharedPickle:
        """What all workers share, but for what the process holds that they are forked from."""
        loader, self._loader = self._loader, None
        candidates = candidates_in(self._heavy)
        holder = next((one for one in list(_holders.values()) if one.is_of(candidates)), None)
        plain = holder.plain if holder else PlainParts(candidates)
        shared = SharedPickle.pack(self._heavy, plain)
        holder = (holder or _Holder(plain)) if shared.held else None
        _keep(loader, holder)
        self.source = holder or self.source
        return shared

    def cannot_arrive(self, failure: str) -> WorkerError:
        """The error for what a worker could not unpickle."""
        return refuse_arrived(self._named, failure)


class WorkerProcess(ForkServerProcess):
    """A process that is forked from our server, its work pickled by `dumps`."""

    def __init__(self, context: WorkerContext, target: Any, args: tuple[Any, ...]) -> None:
        super().__init__(target=run_worker)
        self.launch: Any = (context, (target, args))

    @staticmethod
    def _Popen(process: Any) -> Any:
        return _Popen(process)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "launch": None}


class _Popen(Popen):
    """Starts a process as multiprocessing does, but from our server and without the main script.

    A script's classes are pickled by value, so a worker has no need to run it again.
    """

    def _launch(self: Any, process: Any) -> None:
        context, call = process.launch
        channel = context.channels[-1]
        preparation = spawn.get_preparation_data(process.name)
        preparation.pop("init_main_from_name", None)
        preparation.pop("init_main_from_path", None)
        file = BytesIO()
        set_spawning_popen(self)
        try:
            shared, own = context.pack(self, call)
            fds = [self.duplicate_for_child(fd) for fd in channel.worker_fds()]
            process._args = (shared, own, fds, dict(os.environ))
            reduction.dump(preparation, file)
            reduction.dump(process, file)
        finally:
            set_spawning_popen(None)
        try:
            self.sentinel, pipe = context.source.fork(self._fds)
            # The worker takes the closing of this pipe for the end of the trainer.
            self.finalizer = util.Finalize(self, _close, (os.dup(pipe), self.sentinel))
            with open(pipe, "wb") as to_worker:
                to_worker.write(file.getbuffer())
            self.pid = read_signed(self.sentinel)
        except (EOFError, BrokenPipeError) as error:
            raise WorkerError(_NO_SERVER) from error
        channel.started()
        process.launch = None


def main(fd: int, preloaded: Sequence[str]) -> None:
    """Run the server, with modules imported that all workers need."""
    for name in preloaded:
        with suppress(ImportError):
            importlib.import_module(name)
    if sys.stdin is not None:  # the trainer's own
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), sys.stdin.fileno())
    with socket.socket(fileno=fd) as control:
        _serve(control)


def _serve(control: socket.socket) -> None:
    """Fork a process for each request, and write down its exit code once it has ended."""
    statuses: dict[int, int] = {}
    wakes, waker = os.pipe()
    for end in (wakes, waker):
        os.set_blocking(end, False)
    handlers = {  # a signal with a handler, whatever that does, is written to `waker`
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    while True:
        ready = connection.wait([control, wakes])
        if wakes in ready:
            os.read(wakes, 1 << 16)
            _write_exit_codes(statuses)
        if control not in ready:
            continue
        kind, fds, flags, _ = socket.recv_fds(control, 1, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not kind:
            return  # the trainer has ended, or needs no more workers
        if flags & socket.MSG_CTRUNC:  # too many files are open: the trainer sees them closed
            _close(*fds)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                control.close()
                _close(wakes, waker, *statuses.values())
                code = _hold(*fds) if kind == HOLD else _work(*fds)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(code)
        if kind == FORK:
            statuses[pid] = fds.pop(0)
            with suppress(BrokenPipeError):
                forkserver.write_signed(statuses[pid], pid)
        _close(*fds)


def _write_exit_codes(statuses: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if (end := statuses.pop(pid, None)) is not None:
            with suppress(BrokenPipeError):
                forkserver.write_signed(end, os.waitstatus_to_exitcode(status))
            os.close(end)


def _work(to_status: int, work: int, tracker: int, *fds: int) -> int:
    """Run the process that comes through a pipe.

    multiprocessing's own server sets the same private names (`forkserver._serve_one`): what is
    unpickled in the process looks there for its file descriptors, and there is no public way.
    """
    os.close(to_status)
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    forkserver._forkserver._inherited_fds = list(fds)  # type: ignore[attr-defined]
    return spawn._main(work, os.dup(work))


def _hold(control: int, memory: int) -> int:
    """Unpickle a part of a dataset, and fork workers that have it already."""
    gc.disable()  # it would look through all of it again and again
    with mmap.mmap(memory, 0, access=mmap.ACCESS_READ) as pickled:
        pickling.held[:] = pickle.loads(pickled)
    os.close(memory)
    gc.enable()
    gc.freeze()  # or the first collection in each worker would copy every page of it
    with socket.socket(fileno=control) as own:
        _serve(own)
    return 0


def run_worker(
    shared: SharedPickle, own: bytes, fds: list[int], environment: dict[str, str]
) -> None:
    """Do a worker's work: torch's own loop, between our ends of its queues."""
    os.environ.clear()
    os.environ.update(environment)
    # A dataset may bring JAX along, and a worker has no business on the trainer's accelerator.
    os.environ["JAX_PLATFORMS"] = "cpu"
    inherited: Any = forkserver.get_inherited_fds()
    socket_fd, slots_fd = (inherited[i] for i in fds)
    slots.of_this_worker = slots.WorkerSlots(slots_fd)
    end = WorkerEnd(socket_fd, slots.of_this_worker)
    try:
        heavy = shared._replace(fd=inherited[shared.fd]).unpack(pickling.held)
        target, args = loads(own, known=[*heavy, end, end])
        receive_classes()
    except Exception as error:
        end.send(Unreadable(None, in_one_line(error)))
        return
    end.send(Ready(time.monotonic()))
    target(*args)
