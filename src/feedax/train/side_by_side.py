"""Many networks at once: one compiled step, mapped over their states."""

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError, CheckpointError, NotANumberError, shown
from feedax.feed import (
    CHUNK_STEPS,
    Batch,
    Chunk,
    StackedFeed,
    on_device,
    open_feed,
)
from feedax.train.best import Best
from feedax.train.checkpoints import Checkpoint, Checkpoints
from feedax.train.clock import EpochClock, epoch_row, sums_of
from feedax.train.environment import environment, tell_of_differences
from feedax.train.events import Event, Row, Stepped, Stopped, StopTraining
from feedax.train.job import Job
from feedax.train.model import combine
from feedax.train.programs import Programs
from feedax.train.saved import TOGETHER, refuse_broken
from feedax.train.step import TrainState
from feedax.train.waiting import Waiting

Result = tuple[Any, list[Row], NotANumberError | None]
"""Parameters and history, as `fit` returns them, and why a network ended before its time."""


def stack_jobs(jobs: Sequence[Job], size: int, checkpoints: Checkpoints | None) -> Job:
    """The job of many networks: what differs between them has a first axis for them.

    Args:
        jobs: theirs.
        size: how many there are to be; the last one is repeated, without a loader.
        checkpoints: where all are saved together.
    """
    every = [*jobs, *[jobs[-1]] * (size - len(jobs))]
    params, state = jax.tree.map(
        lambda *leaves: jnp.stack(on_device(leaves)),
        *[(job.params, job.model_state) for job in every],
    )
    names = jobs[0].hyperparams
    return dataclasses.replace(
        jobs[0],
        params=params,
        model_state=state,
        train=[job.train for job in jobs],  # type: ignore[arg-type]
        learning_rate=np.array([job.learning_rate for job in every]),  # type: ignore[arg-type]
        hyperparams={name: np.array([job.hyperparams[name] for job in every]) for name in names},  # type: ignore[misc]
        key=jnp.stack([job.key for job in every]),
        checkpoints=checkpoints,
    )


