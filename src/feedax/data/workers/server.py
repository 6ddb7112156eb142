"""Worker processes for torch's DataLoader, made as it asks for them.

Workers are forked from a server of our own that has imported what they all need, and never JAX.
Each is tied to the trainer by one socket and one ring of shared memory, and by nothing that has a
name: no semaphore, no file. When one side ends, the socket tells the other at once.
"""

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
import weakref
from io import BytesIO
from multiprocessing import reduction, resource_tracker, spawn, util
from multiprocessing.context import ForkServerProcess, set_spawning_popen
from multiprocessing.forkserver import read_signed
from multiprocessing.popen_forkserver import Popen
from typing import Any

from feedax.data.workers.channel import Channel, Done, Results
from feedax.data.workers.forking import FORK, HOLD
from feedax.data.workers.plain import Plain, candidates_in
from feedax.data.workers.travel import (
    Cargo,
    can_travel,
    classes_by_value,
    dumps,
    refuse,
    refuse_arrived,
)
from feedax.data.workers.worker import run
from feedax.errors import WorkerError

PRELOADED = ["torch", "torchvision", "feedax.data"]

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
        """Fork a process, as `multiprocessing.forkserver.ForkServer.connect_to_new_process` does.

        Returns:
            A pipe that says which process it is and how it has ended, and one for its work.
        """
        told, tells = os.pipe()
        call, to_call = os.pipe()
        try:
            tracker: Any = resource_tracker.getfd()
            self.send(FORK, [tells, call, tracker, *fds])
        except BaseException:
            _close(told, to_call)
            raise
        finally:
            _close(tells, call)
        return told, to_call

    def send(self, kind: bytes, fds: list[int]) -> None:
        with self.lock:
            socket.send_fds(self.control, [kind], fds)


class _Server(_Forking):
    """A process that has imported what workers need; it starts with the first of them.

    Attributes:
        pid: the process, once it has started.
    """

    pid: int | None = None

    def send(self, kind: bytes, fds: list[int]) -> None:
        with self.lock:
            self._ensure_running()
        super().send(kind, fds)

    def _ensure_running(self) -> None:
        """Start the server deaf to Ctrl-C; workers take over its signal mask when they begin.

        It finds modules where this process does, though it runs none of this process's code.
        """
        resource_tracker.ensure_running()  # the server wants it, and its start opens the mask
        if self.pid is not None:
            # Who ignores SIGCHLD, or waits for any child, hears of its end in our place.
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    return
            self.control.close()
            self.pair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        python_path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        fd = self.theirs.fileno()
        code = f"from feedax.data.workers.forking import main; main({fd}, {PRELOADED})"
        python: Any = spawn.get_executable()
        arguments = [python, *util._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]
        try:
            self.pid = util.spawnv_passfds(python, arguments, [fd])
        finally:
            del os.environ["PYTHONPATH"]
            if python_path is not None:
                os.environ["PYTHONPATH"] = python_path
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.theirs.close()


class _Holder(_Forking):
    """A process, forked from the server, that has unpickled the plain parts of a dataset.

    Its workers have them without unpickling, and the trainer need not pickle them again.
    """

    def __init__(self, plain: Plain) -> None:
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
        if not self.plain.is_as_it_was(candidates):
            return False
        try:
            return self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


_server = _Server()
_holders: dict[int, _Holder] = {}
"""By the id of the loader that each belongs to."""


def _keep(loader: Any, holder: _Holder | None) -> None:
    """Keep a loader's holder until the loader is gone, or has another one."""
    if holder is None:
        _holders.pop(id(loader), None)
        return
    if id(loader) not in _holders:
        weakref.finalize(loader, _holders.pop, id(loader), None).atexit = False
    _holders[id(loader)] = holder


