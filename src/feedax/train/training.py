"""The engine of `fit` and `sweep`: from the first step, or from a checkpoint, to the end."""

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError, CheckpointError, NotANumberError, printable, shown
from feedax.feed import (
    CHUNK_STEPS,
    Chunk,
    Feed,
    Source,
    SourcePosition,
    StackedFeed,
    StateDict,
    open_feed,
)
from feedax.storage.checkpoint_file import decode
from feedax.storage.safetensors_file import arrays_by_name
from feedax.train import processes
from feedax.train.checkpoint_content import CheckpointContent, NetworkContent
from feedax.train.checkpoints import Checkpoint, Checkpoints
from feedax.train.environment import environment, tell_of_differences, tell_of_idle_gpu
from feedax.train.events import (
    Ended,
    EpochEnded,
    Event,
    Saved,
    Started,
    Stepped,
    Stopped,
    StopTraining,
    tell,
)
from feedax.train.history import Best, EpochClock, History, ReportInterval, Row, epoch_rows
from feedax.train.programs import InitialValues, Programs, initial_values
from feedax.train.specification import FitSpecification
from feedax.train.step import TrainState
from feedax.train.steps import CHUNK_SECONDS
from feedax.train.waiting import Waiting

LOGGER = logging.getLogger("feedax")
PREEMPTED = "preempted"


class Trained(NamedTuple):
    """What came out of a network: as `fit` returns it, and why it ended before its time."""

    params: Any
    history: History
    error: NotANumberError | None


@dataclass
class NetworkRun:
    """What a run knows of each of its networks.

    Attributes:
        position: where its source stands.
        skip: batches to skip when its source is next iterated.
        state_dict: of the source, if it has one.
        has_ended: whether it is trained no longer, though others of its group are.
        error: why it ended before its time, or None.
    """

    source: Source
    best: Best
    history: History = field(default_factory=History)
    position: SourcePosition = field(default_factory=lambda: {"batches": 0})
    skip: int = 0
    state_dict: StateDict | None = None
    has_ended: bool = False
    error: NotANumberError | None = None


