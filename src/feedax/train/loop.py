"""`fit`: many epochs."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from feedax.errors import BatchError, NotANumberError
from feedax.feed import Residents, how, open_feed, refuse_no_batches
from feedax.train.check import ModelCheck, Scores
from feedax.train.evaluation import Evaluation
from feedax.train.events import EpochEnded, Event, Row, Started, Stepped, StopTraining
from feedax.train.losses import cross_entropy
from feedax.train.step import Model, TrainState, combine, init_state, partition
from feedax.train.steps import CHUNK_SECONDS, Steps
from feedax.train.waiting import Advice, Waiting, tell_of_text


def fit(
    predict: Callable[..., Any],
    params: Any,
    train: Iterable[Any],
    *,
    loss: Callable[[Any, Any], Any] = cross_entropy,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 1,
    evaluate: Mapping[str, Iterable[Any]] | None = None,
    metrics: Scores | None = None,
    key: Array | None = None,
    callbacks: Iterable[Callable[[Event], None]] = (),
    state: Any = None,
    batched: bool = False,
) -> tuple[Any, list[Row]]:
    """Train a model.

    Args:
        predict: a function of (params, x) for one example x. If it has parameters named ``key``
            or ``train``, it is also given a random key of its own and whether it is trained.
            With ``state=`` it is a function of (params, state, x) that returns (prediction,
            state); statistics of the batch are taken over the axis ``"batch"``.
        params: the model's parameters, any PyTree. Its inexact arrays are trained; they are
            copied, so yours stay as they are.
        train: a `NumpyLoader`, or any iterable of NumPy batches (inputs, targets), iterated once
            an epoch. A short batch is filled up with copies that do not count. Text in it stays
            on the host: in a dict its key is left out, elsewhere None stands in its place.
        loss: a function of one example's prediction and target that returns a scalar. The
            gradient is that of its mean over a batch.
        optimizer: an optax transformation; ``optax.adam(1e-3)`` if None.
        epochs: how many times to go through the training examples.
        evaluate: sets to evaluate after every epoch, by name: as `train`. A loader's examples
            are then taken in the dataset's order.
        metrics: functions of one example's prediction and target, by name. If None, the accuracy
            where targets are class labels.
        key: the random key of the run, for models that want keys; ``jax.random.key(0)`` if None.
        callbacks: functions of one event, see `feedax.train.events`.
        state: the model's state that is not trained (batch statistics), or None.
        batched: whether predict takes a batch. Such models, and models with a state, get a short
            last batch as it is, at the price of a second compilation.

    Returns:
        The trained parameters (with ``state=``, the pair of parameters and state), and the
        history: a row an epoch with ``epoch``, ``seconds`` (training only), ``compile_seconds``,
        ``wait_seconds`` (of them: the next batch was not there), ``load_seconds`` (of loading, in
        all workers together, where the source tells), ``transfer_seconds``, ``start_seconds`` (of
        workers), ``examples_per_second``, ``loss`` (mean over the epoch, as it went) and
        ``<set>_loss``, ``<set>_<metric>`` for each evaluation set. Where waiting takes more than a
        fifth of an epoch, the logger "feedax" says once what to change.

    Raises:
        BatchError: there is no batch, or one is not a pair of arrays.
        ModelError, LabelError: the model or the loss does not fit the data.
        NotANumberError: a training loss is not finite; it has the parameters of the epoch's start.

    >>> import feedax
    >>> import numpy as np
    >>> x = np.float32([[0, 1], [1, 0]] * 8)
    >>> y = x.argmax(1)
    >>> w, history = feedax.fit(lambda w, x: w @ x, jnp.zeros((2, 2)), [(x, y)], epochs=3)
    >>> [row["epoch"] for row in history], history[-1]["loss"] < history[0]["loss"]
    ([0, 1, 2], True)
    """
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    key = jax.random.key(0) if key is None else key
    refuse_no_batches(train, "fit: train", again=epochs > 1)
    sets = _sets(evaluate, epochs)
    trained, static = partition(params)
    model = Model(predict, batched, state is not None, static)
    check = ModelCheck(model, trained, state, loss, metrics)
    residents = Residents()
    steps = Steps(model, loss, optimizer)
    evaluation = Evaluation(model, check, residents)
    now = _initial(trained, optimizer, key, state)
    history: list[Row] = []
    advice = Advice(train)

    def result(params: Any, model_state: Any) -> Any:
        whole = combine(params, static)
        return whole if state is None else (whole, model_state)

    def tell(event: Event) -> None:
        for callback in callbacks:
            callback(event)

    for batches in (train, *sets.values()):
        evaluation.prepare(batches)
    try:
        tell(Started(epochs, _length(train), how(train)))
        for epoch in range(epochs):
            # Every step takes over its state's memory: keep what a failing epoch would lose.
            start = _copied((now.params, now.model_state))
            now = now._replace(loss_sum=now.loss_sum * 0, seen=now.seen * 0)
            progress = _Progress(epoch, int(now.step), steps)
            waiting = Waiting(train, steps)
            # Opened every epoch: the dataset may be another one than before.
            feed = open_feed(train, not model.of_one_example, residents, check)
            with contextlib.closing(feed):
                while (piece := waiting.take(feed)) is not None:
                    now = waiting.run(now, piece)
                    if progress.is_due():
                        event = progress.after(now, result(now.params, now.model_state))
                        _refuse_not_a_number(now, progress, result(*start), history)
                        tell(event)
                jax.block_until_ready(now)
                row = progress.row(now, waiting.columns(feed))
            if epoch == 0:
                tell_of_text(feed)
            now = _with_bad_params(now)
            _refuse_not_a_number(now, progress, result(*start), history)
            compiled = evaluation.compile_seconds
            for name, batches in sets.items():
                scores = evaluation.of(now.params, now.model_state, batches, f"evaluate[{name!r}]")
                row |= {f"{name}_{score}": value for score, value in scores.items()}
            row["compile_seconds"] += evaluation.compile_seconds - compiled
            history.append(row)
            tell(EpochEnded(epoch, row, result(now.params, now.model_state)))
            advice.after(row, waiting.first_seconds)
    except StopTraining:
        pass
    return result(now.params, now.model_state), history


class _Progress:
    """The clock of one epoch: it stands still while something is compiled."""

    def __init__(self, epoch: int, first_step: int, steps: Steps) -> None:
        self.epoch = epoch
        self.first_step = first_step
        self._steps = steps
        self._compiled_before = steps.compile_seconds
        self._started = self._told = time.perf_counter()

    def is_due(self) -> bool:
        return time.perf_counter() - self._told >= CHUNK_SECONDS

    def after(self, state: TrainState, params: Any) -> Stepped:
        jax.block_until_ready(state)
        self._told = time.perf_counter()
        row = self.row(state)
        step = int(state.step) - self.first_step
        return Stepped(self.epoch, step, row["loss"], row["examples_per_second"], params)

    def row(self, state: TrainState, columns: Mapping[str, float] | None = None) -> Row:
        compile_seconds = self._steps.compile_seconds - self._compiled_before
        seconds = time.perf_counter() - self._started - compile_seconds
        seen = int(state.seen)
        if seen == 0:
            raise BatchError(
                "fit: train must yield a batch in every epoch, and it yielded none in epoch "
                f"{self.epoch}; give a NumpyLoader or a list, not an iterator that ends, and see "
                "that the dataset is not empty"
            )
        return {
            "epoch": self.epoch,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            **(columns or {}),
            "examples_per_second": seen / seconds,
            "loss": float(state.loss_sum) / seen,
        }


def _refuse_not_a_number(
    state: TrainState, progress: _Progress, params: Any, history: list[Row]
) -> None:
    if int(state.bad_step) < 0:
        return
    step = int(state.bad_step) - progress.first_step
    error = NotANumberError(
        "fit: the loss and the parameters must be finite numbers, and they were not in epoch "
        f"{progress.epoch} at step {step}; lower the step size, or look at that batch's examples"
    )
    error.epoch, error.step, error.params, error.history = progress.epoch, step, params, history
    raise error


def _with_bad_params(state: TrainState) -> TrainState:
    """The state, with its last step called bad where it left parameters that are not finite."""
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))
    if finite or int(state.bad_step) >= 0:
        return state
    return state._replace(bad_step=state.step - 1)


def _sets(evaluate: Any, epochs: int) -> Mapping[str, Iterable[Any]]:
    """The evaluation sets, looked at before any time is spent on training."""
    if evaluate is None:
        return {}
    if not isinstance(evaluate, Mapping):
        raise BatchError(
            "fit: evaluate must be a dict of sets by name, and it is a "
            f"{type(evaluate).__name__}; give evaluate={{'test': ...}}"
        )
    for name, batches in evaluate.items():
        refuse_no_batches(batches, f"fit: evaluate[{name!r}]", again=epochs > 1)
    return evaluate


def _initial(trained: Any, optimizer: Any, key: Array, model_state: Any) -> TrainState:
    """The first state, each array in memory of its own: steps take it over, none of the user's."""
    # An optimizer may keep the very parameters in its state: copied last, they are two.
    return _copied(init_state(jax.tree.map(jnp.asarray, trained), optimizer, key, model_state))


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None
