"""Starts real trainers, kills them at chosen moments, goes on, and compares what is left.

A trainer is a process with everything that a person's has. Most are forked from a launcher that
has imported JAX and torch, see `kill_launcher`; those that are started "from nothing" are
``python -m feedax train``.
"""

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from helpers import processes_of_session
from kill_outcome import Outcome, assert_equal, checkpoint_names, parts, row_count, step_of

from feedax.storage.checkpoint_file import read_checkpoint

TESTS = Path(__file__).parent
DEADLINE = 240
"""Seconds after which something hangs."""
AGAIN = "before the next checkpoint"
"""The moment that needs a checkpoint to resume from."""


@dataclass(frozen=True)
class Job:
    """One run to train, again and again.

    Args:
        name: of the job.
        words: of the command line: ``train ...``, or ``fit NAME``, see `kill_jobs.main`.
        epoch_steps: steps an epoch has.
        rows: epochs that the run begins.
        moments: when it is killed in the long form.
    """

    name: str
    words: str
    epoch_steps: int
    rows: int
    moments: tuple[str, ...] = ()

    def begin(self, run: Path) -> list[str]:
        out = [] if self.words.startswith("fit") else ["--out"]
        return [*shlex.split(self.words), *out, str(run)]

    def go_on(self, run: Path) -> list[str]:
        """What a person types: the same again where nothing is there yet, or --resume."""
        if self.words.startswith("fit") or not (run / "config.json").exists():
            return self.begin(run)
        words = shlex.split(self.words)
        data = ["--dataset", words[2]] if words[1] == "--dataset" else []
        return ["train", "--resume", str(run), *data]


