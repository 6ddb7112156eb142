"""Optimizers that skip a step whose gradient is no number, and say so in their state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from feedax.train.model import PyTree

_WRAPPERS = optax.ApplyIfFiniteState, optax.MultiStepsState, optax.ZeroNansState


def tells_of_skips(opt_state: PyTree) -> bool:
    """Whether an optimizer's state says which steps it skipped.

    That of ``optax.apply_if_finite`` does, of ``optax.zero_nans`` and of ``optax.MultiSteps`` with
    a ``should_skip_update_fn``, wherever they are in it.

    >>> tells_of_skips(optax.chain(optax.zero_nans(), optax.sgd(0.1)).init(jnp.zeros(2)))
    True
    >>> tells_of_skips(optax.MultiSteps(optax.sgd(0.1), 4).init(jnp.zeros(2)))
    False
    """
    return bool(_tellers(opt_state))


def says_skipped(before: PyTree, after: PyTree, loss: Array) -> Array:
    """Whether an optimizer says of a step that it skipped it; bool scalar.

    Args:
        before: its state before the step.
        after: and afterwards.
        loss: of the step, a scalar.
    """
    skips = jnp.array(False)
    for old, new in zip(_tellers(before), _tellers(after), strict=True):
        if isinstance(new, optax.ApplyIfFiniteState):
            skips |= ~new.last_finite
        elif isinstance(new, optax.MultiStepsState):
            # Every other step is counted, among those to add up or among those that are done.
            stays = new.mini_step == old.mini_step
            skips |= stays & (new.gradient_step == old.gradient_step)
        else:  # some zeros among numbers are no skipped step
            found = jnp.stack([jnp.any(leaf) for leaf in jax.tree.leaves(new.found_nan)])
            skips |= found.any() & ~jnp.isfinite(loss)
    return skips


def are_finite(tree: PyTree) -> Array:
    """Whether there is a number everywhere; bool scalar."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def _tellers(tree: PyTree) -> list[Any]:
    """The states of such transformations in an optimizer's, those within others too."""
    found: list[Any] = []
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, _WRAPPERS)):
        if not isinstance(node, _WRAPPERS):
            continue
        if not isinstance(node, optax.MultiStepsState) or jax.tree.leaves(node.skip_state):
            found.append(node)
        found += _tellers(tuple(node))
    return found
