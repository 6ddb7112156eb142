"""What the flags say of a network and its training, as arguments of `fit` and `evaluate`."""

import contextlib
from collections.abc import Callable, Sized
from typing import Any

import jax
import jax.numpy as jnp

from feedax.cli.augmentation import IMAGE_HYPERPARAMS, build_augment
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags, TrainingFlags
from feedax.cli.network import build_predict
from feedax.errors import OptimizerError
from feedax.train import cross_entropy, tutorial_loss
from feedax.train.optimizers import Optimizer, build_optimizer

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "tutorial": tutorial_loss,
    "cross_entropy": cross_entropy,
}


def hyperparams(flags: TrainFlags) -> dict[str, float]:
    """The scalars of a run that are arguments of its compiled step, where they are not 0.

    What is 0 is left out of the program too.
    """
    scalars = {
        "dropout": flags.model.dropout,
        "label_smoothing": flags.training.label_smoothing,
        "weight_decay": flags.optimizer.weight_decay or 0.0,
        **{name: getattr(flags.augment, name) for name in IMAGE_HYPERPARAMS},
    }
    return {name: value for name, value in scalars.items() if value}


def evaluate_arguments(flags: TrainFlags) -> dict[str, Any]:
    """The arguments of `evaluate` that say what a run's network is and how it is scored.

    The loss is that of training, label smoothing too, as in the rows of a run.
    """
    return {
        "predict": build_predict(flags.model),
        "loss": build_loss(flags.training),
        "hyperparams": hyperparams(flags),
        "precision": flags.training.precision,
    }


def fit_arguments(flags: TrainFlags, examples: Examples, train: Sized) -> dict[str, Any]:
    """The arguments of `fit` that say what is computed: all but parameters and sets.

    Args:
        flags: complete ones.
        examples: what is trained on.
        train: its loader.

    Raises:
        UsageError: the augmentation does not fit the examples.
        OptimizerError: the schedule does not fit the length of the run.
    """
    return evaluate_arguments(flags) | {
        "augment": build_augment(flags, examples),
        "mixup": flags.augment.mixup,
        "optimizer": _optimizer(flags, train),
        "learning_rate": flags.optimizer.learning_rate,
        "epochs": flags.training.epochs,
        "steps": flags.training.steps,
        "key": jax.random.key(flags.data.seed),
    }


def build_loss(flags: TrainingFlags) -> Callable[..., Any]:
    """The loss of one example."""
    return smoothed_cross_entropy if flags.label_smoothing else LOSSES[flags.loss]


def smoothed_cross_entropy(
    prediction: jax.Array, target: jax.Array, label_smoothing: jax.Array
) -> jax.Array:
    """The cross-entropy with a target that is spread over the classes.

    Of the target's probability, the share `label_smoothing` is spread evenly over all classes, the
    right one too (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).

    Args:
        prediction: log-probabilities `(classes,)`.
        target: integer label, a scalar.
        label_smoothing: the share, from 0 to below 1.

    Returns:
        Scalar, in nats.

    >>> log_probabilities = jnp.log(jnp.array([0.25, 0.75]))
    >>> round(float(smoothed_cross_entropy(log_probabilities, jnp.array(1), 0.2)), 4)
    0.3975
    """
    right = cross_entropy(prediction, target)
    return (1 - label_smoothing) * right - label_smoothing * jnp.mean(prediction)


def _optimizer(flags: TrainFlags, train: Sized) -> Optimizer:
    """The transformation; with weight decay, the function that makes it."""
    arguments = _optimizer_arguments(flags, train)
    plain = build_optimizer(**arguments, weight_decay=flags.optimizer.weight_decay)
    if not flags.optimizer.weight_decay:
        return plain
    return lambda weight_decay: build_optimizer(**arguments, weight_decay=weight_decay)


def _optimizer_arguments(flags: TrainFlags, train: Sized) -> dict[str, Any]:
    """The arguments of `build_optimizer`; epochs and shares of the run are steps there."""
    given = flags.optimizer
    length = None
    with contextlib.suppress(TypeError):  # a stream may not know
        length = len(train)
    steps = flags.training.steps
    if steps is None and length is not None and flags.training.epochs is not None:
        steps = flags.training.epochs * length
    decay_steps = None
    if given.schedule == "step":
        if length is None:
            raise OptimizerError(
                "optimizer: --decay-epochs counts epochs, and the stream "
                f"{flags.data.dataset} does not know its length; choose another --schedule"
            )
        assert given.decay_epochs is not None  # the flags are complete
        decay_steps = length * given.decay_epochs
    warmup_steps = given.warmup_steps
    if given.warmup_share:
        if steps is None:
            raise OptimizerError(
                "optimizer: --warmup-share is a share of the run, and the stream "
                f"{flags.data.dataset} does not know its length; give --warmup-steps or --steps"
            )
        warmup_steps = int(given.warmup_share * steps)
    return {
        "name": given.optimizer,
        "schedule": given.schedule,
        "steps": steps,
        "warmup_steps": warmup_steps,
        "decay_steps": decay_steps,
        "decay_rate": given.decay_rate,
        "clip_norm": given.clip_norm,
    }