@dataclass
class Trainer:
    """A process that trains.

    Attributes:
        number: of the process.
        wait: waits for its end; its exit code, negative for a signal.
        out, err: the files with what it says.
        checkpoints: those that were there when it began.
        rows: that were there when it began.
        outlived: how many seconds a process that it had started lived on after it was killed.
    """

    number: int
    run: Path
    wait: Callable[[], int]
    out: Path
    err: Path
    began: float = field(default_factory=time.monotonic)
    checkpoints: frozenset[str] = frozenset()
    rows: int = 0
    outlived: float = 0.0

    def __post_init__(self) -> None:
        self._handle = os.pidfd_open(self.number)
        self.checkpoints = frozenset(checkpoint_names(self.run))
        self.rows = row_count(self.run)

    def is_running(self, seconds: float = 0.0) -> bool:
        """Whether it still runs after so many seconds."""
        return not select.select([self._handle], [], [], seconds)[0]

    def said(self) -> str:
        return self.err.read_text() if self.err.exists() else ""

    def last_worker(self) -> str:
        """What is to be said of the processes that it had started, when it was killed."""
        return f" (its workers ended after {self.outlived:.1f} s)" if self.outlived else ""

    def new_checkpoints(self) -> set[str]:
        return set(checkpoint_names(self.run)) - self.checkpoints

    def wait_for(self, moment: Callable[[], bool]) -> bool:
        """Whether the moment comes while it runs."""
        while self.is_running(0.0005):
            if moment():
                return True
            if time.monotonic() - self.began > DEADLINE:
                self._hangs()
        return False

    def ends(self) -> int:
        """Wait for its end; the exit code."""
        if self.is_running(DEADLINE):
            self._hangs()
        return self.wait()

    def _hangs(self) -> None:
        self.signal(signal.SIGKILL)
        raise AssertionError(f"hangs for {DEADLINE} s: {self.said()}")

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> bool:
        """SIGKILL the trainer alone; whether that ended it. What it had started must end too."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        code = self.wait()
        assert code in (0, -signal.SIGKILL), f"exit code {code}: {self.said()}"
        killed = time.monotonic()
        while left := processes_of_session(self.number):
            self.outlived = time.monotonic() - killed
            assert self.outlived < DEADLINE, f"processes {left} outlive their trainer"
            time.sleep(0.02)
        return code != 0


class Harness:
    """Starts trainers.

    Args:
        folder: for everything that they write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._references: dict[str, Outcome] = {}
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self._environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
        self._launcher = subprocess.Popen(
            [sys.executable, str(TESTS / "kill_launcher.py")],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._launcher.communicate()

    def _ask(self, **request: Any) -> int:
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(json.dumps(request) + "\n")
        self._launcher.stdin.flush()
        return int(self._launcher.stdout.readline())

    def start(
        self, words: list[str], run: Path, *, from_nothing: bool = False, compiles: bool = False
    ) -> Trainer:
        """Start a trainer.

        Args:
            words: of its command line.
            run: the run's folder.
            from_nothing: whether it has to import everything first.
            compiles: whether it has to compile everything, and tells of it.
        """
        self._count += 1
        out, err = (self.folder / f"{self._count:03}.{kind}" for kind in ("out", "err"))
        jax = {"jax_log_compiles": True, "jax_enable_compilation_cache": False}
        if not from_nothing:
            jax = jax if compiles else {}
            number = self._ask(words=words, out=str(out), err=str(err), jax=jax)
            return Trainer(number, run, lambda: self._ask(wait=number), out, err)
        variables = {name.upper(): str(int(value)) for name, value in jax.items()}
        module = "kill_jobs" if words[0] == "fit" else "feedax"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.folder,
                env={**self._environment, **(variables if compiles else {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        return Trainer(process.pid, run, process.wait, out, err)

    def reference(self, job: Job) -> Outcome:
        """What the job's run leaves that nobody interrupts."""
        if job.name not in self._references:
            run = self.folder / f"{job.name}-alone"
            trainer = self.start(job.begin(run), run)
            assert trainer.ends() == 0, trainer.said()
            seconds = time.monotonic() - trainer.began
            self._references[job.name] = Outcome.of(run, seconds)
        return self._references[job.name]

    def kill_and_resume(self, job: Job, moments: list[str], rng: Random) -> Iterator[str]:
        """Train to the end through kills, and compare; again until there was each of the kills.

        Args:
            job: what is trained.
            moments: names in `MOMENTS`, perhaps with ", from nothing"; see `Harness.start`.
            rng: for what is random in them.

        Yields:
            For each kill the moment and the phase that it hit.
        """
        reference = self.reference(job)
        left = list(moments)
        for attempt in range(2 * len(moments) + 1):
            run = self.folder / f"{job.name}-{attempt}-{rng.randrange(10**6)}"
            while left:
                is_extra = left[0].startswith(AGAIN) and not checkpoint_names(run)
                chosen = "while it trains" if is_extra else left[0]
                moment, _, from_nothing = chosen.partition(", from ")
                words = job.go_on(run)
                trainer = self.start(
                    words,
                    run,
                    from_nothing=bool(from_nothing) or moment == "at the start",
                    compiles=moment == "while it compiles",
                )
                came = trainer.wait_for(MOMENTS[moment](trainer, job, rng, reference.seconds))
                if not came:
                    assert trainer.wait() == 0, f"{words}: {trainer.said()}"
                if not (came and trainer.kill()):
                    break  # it was done before
                if not is_extra:
                    del left[0]
                check_killed(run)
                yield f"{chosen}: {phase(trainer, job)}{trainer.last_worker()}"
            else:
                trainer = self.start(job.go_on(run), run)
                assert trainer.ends() == 0, trainer.said()
            assert_equal(Outcome.of(run), reference, f"{job.name}: {run}")
            if not left:
                return
        raise AssertionError(f"{job.name}: these moments never came: {left}")


Moment = Callable[[Trainer, Job, Random, float], Callable[[], bool]]


def _anywhere(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    return _some_time_after("the run's folder is", trainer, rng.uniform(0, seconds / 2))


def _at_the_start(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    return _some_time_after("", trainer, rng.uniform(0, 4))


def _compiling(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    number = rng.randint(1, 8)
    return lambda: is_compiling(said := trainer.said()) and said.count(COMPILING) >= number


def _training(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    number, pause = rng.randint(1, 4), rng.uniform(0, 0.03)

    def come() -> bool:
        if len(trainer.new_checkpoints()) < number:
            return False
        time.sleep(pause)
        return True

    return come


def _saving(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    number, seen = rng.randint(2, 5), set()  # so that there is one to go on from

    def come() -> bool:
        seen.update(parts(trainer.run / "checkpoints"))
        return len(seen) >= number and bool(parts(trainer.run / "checkpoints"))

    return come


def _evaluating(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    pause = rng.uniform(0, 0.005)

    def come() -> bool:
        if all(step_of(name) % job.epoch_steps for name in trainer.new_checkpoints()):
            return False
        time.sleep(pause)
        return True

    return come


def _ending(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    pause = rng.uniform(0, 0.1)

    def come() -> bool:
        if row_count(trainer.run) < job.rows:
            return False
        time.sleep(pause)
        return True

    return come


def _goes_on(trainer: Trainer, job: Job, rng: Random, seconds: float) -> Callable[[], bool]:
    return _some_time_after("resumed after step", trainer, rng.uniform(0, 0.3))


def _some_time_after(words: str, trainer: Trainer, seconds: float) -> Callable[[], bool]:
    since: list[float] = []

    def come() -> bool:
        if not since and words in trainer.said():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return come


MOMENTS: dict[str, Moment] = {
    "anywhere": _anywhere,
    "at the start": _at_the_start,
    "while it compiles": _compiling,
    "while it trains": _training,
    "while it saves": _saving,
    "while it evaluates": _evaluating,
    "at the end": _ending,
    AGAIN: _goes_on,
}

COMPILING, COMPILED = "Compiling jit(", "Finished XLA compilation of jit("


def is_compiling(said: str) -> bool:
    return said.count(COMPILING) > said.count(COMPILED)


def phase(trainer: Trainer, job: Job) -> str:
    """What a killed trainer was doing, by what it has written."""
    run, said = trainer.run, trainer.said()
    if parts(run / "checkpoints"):
        return "saving"
    if is_compiling(said):
        return "compiling"
    if parts(run):
        return "writing rows or params"
    # The plan's name and a colon begin the sentence with which training begins.
    if not any(f"{plan}: " in said for plan in ("resident", "vectorised", "streamed")):
        return "starting"
    if row_count(run) >= job.rows and row_count(run) > trainer.rows:
        return "ending"
    if not trainer.new_checkpoints():
        return "first steps"
    about = read_checkpoint(run / "checkpoints" / checkpoint_names(run)[-1])[1]
    if about["epoch_step"] == job.epoch_steps and row_count(run) == about["epoch"]:
        return "evaluating"
    return "training"


def check_killed(run: Path) -> None:
    """Every checkpoint that a killed trainer has left is whole."""
    for name in checkpoint_names(run):
        read_checkpoint(run / "checkpoints" / name)
