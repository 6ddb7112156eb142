"""Optimizers and learning rate schedules by name, and which steps an optimizer skips.

The learning rate is a scalar in the training state, so that it can differ between networks that
are trained side by side. What is built here is the rest: an optax transformation of learning rate
1, whose updates a step multiplies by the learning rate and adds to the parameters::

    updates = -schedule(count) * (clip -> optimizer -> + weight decay * parameters)

A schedule is a function of the number of steps done. It returns a factor, 1 at its peak.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from feedax.errors import ModelError, OptimizerError, did_you_mean
from feedax.presets import WEIGHT_DECAY, OptimizerName, ScheduleName
from feedax.train.model import Hyperparams, PyTree, accepted_kwargs, name_in_torch

Schedule = Callable[[ArrayLike], Array]
Optimizer: TypeAlias = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
"""An optax transformation, or a function of hyperparameters, by name, that makes one."""

_SKIPPING = optax.ApplyIfFiniteState, optax.MultiStepsState, optax.ZeroNansState
"""States of transformations that may skip a step whose gradient is no number."""

_TRANSFORMATIONS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": partial(optax.trace, decay=0.9),
    "nesterov": partial(optax.trace, decay=0.9, nesterov=True),
    "rmsprop": optax.scale_by_rms,
    "adagrad": optax.scale_by_rss,
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,
    "nadam": partial(optax.scale_by_adam, nesterov=True),
    "radam": optax.scale_by_radam,
    "adabelief": optax.scale_by_belief,
    "lion": optax.scale_by_lion,
}

# Those of torch.optim.lr_scheduler.OneCycleLR.
_RISING = 0.3
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4

_COUNTABLE = 2**31 - 1
"""The number of steps is an int32."""


def build_optimizer(
    name: str = "adam",
    *,
    schedule: str = "constant",
    steps: int | None = None,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    decay_rate: float = 0.1,
    weight_decay: float | Array | None = None,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """An optimizer of learning rate 1, by name.

    Each has the defaults of optax's function of that name; ``momentum`` and ``nesterov`` are
    stochastic gradient descent with a momentum of 0.9, ``sgd`` has none.

    Args:
        name: sgd, momentum, nesterov, rmsprop, adagrad, adam, adamw, nadam, radam, adabelief or
            lion.
        schedule: how the learning rate changes with the steps, see `build_schedule`.
        steps: the steps of the whole run, for the schedules that want it.
        warmup_steps: over how many steps the learning rate rises from 0.
        decay_steps: after how many steps the schedule ``step`` lowers the learning rate.
        decay_rate: the factor by which it does.
        weight_decay: what is taken off every trained array in a step, biases too: this fraction
            of it times the learning rate. It is decoupled from the gradient, as in AdamW, for
            every optimizer. It may be traced. If None, 1e-4 for adamw and 0 for the others.
        clip_norm: the gradient is scaled down to this Euclidean norm, taken over all arrays
            together, where it is longer. If None, it is never clipped.

    Returns:
        The transformation. Its updates are to be multiplied by the learning rate.

    Raises:
        OptimizerError: no optimizer or schedule of this name, or a number that is out of range.

    >>> optimizer = build_optimizer("sgd", weight_decay=0.5)
    >>> params, grads = jnp.array([2.0]), jnp.array([3.0])
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> updates.tolist()
    [-4.0]
    """
    _refuse_unknown("optimizer: name", name, get_args(OptimizerName))
    factor = build_schedule(
        schedule,
        steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        decay_rate=decay_rate,
    )
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY.get(name, 0.0)
    # One that is traced, in a step that is compiled for every value, has been looked at before.
    decays = isinstance(weight_decay, Array) or _number("optimizer: weight_decay", weight_decay)
    parts = [_TRANSFORMATIONS[name]()]
    if clip_norm is not None:
        clip_norm = _number("optimizer: clip_norm", clip_norm, zero="leave it out to clip nothing")
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if decays:
        parts.append(optax.add_decayed_weights(weight_decay))
    if schedule == "constant" and not warmup_steps:
        # A change of sign costs no bit, and there is nothing to count.
        parts.append(optax.scale(-1))
    else:
        parts.append(optax.scale_by_schedule(lambda count: -factor(count)))
    return optax.chain(*parts)


def build_schedule(
    schedule: str = "constant",
    steps: int | None = None,
    *,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    decay_rate: float = 0.1,
) -> Schedule:
    """A schedule of the learning rate, by name.

    - ``constant``: 1.
    - ``cosine``: half a period of a cosine, from 1 to 0 at `steps`, as optax's
      ``warmup_cosine_decay_schedule``.
    - ``one_cycle``: from 1/25 up to 1 in the first 30 % of the steps, and down to 4e-6 at the
      last one, both along a cosine, as torch's ``OneCycleLR``.
    - ``step``: multiplied by `decay_rate` every `decay_steps` steps of the run, as torch's
      ``StepLR``.

    In the first `warmup_steps` steps the factor rises linearly from 0; ``cosine`` falls after
    them, ``step`` counts its periods from the start of the run. Past `steps`, ``cosine`` and
    ``one_cycle`` stay where they ended.

    Args:
        schedule: one of these names.
        steps: the steps of the whole run. ``cosine`` and ``one_cycle`` want it.
        warmup_steps: the length of the warm-up; ``one_cycle`` has one of its own.
        decay_steps: the period of ``step``.
        decay_rate: the factor of ``step``.

    Returns:
        A function from the number of steps done, an integer that may be traced, to the factor,
        a scalar of JAX's default floating dtype.

    Raises:
        OptimizerError: no schedule of this name, or a number that is out of range.

    >>> factor = build_schedule("cosine", 8, warmup_steps=4)
    >>> [round(float(factor(step)), 2) for step in range(9)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    _refuse_unknown("schedule: name", schedule, get_args(ScheduleName))
    _whole("schedule: warmup_steps", warmup_steps, least=0)
    _number("schedule: decay_rate", decay_rate, zero="give the factor of one decay")
    if steps is not None:
        _whole("schedule: steps", steps)
        if 0 < warmup_steps >= steps:
            raise OptimizerError(
                who="schedule",
                rule="warmup_steps=N must be shorter than the run",
                found=f"it is {warmup_steps} of {steps} steps",
                remedy="lower it, or train longer",
            )
    elif depends_on_length(schedule):
        raise OptimizerError(
            who="schedule",
            rule=f"{schedule!r} must know how long the run is",
            found="steps is None",
            remedy="give steps=N, those of the whole run",
        )
    if schedule == "one_cycle" and warmup_steps:
        raise OptimizerError(
            who="schedule",
            rule="'one_cycle' has a warm-up of its own",
            found=f"warmup_steps is {warmup_steps}",
            remedy="leave it out, or choose schedule='cosine'",
        )
    if (schedule == "step") != (decay_steps is not None):
        raise OptimizerError(
            f"schedule: decay_steps must be given with 'step' and with no other, and it is "
            f"{decay_steps} with {schedule!r}; "
            + ("give it" if schedule == "step" else "leave it out, or choose 'step'")
        )
    if decay_steps is not None:
        _whole("schedule: decay_steps", decay_steps)

    # Those that a schedule uses are given, as seen above.
    length, period = steps or 1, decay_steps or 1

    def factor(count: ArrayLike) -> Array:
        done = jnp.asarray(count, float)
        rising = jnp.minimum(done / warmup_steps, 1) if warmup_steps else jnp.ones_like(done)
        if schedule == "cosine":
            # 1 until the warm-up is over.
            return rising * _cosine(1.0, 0.0, (done - warmup_steps) / (length - warmup_steps))
        if schedule == "one_cycle":
            return _one_cycle(done, length)
        if schedule == "step":
            return rising * jnp.power(decay_rate, (jnp.asarray(count) // period).astype(float))
        return rising

    return factor


def depends_on_length(schedule: str) -> bool:
    """Whether a longer run has another learning rate from its first steps on.

    >>> depends_on_length("cosine"), depends_on_length("step")
    (True, False)
    """
    _refuse_unknown("schedule: name", schedule, get_args(ScheduleName))
    return schedule in ("cosine", "one_cycle")


def _one_cycle(done: Array, steps: int) -> Array:
    # As in torch, the peak may lie between two steps, and the end is the last step, steps - 1.
    top = _RISING * steps - 1
    rising = _cosine(_ONE_CYCLE_START, 1.0, done / top)
    falling = _cosine(1.0, _ONE_CYCLE_END, (done - top) / (steps - 1 - top))
    return jnp.where(done <= top, rising, falling)


def _cosine(start: float, end: float, part: Array) -> Array:
    """Half a period of a cosine from `start` at part 0 to `end` at part 1, and no further."""
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1)))


