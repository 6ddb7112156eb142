"""Several processes that train one model: how they join, agree, and end when one of them fails.

JAX ends every process when one dies or stops (`docs/training.md` has the measurements), but it does
not tell them why one failed: the `Watchdog` does.

JAX's private names are used in this module only, where JAX has no public ones: for its key-value
store, and for the number of processes before a device is started.
"""

import atexit
import contextlib
import errno
import importlib.util
import ipaddress
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters import K8sCluster
from jax.experimental import multihost_utils

from feedax.errors import FeedaxError, ProcessError

LOGGER = logging.getLogger("feedax")
JOIN_SECONDS = 300
"""How long the processes wait for the last one to join."""
HEARTBEAT_SECONDS = 20
"""After so long without a sign of life from one process, JAX ends all of them."""
SHUTDOWN_SECONDS = 20
"""How long a process that ends waits for the other processes to end; then JAX ends all of them."""
HEAD_BYTES, PIECE_BYTES = 1 << 10, 1 << 22
"""What `broadcast_bytes` sends at once: a short head with the size, then the rest in pieces."""
LOOK_SECONDS = 0.25
"""Between two looks into the key-value store."""
GRACE_SECONDS = 2.0
"""When one process has failed, others may be about to fail by themselves, for the same reason."""
BY_HAND = "give all three of coordinator, processes and process"


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = JOIN_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> int:
    """Join the processes that train together, before JAX computes anything.

    Without arguments JAX finds the other processes, under SLURM, Open MPI or Kubernetes; a process
    that runs there alone, or elsewhere, stays alone.

    Args:
        coordinator: `host:port` of process 0, the same in all processes; the port must be free.
        processes: how many processes there are.
        process: which one this is, from 0.
        timeout: seconds to wait for the last process; then this one ends with a message.
        heartbeat: seconds without a sign of life from one process after which JAX ends all.

    Returns:
        How many processes there are.

    Raises:
        ProcessError: the arguments or the environment do not fit, or JAX has computed something.

    >>> join()
    1
    """
    if jax.distributed.is_initialized():
        return count()
    bind_address = None
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if by_hand := any(value is not None for value in given.values()):
        _check(given)
        if process == 0:
            bind_address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
            bind_address = bind_address or _bind_address(str(coordinator))
        if processes == 1:
            return 1
    elif not found():
        return 1
    # Only a CPU's client reads it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would abort with a stack trace that does not say what to do, so this ends first.
    late = threading.Timer(timeout, _end_without_the_other_processes, [timeout])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if by_hand else None,
            coordinator_bind_address=bind_address,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except Exception as error:
        raise _not_joined(error) from error
    finally:
        late.cancel()
    return count()


def _check(given: dict[str, Any]) -> None:
    """Refuse arguments that do not fit together."""
    if missing := [flag for flag, value in given.items() if value is None]:
        raise ProcessError(f"processes: {BY_HAND}, or none; missing: {', '.join(missing)}")
    coordinator, processes, process = given.values()
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ProcessError(
            who="processes",
            rule="coordinator=HOST:PORT must be where process 0 listens",
            found=f"it is {coordinator!r}",
            remedy="choose a free port there, for example node1:29500",
        )
    if processes < 1:
        raise ProcessError(f"processes: processes must be 1 or more, not {processes}")
    if not 0 <= process < processes:
        raise ProcessError(
            who="processes",
            rule=f"process=N must be from 0 to {processes - 1} with {processes} processes",
            found=f"it is {process}",
            remedy="number them from 0",
        )


def _bind_address(coordinator: str) -> str:
    """Where process 0 listens: at the coordinator's address alone, if it is one of this host.

    A name, or an address behind a router, may mean another address here than on the other hosts:
    then everywhere. If the port is taken, JAX ends in a segmentation fault, so this tries it first.
    """
    host, _, port = coordinator.rpartition(":")
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    try:
        name = "127.0.0.1" if host == "localhost" else host.strip("[]")
        addresses = [str(ipaddress.ip_address(name)), everywhere]
    except ValueError:
        addresses = [everywhere]
    for address in addresses:
        six = ":" in address
        family = socket.AF_INET6 if six else socket.AF_INET
        try:
            with socket.create_server(
                (address, int(port)), family=family, dualstack_ipv6=address == "::"
            ):
                return f"[{address}]:{port}" if six else f"{address}:{port}"
        except OSError as error:
            if address == addresses[-1] or error.errno != errno.EADDRNOTAVAIL:
                raise ProcessError(
                    f"processes: process 0 cannot listen at the coordinator's {coordinator} "
                    f"({os.strerror(error.errno or 0)}); choose another port"
                ) from error
    raise AssertionError


