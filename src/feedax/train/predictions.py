"""What a model says of every example of a set, and the examples that are worth a look."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError, ModelError
from feedax.feed import Source, kind_of, length, pad, pair, scalar
from feedax.random_states import generators_in, random_states_restored
from feedax.train.check import ModelCheck
from feedax.train.evaluation import block_size
from feedax.train.model import Hyperparams, Model, compute_dtype, partition, refuse_no_function
from feedax.train.steps import Compiled


@dataclass(frozen=True, repr=False)
class Predictions:
    """What a model says of every example of a set.

    With integer targets ``(examples,)`` and outputs ``(examples, classes)`` it is about classes,
    and the outputs are logits or log-probabilities.

    Attributes:
        targets: ``(examples, ...)``, as the set has them.
        outputs: ``(examples, ...)``, what predict returns, floating point.
        inputs: by index, those of the examples that are worth a look: the first of `mistakes`
            and `least_certain`.
    """

    targets: np.ndarray
    outputs: np.ndarray
    inputs: Mapping[int, Any]

    def __repr__(self) -> str:
        of = f"Predictions of {len(self.targets):,} examples"
        if not self.is_of_classes:
            return f"<{of}>"
        return f"<{of}, accuracy {(self.predicted == self.targets).mean():.4f}>"

    @property
    def is_of_classes(self) -> bool:
        """Whether the outputs score classes, of which the target is one."""
        is_label = np.issubdtype(self.targets.dtype, np.integer) and self.targets.ndim == 1
        return bool(is_label) and self.outputs.ndim == 2

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 ``(examples, classes)``: the softmax of the outputs."""
        return softmax(self.outputs)

    @cached_property
    def predicted(self) -> np.ndarray:
        """int ``(examples,)``: the likeliest class of each."""
        return self.outputs.argmax(-1)

    @cached_property
    def errors(self) -> np.ndarray:
        """``(examples,)``: how far each example's outputs are from its target, at most."""
        apart = np.abs(self.outputs.reshape(self.targets.shape) - self.targets)
        return apart.reshape(len(apart), -1).max(1)

    @cached_property
    def mistakes(self) -> np.ndarray:
        """Indices of the examples that are wrong, the most confident ones first.

        Where targets are no classes: of all examples, the largest error first.
        """
        return _ranked(_mistake_scores(self))

    @cached_property
    def least_certain(self) -> np.ndarray:
        """Indices of the examples that are right, the least certain ones first; else empty."""
        return _ranked(_doubt_scores(self))


