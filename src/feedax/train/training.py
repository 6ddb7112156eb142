"""One run of `fit`: from its first step, or from a checkpoint, to its end."""

import contextlib
import logging
import secrets
from pathlib import Path
from typing import Any

import jax

from feedax.errors import BatchError, NotANumberError, printable
from feedax.feed import (
    CHUNK_STEPS,
    Chunk,
    Feed,
    Position,
    columns_of,
    go_on,
    how,
    open_feed,
    teller,
)
from feedax.storage.checkpoint_file import decode
from feedax.train import processes
from feedax.train.checkpoints import Checkpoint, Checkpoints
from feedax.train.clock import EpochClock, ReportInterval
from feedax.train.environment import environment, tell_of_differences
from feedax.train.events import (
    EpochEnded,
    Event,
    Row,
    Saved,
    Started,
    Stepped,
    Stopped,
    StopTraining,
)
from feedax.train.job import Job
from feedax.train.model import combine
from feedax.train.programs import Programs
from feedax.train.saved import RUN, refuse_broken
from feedax.train.step import TrainState
from feedax.train.waiting import Waiting, tell_of_text
from feedax.train.watchdog import Watchdog

LOGGER = logging.getLogger("feedax")
PREEMPTED = "preempted"


class Training:
    """Trains as planned.

    Args:
        job: what was asked for.
        programs: those of a job before this one that differs in numbers alone.

    Attributes:
        history: a row for each epoch that ended.
    """

    def __init__(self, job: Job, programs: Programs | None = None) -> None:
        self.job = job
        self.history: list[Row] = []
        programs = Programs(job) if programs is None else programs
        self._check, self._residents = programs.check, programs.residents
        self._metrics, self._steps = programs.metrics, programs.steps
        self._states, self._evaluation = programs.states, programs.evaluation
        self._advice = programs.advice
        self._state: TrainState | None = None
        self._epoch = self._step = self._epoch_step = self._skip = 0
        self._seconds = 0.0  # of this epoch so far
        self._position: Position = {"batches": 0}
        self._found: Checkpoint | None = None
        self._environment = environment(job.devices, job.model.dtype)
        self._report_interval = ReportInterval(self._steps)
        self._saved = -1, -1  # the epoch and the step of the last checkpoint
        self._is_asked_to_stop = False
        self._form: str | None = None  # of the steps before the run went on

    def run(self) -> Any:
        """Train to the end; the parameters, with the model's state if there is one."""
        job = self.job
        with contextlib.ExitStack() as stack:
            stack.enter_context(Watchdog())
            if job.checkpoints is not None:
                stack.enter_context(job.checkpoints.in_use(writes=processes.index() == 0))
                self._found = self._newest(job.checkpoints)
            self._share_batches()
            for batches in (self._train, *self._sets.values()):
                self._evaluation.prepare(batches)
            if self._found is not None:
                self._go_on(self._found.about)
            try:
                self._tell(self._started())
                while not self._is_over():
                    self._train_epoch()
            except StopTraining as stop:
                if self._state is not None and self._states.are_finite(self._state.params):
                    self._save()
                preempted = stop.args == (PREEMPTED,)
                self._tell(Stopped(self._epoch, self._epoch_step, preempted))
        return self._result()

    def _newest(self, checkpoints: Checkpoints) -> Checkpoint | None:
        """The newest checkpoint that is whole, as process 0 reads it."""
        most = self._states.most_bytes(self.job)
        found = checkpoints.newest(most) if processes.index() == 0 else None
        if found is not None:
            refuse_broken(found.about, RUN, found.path)
        if processes.count() == 1:
            return found
        path = processes.broadcast(None if found is None else str(found.path))
        if path is None:
            return None
        content = processes.broadcast_bytes(b"" if found is None else found.content)
        return found or Checkpoint(Path(path), content, *decode(content, path))

    def _share_batches(self) -> None:
        """Several processes draw one order of examples, and each loads its columns of a batch."""
        job = self.job
        self._train, self._sets = job.train, job.sets
        saved = {} if self._found is None else self._found.about["position"].get("loader", {})
        seed = saved.get("seed") if isinstance(saved, dict) else None
        if processes.count() > 1:  # for loaders without one, process 0's
            seed = processes.broadcast(secrets.randbits(31) if seed is None else seed)
        # One process goes on with the seed that several have drawn.
        if processes.count() > 1 or (seed is not None and getattr(job.train, "seed", 0) is None):
            sources = [job.train, *job.sets.values()]
            self._train, *sets = columns_of(sources, processes.index(), processes.count(), seed)
            self._sets = dict(zip(job.sets, sets, strict=True))
        self._tell_position = None if job.checkpoints is None else teller(self._train)
        if job.checkpoints is not None and getattr(self._train, "seed", 0) is None:
            LOGGER.info(
                "fit: without a seed a loader's randomness does not go on where it was; a run that "
                "goes on has the same bits with NumpyLoader(seed=...)"
            )

    def _started(self) -> Started:
        length = None
        with contextlib.suppress(TypeError):
            length = len(self._train)  # type: ignore[arg-type]
        checkpoint = None if self._found is None else self._found.path
        return Started(
            self.job.epochs,
            length,
            how(self._train, self._residents),
            [dict(row) for row in self.history],
            checkpoint,
            self._step,
        )

    def _is_over(self) -> bool:
        if self._epoch_step > 0:
            return False  # first that epoch ends, with its row
        epochs = self.job.epochs
        return (
            (epochs is not None and self._epoch >= epochs)
            or self._has_all_steps()
            or self.job.best.is_over(self._epoch)
        )

    def _has_all_steps(self) -> bool:
        return self.job.steps is not None and self._step >= self.job.steps

    def _train_epoch(self) -> None:
        job = self.job
        waiting = Waiting(self._train, self._steps)
        clock = EpochClock(self._epoch, self._steps, self._seconds)
        # Opened every epoch: the dataset may be another one than before.
        exact = not job.model.of_one_example
        tell, skip, self._skip = self._tell_position, self._skip, 0
        with contextlib.closing(
            open_feed(self._train, exact, self._residents, self._check, tell, skip)
        ) as feed:
            start = self._train_steps(feed, waiting, clock)
            assert self._state is not None
            row = clock.row(self._state, waiting.columns(feed))
            self._position, self._seconds = feed.position(), clock.seconds
        if self._epoch == 0:
            tell_of_text(feed)
        self._refuse_not_a_number(start, looks_at_params=True)
        if ends_early := self._has_all_steps():
            # Saved as the middle of an epoch, from which more steps can follow as if it had not
            # been the end; the rest of this one is done again where none do.
            self._save()
        job.tell_of_an_early_end(self._step)
        self._end_epoch(row, ends_early)
        self._advice.after(row, waiting)

    def _train_steps(self, feed: Feed, waiting: Waiting, clock: EpochClock) -> Any:
        """The epoch's steps; the parameters and the model's state as they were before them."""
        start = None
        while (
            most := min(
                self._report_interval.most_steps(), self.job.most_steps(self._step, CHUNK_STEPS)
            )
        ) > 0:
            piece = waiting.take(feed, most)
            if piece is None:
                break
            if start is None:
                self._metrics |= {k: v for k, v in self._check.scores.items() if k != "loss"}
                start = self._begun()
            self._state = waiting.run(self._state, piece)
            self._look_at_form()
            count = int(piece.steps) if isinstance(piece, Chunk) else 1
            self._step += count
            self._epoch_step += count
            is_save = self._is_save_due()
            if self._report_interval.is_due(count, clock) or is_save:
                jax.block_until_ready(self._state)
                is_save = self._report_interval.next(is_save or self._is_save_late())
                self._refuse_not_a_number(start, looks_at_params=is_save)
                self._position, self._seconds = feed.position(), clock.seconds
                if is_save:
                    self._save()
                self._tell(self._stepped(clock))
        start = self._begun() if start is None else start
        jax.block_until_ready(self._state)
        return start

    def _stepped(self, clock: EpochClock) -> Stepped:
        clock.told()
        assert self._state is not None
        row = clock.row(self._state)
        params = self._whole(self._state.params, self._state.model_state)
        return Stepped(
            self._epoch, self._epoch_step, row["loss"], row["examples_per_second"], params
        )

    def _end_epoch(self, row: Row, ends_early: bool) -> None:
        """Evaluate, keep the best, tell, save."""
        job, state = self.job, self._state
        assert state is not None
        compiled = self._evaluation.compile_seconds
        for name, batches in self._sets.items():
            scores = self._evaluation.of(
                state.params, state.model_state, state.hyperparams, batches, f"evaluate[{name!r}]"
            )
            row |= {f"{name}_{score}": value for score, value in scores.items()}
        row["compile_seconds"] += self._evaluation.compile_seconds - compiled
        is_best = job.best.is_beaten_by(row)
        if is_best:
            job.best.keep(row, self._step, self._states.copy(state))
        self.history.append(row)
        self._epoch, self._epoch_step, self._seconds = self._epoch + 1, 0, 0.0
        if self._tell_position is None:
            self._position = {"batches": 0}
        is_last = self._is_over()
        checkpoints = job.checkpoints
        if ends_early:
            self._saved = self._epoch, self._step  # in its middle, see above
        elif checkpoints and (is_last or is_best or checkpoints.is_due_after(self._epoch)):
            self._save()
        params = self._whole(state.params, state.model_state)
        self._tell(EpochEnded(self._epoch - 1, dict(row), params, is_best, is_last))

    def _begun(self) -> Any:
        """Make the first state, or go on with the checkpoint's; a copy of what it begins with."""
        if self._state is None:
            self._state = self._first_state()
        if self._epoch_step == 0:
            self._state, start = self._states.begin_epoch(self._state)
            return start
        return self._states.copy(self._state)

    def _first_state(self) -> TrainState:
        job, found = self.job, self._found
        if found is None and not self._check.has_scores:
            raise BatchError(
                "fit: train must yield a batch in every epoch, and it yielded none in epoch "
                f"{self._epoch}; give a NumpyLoader or a list, not an iterator that ends, and see "
                "that the dataset is not empty"
            )
        if found is None:
            return self._states.first(job, self._metrics)
        # An epoch without a step left to do has shown no examples, and needs none.
        state, copies = self._states.saved(job, found, ["best"] if job.best.step >= 0 else [])
        job.best.kept = copies.get("best")
        self._found = None
        return state

    def _go_on(self, about: dict[str, Any]) -> None:
        """Stand where the checkpoint was made."""
        self._form = about["form"]
        tell_of_differences(about["environment"], self._environment)
        self._epoch, self._step = about["epoch"], about["step"]
        self._epoch_step, self._seconds = about["epoch_step"], about["seconds"]
        self._saved = self._epoch, self._step
        self.history = about["history"]
        if self.job.epochs is not None and self._epoch > self.job.epochs:
            LOGGER.warning(
                f"fit: the run has {self._epoch} epochs already, and {self.job.epochs} were asked "
                "for; nothing is trained"
            )
        self.job.best.go_on(about["best"])
        self._position = about["position"]
        self._skip = go_on(self._train, self._position)

    def _look_at_form(self) -> None:
        """A loader that is no longer resident, say, may make other bits on an accelerator."""
        if self._form not in (None, self._steps.form):
            LOGGER.warning(
                "fit: a run that goes on has the bits of one that never stopped only where its "
                f"steps run in the same form, and it was {printable(str(self._form))} and is "
                f"{self._steps.form}"
            )
        self._form = None

    def _is_save_due(self) -> bool:
        checkpoints = self.job.checkpoints
        if checkpoints is None:
            return False
        checkpoints.look()
        return checkpoints.is_due_at(self._step)

    def _is_save_late(self) -> bool:
        checkpoints = self.job.checkpoints
        return checkpoints is not None and checkpoints.is_due_by_time()

    def _save(self) -> None:
        """Save where the run stands, unless that is saved already."""
        checkpoints, best = self.job.checkpoints, self.job.best
        here = self._epoch, self._step
        if checkpoints is None or self._state is None or self._saved == here:
            return
        about = {
            "epoch": self._epoch,
            "step": self._step,
            "epoch_step": self._epoch_step,
            "seconds": self._seconds,
            "position": self._position,
            "metrics": [name for name in self._state.metrics if name != "loss"],
            "best": best.about(),
            "history": [dict(row) for row in self.history],  # as they are now
            "environment": self._environment,
            "form": self._form or self._steps.form,
        }
        self._saved = here
        if processes.index() == 0:
            tree = {"state": self._state, "best": best.kept}
            path = checkpoints.save(tree, about, keep_step=best.step)
            self._tell(Saved(self._step, path))

    def _refuse_not_a_number(self, start: Any, looks_at_params: bool) -> None:
        state = self._state
        assert state is not None
        bad = int(jax.device_get(state.bad_step))
        if bad < 0 and looks_at_params and not self._states.are_finite(state.params):
            bad = self._step - 1
        if bad < 0:
            return
        step = bad - (self._step - self._epoch_step)
        error = NotANumberError.at(self._epoch, step)
        error.history, error.params = self.history, self._whole(*start)
        raise error

    def _result(self) -> Any:
        if self._state is None and self._found is not None:
            self._state = self._first_state()
        if self.job.best.kept is not None:
            return self._whole(*self.job.best.kept)
        if self._state is None:
            return self._whole(self.job.params, self.job.model_state)
        return self._whole(self._state.params, self._state.model_state)

    def _whole(self, params: Any, model_state: Any) -> Any:
        whole = combine(params, self.job.model.static)
        return (whole, model_state) if self.job.model.stateful else whole

    def _tell(self, event: Event) -> None:
        stops: tuple[str, ...] | None = () if self._is_asked_to_stop else None
        for callback in self.job.callbacks:
            try:
                callback(event)
            except StopTraining:
                stops = ()
        if processes.count() > 1 and isinstance(event, Started | Stepped | EpochEnded):
            if processes.any_process(stops is not None):
                stops = ()
            if processes.reached_preemption():
                stops = (PREEMPTED,)
        # While a state is saved is no place to stop: the next event is.
        self._is_asked_to_stop = stops is not None
        if stops is not None and not isinstance(event, Saved | Stopped):
            raise StopTraining(*stops)
