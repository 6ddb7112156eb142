"""A sweep at work: group by group, and what was trained before."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError, CheckpointError, ModelError, NotANumberError, shown
from feedax.feed import on_device
from feedax.storage.checkpoint_file import LargerError
from feedax.storage.snapshot import restore, snapshot
from feedax.train.checkpoints import Checkpoints, most_bytes
from feedax.train.events import (
    EpochEnded,
    Event,
    NetworkEnded,
    NetworksStarted,
    Stepped,
    Stopped,
    StopTraining,
)
from feedax.train.job import Job
from feedax.train.members import Member
from feedax.train.model import combine, partition
from feedax.train.networks import Network, Sweep, file_name
from feedax.train.programs import Programs
from feedax.train.room import room
from feedax.train.saved import ENDED, TOGETHER, refuse_broken
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
        self._kind: Any = None
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

    @cached_property
    def _most(self) -> int:
        """Bytes that a checkpoint of one network has at most."""
        job = self._job_of(self._members[0])
        return most_bytes((job.params, job.model_state))

    def _train(self, rest: list[Member]) -> None:
        some, most = [self._job_of(member) for member in rest[:2]], len(self._members)
        _refuse_what_comes_once(some, len(rest))
        size = min(self._together or room(some, most), most)
        devices = some[0].devices.count
        if size > 1:  # every device has as many
            size = -(-size // devices) * devices
        groups = self._begun(rest, size, devices)
        if groups and self._together is None:
            size = groups[0][1]
        begun = {member.name for group, _ in groups for member in group}
        new = [member for member in rest if member.name not in begun]
        groups += [(new[start : start + size], size) for start in range(0, len(new), size)]
        for group, size in groups:
            jobs = [self._job_of(member) for member in group]
            names, length = [member.name for member in group], jobs[0].train.length
            self._tell(NetworksStarted(names, len(self._ended), most, jobs[0].epochs, length))
            if size == 1:
                self._train_one(group[0], jobs[0])
            else:
                self._train_group(group, jobs, size)

    def _begun(
        self, rest: Sequence[Member], size: int, devices: int
    ) -> list[tuple[list[Member], int]]:
        """Groups side by side that an earlier call has not brought to their end, and their sizes.

        They go on as they are, to the same bits, though other networks are to be trained too.
        """
        groups: list[tuple[list[Member], int]] = []
        if self._checkpoints is None:
            return groups
        most = len(self._members) * self._most
        members = {member.name: member for member in self._members}
        left = {member.name for member in rest}
        for name in self._checkpoints.names():
            if not name.startswith("together-"):
                continue
            found = self._checkpoints.within(name).newest(most)
            if found is None:
                continue
            refuse_broken(found.about, TOGETHER, found.path)
            names, begun = found.about["networks"], found.about["size"]
            fits = begun == size or (self._together is None and begun % devices == 0)
            fits = fits and len(names) <= begun <= -(-len(members) // devices) * devices
            if fits and left & set(names) and members.keys() >= set(names):
                groups.append(([members[name] for name in names], begun))
                left -= set(names)
        return groups

    def _train_one(self, member: Member, job: Job) -> None:
        job.callbacks = (self._relay,)
        programs = self._programs_of(job, mapped=False)
        programs.residents.forget_others([job.train, *job.sets.values()])
        training = Training(job, programs)
        error = None
        try:
            params = training.run()
        except NotANumberError as found:
            params, error = found.params, found
        if self._is_stopped:
            raise StopTraining
        network = Network(
            member.seed, member.setting, params, training.history, error, job.best.column
        )
        self._end([network], [job], job.checkpoints)

    def _train_group(self, group: Sequence[Member], jobs: Sequence[Job], size: int) -> None:
        kinds = [_kind(job) for job in jobs]
        if not all(_same(kinds[0], kind) for kind in kinds):
            raise ModelError(
                "sweep: networks side by side must differ in the numbers that are trained alone, "
                "and init makes other leaves or shapes of another key; give together=1"
            )
        names = [member.name for member in group]
        name = f"together-{hashlib.sha256(repr([names, size]).encode()).hexdigest()[:12]}"
        checkpoints = self._checkpoints and self._checkpoints.within(name)
        stacked = stack_jobs(jobs, size, checkpoints)
        programs = self._programs_of(stacked, mapped=True)
        programs.residents.forget_others([*stacked.train, *stacked.sets.values()])
        best = [job.best for job in jobs]
        results = SideBySide(stacked, names, best, programs, self._relay).run()
        if self._is_stopped:
            raise StopTraining
        networks = [
            Network(member.seed, member.setting, *result, stacked.best.column)
            for member, result in zip(group, results, strict=True)
        ]
        self._end(networks, jobs, checkpoints)

    def _programs_of(self, job: Job, mapped: bool) -> Programs:
        """Those of the job before, if it differs in numbers alone."""
        kind = _kind(job)
        if self._programs is None or not _same(self._kind, kind):
            self._programs, self._kind = Programs(job, mapped), kind
        return self._programs

    def _end(
        self, networks: Sequence[Network], jobs: Sequence[Job], checkpoints: Checkpoints | None
    ) -> None:
        """Keep what was trained; then its checkpoints are of no use."""
        new = [network.name not in self._ended for network in networks]
        for network, job in zip(networks, jobs, strict=True):
            self._write(network, job)
            self._ended.setdefault(network.name, network)
        if checkpoints is not None:
            checkpoints.remove()
        self._tell(
            *(NetworkEnded(one) for one, is_new in zip(networks, new, strict=True) if is_new)
        )

    def _write(self, network: Network, job: Job) -> None:
        if self._checkpoints is None or network.name in self._ended:
            return
        params, state = network.params if job.model.stateful else (network.params, None)
        arrays = snapshot({"params": partition(params)[0], "state": state})
        error = network.error
        about = {
            **_asked(job),
            "run": self._checkpoints.run,
            "history": network.history,
            "error": None if error is None else [str(error), error.epoch, error.step],
        }
        self._checkpoints.write(f"{file_name(network.name)}.safetensors", arrays, about)

    def _was_trained(self, member: Member) -> bool:
        """Whether a network is there from an earlier call; then it is among those that ended.

        Raises:
            CheckpointError: it is of another sweep.
        """
        if self._checkpoints is None:
            return False
        name = f"{file_name(member.name)}.safetensors"
        try:
            found = self._checkpoints.read(name, self._most)
        except LargerError:
            raise
        except CheckpointError as error:
            LOGGER.warning(f"{error}; it is trained again")
            return False
        if found is None:
            return False
        (arrays, about), path = found, self._checkpoints.folder / name
        job = self._job_of(member)
        asked = {"run": self._checkpoints.run, **_asked(job)}
        for name, value in asked.items():
            if about.get(name) != value:
                raise CheckpointError(
                    f"sweep: a sweep goes on with what it began with, and in {path} {name} was "
                    f"{shown(about.get(name))} but is {shown(value)}; give the same, or "
                    "another folder"
                )
        refuse_broken(about, ENDED, path)
        like = on_device({"params": job.params, "state": job.model_state})
        tree = restore(arrays, like, source=path)
        params = combine(tree["params"], job.model.static)
        whole = (params, tree["state"]) if job.model.stateful else params
        failure = None
        if about["error"] is not None:
            message, epoch, step = about["error"]
            failure = NotANumberError(message)
            failure.epoch, failure.step, failure.params = epoch, step, whole
            failure.history = about["history"]
        self._ended[member.name] = Network(
            member.seed, member.setting, whole, about["history"], failure, job.best.column
        )
        return True

    def _relay(self, event: Event) -> None:
        if isinstance(event, Stopped):
            self._is_stopped = True
        if isinstance(event, Stepped):
            self._tell(event)
        if isinstance(event, EpochEnded) and not event.is_last:
            row = event.row
            rate = row["examples_per_second"]
            self._tell(Stepped(event.epoch + 1, 0, row["loss"], rate, event.params))

    def _tell(self, *events: NetworksStarted | Stepped | NetworkEnded) -> None:
        stops = False
        for event in events:
            for callback in self._callbacks:
                try:
                    callback(event)
                except StopTraining:
                    stops = True
        if stops:
            raise StopTraining


def _refuse_what_comes_once(jobs: Sequence[Job], count: int) -> None:
    """Refuse an iterator that several networks would share: each would get the other's rest."""
    first, last = [{"train": job.train, **job.sets} for job in (jobs[0], jobs[-1])]
    for name, source in first.items():
        if len(jobs) > 1 and source == last[name] and source.comes_once:
            what = name if name == "train" else f"evaluate[{name!r}]"
            raise BatchError(
                f"sweep: {what} must be there for each of {count} networks, and it is a "
                f"{source.type_name}, which comes once; give a NumpyLoader or a list"
                + (", or a function of a seed that makes one" if name == "train" else "")
            )


def _asked(job: Job) -> dict[str, Any]:
    """What a network that was trained must have been asked for."""
    return {
        "epochs": job.epochs,
        "steps": job.steps,
        "learning_rate": float(job.learning_rate),
        "hyperparams": {name: float(value) for name, value in job.hyperparams.items()},
        "mixup": float(job.mixup),
        "best": job.best.column,
        "patience": job.best.patience,
    }


def _kind(job: Job) -> tuple[Any, list[Any]]:
    """What decides whether the programs of another job are those of this one."""
    trained = job.params, job.model_state, job.hyperparams
    shapes = [(np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(trained)]
    structure = jax.tree.structure((*trained, job.model.static))
    return (structure, shapes), jax.tree.leaves(job.model.static)


def _same(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> bool:
    return one[0] == other[0] and all(
        a is b or np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True)
    )
