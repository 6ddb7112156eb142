"""Compiled functions, and `train_step` over the pieces of work that a feed hands out."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax

from feedax.feed import CHUNK_STEPS, Batch, Chunk, Devices, on_device, pick, with_the_call
from feedax.train.model import Model
from feedax.train.optimizers import Optimizer
from feedax.train.step import Score, TrainState, train_step

CHUNK_SECONDS = 0.2
"""How long a chunk should take: how often callbacks hear of steps, and Ctrl-C is heard."""
IN_FLIGHT = 3
"""How many steps may wait for the device. With several devices on one CPU, programs that wait for
each other's parts take its threads: 50 of them are a deadlock, 8 are none."""
MOST_IN_FLIGHT = 32
"""The same for one device, where waiting batches take little memory."""
BYTES_IN_FLIGHT = 2**26
"""How much memory they may take."""


class Compiled:
    """``jax.jit``, with the seconds spent on compiling counted apart from those of running.

    Args:
        function: a pure function. Its first argument decides with its shapes, dtypes and
            shardings whether a compiled form can be used again; the others must always have the
            same ones.
        donate: the positions of arguments whose memory the result may take.
        out: the sharding of all results, or None to leave it to JAX.
    """

    def __init__(
        self, function: Callable[..., Any], donate: tuple[int, ...] = (), out: Any = None
    ) -> None:
        self.seconds = 0.0
        self._function = function
        where = {} if out is None else {"out_shardings": out}
        self._jitted = jax.jit(function, donate_argnums=donate, **where)
        self._forms: dict[Any, Any] = {}

    def __call__(self, first: Any, *others: Any) -> Any:
        # Somebody looks for an error, line by line.
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return self._function(on_device(first), *others)
        leaves, structure = jax.tree.flatten(first)
        key = structure, tuple(map(_kind, leaves))
        if key not in self._forms:
            started = time.perf_counter()
            self._forms[key] = self._jitted.lower(first, *others).compile()
            self.seconds += time.perf_counter() - started
        with with_the_call():
            return self._forms[key](first, *others)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, leaf.sharding
    return np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)