@jax.jit
def _of_one(tree: Any, i: Any) -> Any:
    """What a stacked tree holds of one network."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


class SideBySide:
    """Trains many networks to their end, as `Training` trains one.

    Args:
        job: of `stack_jobs`.
        names: of the networks that count; checkpoints say them.
        best: for each of them, what is kept of it.
        programs: those of such a job, mapped.
        relay: is told what happens.
    """

    def __init__(
        self,
        job: Job,
        names: Sequence[str],
        best: Sequence[Best],
        programs: Programs,
        relay: Callable[[Event], None],
    ) -> None:
        self._job = job
        self._names = list(names)
        self._size = len(job.key)
        self._best = best
        self._programs = programs
        self._relay = relay
        self._loaders = list(job.train)
        self._state: TrainState | None = None
        # Parameters and model states: at the epoch's start, at their best, and of the networks
        # that have ended.
        self._copies: dict[str, Any] = {}
        self._ended: dict[int, NotANumberError | None] = {}
        self._histories: list[list[Row]] = [[] for _ in best]
        self._epoch = self._step = self._epoch_step = 0
        self._seconds = 0.0
        self._skips = [0] * len(self._loaders)
        self._positions: list[Any] = [{"batches": 0}] * len(self._loaders)
        self._found: Checkpoint | None = None
        self._saved = -1, -1
        self._environment = environment(job.devices, job.model.dtype)

    def run(self) -> list[Result]:
        """Train; the results in the networks' order."""
        job = self._job
        with contextlib.ExitStack() as stack:
            if job.checkpoints is not None:
                stack.enter_context(job.checkpoints.in_use())
                self._found = job.checkpoints.newest(self._programs.states.most_bytes(job))
            for batches in (*self._loaders, *job.sets.values()):
                self._programs.evaluation.prepare(batches)
            if self._found is not None:
                self._go_on(self._found.about)
            try:
                while not self._is_over():
                    self._train_epoch()
            except StopTraining:
                self._save()
                self._relay(Stopped(self._epoch, self._epoch_step, False))
        if self._state is None and self._found is not None:
            self._state = self._first_state()
        return [self._result(i) for i in range(len(self._best))]

    def _is_over(self) -> bool:
        if self._epoch_step > 0:
            return False
        epochs, steps = self._job.epochs, self._job.steps
        return (
            (epochs is not None and self._epoch >= epochs)
            or (steps is not None and self._step >= steps)
            or len(self._ended) == len(self._best)
        )

    def _train_epoch(self) -> None:
        programs, checkpoints = self._programs, self._job.checkpoints
        waiting = Waiting(self._loaders[0], programs.steps)
        clock = EpochClock(self._epoch, programs.steps, self._seconds)
        exact = not self._job.model.of_one_example
        skips, self._skips = self._skips, [0] * len(self._loaders)
        feeds = [
            open_feed(
                loader,
                exact,
                programs.residents,
                programs.check,
                None if checkpoints is None else loader.resumable_state(),
                skip,
            )
            for loader, skip in zip(self._loaders, skips, strict=True)
        ]
        with contextlib.closing(StackedFeed(feeds, self._size, self._job.devices)) as feed:
            self._train_steps(feed, waiting, clock)
            seconds, columns = clock.seconds, waiting.columns(feed)
            # An iterable that cannot say where it stands begins again.
            self._positions = [
                {"batches": 0} if "batches" in position else position
                for position in feed.positions()
            ]
        rows = self._rows(seconds, {"compile_seconds": clock.compile_seconds, **columns})
        self._set_failures_apart()
        self._job.tell_of_an_early_end(self._step)
        self._end_epoch(rows)
        programs.advice.after(rows[0], waiting)

    def _train_steps(self, feed: StackedFeed, waiting: Waiting, clock: EpochClock) -> None:
        programs, has_begun = self._programs, False
        job, steps = self._job, programs.steps
        while (most := job.most_steps(self._step, min(CHUNK_STEPS, steps.chunk_length))) > 0:
            piece: Batch | Chunk | None = waiting.take(feed, most)
            if piece is None:
                break
            if not has_begun:
                scores = programs.check.scores.items()
                programs.metrics |= {name: one for name, one in scores if name != "loss"}
                self._begin()
                has_begun = True
            assert self._state is not None
            self._state = waiting.run(self._state, piece)
            count = int(piece.steps) if isinstance(piece, Chunk) else 1
            self._step += count
            self._epoch_step += count
            checkpoints = self._job.checkpoints
            is_save = checkpoints is not None and checkpoints.is_due_at(self._step)
            if is_save or clock.is_due():
                jax.block_until_ready(self._state)
                self._positions, self._seconds = feed.positions(), clock.seconds
                if is_save or (checkpoints is not None and checkpoints.is_due_by_time()):
                    self._save()
                clock.told()
                self._relay(self._stepped(self._rows(self._seconds, {})))
        if not has_begun:
            self._begin()
        jax.block_until_ready(self._state)

    def _stepped(self, rows: list[Row]) -> Stepped:
        assert self._state is not None
        losses = [row["loss"] for i, row in enumerate(rows) if i not in self._ended]
        loss = sum(losses) / len(losses)
        rate = sum(row["examples_per_second"] for row in rows)
        return Stepped(self._epoch, self._epoch_step, loss, rate, self._state.params)

    def _rows(self, seconds: float, columns: dict[str, float]) -> list[Row]:
        """Each network's row of the epoch so far."""
        assert self._state is not None
        sums = sums_of(self._state)
        each = [jax.tree.map(operator.itemgetter(i), sums) for i in range(len(self._best))]
        return [epoch_row(self._epoch, seconds, one, columns) for one in each]

    def _end_epoch(self, rows: list[Row]) -> None:
        job, state, evaluation = self._job, self._state, self._programs.evaluation
        assert state is not None
        compiled = evaluation.compile_seconds
        for name, batches in job.sets.items():
            every = evaluation.of_each(
                state.params, state.model_state, state.hyperparams, batches, f"evaluate[{name!r}]"
            )
            for row, scores in zip(rows, every, strict=False):  # some networks only fill the group
                row |= {f"{name}_{score}": value for score, value in scores.items()}
        for row in rows:
            row["compile_seconds"] += evaluation.compile_seconds - compiled
        self._epoch, self._epoch_step, self._seconds = self._epoch + 1, 0, 0.0
        for i, (row, best) in enumerate(zip(rows, self._best, strict=True)):
            if i not in self._ended:
                self._histories[i].append(row)
                if best.is_beaten_by(row):
                    best.keep(row, self._step, None)
        now = self._programs.states.copy(state)
        self._copy("best", now, [best.step == self._step for best in self._best])
        over = [
            i not in self._ended and one.is_over(self._epoch) for i, one in enumerate(self._best)
        ]
        self._copy("ended", self._copies.get("best"), over)
        self._ended |= {i: None for i, is_over in enumerate(over) if is_over}
        checkpoints = job.checkpoints
        is_over = self._is_over()
        if checkpoints and (is_over or checkpoints.is_due_after(self._epoch)):
            self._save()
        if not is_over:
            self._relay(self._stepped(rows))

    def _copy(self, name: str, source: Any, which: list[bool]) -> None:
        """Keep the parameters of some networks; those of the others stay what they were."""
        if not any(which):
            return
        mask = np.array(which + [False] * (self._size - len(which)))
        mask = jax.device_put(mask, self._job.devices.shared)

        def chosen(new: Any, old: Any) -> Any:
            return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        self._copies[name] = jax.tree.map(chosen, source, self._copies.get(name, source))

    def _set_failures_apart(self) -> None:
        """Networks that have turned not-a-number end with what they had before this epoch."""
        assert self._state is not None
        bad_steps = np.asarray(jax.device_get(self._state.bad_step))
        are_bad = (bad_steps >= 0) | ~self._programs.states.are_finite(self._state.params)
        failed = [bool(are_bad[i]) and i not in self._ended for i in range(len(self._best))]
        self._copy("ended", self._copies["start"], failed)
        for i in np.flatnonzero(failed).tolist():
            bad = int(bad_steps[i]) if bad_steps[i] >= 0 else self._step - 1
            step = bad - (self._step - self._epoch_step)
            self._ended[i] = NotANumberError.at(self._epoch, step)

    def _begin(self) -> None:
        if self._state is None:
            self._state = self._first_state()
        if self._epoch_step == 0:
            self._state, self._copies["start"] = self._programs.states.begin_epoch(self._state)

    def _first_state(self) -> TrainState:
        found, states, check = self._found, self._programs.states, self._programs.check
        if found is None and not check.has_scores:
            raise BatchError(
                "fit: train must yield a batch in every epoch, and it yielded none in epoch "
                f"{self._epoch}; give a NumpyLoader or a list, not an iterator that ends, and see "
                "that the dataset is not empty"
            )
        if found is None:
            return states.first(self._job, self._programs.metrics)
        state, self._copies = states.saved(self._job, found, found.about["copies"])
        self._found = None
        return state

    def _save(self) -> None:
        checkpoints, state = self._job.checkpoints, self._state
        here = self._epoch, self._step
        if checkpoints is None or state is None or self._saved == here:
            return
        copies = dict(self._copies)
        if self._epoch_step == 0:
            copies.pop("start", None)  # of the epoch that has ended
        about = {
            "networks": self._names,
            "size": self._size,
            "epoch": self._epoch,
            "step": self._step,
            "epoch_step": self._epoch_step,
            "seconds": self._seconds,
            "positions": self._positions,
            "metrics": [name for name in state.metrics if name != "loss"],
            "best": [best.about() for best in self._best],
            "histories": [[dict(row) for row in rows] for rows in self._histories],
            "copies": list(copies),
            "ended": [[i, error and [error.epoch, error.step]] for i, error in self._ended.items()],
            "environment": self._environment,
        }
        self._saved = here
        checkpoints.save({"state": state, **copies}, about, keep_step=-1)

    def _go_on(self, about: dict[str, Any]) -> None:
        assert self._found is not None
        refuse_broken(about, TOGETHER, self._found.path)
        if (about["networks"], about["size"]) != (self._names, self._size):
            raise CheckpointError(
                f"sweep: {self._found.path} must be of the networks {shown(self._names)}, and it "
                f"is of {shown(about['networks'])}; restore it from a copy, or train again"
            )
        tell_of_differences(about["environment"], self._environment)
        self._epoch, self._step = about["epoch"], about["step"]
        self._epoch_step, self._seconds = about["epoch_step"], about["seconds"]
        self._saved = self._epoch, self._step
        self._histories = about["histories"]
        for best, saved in zip(self._best, about["best"], strict=True):
            best.go_on(saved)
        self._ended = {i: where and NotANumberError.at(*where) for i, where in about["ended"]}
        self._positions = about["positions"]
        pairs = zip(self._loaders, self._positions, strict=True)
        self._skips = [loader.resume(position) for loader, position in pairs]

    def _result(self, i: int) -> Result:
        """What came out of a network."""
        source = jax.device_put((self._job.params, self._job.model_state), self._job.devices.shared)
        if self._state is not None:
            source = self._state.params, self._state.model_state
        if self._best[i].column is not None:
            source = self._copies.get("best", source)
        if i in self._ended:
            source = self._copies["ended"]
        params, model_state = _of_one(source, self._job.devices.replicate(np.int32(i)))
        model = self._job.model
        whole = combine(params, model.static)
        whole = (whole, model_state) if model.stateful else whole
        error = self._ended.get(i)
        if error is not None:
            error.params, error.history = whole, self._histories[i]
        return whole, self._histories[i], error