def _end_without_the_other_processes(timeout: float) -> None:
    message = (
        f"processes: at least one process has not joined within {timeout:g} s; see its output, and "
        "whether it can reach process 0 at the coordinator's address"
    )
    os.write(2, f"feedax: {message}\n".encode())
    os._exit(1)  # the main thread waits inside JAX


def _not_joined(error: Exception) -> ProcessError:
    text = " ".join(str(error).split())
    if "must be called before" in text:
        return ProcessError(
            "processes: JAX has computed something already; "
            "call feedax.train.processes.join earlier"
        )
    return ProcessError(
        who="processes",
        rule="every process must join the others",
        found=f"this one could not ({text[:300]})",
        remedy=BY_HAND,
    )


def found() -> bool:
    """Whether this process is one of several that a scheduler has started.

    Raises:
        ProcessError: it is, but JAX cannot find the other processes.
    """
    env = os.environ
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in env:
            raise ProcessError(
                who="processes",
                rule="JAX finds process 0 under Open MPI 4 only",
                found=f"another mpirun has started {env['OMPI_COMM_WORLD_SIZE']} processes",
                remedy=BY_HAND,
            )
        return True
    if all(f"SLURM_{name}" in env for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID")):
        # A shell inside an allocation is a step of one task, whatever was allocated.
        return _number("SLURM_NTASKS") > 1 and _number("SLURM_STEP_NUM_TASKS", 2) > 1
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return _kubernetes_pods() > 1
    return False


def _number(name: str, default: int = 1) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _kubernetes_pods() -> int:
    """How many pods the indexed job of this one runs at once; only Kubernetes itself knows."""
    if not importlib.util.find_spec("kubernetes"):
        LOGGER.warning(
            "processes: this pod of an indexed job trains alone, because JAX needs the package "
            "kubernetes to find the other pods; pip install kubernetes to train one model with them"
        )
        return 1
    try:
        return int(K8sCluster.get_process_count()) if K8sCluster.is_env_present() else 1
    except Exception as error:
        raise _not_joined(error) from error


def keep_stdout_clean() -> None:
    """From now on only Python prints on standard output; C++ libraries do on standard error.

    Gloo prints a line for every group of devices. Call it before anything holds `sys.stdout`.
    """
    try:
        if sys.stdout.fileno() != 1:
            return
    except (AttributeError, OSError):  # closed, or a notebook's
        return
    sys.stdout.flush()
    sys.stdout = open(  # noqa: SIM115
        os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors,
        buffering=1 if sys.stdout.line_buffering else -1,
    )  # fmt: skip
    os.dup2(2, 1)


def count() -> int:
    """How many processes have joined; unlike `jax.process_count`, it starts no device."""
    return int(distributed.global_state.num_processes)


def index() -> int:
    """Which of them this one is."""
    return int(distributed.global_state.process_id)


def broadcast(value: Any) -> Any:
    """Process 0's value, to all; a few numbers or words, such as JSON has.

    >>> broadcast({"chunk": 8})
    {'chunk': 8}
    """
    return value if count() == 1 else json.loads(broadcast_bytes(json.dumps(value).encode()))


def broadcast_bytes(content: bytes) -> bytes:
    """Process 0's bytes, to all; hundreds of megabytes too."""
    if count() == 1:
        return content
    head = _broadcast(len(content).to_bytes(8, "big") + content[:HEAD_BYTES], 8 + HEAD_BYTES)
    size = int.from_bytes(head[:8], "big")
    rest = [
        _broadcast(content[start : start + PIECE_BYTES], PIECE_BYTES)
        for start in range(HEAD_BYTES, size, PIECE_BYTES)
    ]
    return b"".join([head[8:], *rest])[:size]


def _broadcast(content: bytes, size: int) -> bytes:
    array = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(array))


