"""Does the model fit the data? Asked before anything is compiled, answered in a sentence."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from feedax.errors import FeedaxError, LabelError, ModelError, first_line
from feedax.feed import kind_of, scalar
from feedax.train.losses import LABEL_LOSSES, is_right
from feedax.train.model import Hyperparams, Model, accepted_kwargs, per_example

Scores = dict[str, Callable[..., Any]]

_FAILURES = (
    TypeError,
    ValueError,
    LookupError,
    NameError,
    RuntimeError,
    AttributeError,
    AssertionError,
)
"""What a function raises of shapes or dtypes that it was not written for."""

_BATCH = 7
"""Examples of a batch that is tried; few models have so many inputs that it fits by chance."""


@dataclasses.dataclass(eq=False)
class ModelCheck:
    """Checks inputs and targets on the host against the model and its loss.

    Attributes:
        params: the trainable parameters of the model.
        state: its other state, or None.
        metrics: as in `fit`; None for the accuracy where targets are class labels.
        modes: whether predict is to be called with ``train``: True, False or both.
        who: the public function whose arguments these are; it speaks, in an error.
        scores: the loss and the metrics by name; empty until the first examples were seen.
    """

    model: Model
    params: Any
    state: Any
    loss: Callable[..., Any]
    metrics: Scores | None
    hyperparams: Hyperparams
    modes: tuple[bool, ...] = (True,)
    who: str = "fit"
    scores: Scores = dataclasses.field(init=False, default_factory=dict)
    _classes: dict[Any, int | None] = dataclasses.field(init=False, default_factory=dict)
    """How many classes the model has for a kind of batch, or None."""

    def __post_init__(self) -> None:
        self.hyperparams = {name: scalar(value) for name, value in self.hyperparams.items()}
        if "loss" in (self.metrics or {}):
            raise self._error(
                "a metric must have a name of its own, and one is named 'loss'; rename it"
            )

    def __call__(self, inputs: Any, targets: Any, where: str) -> None:
        """Check examples.

        Raises:
            ModelError: the model or the loss cannot be applied to them.
            LabelError: a class label is outside the model's classes.
        """
        kind = kind_of((inputs, targets))
        if kind not in self._classes:
            self._classes[kind] = self._look_at_shapes(inputs, targets)
        classes = self._classes[kind]
        if classes is not None:
            self._look_at_labels(np.asarray(jax.tree.leaves(targets)[0]), classes, where)

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self.who}: {text}")

    def _look_at_shapes(self, inputs: Any, targets: Any) -> int | None:
        """Look at examples of a new kind; how many classes the model has for them, or None."""
        inputs, targets = shapes_of((inputs, targets), 2)
        for train in self.modes:
            seen = self._augmented(inputs) if train else inputs
            predictions, state = self._predictions(seen, targets, train)
            self._look_at_state(state)
        target, prediction = jax.tree.leaves(targets), jax.tree.leaves(predictions)
        labels = (
            len(target) == len(prediction) == 1
            and np.issubdtype(target[0].dtype, np.integer)
            and (len(target[0].shape), len(prediction[0].shape)) == (1, 2)
        )
        name, classes = getattr(self.loss, "__name__", "the loss"), None
        if self.loss in LABEL_LOSSES:
            if not labels:
                raise ModelError(
                    who=name,
                    rule="an example must have an integer label and a vector of predictions",
                    found=f"its target is {_spoken(targets)} and its prediction "
                    f"{_spoken(predictions)}",
                    remedy=_remedy_of_labels(target, prediction),
                )
            classes = int(prediction[0].shape[1])
        if not self.scores:  # the first examples decide
            metrics = self.metrics
            if metrics is None:
                metrics = {"accuracy": is_right} if labels else {}
            self.scores = {"loss": self.loss, **metrics}
        for kind, score in self.scores.items():
            self._look_at_score(kind, score, predictions, targets)
        return classes

    def _augmented(self, inputs: Any) -> Any:
        try:
            return jax.eval_shape(
                lambda x, scalars: self.model.augmented(x, jax.random.key(0), scalars),
                inputs,
                self.hyperparams,
            )
        except _FAILURES as error:
            raise self._error(
                f"augment must take a key and the input of one example, and it fails on inputs "
                f"of {_spoken(inputs)}: {_cause(error)}"
            ) from error

    def _predictions(self, inputs: Any, targets: Any, train: bool) -> Any:
        def shapes(model: Model, inputs: Any) -> Any:
            return jax.eval_shape(
                lambda params, state, x, scalars: model.predictions(
                    params, state, x, jax.random.key(0), train, scalars
                ),
                self.params,
                self.state,
                inputs,
                self.hyperparams,
            )

        def remedy() -> str:
            """What predict does work on, and what to change then."""
            other = dataclasses.replace(self.model, batched=not self.model.batched)
            flat = jax.eval_shape(
                lambda x: jax.tree.map(lambda a: a.reshape(len(a), -1), x), inputs
            )
            if _works(shapes, self.model, targets):
                return "; it works on the targets: let the batches be (inputs, targets)"
            if _works(shapes, self.model, flat):
                ravel = "x.reshape(len(x), -1)" if self.model.batched else "x.ravel()"
                return f"; it works on flat inputs: begin it with x = {ravel}"
            if not _works(shapes, other, shapes_of(inputs, _BATCH)):
                return ""
            if other.batched:
                return "; it works on a batch: write it for one example, or give batched=True"
            return "; it works on one example: leave batched=True out"

        try:
            found = shapes(self.model, inputs)
        except _FAILURES as error:
            of = "a batch" if self.model.batched else "one example"
            augmented = ", which augment returns" if train and self.model.augment else ""
            raise self._error(
                f"predict must take {of} of the data, and it fails on inputs of "
                f"{_spoken(inputs, skip=not self.model.batched)}{augmented}: {_cause(error)}"
                f"{remedy()}"
            ) from error
        if any(np.shape(leaf)[:1] != (2,) for leaf in jax.tree.leaves(found[0])):
            raise self._error(
                f"predict must return a prediction for each example of a batch, and of 2 "
                f"examples it returns {_spoken(found[0], skip=False)}; let its first axis be the "
                "batch's"
            )
        return found

    def _look_at_state(self, new: Any) -> None:
        given = jax.eval_shape(lambda state: state, self.state)
        if _kinds(given) == _kinds(new):
            return
        raise self._error(
            f"predict must return a state of the structure, shapes and dtypes of the one that "
            f"it gets, and it gets {_spoken(given, skip=False)} and returns "
            f"{_spoken(new, skip=False)}; give state= what predict returns"
        )

    def _look_at_score(self, kind: str, score: Any, predictions: Any, targets: Any) -> None:
        try:
            shapes = jax.eval_shape(
                lambda p, t, scalars: per_example(score, p, t, scalars, self.who),
                predictions,
                targets,
                self.hyperparams,
            )
        except _FAILURES as error:
            of_batch = partial(score, **accepted_kwargs(score, self.hyperparams))
            works = _works(jax.eval_shape, of_batch, *shapes_of((predictions, targets), _BATCH))
            remedy = "; it works on a batch: write it for one example, without the batch's axis"
            raise self._error(
                f"the {kind} function must take one example's prediction and target, and it "
                f"fails on {_spoken(predictions)} and {_spoken(targets)}: {_cause(error)}"
                f"{remedy if works else ''}"
            ) from error
        if getattr(shapes, "ndim", None) != 1:
            raise self._error(
                f"the {kind} function must return one number for one example, and it returns "
                f"{_spoken(shapes)}{_remedy_of_score(shapes, predictions, targets)}"
            )
        is_trained = kind == "loss" and True in self.modes
        if is_trained and not jax.numpy.issubdtype(shapes.dtype, np.inexact):
            raise self._error(
                f"the loss must be a floating point number, which has a gradient, and it is "
                f"{shapes.dtype}; leave out what compares, rounds or casts in it"
            )

    def _look_at_labels(self, labels: np.ndarray, classes: int, where: str) -> None:
        if labels.min() >= 0 and labels.max() < classes:
            return
        position = int(np.argmax((labels < 0) | (labels >= classes)))
        raise LabelError(
            who=self.who,
            rule=f"labels must lie in 0 to {classes - 1}, for the {classes} classes that the model "
            "predicts",
            found=f"example {position} of {where} has label {labels[position]}",
            remedy="give the last layer one output per class, or mend the labels",
        )


def _kinds(tree: Any) -> Any:
    """The structure of a tree, and its leaves' shapes and dtypes."""
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def shapes_of(examples: Any, count: int) -> Any:
    """The shapes of so many examples, with their dtypes on the device."""

    def shape(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct((count, *array.shape[1:]), dtype)

    return jax.tree.map(shape, examples)


def _spoken(tree: Any, skip: bool = True) -> str:
    """Shapes and dtypes of one example, in words."""
    return (
        ", ".join(
            f"{x.dtype}{list(x.shape[1:] if skip else x.shape)}" for x in jax.tree.leaves(tree)
        )
        or "nothing"
    )


def _works(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except (FeedaxError, *_FAILURES):
        return False
    return True


def _remedy_of_score(shapes: Any, predictions: Any, targets: Any) -> str:
    """Which line to change where a score is no single number."""

    def has_one(tree: Any) -> bool:
        return [leaf.shape[1:] for leaf in jax.tree.leaves(tree)] == [(1,)]

    if not has_one(shapes):
        return "; take a mean or a sum in it"
    found = f" of the prediction {_spoken(predictions)} and the target {_spoken(targets)}; "
    if has_one(predictions) and not has_one(targets):
        return f"{found}return prediction[0] from predict"
    if has_one(targets) and not has_one(predictions):
        return f"{found}let the dataset give target[0]"
    return f"{found}end it with [0]"


def _remedy_of_labels(target: list[Any], prediction: list[Any]) -> str:
    """Which line to change where labels or predictions are not those of a loss of labels."""
    if len(target) == len(prediction) == 1:
        shape, classes = target[0].shape[1:], prediction[0].shape[1:]
        is_whole = np.issubdtype(target[0].dtype, np.integer)
        if len(classes) == 1 and shape == (1,) and is_whole:
            return "let the dataset give the label itself, target[0]"
        if len(classes) == 1 and shape == classes:
            return (
                "let the dataset give the label itself, argmax() of a one-hot target, or give "
                "loss=optax.softmax_cross_entropy"
            )
        if len(classes) == 1 and not shape:
            return "let the dataset give the label as an integer, int(target)"
        if not classes and not shape and is_whole:
            return "give the last layer one output per class, or another loss"
    return "change the model, or give another loss"


def _cause(error: Exception) -> str:
    line = first_line(error)
    return f"there is no {line}" if isinstance(error, KeyError) else line