def _leave_to_parent() -> None:
    """In a forked copy of the trainer: let go of what forks for it, or its end goes unnoticed."""
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
    indices and a process.

    Args:
        loader: the user's loader.
        heavy: what every worker gets, pickled only once for them all.
        named: what of it is the user's, for messages.
    """

    def __init__(self, loader: Any, heavy: list[Any], named: dict[str, Any]) -> None:
        self.channels: list[Channel] = []
        self.launched = time.monotonic()
        self.source: _Forking = _server
        self._loader: Any = loader
        self._heavy = heavy
        self._named = named
        self._results: Results | None = None
        self._done = Done(self.channels)
        self._cargo: Cargo | None = None
        self._inherited: list[int] = []

    def Queue(self) -> Any:
        if self._results is None:
            self._results = Results(self.channels)
            return self._results
        self.channels.append(Channel(len(self.channels)))
        return self.channels[-1]

    def Event(self) -> Any:
        return self._done

    def Process(self, target: Any, args: tuple[Any, ...]) -> Any:
        return WorkerProcess(self, target, args)

    def pack(self, popen: Any, call: Any) -> tuple[Cargo, bytes]:
        """A worker's call, in two parts: what all workers share, and what is its own.

        The first part is packed for the first worker; the others get the very same handles.
        """
        if self._cargo is None:
            try:
                self._cargo = self._packed()
            except Exception as error:
                raise self._cannot_travel(error) from error
            weakref.finalize(self, os.close, self._cargo.fd)
            self._classes = classes_by_value()
            self._inherited = [*popen._fds, self._cargo.fd]
        popen._fds = list(self._inherited)
        # The worker has its own ends of the queues.
        known = [*self._heavy, self.channels[-1], self._results, self._done]
        return self._cargo._replace(fd=len(self._inherited) - 1), dumps(call, known=known)

    def _packed(self) -> Cargo:
        """What all workers share, but for what the process holds that they are forked from."""
        loader, self._loader = self._loader, None
        candidates = candidates_in(self._heavy)
        holder = next((one for one in list(_holders.values()) if one.is_of(candidates)), None)
        plain = holder.plain if holder else Plain(candidates)
        cargo = Cargo.pack(self._heavy, plain)
        holder = (holder or _Holder(plain)) if cargo.held else None
        _keep(loader, holder)
        self.source = holder or _server
        return cargo

    def _cannot_travel(self, error: Exception) -> WorkerError:
        for name, value in self._named.items():
            if not can_travel(value):
                return refuse(value, name, error)
        return refuse(self._heavy, "the loader", error)

    def cannot_arrive(self, failure: str) -> WorkerError:
        """The error for what a worker could not unpickle."""
        return refuse_arrived(self._named, failure)


class WorkerProcess(ForkServerProcess):
    """A process that is forked from our server, its work pickled by `travel`."""

    def __init__(self, context: WorkerContext, target: Any, args: tuple[Any, ...]) -> None:
        super().__init__(target=run)
        self.launch: Any = (context, (target, args))

    @staticmethod
    def _Popen(process: Any) -> Any:
        return _Popen(process)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "launch": None}


class _Popen(Popen):
    """Starts a process as multiprocessing does, but from our server and without the main script.

    A script's classes travel by value, so a worker has no need to run it again.
    """

    def _launch(self: Any, process: Any) -> None:
        context, call = process.launch
        channel = context.channels[-1]
        preparation = spawn.get_preparation_data(process._name)
        preparation.pop("init_main_from_name", None)
        preparation.pop("init_main_from_path", None)
        file = BytesIO()
        set_spawning_popen(self)
        try:
            cargo, own = context.pack(self, call)
            fds = [self.duplicate_for_child(fd) for fd in channel.worker_fds()]
            process._args = (cargo, own, fds, dict(os.environ))
            reduction.dump(preparation, file)
            reduction.dump(process, file)
        finally:
            set_spawning_popen(None)
        try:
            self.sentinel, pipe = context.source.fork(self._fds)
            # The worker's parent sentinel: it takes its closing for the end of the trainer.
            self.finalizer = util.Finalize(self, _close, (os.dup(pipe), self.sentinel))
            with open(pipe, "wb") as to_worker:
                to_worker.write(file.getbuffer())
            self.pid = read_signed(self.sentinel)
        except (EOFError, BrokenPipeError) as error:
            raise WorkerError(_NO_SERVER) from error
        channel.started()
        process.launch = None
