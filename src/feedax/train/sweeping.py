"""A sweep at work: group by group, and what was trained before."""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import CheckpointError, ModelError, NotANumberError
from feedax.storage.checkpoint_file import read_checkpoint, write_checkpoint
from feedax.storage.snapshot import restore, snapshot
from feedax.train.checkpoints import Checkpoints
from feedax.train.events import Event, NetworkEnded, NetworksStarted, Stepped, Stopped, StopTraining
from feedax.train.job import Job
from feedax.train.members import Member
from feedax.train.model import combine, partition
from feedax.train.networks import Network, Sweep
from feedax.train.programs import Programs
from feedax.train.room import room
from feedax.train.side_by_side import SideBySide, stack_jobs
from feedax.train.training import Training

LOGGER = logging.getLogger("feedax")


class Sweeping:
    """Trains the networks of a sweep that are not trained yet.

    Args:
        members: all its networks.
        job_of: what `fit` would be asked for, of each.
        checkpoints: where networks are saved, or None.
        callbacks: as in `sweep`.
        together: how many are trained side by side; None to find out.
    """

    def __init__(
        self,
        members: Sequence[Member],
        job_of: Callable[[Member], Job],
        checkpoints: Checkpoints | None,
        callbacks: Sequence[Callable[[Any], None]],
        together: int | None,
    ) -> None:
        self._members = members
        self._job_of = job_of
        self._checkpoints = checkpoints
        self._callbacks = callbacks
        self._together = together
        self._programs: Programs | None = None
        self._static: Any = None
        self._ended: dict[str, Network] = {}
        self._is_stopped = False

    def run(self) -> Sweep:
        """Train them; those there are, where a callback stops the sweep."""
        with contextlib.ExitStack() as stack:
            if self._checkpoints is not None:
                stack.enter_context(self._checkpoints.in_use())
            rest = [member for member in self._members if not self._was_trained(member)]
            with contextlib.suppress(StopTraining):
                if rest:
                    self._train(rest)
        networks = [self._ended[one.name] for one in self._members if one.name in self._ended]
        return Sweep(networks, len(networks) == len(self._members))

    def _train(self, rest: Sequence[Member]) -> None:
        size = self._together or room(self._job_of(rest[0]), len(rest))
        size = min(size, len(rest))
        for start in range(0, len(rest), size):
            group = rest[start : start + size]
            jobs = [self._job_of(member) for member in group]
            length = None
            with contextlib.suppress(TypeError):
                length = len(jobs[0].train)  # type: ignore[arg-type]
            names = [member.name for member in group]
            ended, count = len(self._ended), len(self._members)
            self._tell(NetworksStarted(names, ended, count, jobs[0].epochs, length))
            if size == 1:
                self._train_one(group[0], jobs[0])
            else:
                self._train_group(group, jobs, size)

    def _train_one(self, member: Member, job: Job) -> None:
        job.callbacks = (self._relay,)
        if self._programs is None or not _same(self._static, job.model.static):
            self._programs, self._static = Programs(job), job.model.static
        self._programs.residents.forget_others([job.train, *job.sets.values()])
        training = Training(job, self._programs)
        error = None
        try:
            params = training.run()
        except NotANumberError as found:
            params, error = found.params, found
        if self._is_stopped:
            raise StopTraining
        self._keep(Network(member.seed, member.setting, params, training.history, error), job)
        if job.checkpoints is not None:
            shutil.rmtree(job.checkpoints.folder, ignore_errors=True)

    def _train_group(self, group: Sequence[Member], jobs: Sequence[Job], size: int) -> None:
        if not all(_same(jobs[0].model.static, job.model.static) for job in jobs):
            raise ModelError(
                "sweep: networks side by side must differ in what is trained alone, and init makes "
                "other leaves that depend on its key; give together=1"
            )
        name = f"together-{hashlib.sha256(repr([one.name for one in group]).encode()).hexdigest()}"
        checkpoints = self._checkpoints and self._checkpoints.within(name[:20])
        stacked = stack_jobs(jobs, size, checkpoints)
        if self._programs is None:
            self._programs = Programs(stacked, mapped=True)
        self._programs.residents.forget_others([*stacked.train, *stacked.sets.values()])
        training = SideBySide(stacked, [job.best for job in jobs], self._programs, self._relay)
        results = training.run()
        if self._is_stopped:
            raise StopTraining
        for member, job, (params, history, error) in zip(group, jobs, results, strict=True):
            self._keep(Network(member.seed, member.setting, params, history, error), job)
        if checkpoints is not None:
            shutil.rmtree(checkpoints.folder, ignore_errors=True)

    def _keep(self, network: Network, job: Job) -> None:
        if self._checkpoints is not None:
            params, state = network.params if job.model.stateful else (network.params, None)
            arrays = snapshot({"params": partition(params)[0], "state": state})
            error = network.error
            about = {
                **_asked(job),
                "run": self._checkpoints.run,
                "history": network.history,
                "error": None if error is None else [str(error), error.epoch, error.step],
            }
            write_checkpoint(self._path(network.name), arrays, about)
        self._ended[network.name] = network
        self._tell(NetworkEnded(network))

    def _was_trained(self, member: Member) -> bool:
        """Whether a network is there from an earlier call; then it is among those that ended.

        Raises:
            CheckpointError: it is of another sweep.
        """
        if self._checkpoints is None or not self._path(member.name).exists():
            return False
        path, job = self._path(member.name), self._job_of(member)
        try:
            arrays, about = read_checkpoint(path)
        except CheckpointError as error:
            LOGGER.warning(f"{error}; it is trained again")
            return False
        asked = {"run": self._checkpoints.run, **_asked(job)}
        for name, value in asked.items():
            if about[name] != value:
                raise CheckpointError(
                    f"sweep: a sweep goes on with what it began with, and in {path} {name} was "
                    f"{about[name]!r} but is {value!r}; give the same, or another folder"
                )
        like = {"params": job.params, "state": job.model_state}
        found = jax.tree.map(jnp.asarray, restore(arrays, like, source=path))
        params = combine(found["params"], job.model.static)
        whole = (params, found["state"]) if job.model.stateful else params
        failure = None
        if about["error"] is not None:
            message, epoch, step = about["error"]
            failure = NotANumberError(message)
            failure.epoch, failure.step, failure.params = epoch, step, whole
            failure.history = about["history"]
        self._ended[member.name] = Network(
            member.seed, member.setting, whole, about["history"], failure
        )
        return True

    def _path(self, name: str) -> Path:
        assert self._checkpoints is not None
        return self._checkpoints.folder / f"{name}.safetensors"

    def _relay(self, event: Event) -> None:
        if isinstance(event, Stopped):
            self._is_stopped = True
        if isinstance(event, Stepped):
            self._tell(event)

    def _tell(self, event: NetworksStarted | Stepped | NetworkEnded) -> None:
        for callback in self._callbacks:
            callback(event)


def _asked(job: Job) -> dict[str, Any]:
    """What a network that was trained must have been asked for."""
    return {
        "epochs": job.epochs,
        "steps": job.steps,
        "learning_rate": job.learning_rate,
        "hyperparams": {name: float(value) for name, value in job.hyperparams.items()},
    }


def _same(one: Any, other: Any) -> bool:
    """Whether what is not trained is the same in two networks."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    pairs = zip(leaves, others, strict=False)
    return len(leaves) == len(others) and all(a is b or np.array_equal(a, b) for a, b in pairs)