def _refuse_unknown(who: str, name: str, names: Iterable[str]) -> None:
    if name in (names := tuple(names)):
        return
    raise OptimizerError(
        f"{who} must be one of {', '.join(names)}, and it is {name!r}; "
        + did_you_mean(str(name), names, "choose one of them")
    )


def _whole(what: str, value: int, least: int = 1) -> None:
    try:
        fits = least <= operator.index(value) <= _COUNTABLE and not isinstance(value, bool)
    except TypeError:
        fits = False
    if not fits:
        raise OptimizerError(
            f"{what} must be a whole number from {least} to {_COUNTABLE}, and it is {value!r}; "
            "give a number of steps"
        )


def _number(what: str, value: float, zero: str | None = None) -> float:
    """The number, refused if it is negative, not finite, or zero where `zero` says what to do."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number) and (number > 0 or (number == 0 and zero is None)):
        return number
    raise OptimizerError(
        f"{what} must be a finite number {'>= 0' if zero is None else '> 0'}, and it is "
        f"{value!r}; {zero or 'give 0 for none'}"
    )


def make_optimizer(
    optimizer: Optimizer, hyperparams: Hyperparams, who: str = "fit"
) -> optax.GradientTransformation:
    """The transformation itself; a function makes another one for other hyperparameters.

    Raises:
        ModelError: there is none; `who` speaks.
    """
    made: Any = optimizer
    if name := name_in_torch(optimizer):
        ours = name.lower() if hasattr(optax, name.lower()) else "adam"
        raise ModelError(
            f"{who}: optimizer must be an optax transformation, and it is torch's {name}; give "
            f"optax.{ours}(1e-3), say"
        )
    if callable(optimizer):
        try:
            made = optimizer(**accepted_kwargs(optimizer, hyperparams))
        except TypeError as error:
            raise ModelError(
                f"{who}: a function optimizer must make an optax transformation of hyperparameters "
                f"alone, and it fails: {error}; give hyperparams= too, or the transformation itself"
            ) from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ModelError(
            f"{who}: optimizer must be an optax transformation, or a function that makes one, and "
            f"it {'makes' if callable(optimizer) else 'is'} a {type(made).__name__}; give "
            "optax.sgd(0.1), say"
        )
    return made


def reports_skips(opt_state: PyTree) -> bool:
    """Whether an optimizer's state says which steps it skipped.

    That of ``optax.apply_if_finite`` does, of ``optax.zero_nans`` and of ``optax.MultiSteps`` with
    a ``should_skip_update_fn``, wherever they are in it.

    >>> reports_skips(optax.chain(optax.zero_nans(), optax.sgd(0.1)).init(jnp.zeros(2)))
    True
    >>> reports_skips(optax.MultiSteps(optax.sgd(0.1), 4).init(jnp.zeros(2)))
    False
    """
    return bool(_skipping_states(opt_state))


def reports_a_skip(before: PyTree, after: PyTree, loss: Array) -> Array:
    """Whether an optimizer says of a step that it skipped it; bool scalar.

    Args:
        before: its state before the step.
        after: and afterwards.
        loss: of the step, a scalar.
    """
    skips = jnp.array(False)
    for old, new in zip(_skipping_states(before), _skipping_states(after), strict=True):
        if isinstance(new, optax.ApplyIfFiniteState):
            skips |= ~new.last_finite
        elif isinstance(new, optax.MultiStepsState):
            # Every other step is counted, among those to add up or among those that are done.
            stays = new.mini_step == old.mini_step
            skips |= stays & (new.gradient_step == old.gradient_step)
        else:  # some zeros among numbers are no skipped step
            found = jnp.stack([jnp.any(leaf) for leaf in jax.tree.leaves(new.found_nan)])
            skips |= found.any() & ~jnp.isfinite(loss)
    return skips


def are_finite(tree: PyTree) -> Array:
    """Whether there is a number everywhere; bool scalar."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def _skipping_states(tree: PyTree) -> list[Any]:
    """The states of such transformations in an optimizer's, those within others too."""
    found: list[Any] = []
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, _SKIPPING)):
        if not isinstance(node, _SKIPPING):
            continue
        if not isinstance(node, optax.MultiStepsState) or jax.tree.leaves(node.skip_state):
            found.append(node)
        found += _skipping_states(tuple(node))
    return found
