"""The loss and the metrics of a model on a set of examples."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from feedax.errors import BatchError
from feedax.feed import (
    Batch,
    Devices,
    Residents,
    Source,
    device_blocks,
    on_device,
    pad_indices,
    pick,
    scalar,
)
from feedax.random_states import generators_in, random_states_restored
from feedax.train.check import ModelCheck, Scores
from feedax.train.losses import cross_entropy
from feedax.train.model import (
    Hyperparams,
    Model,
    compute_dtype,
    partition,
    per_example,
    refuse_no_function,
)
from feedax.train.steps import IN_FLIGHT, Compiled

BLOCK_EXAMPLES = 1024
BLOCK_BYTES = 2**26


def evaluate(
    predict: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    loss: Callable[..., Any] = cross_entropy,
    metrics: Scores | None = None,
    state: Any = None,
    batched: bool = False,
    precision: Literal["float32", "bfloat16"] | None = None,
    hyperparams: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The mean loss and metrics of a model over all examples of a set.

    For a model of one example the result does not depend on the batch size of the batches.

    Args:
        predict: as in `fit`; if it has a parameter ``train``, it is given False.
        params: the model's parameters.
        batches: a `NumpyLoader`, or any iterable of NumPy batches (inputs, targets) of shapes
            ``(batch, ...)``. A loader's examples are taken in the dataset's order, so its random
            order stays as it was.
        loss: a function of one example's prediction and target.
        metrics: functions of one example's prediction and target, by name. If None, the accuracy
            where targets are class labels.
        state: the model's other state, as in `fit`.
        batched: whether predict takes a batch.
        precision: as in `fit`.
        hyperparams: as in `fit`.

    Returns:
        ``"loss"`` and each metric by name: the mean over the examples.

    Raises:
        BatchError: there is no batch, or one is not a pair of arrays.
        ModelError, LabelError: the model does not fit the data.

    >>> x, y = np.float32([[1, 0], [0, 1], [1, 1]]), np.array([0, 1, 1])
    >>> evaluate(lambda params, x: x, None, [(x, y)])["accuracy"]
    0.6666666666666666
    """
    refuse_no_function(predict, params, "evaluate")
    source = Source.of(batches, "evaluate: batches")
    trained, static = partition(params)
    model = Model(predict, batched, state is not None, static, compute_dtype(precision, "evaluate"))
    scalars = dict(hyperparams or {})
    check = ModelCheck(
        model, trained, state, loss, metrics, scalars, modes=(False,), who="evaluate"
    )
    evaluation = Evaluation(check, Residents(Devices(1, everywhere=False), "evaluate"))
    return evaluation.of_each(trained, state, scalars, source, "batches")[0]


