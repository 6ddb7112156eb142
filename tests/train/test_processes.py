"""Several processes: how they join, what they decide together, and how they end together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import free_port, slow, slow_but

from feedax.errors import ProcessError
from feedax.train import processes

PROGRAM = """
import os, signal, sys, time
from feedax.train import processes
from feedax.train.processes import Watchdog

processes.keep_stdout_clean()
import jax
import numpy as np
from feedax.errors import ModelError
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

port, me, join, then = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3]), sys.argv[4]
jax.config.update("jax_num_cpu_devices", 2)
if port == "found":
    processes.join()
    me = processes.index()
else:
    processes.join(f"localhost:{port}", 2, me, **join)


def say(*words):
    print(*words, flush=True)


def collective():
    # Waits for ever unless every process comes.
    jax.block_until_ready(total(rows))


def python():
    count = 0
    while True:
        count += 1


def computing():
    matrix = np.ones((1000, 1000), np.float32)
    product = jax.jit(lambda a, b: a @ b)
    while True:
        product(matrix, matrix).block_until_ready()


def fails():
    time.sleep(0.5)
    raise ModelError("model: it must be good, and it is bad; mend it")


def breaks():
    time.sleep(0.5)
    {}["key"]


def exits():
    time.sleep(0.5)
    sys.exit(3)


def late():
    # Far longer than the silence that ends a process that stands still.
    time.sleep(2 * join["heartbeat"] * me)
    collective()


def sleeps():
    while True:
        time.sleep(1)


def decides():
    say(processes.broadcast([me, 0.1, None, {"stop": me == 1}]))
    say(processes.any_process(False), processes.any_process(me == 1), processes.any_process(True))
    content = bytes(range(256)) * 100_000
    say(processes.broadcast_bytes(content if me == 0 else b"") == content)
    collective()
    say(processes.broadcast(me), float(total(rows).addressable_data(0)))


def preempted():
    step = 0
    while not processes.reached_preemption():
        step += 1
        if me == 1 and step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        collective()
        time.sleep(0.01 * me)
    say("stopped after", step)


with Watchdog():
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))
    rows = jax.make_array_from_callback(
        (4,), NamedSharding(mesh, P("devices")), lambda at: np.arange(4, dtype=np.float32)[at]
    )
    assert float(total(rows).addressable_data(0)) == 6
    say("ready")
    globals()[then]()