def predictions(
    predict: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    state: Any = None,
    batched: bool = False,
    precision: Literal["float32", "bfloat16"] | None = None,
    hyperparams: Hyperparams | None = None,
    mistakes: int = 40,
    least_certain: int = 20,
) -> Predictions:
    """What a model says of every example of a set.

    Args:
        predict: as in `fit`; if it has a parameter ``train``, it is given False.
        params: the model's parameters.
        batches: as in `evaluate`: a `NumpyLoader`, or any iterable of NumPy batches (inputs,
            targets). A loader's examples are taken in the dataset's order. All examples have
            outputs and targets of one shape.
        state, batched, precision, hyperparams: as in `fit`.
        mistakes: of so many of `Predictions.mistakes`, the first ones, the inputs are kept.
        least_certain: the same for `Predictions.least_certain`.

    Raises:
        BatchError: there is no batch, or one is not a pair of arrays.
        ModelError: the model does not fit the data, or its outputs are not one array a batch.

    >>> x, y = np.float32([[2, 0], [0, 3], [1, 0]]), np.array([0, 1, 1])
    >>> found = predictions(lambda params, x: x, None, [(x, y)])
    >>> found.predicted, found.mistakes, found.probabilities[0].round(2)
    (array([0, 1, 0]), array([2]), array([0.88, 0.12], dtype=float32))
    >>> found
    <Predictions of 3 examples, accuracy 0.6667>
    """
    who = "predictions"
    refuse_no_function(predict, params, who)
    source = Source.of(batches, f"{who}: batches")
    trained, static = partition(params)
    model = Model(predict, batched, state is not None, static, compute_dtype(precision, who))
    scalars = {name: scalar(value) for name, value in (hyperparams or {}).items()}
    # There is no loss to check.
    check = ModelCheck(model, trained, state, _nothing, {}, scalars, modes=(False,), who=who)
    run = Compiled(partial(_outputs, model=model))
    telling = _Telling(mistakes, least_certain)
    parts: list[Predictions] = []
    seen, sizes = 0, dict[Any, int]()
    # Random numbers drawn for these batches must not change what is trained on next.
    with random_states_restored(generators_in(source.given)):
        for inputs, target in _batches(source, who):
            check(inputs, target, "a batch")
            count, kind = length((inputs, target), who), kind_of((inputs, target))
            # A short batch is filled up, so that there is one compilation.
            size = sizes.setdefault(kind, count)
            size = max(size, count) if model.of_one_example else count
            out = jax.device_get(run(pad(inputs, count, size), trained, state, scalars))
            part = Predictions(_array(target, "targets"), _array(out, "outputs")[:count], {})
            telling.add(part, inputs, seen)
            parts.append(part)
            seen += count
    if not parts:
        raise BatchError(
            who=who,
            rule="batches must yield a batch",
            found="it yielded none",
            remedy="give a NumpyLoader or a list that is not empty, not an iterator that ends",
        )
    return Predictions(
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        telling.inputs(),
    )


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities float32 ``(..., classes)`` of logits or log-probabilities.

    >>> softmax(np.log([[0.25, 0.75]]))
    array([[0.25, 0.75]], dtype=float32)
    """
    outputs = outputs.astype(np.float64)
    powers = np.exp(outputs - outputs.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def _outputs(inputs: Any, params: Any, state: Any, hyperparams: Any, *, model: Model) -> Any:
    out, _ = model.predictions(params, state, inputs, jax.random.key(0), False, hyperparams)
    return jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, out)


def _batches(source: Source, who: str) -> Iterator[tuple[Any, Any]]:
    """Batches on the host, large ones where the examples lie in arrays."""
    if source.has_arrays and source.takes_each_once:
        arrays = pair(source.arrays(), who)
        leaves = jax.tree.leaves(arrays)
        size = block_size(leaves)
        for start in range(0, len(leaves[0]), size):
            yield jax.tree.map(lambda leaf: leaf[start : start + size], arrays)  # noqa: B023
    else:
        for batch in source.sequential():
            yield pair(batch, who)


def _array(tree: Any, name: str) -> np.ndarray:
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1:
        raise ModelError(
            f"predictions: the {name} of an example must be one array, and they are "
            f"{len(leaves)}; give a predict or batches with the one to look at"
        )
    return np.asarray(leaves[0])


def _nothing(prediction: Any, target: Any) -> jax.Array:
    return jnp.zeros(())


def _mistake_scores(found: Predictions) -> np.ndarray:
    """``(examples,)``: how much each mistake is worth a look; -inf where there is none."""
    if found.is_of_classes:
        return np.where(found.predicted == found.targets, -np.inf, found.probabilities.max(1))
    if found.outputs.size != found.targets.size:  # nobody knows what is right
        return np.full(len(found.targets), -np.inf)
    return found.errors


def _doubt_scores(found: Predictions) -> np.ndarray:
    """The same for what is right, and was uncertain."""
    if not found.is_of_classes:
        return np.full(len(found.targets), -np.inf)
    return np.where(found.predicted == found.targets, -found.probabilities.max(1), -np.inf)


def _ranked(scores: np.ndarray) -> np.ndarray:
    """The indices of finite scores, the highest first."""
    order = np.argsort(-scores, kind="stable")
    return order[np.isfinite(scores[order])]


class _Telling:
    """Keeps the inputs that are worth a look, while a set goes by: it may be large."""

    def __init__(self, mistakes: int, least_certain: int) -> None:
        self._kinds = ((_mistake_scores, mistakes), (_doubt_scores, least_certain))
        self._kept: list[list[tuple[float, int, Any]]] = [[] for _ in self._kinds]

    def add(self, part: Predictions, inputs: Any, start: int) -> None:
        """Look at a batch, whose first example has the index `start`."""
        for kept, (scores_of, most) in zip(self._kept, self._kinds, strict=True):
            scores = scores_of(part)
            for i in _ranked(scores)[:most].tolist():
                example = jax.tree.map(lambda leaf: np.array(leaf[i]), inputs)  # noqa: B023
                kept.append((float(scores[i]), start + i, example))
            kept.sort(key=lambda one: (-one[0], one[1]))
            del kept[most:]

    def inputs(self) -> dict[int, Any]:
        return {index: example for kept in self._kept for _, index, example in kept}
