"""Two real processes of two devices each train one model: as one does, and through kills."""

import contextlib
import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import device_jobs
import pytest
from device_jobs import Job, Kept, assert_close, compilations, train_alone
from helpers import free_port, processes_of_session, timeless
from kill_harness import Harness, Trainer, check_killed
from kill_jobs import TRAIN, save_npz
from kill_outcome import Outcome, assert_equal, checkpoint_names

from feedax.storage.checkpoint_file import read_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")


# 300 examples are ten batches of 28 and one of 20, which two processes cut in two; of 27, none.
JOBS = {"streamed": Job(steps=25, batch=28, plan="streamed", augments=True)}
SLOW_JOBS = {
    "streamed, 50 steps": Job(steps=50, batch=28, plan="streamed", augments=True),
    "batch norm": Job("norm", epochs=1, batch=28, plan="streamed", augments=True, x64=True),
    "no seed": Job(epochs=1, batch=28, plan="streamed", seed=None),
    "resident": Job(steps=50, batch=28),
    "odd batches": Job(steps=50, batch=27, plan="streamed", augments=True),
    "vectorised": Job(steps=50, batch=28, plan="vectorised"),
    "vectorised, workers": Job(steps=50, batch=28, plan="vectorised", workers=2),
    "streamed, workers": Job(steps=50, batch=28, plan="streamed", augments=True, workers=2),
    "resident, float64": Job(epochs=1, batch=27, x64=True),
    "streamed, float64": Job(
        epochs=1, batch=28, plan="streamed", augments=True, workers=2, x64=True
    ),
    "convolution": Job("conv", steps=50, batch=28, plan="streamed", augments=True),
    "convolution, resident": Job("conv", epochs=1, batch=27, x64=True),
    "500 steps": Job(steps=500, plan="vectorised"),
}