class Steps:
    """The compiled forms of a training step.

    A `Chunk` runs in one compiled loop whose end is traced, so that chunks of every length share
    one compilation. On the CPU a `Batch` runs in such a loop too, of one step: so the numbers are
    the same to the bit whatever the plan. Where a loop is slow, both run step by step.

    Args:
        mapped: whether a state is that of many networks, and a piece of work has a batch for each:
            the axis before that of a batch's examples. The devices then share the networks.

    Attributes:
        chunk_length: how many steps take `CHUNK_SECONDS`, so far.
        form: how the last steps ran; numbers are equal to the bit within one form.
    """

    def __init__(
        self,
        model: Model,
        loss: Score,
        optimizer: Optimizer,
        metrics: Mapping[str, Score],
        devices: Devices,
        mixup: float = 0.0,
        mapped: bool = False,
    ) -> None:
        self._step = partial(
            train_step, model=model, loss=loss, optimizer=optimizer, metrics=metrics, mixup=mixup
        )
        self._devices = devices
        self._one = devices.replicate(np.int32(1))
        self._mapped = mapped
        functions = (self._train_batch, self._train_chunk, self._train_row)
        out = devices.shared if mapped else devices.replicated
        self._compiled = [Compiled(one, donate=(1,), out=out) for one in functions]
        self._batch, self._chunk, self._row = self._compiled
        self._loops: bool | None = None
        self._waiting: deque[Array] = deque()
        self.chunk_length = 8
        self.form = "step by step"

    @property
    def compile_seconds(self) -> float:
        return sum(one.seconds for one in self._compiled)

    def run(self, state: TrainState, piece: Batch | Chunk) -> TrainState:
        """Do a piece's steps. The state is donated: only the new one may be used."""
        if self._loops is None:
            self._loops = not self._is_slow_in_a_loop(state, piece)
        is_looped = self._loops and (isinstance(piece, Chunk) or jax.default_backend() == "cpu")
        self.form = "compiled loop" if is_looped else "step by step"
        if isinstance(piece, Batch):
            state, done = self._batch((piece, self._one), state)
            self._wait_for(done, sum(leaf.nbytes for leaf in jax.tree.leaves(piece)))
            return state
        started = time.perf_counter() - self.compile_seconds
        state = self._run_chunk(state, piece)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - self.compile_seconds - started
        fitting = int(int(piece.steps) * CHUNK_SECONDS / seconds)
        self.chunk_length = max(1, min(fitting, 2 * self.chunk_length, CHUNK_STEPS))
        return state

    def are_under_way(self) -> bool:
        """Whether the device still has steps to do."""
        return bool(self._waiting) and not self._waiting[-1].is_ready()  # type: ignore[attr-defined]

    def _run_chunk(self, state: TrainState, chunk: Chunk) -> TrainState:
        steps = int(chunk.steps)
        chunk = chunk._replace(steps=self._devices.replicate(chunk.steps))
        if self._loops:
            return self._chunk(chunk, state)
        for i in range(steps):
            state, done = self._row((chunk, self._devices.replicate(np.int32(i))), state)
            self._wait_for(done, 0)  # each batch is gathered when its turn comes
        return state

    def _wait_for(self, done: Array, size: int) -> None:
        """Let the device fall behind by some steps of batches of `size` bytes, and by no more."""
        most = IN_FLIGHT
        if self._devices.mesh is None:
            most = max(most, min(MOST_IN_FLIGHT, BYTES_IN_FLIGHT // max(1, size)))
        self._waiting.append(done)
        while len(self._waiting) > most:
            self._waiting.popleft().block_until_ready()

    def _is_slow_in_a_loop(self, state: TrainState, piece: Batch | Chunk) -> bool:
        """On the CPU XLA runs gradients of convolutions inside a loop several times slower.

        See https://github.com/jax-ml/jax/issues/12868.
        """
        if jax.default_backend() != "cpu":
            return False
        if isinstance(piece, Batch):
            jaxpr = jax.make_jaxpr(self._one_step)(piece, state)
        else:
            jaxpr = jax.make_jaxpr(self._train_row)((piece, np.int32(0)), state)
        return "conv_general_dilated" in str(jaxpr)

    def _one_step(self, batch: Batch, state: TrainState) -> TrainState:
        if self._mapped:
            return jax.vmap(self._step)(state, batch)
        return self._step(state, self._devices.spread(batch))

    def _pick(self, chunk: Chunk, i: Array) -> Batch:
        gather = jax.vmap(pick, in_axes=(None, 0, 0)) if self._mapped else pick
        return gather(chunk.examples, chunk.indices[i], chunk.sizes[i])

    def _train_batch(
        self, batch: tuple[Batch, Array], state: TrainState
    ) -> tuple[TrainState, Array]:
        # An accelerator's loop would wait for its end, and nothing could be loaded meanwhile.
        if self._loops and jax.default_backend() == "cpu":
            steps = batch[1]
            state = lax.fori_loop(0, steps, lambda _, s: self._one_step(batch[0], s), state)
        else:
            state = self._one_step(batch[0], state)
        # The state is donated to the next step; the second result can still be waited for.
        return state, state.step

    def _train_row(self, row: tuple[Chunk, Array], state: TrainState) -> tuple[TrainState, Array]:
        chunk, i = row
        state = self._one_step(self._pick(chunk, i), state)
        return state, state.step

    def _train_chunk(self, chunk: Chunk, state: TrainState) -> TrainState:
        def body(i: Array, state: TrainState) -> TrainState:
            return self._one_step(self._pick(chunk, i), state)

        return lax.fori_loop(0, chunk.steps, body, state)