class Training:
    """Trains one network, or a group of them at once by programs mapped over their states.

    A network whose loss is no longer a number ends the run, or its part in a group.

    Args:
        specifications: of the networks. They differ in numbers, examples and checkpoints alone;
            the first one counts for all else.
        programs: of a run with such specifications before this one.
        names: of a group's networks; its checkpoints hold them. None for one network.
        size: how many networks the programs of a group are for; places without a network repeat
            the last one.
    """

    report_seconds = CHUNK_SECONDS
    """How often callbacks hear of steps."""
    chunk_steps = CHUNK_STEPS
    """The most steps without a look at anything else."""

    def __init__(
        self,
        specifications: Sequence[FitSpecification],
        programs: Programs | None = None,
        names: Sequence[str] | None = None,
        size: int = 1,
    ) -> None:
        asked = specifications[0]
        self._asked = asked
        self._names = None if names is None else list(names)
        self._is_group = names is not None
        self._size = size
        self._values: InitialValues | None = initial_values(specifications, size)
        self._networks = [
            NetworkRun(one.train, Best(one.best, one.patience, one.who)) for one in specifications
        ]
        self._sets = asked.evaluate
        self._checkpoints = asked.checkpoints
        self._programs = Programs(asked, self._is_group) if programs is None else programs
        self._state: TrainState | None = None
        # Parameters and model states: at the epoch's start, at their best, and of the networks
        # that have ended.
        self._copies: dict[str, Any] = {}
        self._epoch = self._step = self._epoch_step = 0
        self._seconds = 0.0  # of this epoch so far
        self._found: tuple[Checkpoint, CheckpointContent] | None = None
        self._environment = environment(asked.run_on, asked.model.dtype)
        self._report_interval = ReportInterval(self._programs.steps)
        self._saved = -1, -1  # the epoch and the step of the last checkpoint
        self._is_asked_to_stop = False
        self._form: str | None = None  # of the steps before the run was resumed

    def run(self) -> list[Trained]:
        """Train to the end; what came out of each network."""
        tell_of_idle_gpu(self._asked.who)
        with contextlib.ExitStack() as stack:
            stack.enter_context(processes.Watchdog())
            if self._checkpoints is not None:
                if processes.index() == 0:  # of several, one writes
                    stack.enter_context(self._checkpoints.in_use())
                self._found = self._newest(self._checkpoints)
            self._share_batches()
            for batches in (*(one.source for one in self._networks), *self._sets.values()):
                self._programs.evaluation.prepare(batches)
            if self._found is not None:
                self._resume(*self._found)
            try:
                network = self._networks[0]
                self._tell(
                    Started(
                        self._asked.epochs,
                        network.source.length,
                        self._programs.residents.describe(network.source),
                        [dict(row) for row in network.history],
                        self._found and self._found[0].path,
                        self._step,
                    )
                )
                while not self._is_done():
                    self._train_epoch()
            except StopTraining as stop:
                # A group's networks that have turned not-a-number are set apart when it is resumed.
                state, are_finite = self._state, self._programs.states.are_finite
                if state is not None and (self._is_group or are_finite(state.params)):
                    self._save()
                preempted = stop.args == (PREEMPTED,)
                self._tell(Stopped(self._epoch, self._epoch_step, preempted))
        if self._state is None and self._found is not None:
            self._state = self._first_state()
        found = [self._trained(i) for i in range(len(self._networks))]
        if not self._is_group:
            self._tell(Ended(found[0].params, found[0].history, self._step))
        return found

    def _newest(self, checkpoints: Checkpoints) -> tuple[Checkpoint, CheckpointContent] | None:
        """The newest checkpoint that is whole, as process 0 reads it."""
        assert self._values is not None
        most = self._programs.states.most_bytes(self._values)
        found = checkpoints.newest(most) if processes.index() == 0 else None
        path = processes.broadcast(None if found is None else str(found.path))
        if path is None:
            return None
        content = processes.broadcast_bytes(b"" if found is None else found.content)
        if found is None:
            found = Checkpoint(Path(path), content, *decode(content, path))
        return found, CheckpointContent.from_json(
            found.about, found.path, self._is_group, self._asked.who
        )

    def _share_batches(self) -> None:
        """Several processes draw one order of examples, and each loads its shard of a batch."""
        network = self._networks[0]
        if not self._is_group:
            saved: Any = {} if self._found is None else self._found[1].networks[0].position
            seed = saved.get("loader", {}).get("seed")
            if processes.count() > 1:  # for loaders without one, process 0's
                seed = processes.broadcast(secrets.randbits(31) if seed is None else seed)
            # One process resumes with the seed that several have drawn.
            if processes.count() > 1 or (seed is not None and network.source.lacks_seed):
                sources = {network.source, *self._sets.values()}
                shards = {
                    one: one.shard(processes.index(), processes.count(), seed) for one in sources
                }
                network.source = shards[network.source]
                self._sets = {name: shards[one] for name, one in self._sets.items()}
        if self._checkpoints is None:
            return
        for one in self._networks:
            one.state_dict = one.source.resumable_state()
        if any(one.source.lacks_seed for one in self._networks):
            LOGGER.info(
                f"{self._asked.who}: a loader without a seed begins a new random order when a run "
                "is resumed; give NumpyLoader(seed=...) to get the same bits"
            )

    def _resume(self, checkpoint: Checkpoint, content: CheckpointContent) -> None:
        """Resume where the checkpoint was made."""
        if self._is_group and (content.names, content.size) != (self._names, self._size):
            raise CheckpointError(
                f"sweep: {checkpoint.path} must be of the networks {shown(self._names)}, and it "
                f"is of {shown(content.names)}; restore it from a copy, or train again"
            )
        self._form = content.form
        tell_of_differences(content.environment, self._environment, self._asked.who)
        self._epoch, self._step = content.epoch, content.step
        self._epoch_step, self._seconds = content.epoch_step, content.seconds
        self._saved = self._epoch, self._step
        epochs = self._asked.epochs
        if epochs is not None and self._epoch > epochs:
            LOGGER.warning(
                f"{self._asked.who}: the run has {self._epoch} epochs already, and {epochs} were "
                "asked for; nothing is trained"
            )
        for network, saved in zip(self._networks, content.networks, strict=True):
            network.history = History(saved.history)
            network.best.load_state_dict(saved.best)
            network.position = saved.position
            network.skip = network.source.resume(saved.position, self._asked.who)
            network.has_ended = saved.has_ended
            if saved.failure is not None:
                network.error = NotANumberError.at(*saved.failure, self._asked.who)
            if not self._is_group:  # patience may have changed; an epoch that began is finished
                network.has_ended = self._epoch_step == 0 and network.best.is_exhausted(self._epoch)

    def _is_done(self) -> bool:
        if self._epoch_step > 0:
            return False  # first that epoch ends, with its row
        epochs = self._asked.epochs
        return (
            (epochs is not None and self._epoch >= epochs)
            or self._has_all_steps()
            or all(one.has_ended for one in self._networks)
        )

    def _has_all_steps(self) -> bool:
        return self._asked.steps is not None and self._step >= self._asked.steps

    def _train_epoch(self) -> None:
        programs = self._programs
        waiting = Waiting(self._networks[0].source, programs.steps)
        clock = EpochClock(programs.steps, self._seconds, self.report_seconds)
        with contextlib.closing(self._open_feed()) as feed:
            self._train_steps(feed, waiting, clock)
            rows = self._rows(clock, waiting.columns(feed))
            self._note_positions(feed, clock)
        if self._epoch == 0 and feed.text:
            LOGGER.info(
                f"{self._asked.who}: text stays on the host, and the model gets no "
                f"{', '.join(feed.text)}"
            )
        self._look_for_failures(looks_at_params=True)
        if ends_early := self._has_all_steps():
            # Saved as the middle of an epoch, from which more steps can follow as if it had not
            # been the end; the rest of this one is done again where none do.
            self._save()
        self._asked.warn_of_an_early_end(self._step)
        self._end_epoch(rows, ends_early)
        programs.advice.after(rows[0], waiting)

    def _open_feed(self) -> Feed:
        """Opened every epoch: the dataset may be another one than before."""
        programs, feeds = self._programs, []
        for network in self._networks:
            feeds.append(
                open_feed(
                    network.source,
                    not self._asked.model.of_one_example,
                    programs.residents,
                    programs.check,
                    network.state_dict,
                    network.skip,
                    self._epoch_step > 0,
                )
            )
            network.skip = 0
        return StackedFeed(feeds, self._size, self._asked.run_on) if self._is_group else feeds[0]

    def _train_steps(self, feed: Feed, waiting: Waiting, clock: EpochClock) -> None:
        programs, checkpoints, has_begun = self._programs, self._checkpoints, False
        while (most := self._most_steps()) > 0:
            piece = waiting.take(feed, most)
            if piece is None:
                break
            if not has_begun:
                scores = programs.check.scores.items()
                programs.metrics |= {name: one for name, one in scores if name != "loss"}
                self._begin()
                has_begun = True
            self._state = waiting.run(self._state, piece)
            self._look_at_form()
            count = int(piece.steps) if isinstance(piece, Chunk) else 1
            self._step += count
            self._epoch_step += count
            is_save = checkpoints is not None and checkpoints.is_due_at(self._step)
            if self._report_interval.is_due(count, clock) or is_save:
                jax.block_until_ready(self._state)
                is_late = checkpoints is not None and checkpoints.is_due_by_time()
                is_save = self._report_interval.next(is_save or is_late)
                if not self._is_group:  # a group's are looked for at the end of an epoch
                    self._look_for_failures(looks_at_params=is_save)
                self._note_positions(feed, clock)
                if is_save:
                    self._save()
                clock.reported()
                row = self._row_of_all(self._rows(clock))
                self._tell(
                    Stepped(
                        self._epoch,
                        self._epoch_step,
                        row["loss"],
                        row["examples_per_second"],
                        self._params_to_show(),
                        self._step,
                    )
                )
        if not has_begun:
            self._begin()
        jax.block_until_ready(self._state)

    def _most_steps(self) -> int:
        """How many steps may follow before something is to be done after an exact one."""
        most = [self._report_interval.most_steps(), self.chunk_steps]
        if self._checkpoints is not None and (due := self._checkpoints.due_in(self._step)):
            most.append(due)
        if self._asked.steps is not None:
            most.append(self._asked.steps - self._step)
        return min(most)

    def _begin(self) -> None:
        """Make the first state, or restore the checkpoint's; keep a copy of what it begins with."""
        if self._state is None:
            self._state = self._first_state()
        if self._epoch_step == 0:
            self._state, self._copies["start"] = self._programs.states.begin_epoch(self._state)
        elif "start" not in self._copies:  # the checkpoints of one network do not hold it
            kept = self._state.params, self._state.model_state
            self._copies["start"] = self._programs.states.copy(kept)

    def _first_state(self) -> TrainState:
        assert self._values is not None
        states, values = self._programs.states, self._values
        if self._found is not None:
            # An epoch without a step left to do has shown no examples, and needs none.
            checkpoint, content = self._found
            state, self._copies = states.restored(
                values, checkpoint, content.metrics, content.copies, self._asked.who
            )
        elif not self._programs.check.scores:
            raise BatchError(
                who=self._asked.who,
                rule="train must yield a batch in every epoch",
                found=f"it yielded none in epoch {self._epoch}",
                remedy="give a NumpyLoader or a list that is not empty, not an iterator that ends",
            )
        else:
            state = states.first(values, self._programs.metrics)
            if self._checkpoints is not None:
                arrays_by_name(state, who=self._asked.who)  # what cannot be saved is found out now
        self._found = self._values = None
        return state

    def _look_at_form(self) -> None:
        """Warn of another form: on an accelerator it may make other bits."""
        form = self._programs.steps.form
        if self._form not in (None, form):
            LOGGER.warning(
                f"{self._asked.who}: a resumed run has the bits of an uninterrupted one only if "
                f"its steps run in the same form, which was {printable(str(self._form))} and is "
                f"{form}"
            )
        self._form = None

    def _note_positions(self, feed: Feed, clock: EpochClock) -> None:
        for network, position in zip(self._networks, feed.positions(), strict=True):
            network.position = position
        self._seconds = clock.seconds

    def _look_for_failures(self, looks_at_params: bool) -> None:
        """End the networks whose loss is no number, with the parameters from before this epoch.

        Raises:
            NotANumberError: there is but one network.
        """
        assert self._state is not None
        bad_steps = np.atleast_1d(jax.device_get(self._state.bad_step))
        are_bad = bad_steps >= 0
        if looks_at_params:
            are_bad = are_bad | ~self._programs.states.are_finite(self._state.params)
        failed = [i for i, one in enumerate(self._networks) if are_bad[i] and not one.has_ended]
        self._keep("ended", self._copies["start"], failed)
        for i in failed:
            network = self._networks[i]
            bad = int(bad_steps[i]) if bad_steps[i] >= 0 else self._step - 1
            step = bad - (self._step - self._epoch_step)
            network.error = NotANumberError.at(self._epoch, step, self._asked.who)
            network.has_ended = True
        if failed and not self._is_group:
            error = self._trained(0).error
            assert error is not None
            raise error

    def _rows(self, clock: EpochClock, columns: dict[str, float] | None = None) -> list[Row]:
        """Each network's row of the epoch so far."""
        assert self._state is not None
        rows = epoch_rows(self._epoch, clock, self._state, columns or {})
        return rows[: len(self._networks)]

    def _row_of_all(self, rows: Sequence[Row]) -> Row:
        """The row for callbacks: of a group, with the mean loss of the networks in training."""
        if not self._is_group:
            return dict(rows[0])
        pairs = zip(rows, self._networks, strict=True)
        losses = [row["loss"] for row, network in pairs if not network.has_ended]
        return rows[0] | {
            "loss": sum(losses) / len(losses) if losses else math.nan,
            "examples_per_second": sum(row["examples_per_second"] for row in rows),
        }

    def _params_to_show(self) -> Any:
        assert self._state is not None
        if self._is_group:
            return self._state.params
        return self._asked.whole(self._state.params, self._state.model_state)

    def _end_epoch(self, rows: Sequence[Row], ends_early: bool) -> None:
        """Evaluate, keep the best, save, tell."""
        state, evaluation = self._state, self._programs.evaluation
        assert state is not None
        self._copies.pop("start", None)
        compiled, began = evaluation.compile_seconds, time.perf_counter()
        for name, batches in self._sets.items():
            scores = evaluation.of_each(
                state.params, state.model_state, state.hyperparams, batches, f"evaluate[{name!r}]"
            )
            for row, of_one in zip(rows, scores, strict=False):  # some only fill the group
                row |= {f"{name}_{score}": value for score, value in of_one.items()}
        compiled = evaluation.compile_seconds - compiled
        for row in rows:
            row["compile_seconds"] += compiled
            row["evaluate_seconds"] = time.perf_counter() - began - compiled
        best, ended = [], []
        for i, (network, row) in enumerate(zip(self._networks, rows, strict=True)):
            if network.has_ended:
                continue
            if network.best.update(row, self._step):
                best.append(i)
            network.history.append(row)
            if network.best.is_exhausted(self._epoch + 1):
                network.has_ended = True
                ended.append(i)
        if best:
            self._keep("best", self._programs.states.copy((state.params, state.model_state)), best)
        self._keep("ended", self._copies.get("best"), ended)
        self._epoch, self._epoch_step, self._seconds = self._epoch + 1, 0, 0.0
        for network in self._networks:
            if network.state_dict is None:  # it begins again
                network.position = {"batches": 0}
        is_last, checkpoints = self._is_done(), self._checkpoints
        # A group's checkpoints hold the best of each network; one network's best epoch has one.
        is_best = bool(best) and not self._is_group
        if ends_early:
            self._saved = self._epoch, self._step  # in its middle, see above
        elif checkpoints and (is_last or is_best or checkpoints.is_due_after(self._epoch)):
            self._save()
        row, params = self._row_of_all(rows), self._params_to_show()
        self._tell(EpochEnded(self._epoch - 1, row, params, bool(best), is_last, self._step))

    def _keep(self, name: str, source: Any, which: Sequence[int]) -> None:
        """Keep a copy of the parameters of some networks, beside what is kept of the other ones."""
        if not which:
            return
        if not self._is_group:
            self._copies[name] = source
            return
        mask = np.isin(np.arange(self._size), which)
        mask = jax.device_put(mask, self._asked.run_on.shared)

        def chosen(new: Any, old: Any) -> Any:
            return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        self._copies[name] = jax.tree.map(chosen, source, self._copies.get(name, source))

    def _save(self) -> None:
        """Save the run, unless this step is saved already."""
        checkpoints, here = self._checkpoints, (self._epoch, self._step)
        if checkpoints is None or self._state is None or self._saved == here:
            return
        copies = {
            name: copy for name, copy in self._copies.items() if self._is_group or name == "best"
        }
        content = CheckpointContent(
            epoch=self._epoch,
            step=self._step,
            epoch_step=self._epoch_step,
            seconds=self._seconds,
            metrics=[name for name in self._state.metrics if name != "loss"],
            environment=self._environment,
            form=self._form or self._programs.steps.form,
            networks=[
                NetworkContent(
                    one.position,
                    one.best.state_dict(),
                    list(one.history),  # as it is now: a thread writes it
                    one.has_ended,
                    (one.error.epoch, one.error.step) if one.error else None,
                )
                for one in self._networks
            ],
            names=self._names,
            size=self._size,
            copies=list(copies),
        )
        self._saved = here
        if processes.index() == 0:
            tree = {"state": self._state, **copies}
            keep_step = -1 if self._is_group else self._networks[0].best.step
            path = checkpoints.save(tree, content.to_json(), keep_step)
            self._tell(Saved(self._step, path))

    def _trained(self, i: int) -> Trained:
        """What came out of a network."""
        network = self._networks[i]
        if self._state is not None:
            source = self._state.params, self._state.model_state
        elif self._is_group:
            assert self._values is not None
            source = jax.device_put(self._values[:2], self._asked.run_on.shared)
        else:
            source = self._asked.trained, self._asked.state
        if network.best.column is not None:
            source = self._copies.get("best", source)
        if network.has_ended:
            source = self._copies.get("ended", source)
        if self._is_group:
            source = _of_one(source, self._asked.run_on.replicate(np.int32(i)))
        whole = self._asked.whole(*source)
        if network.error is not None:
            network.error.params, network.error.history = whole, network.history
        return Trained(whole, network.history, network.error)

    def _tell(self, event: Event) -> None:
        stops = tell(self._asked.callbacks, event) or self._is_asked_to_stop
        why: tuple[str, ...] = ()
        if processes.count() > 1 and isinstance(event, Started | Stepped | EpochEnded):
            stops = processes.any_process(stops)
            if processes.reached_preemption():
                stops, why = True, (PREEMPTED,)
        # Training does not stop while a state is being saved, but at the next event.
        self._is_asked_to_stop = stops
        if stops and not isinstance(event, Saved | Stopped | Ended):
            raise StopTraining(*why)


@jax.jit
def _of_one(tree: Any, i: Any) -> Any:
    """What a stacked tree holds of one network."""
    return jax.tree.map(lambda leaf: leaf[i], tree)