def in_two_processes(jobs: dict[str, Job], folder: Path) -> list[dict]:
    """What jobs leave in each process."""
    wanted, port = folder / "wanted", str(free_port())
    wanted.write_bytes(pickle.dumps([(name, job, 2) for name, job in jobs.items()]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    both = [
        subprocess.Popen(
            [
                sys.executable,
                device_jobs.__file__,
                wanted,
                folder / str(me),
                "2",
                port,
                str(me),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(2)
    ]
    try:
        said = [one.communicate(timeout=600) for one in both]
    finally:
        for one in both:
            one.kill()
            one.wait()
    assert [one.returncode for one in both] == [0, 0], said
    assert [out for out, _ in said] == ["", ""]
    return [pickle.loads((folder / str(me)).read_bytes()) for me in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return in_two_processes(JOBS, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def two_slowly(tmp_path_factory):
    return in_two_processes(SLOW_JOBS, tmp_path_factory.mktemp("slowly"))


def found(results: list[dict], name: str) -> tuple[Kept, Kept]:
    first, second = (each[name, 2] for each in results)
    assert isinstance(first, Kept), first
    assert isinstance(second, Kept), second
    return first, second


def assert_like_one_process(results: list[dict], name: str, job: Job) -> None:
    first, second = found(results, name)
    assert_close(first, train_alone(job), 1e-9 if job.x64 else 1e-5)
    # Both have the same parameters and rows, and one of them has written checkpoints.
    assert [a.tobytes() for a in first.params] == [a.tobytes() for a in second.params]
    assert [*map(timeless, first.rows)] == [*map(timeless, second.rows)]
    assert second.arrays == {}
    assert first.said == second.said == []


def test_two_processes_train_as_one_does(two):
    assert_like_one_process(two, "streamed", JOBS["streamed"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in SLOW_JOBS if name not in ("500 steps", "no seed")]
)
def test_two_processes_train_as_one_does_with_every_plan(two_slowly, name):
    assert_like_one_process(two_slowly, name, SLOW_JOBS[name])


@pytest.mark.slow
def test_two_processes_have_few_programs_in_flight(two_slowly):
    for kept in found(two_slowly, "500 steps"):
        assert len(kept.rows) == 50
        assert kept.in_flight <= 8


def test_each_process_loads_its_columns_of_the_order_of_one(two):
    first, second = (kept.loaded for kept in found(two, "streamed"))
    order = train_alone(JOBS["streamed"]).loaded[:TRAIN]
    for start in range(0, TRAIN, 28):
        batch = order[start : start + 28]
        half = len(batch) // 2
        assert first[start // 2 : start // 2 + half] == batch[:half]
        assert second[start // 2 : start // 2 + half] == batch[half:]


@pytest.mark.slow
def test_loaders_without_a_seed_have_one_order_in_both_processes(two_slowly):
    first, second = (kept.loaded for kept in found(two_slowly, "no seed"))
    assert len(first) == len(second) == TRAIN // 2
    assert sorted(first + second) == [*range(TRAIN)]


def test_every_program_is_compiled_once_in_each_process(two):
    for kept in found(two, "streamed"):
        # Twice for batches of two sizes: of 28 examples and of 20.
        batches = {"_first_state": 1, "_train_batch": 2, "_score_block": 1}
        assert compilations(kept) == batches


@pytest.mark.slow
def test_every_resident_program_is_compiled_once_in_each_process(two_slowly):
    first, second = found(two_slowly, "resident")
    assert compilations(first) == {"_first_state": 1, "_train_chunk": 1, "_score_block": 1}
    # The test set is one block of examples, which process 0 scores.
    assert compilations(second) == {"_first_state": 1, "_train_chunk": 1}


ADAM = "--optimizer adam --learning-rate 0.003 --loss cross_entropy --shuffle --batch-size 32"
STREAMED = f"train --dataset kill_jobs:augmented --hidden 32 {ADAM} --checkpoint-every-steps 3"
RESIDENT = f"train --dataset npz:images.npz --hidden 32 {ADAM} --checkpoint-every-steps 3"
JOBS_OF_THE_COMMAND = {
    "streamed": f"{STREAMED} --epochs 6",
    "workers": f"{STREAMED} --epochs 4 --num-workers 2",
    "resident": f"{RESIDENT} --epochs 20 --validation 0.1 --schedule cosine --warmup-steps 5",
    "failing": STREAMED.replace("kill_jobs:augmented", "device_jobs:failing") + " --epochs 4",
}


class Pairs:
    """Starts pairs of `feedax train`, each process with two devices."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.folder = harness.folder

    def start(self, words: str, run: Path, processes: int = 2, devices: int = 2) -> list[Trainer]:
        flags = ["--devices", str(devices)]
        if processes > 1:
            flags += ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
        mine = [["--process", str(me)] if processes > 1 else [] for me in range(processes)]
        return [self.harness.start([*words.split(), *flags, *one], run) for one in mine]

    def begin(self, name: str, run: Path, **how: int) -> list[Trainer]:
        return self.start(f"{JOBS_OF_THE_COMMAND[name]} --out {run}", run, **how)

    def go_on(self, name: str, run: Path, **how: int) -> list[Trainer]:
        words = JOBS_OF_THE_COMMAND[name].split()
        return self.start(f"train --resume {run} --dataset {words[2]}", run, **how)

    @functools.cache  # noqa: B019
    def reference(self, name: str) -> Outcome:
        """What two processes leave that nobody interrupts."""
        run = self.folder / f"{name}-alone"
        both = self.begin(name, run)
        assert [one.ends() for one in both] == [0, 0], said(both)
        # The lines of the command, once.
        assert both[1].out.read_text() == ""
        lines = both[0].out.read_text().splitlines()
        sets = ("Training", "Validation", "Test") if name == "resident" else ("Training", "Test")
        assert [line.split()[0] for line in lines] == ["Epoch", *sets] * len(Outcome.of(run).rows)
        assert both[1].said().count("feedax train: ") == 0
        return Outcome.of(run)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    save_npz(folder / "images.npz")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        harness = Harness(folder)
        stack.callback(harness.close)
        yield Pairs(harness)


def said(both: list[Trainer]) -> str:
    return "\n".join(f"process {me}: {one.said()}" for me, one in enumerate(both))


def in_an_epoch(both: list[Trainer]) -> None:
    """Wait until the run has saved in the middle of an epoch."""
    assert both[0].wait_for(lambda: bool(both[0].new_checkpoints())), said(both)


def ends_well(pairs: Pairs, name: str, run: Path) -> None:
    """The run goes on in two processes, and ends as if nothing had happened."""
    check_killed(run)
    both = pairs.go_on(name, run)
    assert [one.ends() for one in both] == [0, 0], said(both)
    assert_equal(Outcome.of(run), pairs.reference(name), f"{name}: {run}")


def left(both: list[Trainer]) -> list[int]:
    return [number for one in both for number in processes_of_session(one.number)]


def nothing_is_left(both: list[Trainer]) -> None:
    until = time.monotonic() + 60
    while numbers := left(both):
        assert time.monotonic() < until, f"processes {numbers} are left"
        time.sleep(0.02)


def stops_in_good_order(both: list[Trainer], run: Path, by: str, codes: list[int]) -> None:
    """Both end at one step, and process 0 says where it has saved."""
    assert [one.ends() for one in both] == codes, said(both)
    nothing_is_left(both)
    about = read_checkpoint(run / "checkpoints" / checkpoint_names(run)[-1])[1]
    where = f"after epoch {about['epoch'] - 1}"
    if about["epoch_step"]:
        where = f"in epoch {about['epoch']} after {about['epoch_step']} steps"
    last = both[0].said().splitlines()[-1]
    assert last.startswith(
        f"feedax train: stopped by {by} {where}; the checkpoint and the parameters are in {run}; "
        f"resume it with: feedax train --resume {run}"
    ), said(both)


JAX_ENDS = "the JAX distributed service detected fatal errors"
UNHEALTHY = "The following tasks are unhealthy (stopped sending heartbeats):\n"


def kills(pairs: Pairs, name: str, run: Path, dead: list[int]) -> None:
    """SIGKILL some of two processes in an epoch; JAX ends the other one."""
    both = pairs.go_on(name, run) if (run / "config.json").exists() else pairs.begin(name, run)
    in_an_epoch(both)
    for me in dead:
        both[me].signal(signal.SIGKILL)
    codes = [one.ends() for one in both]
    nothing_is_left(both)
    for me, one in enumerate(both):
        if me in dead:
            assert codes[me] == -signal.SIGKILL, said(both)
        else:
            assert codes[me] == -signal.SIGABRT, said(both)
            assert JAX_ENDS in one.said(), said(both)
            assert dead == [0] or f"{UNHEALTHY}1\n" in one.said(), said(both)


@pytest.mark.slow
def test_two_processes_stopped_and_killed_go_on_with_the_same_bits(pairs):
    run = pairs.folder / "stopped-and-killed"
    both = pairs.begin("streamed", run)
    in_an_epoch(both)
    both[1].signal(signal.SIGTERM)
    stops_in_good_order(both, run, "SIGTERM", [143, 143])
    kills(pairs, "streamed", run, dead=[1])
    ends_well(pairs, "streamed", run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streamed", "workers", "resident"])
@pytest.mark.parametrize("dead", [[0], [1], [0, 1]], ids=["process 0", "process 1", "both"])
def test_killed_processes_go_on_with_the_same_bits(pairs, name, dead):
    run = pairs.folder / f"{name}-killed-{''.join(map(str, dead))}"
    kills(pairs, name, run, dead)
    ends_well(pairs, name, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["workers", "resident"])
@pytest.mark.parametrize(
    ("me", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (0, signal.SIGINT)]
)
def test_stopped_processes_go_on_with_the_same_bits(pairs, name, me, number):
    run = pairs.folder / f"{name}-stopped-{me}-{number}"
    both = pairs.begin(name, run)
    in_an_epoch(both)
    both[me].signal(number)
    if number == signal.SIGTERM:
        stops_in_good_order(both, run, "SIGTERM", [143, 143])
    else:
        stops_in_good_order(both, run, "Ctrl-C", [130, 0])
    ends_well(pairs, name, run)


@pytest.mark.slow
@pytest.mark.parametrize("me", [0, 1])
def test_a_process_that_stands_still_ends_the_other(pairs, me):
    run = pairs.folder / f"still-{me}"
    both = pairs.begin("workers", run)
    in_an_epoch(both)
    both[me].signal(signal.SIGSTOP)
    assert both[1 - me].ends() == -signal.SIGABRT, said(both)
    assert JAX_ENDS in both[1 - me].said(), said(both)
    assert me == 0 or f"{UNHEALTHY}1\n" in both[0].said(), said(both)
    both[me].signal(signal.SIGCONT)
    assert both[me].ends() != 0
    nothing_is_left(both)
    ends_well(pairs, "workers", run)


@pytest.mark.slow
def test_a_dataset_that_fails_in_one_process_ends_both(pairs):
    run = pairs.folder / "failing"
    both = pairs.begin("failing", run)
    assert [one.ends() for one in both] == [1, 1], said(both)
    assert "feedax: process 1 failed: " in both[0].said()
    assert "is broken" in both[0].said()
    assert "is broken" in both[1].said()
    assert "feedax: process" not in both[1].said()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "devices"), [("streamed", 1, 1), ("resident", 1, 2), ("streamed", 2, 1)]
)
def test_a_run_goes_on_with_other_devices_and_says_so(pairs, name, processes, devices):
    run = pairs.folder / f"{name}-{processes}-{devices}"
    both = pairs.begin(name, run)
    in_an_epoch(both)
    both[0].signal(signal.SIGTERM)
    assert [one.ends() for one in both] == [143, 143], said(both)
    some = pairs.go_on(name, run, processes=processes, devices=devices)
    assert [one.ends() for one in some] == [0] * processes, said(some)
    changed = [f"devices was 2 and is {devices}"] if devices != 2 else []
    changed += [f"processes was 2 and is {processes}"] if processes != 2 else []
    assert (
        "fit: a resumed run has the bits of an uninterrupted one only if nothing else has changed, "
        f"and {'; '.join(changed)}"
    ) in some[0].said()
    rows, reference = Outcome.of(run).rows, pairs.reference(name).rows
    for row, wanted in zip(rows, reference, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
def test_an_epoch_of_mnist_in_float64_has_the_same_metrics_everywhere(pairs, capsys):
    """A table of the command's: 1, 2 and 8 devices, and 2 processes of 2."""
    words = "train --optimizer adam --learning-rate 0.001 --loss cross_entropy --shuffle --epochs 1"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_X64": "1"}
    rows = {}
    for processes, devices in ((1, 1), (1, 2), (1, 8), (2, 2)):
        run = pairs.folder / f"mnist-{processes}-{devices}"
        flags = [*words.split(), "--hidden", "64", "--out", str(run), "--devices", str(devices)]
        if processes > 1:
            flags += ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
        some = [
            subprocess.Popen(
                [sys.executable, "-m", "feedax", *flags]
                + (["--process", str(me)] if processes > 1 else []),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for me in range(processes)
        ]
        told = [one.communicate(timeout=240)[1] for one in some]
        assert [one.returncode for one in some] == [0] * processes, told
        rows[processes, devices] = json.loads((run / "metrics.jsonl").read_text())
    names = ("loss", "accuracy", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    with capsys.disabled():
        print()
        for (processes, devices), row in rows.items():
            print(processes, "x", devices, *(f"{name} {row[name]:.12f}" for name in names))
    for row in rows.values():
        assert [row[name] for name in names] == pytest.approx(
            [rows[1, 1][name] for name in names], rel=1e-9
        )