say("left")
"""
SHORT = {"timeout": 60, "heartbeat": 6}
ALONE = ("SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION_INDEX", "JAX_")


class Two:
    """Two real processes with two devices each."""

    def __init__(self, *then: str, join: dict[str, int] = SHORT, **found: list[str]):
        self.port = free_port()
        arguments = [str(self.port) if not found else "found"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ALONE)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments, str(me), repr(join), does],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment | {name: values[me] for name, values in found.items()},
            )
            for me, does in enumerate(then)
        ]

    def wait_until_ready(self) -> None:
        for process in self.processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", self.end()
        time.sleep(1)  # into what they do then

    def connect(self, stack: contextlib.ExitStack) -> socket.socket:
        """A stranger's connection to process 0, as soon as it listens."""
        until = time.monotonic() + 60
        while True:
            try:
                return stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 10))
            except ConnectionRefusedError:
                assert time.monotonic() < until
                time.sleep(0.05)

    def end(self, me: int | None = None) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each, or of one."""
        chosen = self.processes if me is None else [self.processes[me]]
        said = [process.communicate(timeout=100) for process in chosen]
        return [(process.returncode, *both) for process, both in zip(chosen, said, strict=True)]


@contextlib.contextmanager
def two(*then: str, **more) -> Iterator[Two]:
    both = Two(*then, **more)
    try:
        yield both
    finally:
        for process in both.processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_process_that_is_only_late_is_waited_for() -> None:
    with two("late", "late") as both:
        assert [(code, out) for code, out, _ in both.end()] == [(0, "ready\nleft\n")] * 2


def test_one_sigterm_stops_both_processes_at_the_same_step() -> None:
    with two("preempted", "preempted") as both:
        ended = both.end()
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert ended[0][1] == ended[1][1]
    assert int(ended[0][1].split()[-2]) >= 20


FAILURES = {
    "fails": (1, "failed: model: it must be good, and it is bad; mend it"),
    "breaks": (1, "failed: KeyError: 'key'"),
    "exits": (3, "failed: it ended with exit code 3"),
}


@pytest.mark.parametrize(
    ("bad", "how", "other"),
    [
        slow(*case)
        for case in [
            (1, "fails", "collective"),
            (0, "fails", "python"),
            (1, "exits", "computing"),
            (0, "breaks", "collective"),
            (1, "breaks", "sleeps"),
            (0, "exits", "sleeps"),
        ]
    ],
)
def test_a_process_that_fails_ends_the_other(bad: int, how: str, other: str) -> None:
    code, sentence = FAILURES[how]
    with two(*((how, other) if bad == 0 else (other, how))) as both:
        both.wait_until_ready()
        ended = both.end()
    assert ended[bad][0] == code
    assert "feedax: process" not in ended[bad][2]
    assert ended[1 - bad][0] == 1
    assert f"feedax: process {bad} {sentence}\n" in ended[1 - bad][2]


UNHEALTHY = "The following tasks are unhealthy (stopped sending heartbeats):\n"
LEADER_DIED = "Either the leader task was preempted/died/restarted unexpectedly"
NO_ANSWER = "Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/Heartbeat"
"""What JAX says of a process that died or was stopped; process 0 is its leader."""


@pytest.mark.parametrize(
    ("dead", "other"),
    slow_but(
        [(1, "sleeps")],  # what computes keeps both cores busy until JAX ends it
        [(0, "collective"), (0, "computing"), (0, "python"), (1, "collective"), (1, "python")],
    ),
)
def test_a_process_that_is_killed_ends_the_other(dead: int, other: str) -> None:
    with two(*(("sleeps", other) if dead == 0 else (other, "sleeps"))) as both:
        both.wait_until_ready()
        both.processes[dead].kill()
        [(code, _, err)] = both.end(1 - dead)
    assert code == -signal.SIGABRT
    assert (LEADER_DIED if dead == 0 else f"{UNHEALTHY}{dead}\n") in err


@pytest.mark.parametrize(
    ("stopped", "other", "heartbeat"),
    [
        slow(*case)
        for case in [
            (0, "sleeps", 6),
            (1, "collective", 6),
            (0, "collective", processes.HEARTBEAT_SECONDS),
            (1, "collective", processes.HEARTBEAT_SECONDS),
            (0, "computing", processes.HEARTBEAT_SECONDS),
            (1, "python", processes.HEARTBEAT_SECONDS),
        ]
    ],
)
def test_a_process_that_is_stopped_ends_the_other_and_itself_when_it_goes_on(
    stopped: int, other: str, heartbeat: int
) -> None:
    pair = ("sleeps", other) if stopped == 0 else (other, "sleeps")
    with two(*pair, join={"heartbeat": heartbeat}) as both:
        both.wait_until_ready()
        both.processes[stopped].send_signal(signal.SIGSTOP)
        [(code, _, err)] = both.end(1 - stopped)
        assert code == -signal.SIGABRT
        assert (NO_ANSWER if stopped == 0 else f"{UNHEALTHY}{stopped}\n") in err
        both.processes[stopped].send_signal(signal.SIGCONT)
        [(code, _, err)] = both.end(stopped)
        assert code == -signal.SIGABRT
        assert "the JAX distributed service detected fatal errors" in err


@pytest.mark.slow
def test_strangers_at_the_coordinators_port_neither_end_nor_delay_a_start() -> None:
    greetings = [b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", bytes(range(256)) * 9]
    with two("decides", "decides") as both, contextlib.ExitStack() as stack:
        both.processes[1].send_signal(signal.SIGSTOP)
        for number in range(400):
            stranger = both.connect(stack)
            with contextlib.suppress(OSError):
                stranger.sendall(greetings[number % len(greetings)])
        both.processes[1].send_signal(signal.SIGCONT)
        assert [code for code, _, _ in both.end()] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("me", [0, 1])
def test_a_process_whose_peers_do_not_come_ends_with_a_sentence(me: int) -> None:
    with two("sleeps", "sleeps", join={"timeout": 3}) as both:
        both.processes[1 - me].kill()
        [(code, out, err)] = both.end(me)
    assert (code, out) == (1, "")
    assert err == (
        "feedax: processes: at least one process has not joined within 3 s; see its output, and "
        "whether it can reach process 0 at the coordinator's address\n"
    )


OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": ["1531576320.0;tcp://127.0.0.1:34911"] * 2,
    "OMPI_COMM_WORLD_SIZE": ["2", "2"],
    "OMPI_COMM_WORLD_RANK": ["0", "1"],
    "OMPI_COMM_WORLD_LOCAL_RANK": ["0", "1"],
}
SLURM = {
    "SLURM_JOB_ID": ["4711", "4711"],
    "SLURM_STEP_NODELIST": ["localhost"] * 2,
    "SLURM_NTASKS": ["2", "2"],
    "SLURM_STEP_NUM_TASKS": ["2", "2"],
    "SLURM_PROCID": ["0", "1"],
    "SLURM_LOCALID": ["0", "1"],
}


@pytest.mark.parametrize(
    "scheduler",
    [SLURM] + [pytest.param(scheduler, marks=pytest.mark.slow) for scheduler in (OPEN_MPI, {})],
    ids=["SLURM", "Open MPI", "none"],
)
def test_two_processes_decide_as_process_0_does_and_print_nothing_else(
    scheduler: dict[str, list[str]],
) -> None:
    if scheduler:
        scheduler = scheduler | {"JAX_COORDINATOR_PORT": [str(free_port())] * 2}
    with two("decides", "decides", **scheduler) as both:
        ended = both.end()
    lines = "ready\n[0, 0.1, None, {'stop': False}]\nFalse True True\nTrue\n0 6.0\nleft\n"
    assert [(code, out) for code, out, _ in ended] == [(0, lines)] * 2
    assert all("[Gloo]" in err for _, _, err in ended)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(ALONE):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A shell inside an allocation of eight tasks: salloc's own, and the step it may start.
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {name: values[0] for name, values in SLURM.items()}
        | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {name: values[0] for name, values in SLURM.items()} | {"SLURM_NTASKS": "1"},
        {name: values[0] for name, values in OPEN_MPI.items()} | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "pod"},
    ],
    ids=["nothing", "salloc", "interactive step", "one task", "one rank", "pod"],
)
def test_a_process_that_runs_alone_under_a_scheduler_stays_alone(
    environment: dict[str, str], alone: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        alone.setenv(name, value)
    assert processes.join() == 1


def test_a_pod_of_an_indexed_job_without_the_package_kubernetes_says_so(
    alone: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    alone.setenv("JOB_COMPLETION_INDEX", "1")
    assert processes.join() == 1
    assert caplog.messages == [
        "processes: this pod of an indexed job trains alone, because JAX needs the package "
        "kubernetes to find the other pods; pip install kubernetes to train one model with them"
    ]


def test_processes_that_jax_cannot_find_are_not_taken_for_single_ones(
    alone: pytest.MonkeyPatch,
) -> None:
    alone.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ProcessError) as raised:
        processes.join()
    assert str(raised.value) == (
        "processes: JAX finds process 0 under Open MPI 4 only, and another mpirun has started 4 "
        "processes; "
        "give all three of coordinator, processes and process"
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ("node1:29500", None, 0),
            "give all three of coordinator, processes and process, or none; missing: processes",
        ),
        (
            (None, 2, None),
            "give all three of coordinator, processes and process, or none; missing: "
            "coordinator, process",
        ),
        (
            ("node1", 2, 0),
            "coordinator=HOST:PORT must be where process 0 listens, and it is 'node1'; choose a "
            "free port there, for example node1:29500",
        ),
        (("node1:29500", 0, 0), "processes must be 1 or more, not 0"),
        (
            ("node1:29500", 2, 2),
            "process=N must be from 0 to 1 with 2 processes, and it is 2; number them from 0",
        ),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(flags: tuple, sentence: str) -> None:
    with pytest.raises(ProcessError) as raised:
        processes.join(*flags)
    assert str(raised.value) == f"processes: {sentence}"


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("", 0)) as taken:
        coordinator = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ProcessError) as raised:
            processes.join(coordinator, 2, 0)
    assert str(raised.value) == (
        f"processes: process 0 cannot listen at the coordinator's {coordinator} (Address already "
        "in use); choose another port"
    )


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("node1", None), ("192.0.2.1", None)],
)
def test_process_0_listens_at_the_coordinators_address_alone(host, address) -> None:
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    port = free_port()
    assert processes._bind_address(f"{host}:{port}") == f"{address or everywhere}:{port}"


def test_processes_that_come_after_the_first_computation_are_refused() -> None:
    code = """
import jax
jax.numpy.zeros(1)
from feedax.train import processes
processes.join("localhost:1234", 2, 0)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ALONE)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "feedax.errors.ProcessError: processes: JAX has computed something already; call "
        "feedax.train.processes.join earlier"
    )


def test_a_stdout_that_is_kept_clean_has_pythons_lines_only(tmp_path: Path) -> None:
    code = """
import os
from feedax.train.processes import keep_stdout_clean
keep_stdout_clean()
keep_stdout_clean()
os.write(1, b"library\\n")
print("command")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("command\n", "library\n")
