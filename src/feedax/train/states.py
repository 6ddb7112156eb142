"""The compiled programs around the steps: the first state, the start of an epoch, copies."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import CheckpointError
from feedax.feed import Devices, on_device, scalar
from feedax.storage.safetensors_file import MAX_HEADER, arrays_by_name
from feedax.storage.snapshot import is_key, nbytes, restore, snapshot
from feedax.train.checkpoints import Checkpoint
from feedax.train.compiled import Compiled
from feedax.train.job import Job
from feedax.train.skips import are_finite
from feedax.train.step import Optimizer, TrainState, init_state


class States:
    """Makes the states of a run, and looks at them; each in one program.

    Args:
        optimizer: as in `train_step`.
        devices: what the run runs on.
        mapped: whether a state is that of many networks, as in `Steps`.
    """

    def __init__(self, optimizer: Optimizer, devices: Devices, mapped: bool = False) -> None:
        everywhere = devices.shared if mapped else devices.replicated
        self._optimizer = optimizer
        self._devices = devices
        self._mapped = mapped
        self._first = Compiled(self._first_state, out=everywhere if mapped else None)
        self._begin_epoch = Compiled(_epoch_begun, donate=(0,), out=everywhere)
        self._copy = Compiled(_copied, out=everywhere)
        self._are_finite = Compiled(jax.vmap(are_finite) if mapped else are_finite, out=everywhere)

    def first(self, job: Job, metrics: Iterable[str]) -> TrainState:
        """The state before the first step, with these metrics."""
        parts = self._everywhere(_parts(job)) if self._mapped else _parts(job)
        state = self._first(parts, dict.fromkeys(metrics, 0))
        if job.checkpoints is not None:
            arrays_by_name(state, who="fit")  # what cannot be saved is found out now
        return self._everywhere(state)

    def saved(
        self, job: Job, checkpoint: Checkpoint, copies: Iterable[str]
    ) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint's state, and the copies of parameters and model states beside it.

        Args:
            job: of the run.
            checkpoint: of it.
            copies: their names, ``"best"`` say.

        Raises:
            CheckpointError: they are not those of this job.
        """
        metrics = dict.fromkeys(checkpoint.about["metrics"], 0)
        shapes = jax.eval_shape(self._first_state, _parts(job), metrics)
        like = {"state": shapes, **dict.fromkeys(copies, (shapes.params, shapes.model_state))}
        arrays = checkpoint.arrays
        if shapes.skipped is not None:  # earlier versions did not count them
            none = np.zeros(shapes.skipped.shape, np.int32)
            arrays = {**snapshot({"state": {"skipped": none}}), **arrays}
        restored = restore(arrays, like, source=checkpoint.path)
        _refuse_another_run(job, restored["state"], checkpoint)
        state = self._everywhere(restored.pop("state"))
        return state, {name: self._everywhere(copy) for name, copy in restored.items()}

    def most_bytes(self, job: Job) -> int:
        """Bytes that a checkpoint of a job has at most: its state and three copies."""
        shapes = jax.eval_shape(self._first_state, _parts(job), {})
        return 4 * nbytes(shapes) + MAX_HEADER

    def begin_epoch(self, state: TrainState) -> tuple[TrainState, Any]:
        """The state with its sums at zero, and a copy of what an epoch that fails would lose."""
        begun: tuple[TrainState, Any] = self._begin_epoch(state)
        return begun

    def copy(self, state: TrainState) -> Any:
        """The parameters and the model's state; the next step takes over what the state holds."""
        return self._copy((state.params, state.model_state))

    def are_finite(self, params: Any) -> np.ndarray:
        """Whether there is a number everywhere; bool, of each of many networks."""
        return np.asarray(jax.device_get(self._are_finite(params)))

    def _first_state(self, parts: Any, metrics: dict[str, Any]) -> TrainState:
        def first(parts: Any) -> TrainState:
            params, model_state, key, learning_rate, hyperparams = parts
            return init_state(
                params,
                self._optimizer,
                key,
                model_state,
                learning_rate=learning_rate,
                hyperparams=hyperparams,
                metrics=metrics,
            )

        # Steps take over their state's memory, and none of the user's.
        return _copied(jax.vmap(first)(parts) if self._mapped else first(parts))

    def _everywhere(self, tree: Any) -> Any:
        if self._devices.mesh is None:
            return tree
        if self._mapped:
            return jax.device_put(tree, self._devices.shared)
        return self._devices.replicate(tree)


def _parts(job: Job) -> Any:
    """What the first state is made of."""
    scalars = {name: scalar(value) for name, value in job.hyperparams.items()}
    arrays = on_device((job.params, job.model_state))
    return (*arrays, job.key, scalar(job.learning_rate), scalars)


def _refuse_another_run(job: Job, saved: TrainState, checkpoint: Checkpoint) -> None:
    """What never changes in a run, and is another one here, was another one there."""
    _, _, key, rate, scalars = _parts(job)
    now, then = jax.device_get(
        (
            {"key": jax.random.key_data(_as_key(key)), "learning_rate": rate, **scalars},
            {
                "key": jax.random.key_data(_as_key(saved.key)),
                "learning_rate": saved.learning_rate,
                **saved.hyperparams,
            },
        )
    )
    for name, value in now.items():
        if not np.array_equal(value, then[name]):
            raise CheckpointError(
                f"fit: a run goes on with the {name}= that it began with, and in "
                f"{checkpoint.path} that was {then[name]} but is {value}; give the same, or "
                "another folder"
            )


def _as_key(key: Array) -> Array:
    """A typed key, also of an old one that is an array of numbers."""
    return key if is_key(key) else jax.random.wrap_key_data(key)


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _epoch_begun(state: TrainState) -> tuple[TrainState, Any]:
    metrics, skipped = jax.tree.map(jnp.zeros_like, (state.metrics, state.skipped))
    begun = state._replace(metrics=metrics, skipped=skipped)
    return begun, _copied((state.params, state.model_state))