class Evaluation:
    """Scores sets of examples, again and again, with one compilation per shape of a block.

    Args:
        check: the check of examples, which also knows the scores.
        residents: the examples that are on the device.
        process: which of the processes of `residents.devices` this one is.
        mapped: whether parameters are those of many networks, as in `Steps`.
    """

    def __init__(
        self, check: ModelCheck, residents: Residents, process: int = 0, mapped: bool = False
    ) -> None:
        self._check = check
        self._residents = residents
        self._share = process, residents.devices.processes
        # Every process scores its own examples on its own devices.
        self._devices = Devices(residents.devices.count, everywhere=False)
        # No bound method: a cycle would keep examples on the device until it is collected.
        score = partial(_score_block, check=check, devices=self._devices, mapped=mapped)
        out = self._devices.shared if mapped else self._devices.replicated
        self._score = Compiled(score, out=out)
        self._pick = Compiled(pick)

    @property
    def compile_seconds(self) -> float:
        return self._score.seconds + self._pick.seconds

    def prepare(self, source: Source) -> None:
        """Put a resident set on the devices, and check it, before training starts."""
        if self._residents.live_here(source):
            self._residents.examples(source, self._check)

    def of_each(
        self, params: Any, state: Any, hyperparams: Hyperparams, source: Source, name: str
    ) -> list[dict[str, float]]:
        """The mean of each score over all examples, of each network."""
        values: dict[str, list[np.ndarray]] = {}
        scalars = {key: scalar(value) for key, value in hyperparams.items()}
        parts = self._residents.devices.local((*on_device((params, state)), scalars))
        under_way: deque[tuple[Any, int]] = deque()

        def keep() -> None:
            scores, count = under_way.popleft()
            for score, of_block in jax.device_get(scores).items():
                values.setdefault(score, []).append(of_block[..., :count])

        # Random numbers drawn for these batches must not change what is trained on next.
        restored = random_states_restored(generators_in(source.given))
        with restored, contextlib.closing(self._blocks(source)) as blocks:
            for block, count in blocks:
                under_way.append((self._score(block, *parts), count))
                if len(under_way) > IN_FLIGHT:
                    keep()
        while under_way:
            keep()
        rows = {
            score: np.atleast_2d(_together(values.get(score, []), self._share[1]))
            for score in self._check.scores or ["loss"]
        }
        if not rows["loss"].size:
            raise BatchError(
                who=self._check.who,
                rule=f"{name} must yield a batch each time it is iterated",
                found="it yielded none",
                remedy="give a NumpyLoader or a list that is not empty, not an iterator that ends",
            )
        networks = range(len(rows["loss"]))
        return [{score: _mean(of[i]) for score, of in rows.items()} for i in networks]

    def _blocks(self, source: Source) -> Any:
        one_example = self._check.model.of_one_example
        # A sampler that picks examples decides which of them count.
        if one_example and self._residents.live_here(source) and source.takes_each_once:
            return self._resident_blocks(source)
        # Blocks of one size for any batch size: the same products, so the same bits.
        size = block_size if one_example else None
        return device_blocks(
            source.sequential(), size, self._check, self._devices, self._share, who=self._check.who
        )

    def _resident_blocks(self, source: Source) -> Iterator[tuple[Batch, int]]:
        examples = self._residents.devices.local(self._residents.examples(source, self._check))
        leaves = jax.tree.leaves(examples)
        count, size = len(leaves[0]), block_size(leaves)
        part, parts = self._share
        for start in range(part * size, count, parts * size):
            rows = np.arange(start, min(start + size, count), dtype=np.int32)
            indices = self._devices.replicate((pad_indices(rows, size), np.int32(size)))
            yield self._pick(examples, *indices), len(rows)


def _score_block(
    batch: Batch,
    params: Any,
    state: Any,
    hyperparams: Hyperparams,
    *,
    check: ModelCheck,
    devices: Devices,
    mapped: bool,
) -> dict[str, jax.Array]:
    if not mapped:  # otherwise the devices share the networks, and not the examples
        batch = devices.spread(batch)

    def scores(params: Any, state: Any, hyperparams: Hyperparams) -> dict[str, jax.Array]:
        key = jax.random.key(0)
        predictions, _ = check.model.predictions(
            params, state, batch.inputs, key, False, hyperparams
        )
        return {
            name: per_example(score, predictions, batch.targets, hyperparams)
            for name, score in check.scores.items()
        }

    return (jax.vmap(scores) if mapped else scores)(params, state, hyperparams)


def block_size(leaves: list[Any]) -> int:
    """Examples in a block: up to 1024, fewer where they are large."""
    example = sum(jnp.result_type(a).itemsize * math.prod(np.shape(a)[1:]) for a in leaves)
    return max(1, min(BLOCK_EXAMPLES, BLOCK_BYTES // max(1, example)))


def _together(parts: list[np.ndarray], processes: int) -> np.ndarray:
    """The values of all processes' examples."""
    values = np.concatenate(parts, axis=-1, dtype=np.float64) if parts else np.zeros(0)
    if processes == 1:
        return values
    # As bytes, so that float64 arrives as such.
    lengths = np.asarray(process_allgather(np.int32(len(values)))).reshape(-1)
    mine = np.zeros(max(1, lengths.max()), np.float64)
    mine[: len(values)] = values
    every = np.asarray(process_allgather(mine.view(np.uint32))).view(np.float64)
    return np.concatenate([row[:n] for row, n in zip(every, lengths, strict=True)])


def _mean(values: np.ndarray) -> float:
    """The mean, with an exact sum: it does not depend on how the examples were batched."""
    if not np.isfinite(values).all():
        return float(np.mean(values))
    return math.fsum(values) / len(values)
