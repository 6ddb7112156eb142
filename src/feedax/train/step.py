"""One step of training: a pure function of a state and a batch."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from feedax.augment import mixup as mix
from feedax.feed import Batch
from feedax.train.model import Hyperparams, Model, PyTree, per_example
from feedax.train.optimizers import (
    Optimizer,
    are_finite,
    make_optimizer,
    reports_a_skip,
    reports_skips,
)

Score = Callable[..., Any]
"""A loss or a metric: a function of one example's prediction and target."""


class Metric(NamedTuple):
    """The mean of a score over examples, as what it is divided from.

    Attributes:
        sum: float scalar, of the examples' scores.
        count: int32 scalar, of the examples.
    """

    sum: Array
    count: Array  # type: ignore[assignment]


class TrainState(NamedTuple):
    """All that a step changes, and the learning rate, which a network trained beside others has
    for itself. It is a PyTree, and all of a checkpoint but the place in the epoch.

    Attributes:
        params: the trainable parameters.
        model_state: the model's other state (batch statistics), or None.
        opt_state: the optimizer's state.
        key: the random key of the run; step i uses ``fold_in(key, i)``.
        learning_rate: float scalar that the optimizer's updates are multiplied by.
        hyperparams: float scalars by name, for the functions that take them.
        step: int32, steps done in all.
        metrics: the loss and the metrics over this epoch's examples, as they were trained on.
        bad_step: int32, the first step whose loss was not finite, or -1. Those that the optimizer
            skipped are not counted.
        skipped: int32, the steps of this epoch that the optimizer skipped; None where its state
            does not say so.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    learning_rate: Array
    hyperparams: dict[str, Array]
    step: Array
    metrics: dict[str, Metric]
    bad_step: Array
    skipped: Array | None = None


def init_state(
    params: PyTree,
    optimizer: Optimizer,
    key: Array,
    model_state: PyTree = None,
    *,
    learning_rate: Any = 1.0,
    hyperparams: Hyperparams | None = None,
    metrics: Iterable[str] = (),
) -> TrainState:
    """The state before the first step. Pure: it can be compiled, and mapped over keys.

    Args:
        params: the trainable parameters, a PyTree of arrays of any shapes.
        optimizer: any optax transformation, or a function of hyperparameters that makes one.
        key: the random key of the run, ``()``.
        model_state: the model's other state, a PyTree of arrays of any shapes, or None.
        learning_rate: multiplies the optimizer's updates, ``()``; 1 for one that has its own.
        hyperparams: scalars by name, for the functions that have parameters of these names.
        metrics: the names of those that `train_step` is given.

    >>> state = init_state(jnp.zeros(3), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step), float(state.metrics["loss"].sum)
    (0, 0.0)
    """
    scalars = {name: jnp.asarray(value, float) for name, value in (hyperparams or {}).items()}
    opt_state = make_optimizer(optimizer, scalars).init(params)
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        key=key,
        learning_rate=jnp.asarray(learning_rate, float),
        hyperparams=scalars,
        step=jnp.array(0, jnp.int32),
        metrics={
            name: Metric(jnp.zeros((), float), jnp.zeros((), jnp.int32))
            for name in ("loss", *metrics)
        },
        bad_step=jnp.array(-1, jnp.int32),
        skipped=jnp.array(0, jnp.int32) if reports_skips(opt_state) else None,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    loss: Score,
    optimizer: Optimizer,
    metrics: Mapping[str, Score] | None = None,
    mixup: float = 0.0,
) -> TrainState:
    """One step of training. Pure: nothing but its arguments goes in, nothing but the state out.

    The gradient is that of the weighted mean of the examples' losses, so a batch filled with
    copies of weight 0 has exactly the gradient of the smaller batch. By a complex parameter it is
    the steepest ascent, as optimizers want it: the conjugate of JAX's. It can be mapped over states
    (``jax.vmap``): seeds, learning rates, whatever a state holds.

    A step that the optimizer skips leaves the model's state and the metrics as they were, and is
    no bad step, see `feedax.train.optimizers.reports_skips`.

    Args:
        state: before the step.
        batch: the examples: inputs and targets ``(batch, ...)``, weights ``(batch,)``.
        model: how to call the user's predict function.
        loss: a function of one example's prediction and target, which returns a scalar.
        optimizer: any optax transformation, or a function of hyperparameters that makes one; its
            updates are multiplied by the state's learning rate.
        metrics: functions as `loss`, by name; the state must have been made with them too.
        mixup: alpha of `feedax.augment.mixup`; losses and metrics are mixed as the inputs are. 0
            mixes nothing.

    Returns:
        The state after the step.

    Two networks side by side, each with its own learning rate:

    >>> optimizer = optax.sgd(1.0)
    >>> def start(rate):
    ...     return init_state(jnp.zeros(2), optimizer, jax.random.key(0), learning_rate=rate)
    >>> def step(state, batch):
    ...     return train_step(state, batch, model=Model(lambda w, x: w @ x),
    ...                       loss=lambda p, t: (p - t) ** 2, optimizer=optimizer)
    >>> states = jax.vmap(start)(jnp.array([0.5, 0.25]))
    >>> batch = Batch(jnp.array([[1.0, 0.0]]), jnp.array([3.0]), jnp.ones(1))
    >>> jax.vmap(step, in_axes=(0, None))(states, batch).params.tolist()
    [[3.0, 0.0], [1.5, 0.0]]
    """
    key = jax.random.fold_in(state.key, state.step)
    inputs, hyperparams = batch.inputs, state.hyperparams
    optimizer = make_optimizer(optimizer, hyperparams)
    if model.augment is not None or mixup:
        key, augment_key, mixup_key = jax.random.split(key, 3)
        inputs = model.augmented(inputs, augment_key, hyperparams)
    mixed = None
    if mixup:
        mixed = mix(mixup_key, inputs, alpha=mixup, mask=batch.weights > 0)
        inputs = mixed.inputs

    def scores_of(score: Score, predictions: PyTree) -> Array:
        own = _summable(per_example(score, predictions, batch.targets, hyperparams))
        if mixed is None:
            return own
        targets = jax.tree.map(lambda leaf: leaf[mixed.partners], batch.targets)
        partners = _summable(per_example(score, predictions, targets, hyperparams))
        shares = mixed.shares.astype(own.dtype)
        return shares * own + (1 - shares) * partners

    def batch_loss(params: PyTree) -> tuple[Array, tuple[PyTree, PyTree]]:
        predictions, model_state = model.predictions(
            params, state.model_state, inputs, key, True, hyperparams
        )
        losses = scores_of(loss, predictions)
        weights = batch.weights.astype(losses.dtype)
        return jnp.sum(losses * weights) / jnp.sum(weights), (predictions, model_state)

    (mean, (predictions, model_state)), grads = jax.value_and_grad(batch_loss, has_aux=True)(
        state.params
    )
    # Optax mixes dtypes and ranks, which JAX's strict settings would refuse: the user's own
    # functions are looked at, and have been.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            jax.tree.map(jnp.conj, grads),
            state.opt_state,
            state.params,
            # For the transformations that ask for them: line searches, plateaus. A gradient that
            # has a name is JAX's, as those are that they take of value_fn.
            value=mean,
            grad=grads,
            value_fn=lambda params: batch_loss(params)[0],
        )
        updates = jax.tree.map(lambda u: u * state.learning_rate.astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
    count = jnp.sum(batch.weights)
    sums = {"loss": mean * count.astype(mean.dtype)}
    for name, score in (metrics or {}).items():
        scores = scores_of(score, predictions)
        sums[name] = jnp.sum(scores * batch.weights.astype(scores.dtype))
    bad = (state.bad_step < 0) & ~jnp.isfinite(mean)
    skipped = state.skipped
    if skipped is not None:
        skips = reports_a_skip(state.opt_state, opt_state, mean) & are_finite(params)
        bad &= ~skips
        skipped = skipped + skips.astype(jnp.int32)
        # What such a step saw may be no number.
        model_state, sums, count = jax.tree.map(
            partial(jnp.where, skips),
            (state.model_state, jax.tree.map(jnp.zeros_like, sums), jnp.zeros_like(count)),
            (model_state, sums, count),
        )
    metrics_so_far = {}
    for name, total in sums.items():  # one addition a step: chunks and resumes do not move it
        old = state.metrics[name]
        metrics_so_far[name] = Metric(
            old.sum + total.astype(old.sum.dtype), old.count + count.astype(jnp.int32)
        )
    return state._replace(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        step=state.step + 1,
        metrics=metrics_so_far,
        bad_step=jnp.where(bad, state.step, state.bad_step),
        skipped=skipped,
    )


def _summable(scores: Array) -> Array:
    """Scores as float32, in which those of half precision are summed too; float64 stays."""
    return scores.astype(jnp.float64 if scores.dtype == jnp.float64 else jnp.float32)
