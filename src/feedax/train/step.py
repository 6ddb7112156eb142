"""One step of training: a pure function of a state and a batch.

A model, a loss and a metric are functions of one example. They meet the batch dimension in
`predictions` and `each`, by ``vmap``, and nowhere else.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from feedax.feed import Batch

PyTree = Any


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        params: the trainable parameters.
        model_state: the model's other state (batch statistics), or None.
        opt_state: the optimizer's state.
        key: the random key of the run; step i uses ``fold_in(key, i)``.
        step: int32, steps done in all.
        loss_sum: float32, sum of the losses of this epoch's examples.
        seen: int32, number of this epoch's examples.
        bad_step: int32, the first step whose loss was not finite, or -1.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    step: Array
    loss_sum: Array
    seen: Array
    bad_step: Array


@dataclass(frozen=True)
class Model:
    """How a `predict` function is called.

    Attributes:
        predict: a function of (params, x), or of (params, state, x) if `stateful`. It is also
            given ``key`` and ``train`` by name if it has parameters of these names.
        batched: predict takes a batch. Otherwise it takes one example.
        stateful: predict takes the model's state too and returns (prediction, state).
        static: the leaves of the user's parameters that are not trained, None in place of others.
    """

    predict: Callable[..., Any]
    batched: bool = False
    stateful: bool = False
    static: PyTree = None

    @property
    def of_one_example(self) -> bool:
        """Whether examples do not see each other, so that copies can fill a short batch."""
        return not (self.batched or self.stateful)

    def predictions(
        self, params: PyTree, state: PyTree, inputs: PyTree, key: Array, train: bool
    ) -> tuple[PyTree, PyTree]:
        """Predict a batch: the predictions `(examples, ...)` and the model's new state."""
        params = combine(params, self.static)
        names = inspect.signature(self.predict).parameters
        flags = {"train": train} if "train" in names else {}

        def call(state: PyTree, x: PyTree, key: Array) -> tuple[PyTree, PyTree]:
            keys = {"key": key} if "key" in names else {}
            if self.stateful:
                return self.predict(params, state, x, **flags, **keys)
            return self.predict(params, x, **flags, **keys), state

        if self.batched:
            return call(state, inputs, key)
        keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0]))
        # A state is the batch's, not an example's: models average it over the axis "batch".
        out_axes = (0, None)
        return jax.vmap(call, in_axes=(None, 0, 0), out_axes=out_axes, axis_name="batch")(
            state, inputs, keys
        )


def each(score: Callable[[Any, Any], Any], predictions: PyTree, targets: PyTree) -> Array:
    """Score every example of a batch: `(examples,)`."""
    return jax.vmap(score)(predictions, targets)


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, key: Array, model_state: PyTree = None
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        key=key,
        step=jnp.array(0, jnp.int32),
        loss_sum=jnp.array(0, jnp.float32),
        seen=jnp.array(0, jnp.int32),
        bad_step=jnp.array(-1, jnp.int32),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    loss: Callable[[Any, Any], Any],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """One step of training. Pure: nothing but its arguments goes in, nothing but the state out.

    The gradient is that of the weighted mean of the examples' losses, so a batch filled with
    copies of weight 0 has exactly the gradient of the smaller batch.

    Args:
        state: before the step.
        batch: the examples.
        model: how to call the user's predict function.
        loss: a function of one example's prediction and target, which returns a scalar.
        optimizer: any optax transformation.

    Returns:
        The state after the step.
    """
    key = jax.random.fold_in(state.key, state.step)

    def batch_loss(params: PyTree) -> tuple[Array, PyTree]:
        predictions, model_state = model.predictions(
            params, state.model_state, batch.inputs, key, train=True
        )
        losses = each(loss, predictions, batch.targets)
        # A mean of losses in half precision is taken in float32.
        losses = losses.astype(jnp.float64 if losses.dtype == jnp.float64 else jnp.float32)
        weights = batch.weights.astype(losses.dtype)
        return jnp.sum(losses * weights) / jnp.sum(weights), model_state

    (mean, model_state), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads,
        state.opt_state,
        state.params,
        # For the transformations that ask for them: line searches, plateaus.
        value=mean,
        grad=grads,
        value_fn=lambda params: batch_loss(params)[0],
    )
    count = jnp.sum(batch.weights)
    bad = (state.bad_step < 0) & ~jnp.isfinite(mean)
    return TrainState(
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
        key=state.key,
        step=state.step + 1,
        loss_sum=state.loss_sum + mean.astype(jnp.float32) * count,
        seen=state.seen + count.astype(jnp.int32),
        bad_step=jnp.where(bad, state.step, state.bad_step),
    )


def partition(params: PyTree) -> tuple[PyTree, PyTree]:
    """Split parameters into what is trained (inexact arrays) and the rest, None for the other."""

    def is_trained(leaf: Any) -> bool:
        return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)

    trained = jax.tree.map(lambda leaf: leaf if is_trained(leaf) else None, params)
    static = jax.tree.map(lambda leaf: None if is_trained(leaf) else leaf, params)
    return trained, static


def combine(trained: PyTree, static: PyTree) -> PyTree:
    """Put together what `partition` split."""
    if static is None:
        return trained
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, static, is_leaf=lambda leaf: leaf is None
    )
