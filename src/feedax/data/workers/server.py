"""Worker processes for torch's DataLoader, made as it asks for them.

Workers are forked from a server of our own that has imported what they all need, and never JAX.
Each is tied to the trainer by one socket and one ring of shared memory, and by nothing that has a
name: no semaphore, no file. When one side ends, the socket tells the other at once.
"""

import os
import signal
import sys
import threading
import time
import weakref
from io import BytesIO
from multiprocessing import reduction, resource_tracker, spawn, util
from multiprocessing.context import ForkServerProcess, set_spawning_popen
from multiprocessing.forkserver import ForkServer, read_signed
from multiprocessing.popen_forkserver import Popen
from typing import Any

from feedax.data.workers.channel import Channel, Done, Results
from feedax.data.workers.travel import Cargo, can_travel, classes_by_value, dumps, refuse
from feedax.data.workers.worker import run
from feedax.errors import WorkerError

PRELOADED = ["torch", "torchvision", "feedax.data"]


class _Server:
    """multiprocessing's fork server, one of our own: a program may use the common one its way."""

    def __init__(self) -> None:
        self._server = ForkServer()
        self._server.set_forkserver_preload(PRELOADED)
        self._lock = threading.Lock()

    def connect(self, fds: list[int]) -> tuple[int, int]:
        """Fork a process; see `ForkServer.connect_to_new_process`."""
        with self._lock:
            self._ensure_running()
        return self._server.connect_to_new_process(fds)

    def _ensure_running(self) -> None:
        """Start the server deaf to Ctrl-C; workers take over its signal mask when they begin.

        It finds modules where this process does, though it runs none of this process's code.
        """
        resource_tracker.ensure_running()  # the server wants it, and its start opens the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        python_path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            self._server.ensure_running()
        finally:
            del os.environ["PYTHONPATH"]
            if python_path is not None:
                os.environ["PYTHONPATH"] = python_path
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_server = _Server()


def _forget_server() -> None:
    global _server
    _server = _Server()


os.register_at_fork(after_in_child=_forget_server)  # it is the parent's


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class WorkerContext:
    """Stands where torch's iterator expects a multiprocessing context; made for one iterator.

    torch asks it for one queue of results and one event and then, for each worker, for a queue of
    indices and a process.

    Args:
        heavy: what every worker gets, pickled only once for them all.
        named: what of it is the user's, for messages.
    """

    def __init__(self, heavy: list[Any], named: dict[str, Any]) -> None:
        self.channels: list[Channel] = []
        self.launched = time.monotonic()
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
                self._cargo = Cargo.pack(self._heavy)
            except Exception as error:
                raise self._cannot_travel(error) from error
            weakref.finalize(self, os.close, self._cargo.fd)
            self._classes = classes_by_value()
            self._inherited = [*popen._fds, self._cargo.fd]
        popen._fds = list(self._inherited)
        # The worker has its own ends of the queues.
        known = [*self._heavy, self.channels[-1], self._results, self._done]
        return self._cargo._replace(fd=len(self._inherited) - 1), dumps(call, known=known)

    def _cannot_travel(self, error: Exception) -> WorkerError:
        for name, value in self._named.items():
            if not can_travel(value):
                return refuse(value, name, error)
        return refuse(self._heavy, "the loader", error)


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
        self.sentinel, pipe = _server.connect(self._fds)
        # The worker's parent sentinel: it takes its closing for the end of the trainer.
        self.finalizer = util.Finalize(self, _close, (os.dup(pipe), self.sentinel))
        with open(pipe, "wb") as to_worker:
            to_worker.write(file.getbuffer())
        self.pid = read_signed(self.sentinel)
        channel.started()
        process.launch = None