def any_process(flag: bool) -> bool:
    """Whether the flag is true in any process; all must ask, and get the same answer."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def reached_preemption() -> bool:
    """Whether one of several processes got SIGTERM, and all stop here: JAX's preemption sync.

    All must ask equally often; the answer is True at the same call on all of them. Python must not
    have a handler of its own for SIGTERM.
    """
    return count() > 1 and bool(multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS)))


_SYNC_POINTS = itertools.count(1)


def _publish(key: str, text: str) -> None:
    """Write a short text into JAX's key-value store, once; every process can read it."""
    store: Any = distributed.global_state.client
    store.key_value_set(f"feedax/{key}", text)


def _published(folder: str) -> list[str]:
    """The texts under the keys that begin with `folder/`, without waiting."""
    store: Any = distributed.global_state.client
    return [text for _, text in store.key_value_dir_get(f"feedax/{folder}/")]


class Watchdog:
    """A context manager around what several processes do together.

    A process that fails writes the reason into JAX's key-value store, where a thread in each of the
    other processes looks for it. Leaving this waits for the other processes; leaving it by an
    exception ends them, with the reason. With one process it does nothing. Enter it right after
    `join`.
    """

    _entered = 0
    _ending = threading.Lock()

    def __init__(self) -> None:
        self._left = threading.Event()
        self._key = ""

    def __enter__(self) -> None:
        if count() == 1:
            return
        Watchdog._entered += 1
        self._key = f"watchdog/{Watchdog._entered}"
        if not self._meet("entered", JOIN_SECONDS):
            raise ProcessError(
                "processes: at least one process has not started to train within "
                f"{JOIN_SECONDS} s; see its output"
            )
        threading.Thread(target=self._watch, name="feedax watchdog", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if count() == 1:
            return
        try:
            if error is None:
                self._meet("left")
        except BaseException as interrupted:
            self._fail(interrupted)
            raise
        if error is not None:
            self._fail(error)
        self._left.set()

    def _meet(self, where: str, seconds: float = float("inf")) -> bool:
        """Wait for the other processes; whether they came. A barrier that Ctrl-C interrupts."""
        until = time.monotonic() + seconds
        _publish(f"{self._key}/{where}/{index()}", "")
        while len(_published(f"{self._key}/{where}")) < count():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _fail(self, error: BaseException) -> None:
        """Tell the other processes why this one fails."""
        failure = f"process {index()} failed: {_in_one_line(error)}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails when another process does: then JAX, or the thread, ends this one.
            seconds = HEARTBEAT_SECONDS + 5
            LOGGER.warning(
                f"processes: {failure}; waiting up to {seconds} s to learn whether another process "
                "is the reason"
            )
            time.sleep(seconds)
        self._left.set()
        _publish(f"{self._key}/failed/{index()}", failure)
        # Before JAX's own end, which first waits for computations that need the other processes.
        atexit.register(jax.distributed.shutdown)

    def _watch(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            try:
                failures = _published(f"{self._key}/failed")
            except jax.errors.JaxRuntimeError:
                return  # process 0, which has the store, is gone: JAX is about to end this one
            # The lock: `fit` has a watchdog inside that of the command.
            if failures and not self._left.wait(GRACE_SECONDS) and Watchdog._ending.acquire(False):
                os.write(2, f"feedax: {failures[0]}\n".encode())
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stdout.flush()
                try:
                    # Waits for all processes, the failed one too: JAX aborts whom another leaves.
                    jax.distributed.shutdown()
                finally:
                    os._exit(1)  # the main thread may wait in a collective for ever


def _in_one_line(error: BaseException) -> str:
    match error:
        case FeedaxError():
            return " ".join(str(error).split())
        case KeyboardInterrupt():
            return "it was stopped by Ctrl-C"
        case SystemExit():
            return f"it ended with exit code {error.code or 0}"
        case _:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
