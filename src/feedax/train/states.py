"""The compiled programs around the steps: the first state, the start of an epoch, copies."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import CheckpointError
from feedax.storage.leaf_names import named_leaves
from feedax.storage.snapshot import is_key, restore
from feedax.train.checkpoints import Checkpoint
from feedax.train.compiled import Compiled
from feedax.train.job import Job
from feedax.train.step import TrainState, init_state, zero_metric


class States:
    """Makes the states of a run, and looks at them; each in one program.

    Args:
        job: of the run.
    """

    def __init__(self, job: Job) -> None:
        everywhere = job.devices.replicated
        self._job = job
        self._first = Compiled(self._first_state)
        self._begin_epoch = Compiled(_epoch_begun, donate=(0,), out=everywhere)
        self._copy = Compiled(_copied, out=everywhere)
        self._are_finite = Compiled(_are_finite, out=everywhere)

    def first(self, metrics: Iterable[str]) -> TrainState:
        """The state before the first step, with these metrics."""
        state = self._first(self._parts(), dict.fromkeys(metrics, 0))
        if self._job.checkpoints is not None:
            named_leaves(state, who="fit")  # what cannot be saved is found out now
        return self._everywhere(state)

    def saved(self, checkpoint: Checkpoint, has_best: bool) -> tuple[TrainState, Any]:
        """A checkpoint's state, and the parameters and model state that were the best.

        Raises:
            CheckpointError: they are not those of this job.
        """
        metrics = dict.fromkeys(checkpoint.about["metrics"], 0)
        shapes = jax.eval_shape(self._first_state, self._parts(), metrics)
        best = (shapes.params, shapes.model_state) if has_best else None
        like = {"state": shapes, "best": best}
        restored = restore(checkpoint.arrays, like, source=checkpoint.path)
        self._refuse_another_run(restored["state"], checkpoint)
        return self._everywhere(restored["state"]), self._everywhere(restored["best"])

    def _refuse_another_run(self, saved: TrainState, checkpoint: Checkpoint) -> None:
        """What never changes in a run, and is another one here, was another one there."""
        now = {
            "key": jax.random.key_data(_as_key(self._job.key)),
            "learning_rate": jnp.asarray(self._job.learning_rate, float),
        }
        then = {
            "key": jax.random.key_data(_as_key(saved.key)),
            "learning_rate": saved.learning_rate,
        }
        for name, value in now.items():
            if not np.array_equal(value, then[name]):
                raise CheckpointError(
                    f"fit: a run goes on with the {name}= that it began with, and in "
                    f"{checkpoint.path} that was {then[name]} but is {value}; give the same, or "
                    "another folder"
                )

    def begin_epoch(self, state: TrainState) -> tuple[TrainState, Any]:
        """The state with its sums at zero, and a copy of what an epoch that fails would lose."""
        begun: tuple[TrainState, Any] = self._begin_epoch(state)
        return begun

    def copy(self, state: TrainState) -> Any:
        """The parameters and the model's state; the next step takes over what the state holds."""
        return self._copy((state.params, state.model_state))

    def are_finite(self, params: Any) -> bool:
        """Whether there is a number everywhere."""
        return bool(self._are_finite(params))

    def _parts(self) -> Any:
        job = self._job
        return jax.tree.map(jnp.asarray, (job.params, job.model_state)), job.key

    def _first_state(self, parts: Any, metrics: dict[str, Any]) -> TrainState:
        (params, model_state), key = parts
        rate, optimizer = self._job.learning_rate, self._job.optimizer
        # Steps take over their state's memory, and none of the user's.
        return _copied(
            init_state(params, optimizer, key, model_state, learning_rate=rate, metrics=metrics)
        )

    def _everywhere(self, tree: Any) -> Any:
        devices = self._job.devices
        return tree if devices.mesh is None else devices.replicate(tree)


def _as_key(key: Array) -> Array:
    """A typed key, also of an old one that is an array of numbers."""
    return key if is_key(key) else jax.random.wrap_key_data(key)


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _epoch_begun(state: TrainState) -> tuple[TrainState, Any]:
    zeros = {name: zero_metric() for name in state.metrics}
    return state._replace(metrics=zeros), _copied((state.params, state.model_state))


def _are_finite(tree: Any) -> Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)
