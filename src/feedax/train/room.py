"""How many networks have room side by side."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.feed import ArrayLoader, Batch
from feedax.train.job import Job
from feedax.train.step import init_state, train_step

SHARE = 0.8
"""Of the memory that is free; the rest is for what nobody counts."""


def room(job: Job, most: int) -> int:
    """How many networks are to be trained side by side.

    On a CPU one: there, mapping a step gains nothing. On accelerators as many as have room.

    Args:
        job: of one of them.
        most: how many there are.
    """
    if jax.default_backend() == "cpu":
        return 1
    devices = jax.local_devices()[: job.devices.count]
    free = min(_free(device) for device in devices) - _examples_bytes(job)
    return max(1, min(most, len(devices) * int(SHARE * free / network_bytes(job))))


def network_bytes(job: Job) -> int:
    """What one network takes while it is trained: its state, its copy, and what a step works with.

    XLA says so of the compiled step; where a loader has no arrays, its batches are not counted.
    """
    state = jax.eval_shape(partial(_first_state, job))
    taken = 2 * _bytes(state)
    if not isinstance(job.train, ArrayLoader) or job.train.plan().name == "streamed":
        return taken
    size = getattr(job.train, "batch_size", None) or 1
    inputs, targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)
        ),
        tuple(job.train.arrays()),
    )
    batch = Batch(inputs, targets, jax.ShapeDtypeStruct((size,), jnp.float32))  # type: ignore[arg-type]
    step = partial(
        train_step, model=job.model, loss=job.loss, optimizer=job.optimizer, mixup=job.mixup
    )
    found: Any = jax.jit(step).lower(state, batch).compile().memory_analysis()
    return taken + int(found.temp_size_in_bytes) + _bytes(batch)


def _first_state(job: Job) -> Any:
    return init_state(
        jax.tree.map(jnp.asarray, job.params),
        job.optimizer,
        job.key,
        job.model_state,
        learning_rate=job.learning_rate,
        hyperparams=job.hyperparams,
    )


def _examples_bytes(job: Job) -> int:
    sources = [job.train, *job.sets.values()]
    return sum(one.plan().size for one in sources if isinstance(one, ArrayLoader))


def _free(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))


def _bytes(tree: Any) -> int:
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "size") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
