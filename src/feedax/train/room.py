"""How many networks have room side by side."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.feed import Batch, Source, on_device
from feedax.train.evaluation import block_size
from feedax.train.job import Job
from feedax.train.step import init_state, train_step

SHARE = 0.8
"""Of the memory that is free; the rest is for what nobody counts."""


COPIES = 6
"""Of a network's parameters besides its state: as they were given, and stacked; from the epoch's
start, of its end, at their best, and of those that have ended."""


def room(jobs: Sequence[Job], most: int) -> int:
    """How many networks are to be trained side by side.

    On a CPU one: there, mapping a step gains nothing. On accelerators as many as have room.

    Args:
        jobs: of one of them, or of two, which tell whether all learn from the same examples.
        most: how many there are.
    """
    if jax.default_backend() == "cpu":
        return 1
    job = jobs[0]
    devices = jax.local_devices()[: job.devices.count]
    free, each = min(map(_free, devices)), network_bytes(job)
    free -= _examples_bytes(job.sets.values())
    plans = {id(plan) for one in jobs if (plan := one.train.plan()) is not None}
    if len(plans) > 1:  # every device has those of all its networks, and of all others
        each += len(devices) * _examples_bytes([job.train])
    else:
        free -= _examples_bytes([job.train])
    return max(1, min(most, len(devices) * int(SHARE * free / each)))


def network_bytes(job: Job) -> int:
    """What one network takes: its state, copies of its parameters, and what a step or an
    evaluation works with.

    XLA says so of the compiled programs; where a loader has no arrays, its batches are not counted.
    """
    state = jax.eval_shape(partial(_first_state, job))
    taken = _bytes(state) + COPIES * _bytes((state.params, state.model_state))
    if not job.train.has_arrays:
        return taken
    arrays = tuple(job.train.arrays())
    size = job.train.batch_size or 1
    batch = _batch(arrays, size)
    step = partial(
        train_step, model=job.model, loss=job.loss, optimizer=job.optimizer, mixup=job.mixup
    )
    works_with = _temporary(step, state, batch)
    if job.sets:

        def scored(state: Any, inputs: Any) -> Any:
            of, scalars = (state.params, state.model_state), state.hyperparams
            return job.model.predictions(*of, inputs, state.key, False, scalars)[0]

        count = block_size(jax.tree.leaves(arrays)) if job.model.of_one_example else size
        works_with = max(works_with, _temporary(scored, state, _batch(arrays, count).inputs))
    return taken + works_with + _bytes(batch)


def _batch(arrays: tuple[Any, ...], size: int) -> Batch:
    """The shapes of a batch of so many examples."""
    inputs, targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)
        ),
        arrays,
    )
    return Batch(inputs, targets, jax.ShapeDtypeStruct((size,), jnp.float32))  # type: ignore[arg-type]


def _temporary(function: Callable[..., Any], *shapes: Any) -> int:
    """Bytes that a compiled function takes for itself."""
    found: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return int(found.temp_size_in_bytes)


def _first_state(job: Job) -> Any:
    return init_state(
        on_device(job.params),
        job.optimizer,
        job.key,
        job.model_state,
        learning_rate=job.learning_rate,
        hyperparams=job.hyperparams,
    )


def _examples_bytes(sources: Iterable[Source]) -> int:
    return sum(one.nbytes for one in sources)


def _free(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))


def _bytes(tree: Any) -> int:
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "size") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
