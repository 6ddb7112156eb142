"""Runs `train_step` over the pieces of work that a feed hands out."""

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax import Array, lax

from feedax.feed import CHUNK_STEPS, Batch, Chunk, pick
from feedax.train.compiled import Compiled
from feedax.train.step import Model, TrainState, train_step

CHUNK_SECONDS = 0.2
"""How long a chunk should take: how often callbacks hear of steps, and Ctrl-C is heard."""
IN_FLIGHT = 4
"""How many streamed steps may wait for the device."""


class Steps:
    """The compiled forms of a training step.

    A `Chunk` runs in one compiled loop whose end is traced, so that chunks of every length share
    one compilation. A `Batch` runs as one step.

    Args:
        model: the model.
        loss: a function of one example's prediction and target.
        optimizer: an optax transformation.
    """

    def __init__(
        self,
        model: Model,
        loss: Callable[[Any, Any], Any],
        optimizer: optax.GradientTransformation,
    ) -> None:
        self._step = partial(train_step, model=model, loss=loss, optimizer=optimizer)
        self._batch = Compiled(self._train_batch, donate=(1,))
        self._chunk = Compiled(self._train_chunk, donate=(1,))
        self._row = Compiled(self._train_row, donate=(1,))
        self._stepwise: bool | None = None
        self._waiting: deque[Array] = deque()
        self.chunk_length = 8

    @property
    def compile_seconds(self) -> float:
        return self._batch.seconds + self._chunk.seconds + self._row.seconds

    def run(self, state: TrainState, piece: Batch | Chunk) -> TrainState:
        """Do a piece's steps. The state is donated: only the new one may be used."""
        if isinstance(piece, Batch):
            state, done = self._batch(piece, state)
            self._waiting.append(done)
            if len(self._waiting) > IN_FLIGHT:
                self._waiting.popleft().block_until_ready()
            return state
        started = time.perf_counter() - self.compile_seconds
        state = self._run_chunk(state, piece)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - self.compile_seconds - started
        fitting = int(self.chunk_length * CHUNK_SECONDS / seconds)
        self.chunk_length = max(1, min(fitting, 2 * self.chunk_length, CHUNK_STEPS))
        return state

    def are_under_way(self) -> bool:
        """Whether the device still has steps to do."""
        return bool(self._waiting) and not self._waiting[-1].is_ready()  # type: ignore[attr-defined]

    def _run_chunk(self, state: TrainState, chunk: Chunk) -> TrainState:
        if self._stepwise is None:
            self._stepwise = self._is_slow_in_a_loop(state, chunk)
        if not self._stepwise:
            return self._chunk(chunk, state)
        for i in range(chunk.steps):
            state = self._row((chunk.examples, chunk.indices[i], chunk.sizes[i]), state)
        return state

    def _is_slow_in_a_loop(self, state: TrainState, chunk: Chunk) -> bool:
        """On the CPU XLA runs gradients of convolutions inside a loop several times slower.

        See https://github.com/jax-ml/jax/issues/12868.
        """
        if jax.default_backend() != "cpu":
            return False
        row = (chunk.examples, chunk.indices[0], chunk.sizes[0])
        return "conv_general_dilated" in str(jax.make_jaxpr(self._train_row)(row, state))

    def _train_batch(self, batch: Batch, state: TrainState) -> tuple[TrainState, Array]:
        state = self._step(state, batch)
        # The state is donated to the next step; the second result can still be waited for.
        return state, state.step

    def _train_row(self, row: tuple[Any, Array, Array], state: TrainState) -> TrainState:
        return self._step(state, pick(*row))

    def _train_chunk(self, chunk: Chunk, state: TrainState) -> TrainState:
        def body(i: Array, state: TrainState) -> TrainState:
            return self._train_row((chunk.examples, chunk.indices[i], chunk.sizes[i]), state)

        return lax.fori_loop(0, chunk.steps, body, state)
