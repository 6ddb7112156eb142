"""How a user's functions of one example meet a batch: by ``vmap``, here and nowhere else."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from feedax.errors import ModelError, shown
from feedax.storage.snapshot import is_key

PyTree = Any
Hyperparams = Mapping[str, Any]

_RESERVED = ("key", "train", "learning_rate")
"""Names that have another meaning."""


@dataclass(frozen=True)
class Model:
    """How a `predict` function is called.

    Attributes:
        predict: a function of (params, x), or of (params, state, x) if `stateful`. It is also
            given ``key``, ``train`` and hyperparameters by name if it has parameters of these
            names.
        batched: predict takes a batch. Otherwise it takes one example.
        stateful: predict takes the model's state too and returns (prediction, state).
        static: the leaves of the user's parameters that are not trained, None in place of others.
        dtype: what the model computes in, ``bfloat16`` say, while parameters and state keep their
            own dtypes; None to compute in those.
        augment: a function of (key, x) that changes one example's input at random, in training
            only; it is given hyperparameters by name too. None to leave inputs as they are.
    """

    predict: Callable[..., Any]
    batched: bool = False
    stateful: bool = False
    static: PyTree = None
    dtype: DTypeLike | None = None
    augment: Callable[..., Any] | None = None

    @property
    def of_one_example(self) -> bool:
        """Whether examples do not see each other, so that copies can fill a short batch."""
        return not (self.batched or self.stateful)

    def augmented(self, inputs: PyTree, key: Array, hyperparams: Hyperparams) -> PyTree:
        """Change each example of a batch at random, if there is an `augment`."""
        if self.augment is None:
            return inputs
        keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0]))
        return jax.vmap(partial(self.augment, **accepted_kwargs(self.augment, hyperparams)))(
            keys, inputs
        )

    def call(
        self,
        params: PyTree,
        state: PyTree,
        x: PyTree,
        key: Array,
        train: bool,
        hyperparams: Hyperparams,
    ) -> tuple[PyTree, PyTree]:
        """Call predict on what it takes, an example or a batch; the model's state comes second."""
        params = combine(params, self.static)
        kwargs = accepted_kwargs(self.predict, {**hyperparams, "key": key, "train": train})
        if self.stateful:
            return self.predict(params, state, x, **kwargs)
        return self.predict(params, x, **kwargs), state

    def predictions(
        self,
        params: PyTree,
        state: PyTree,
        inputs: PyTree,
        key: Array,
        train: bool,
        hyperparams: Hyperparams,
    ) -> tuple[PyTree, PyTree]:
        """Predict a batch: the predictions `(examples, ...)` and the model's new state."""
        if self.dtype is not None:
            params, inputs = _as_dtype((params, inputs), self.dtype)

        def call(state: PyTree, x: PyTree, key: Array) -> tuple[PyTree, PyTree]:
            return self.call(params, state, x, key, train, hyperparams)

        if self.batched:
            predictions, new = call(state, inputs, key)
        else:
            keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0]))
            # A state is the batch's, not an example's: models average it over the axis "batch".
            of_batch = jax.vmap(call, in_axes=(None, 0, 0), out_axes=(0, None), axis_name="batch")
            predictions, new = of_batch(state, inputs, keys)
        if self.dtype is None:
            return predictions, new
        # Losses are sums of small differences, and statistics of small steps: both in float32.
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)
        return _as_dtype(predictions, jnp.float32), new


def per_example(
    score: Callable[..., Any],
    predictions: PyTree,
    targets: PyTree,
    hyperparams: Hyperparams,
    who: str = "train_step",
) -> Array:
    """Score every example of a batch: `(examples,)`.

    Raises:
        ModelError: the score is complex; `who` speaks.
    """
    scores = jax.vmap(partial(score, **accepted_kwargs(score, hyperparams)))(predictions, targets)
    if jnp.iscomplexobj(scores):
        raise ModelError(
            f"{who}: a loss or a metric must return a real number, and "
            f"{getattr(score, '__name__', 'one')} returns {scores.dtype}; take jnp.abs of it, or "
            "its real part"
        )
    return scores


def partition(params: PyTree) -> tuple[PyTree, PyTree]:
    """Split parameters into what is trained (inexact arrays) and the rest, None for the other."""

    def is_trained(leaf: Any) -> bool:
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        return is_array and jnp.issubdtype(leaf.dtype, jnp.inexact)

    trained = jax.tree.map(lambda leaf: leaf if is_trained(leaf) else None, params)
    static = jax.tree.map(lambda leaf: None if is_trained(leaf) else leaf, params)
    return trained, static


def untrained(static: PyTree) -> list[str]:
    """Where that part of `partition` holds numbers that somebody may take for trained ones.

    In a layer (a callable object or a module of Equinox) Python's integers are settings, and in a
    layer that Equinox itself has every number is.

    >>> untrained({"w": None, "b": 0.0, "layers": [jnp.arange(2), jnp.tanh, "name"]})
    ["params['b']", "params['layers'][0]"]
    """
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(static, is_leaf=_is_layer):
        for more, leaf in jax.tree_util.tree_leaves_with_path(
            node, is_leaf=lambda part: _is_equinoxs(type(part))
        ):
            if _is_number(leaf) and not (_is_layer(node) and isinstance(leaf, int)):
                found.append(f"params{jax.tree_util.keystr((*path, *more))}")
    return found


def _is_layer(node: Any) -> bool:
    return callable(node) or any(map(_is_equinoxs, type(node).__mro__))


def _is_equinoxs(kind: type) -> bool:
    return kind.__module__.startswith("equinox.")


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a number or an array, of whatever kind: a tensor is one, text is none."""
    if isinstance(leaf, jax.Array) and is_key(leaf):
        return False
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    return isinstance(leaf, numbers.Number) or (
        hasattr(leaf, "__array__") and kind not in (*"SUT",)
    )


def combine(trained: PyTree, static: PyTree) -> PyTree:
    """Put together what `partition` split."""
    if static is None:
        return trained
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, static, is_leaf=lambda leaf: leaf is None
    )


def _as_dtype(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """The tree with its floating point leaves in another dtype."""

    def cast(leaf: Any) -> Any:
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_float else leaf

    return jax.tree.map(cast, tree)


def compute_dtype(precision: str | None, who: str = "fit") -> Any:
    """What a model computes in; None for the dtypes of its parameters.

    Raises:
        ModelError: there is no such precision; `who` speaks.
    """
    if precision not in (None, "float32", "bfloat16"):
        raise ModelError(
            f"{who}: precision must be 'float32' or 'bfloat16', and it is {precision!r}; leave it "
            "out"
        )
    return jnp.bfloat16 if precision == "bfloat16" else None


def accepted_kwargs(function: Callable[..., Any], hyperparams: Hyperparams) -> dict[str, Any]:
    """The hyperparameters that a function has parameters of these names for.

    >>> accepted_kwargs(lambda params, x, dropout: x, {"dropout": 0.5, "weight_decay": 0.1})
    {'dropout': 0.5}
    """
    try:
        names = inspect.signature(function).parameters if hyperparams else {}
    except ValueError:  # some built-in functions do not say
        names = {}
    return {name: value for name, value in hyperparams.items() if name in names}


def refuse_no_function(predict: Any, params: PyTree, who: str) -> None:
    """Refuse a predict that cannot be called, and params in its place.

    Raises:
        ModelError: that is so; `who` speaks.
    """

    def is_trained(tree: PyTree) -> bool:
        return bool(jax.tree.leaves(partition(tree)[0]))

    # A model of Equinox is a function with parameters in it.
    if callable(params) and is_trained(predict) and not is_trained(params):
        raise ModelError(
            f"{who}: predict must come before params, and they are given the other way round; "
            f"call {who}(predict, params, ...)"
        )
    if not callable(predict):
        raise ModelError(
            f"{who}: predict must be a function of (params, x), and it is a "
            f"{type(predict).__name__}; call {who}(predict, params, ...)"
        )


def name_in_torch(given: Any) -> str | None:
    """The name of what is torch's: a function, a class or an object of one; None for all else."""
    whole = given if hasattr(given, "__name__") else type(given)
    is_torchs = str(getattr(whole, "__module__", "")).partition(".")[0] == "torch"
    return whole.__name__ if is_torchs else None


def refuse_no_loss(loss: Any, who: str) -> None:
    """Refuse a loss that cannot be called, and one of torch.

    Raises:
        ModelError: that is so; `who` speaks.
    """
    name = name_in_torch(loss)
    if name is not None or not callable(loss):
        found = shown(loss) if name is None else f"torch's {name}"
        raise ModelError(
            f"{who}: loss must be a function of one example's prediction and target as JAX arrays, "
            f"and it is {found}; give feedax.cross_entropy, or "
            "lambda prediction, target: ((prediction - target) ** 2).mean(), say"
        )


def refuse_hyperparams(hyperparams: Hyperparams, *functions: Any, who: str) -> None:
    """Refuse hyperparameters that are no numbers, or that none of the functions takes."""
    for name, value in hyperparams.items():
        if name in _RESERVED:
            raise ModelError(
                f"{who}: a hyperparameter must not be named "
                f"{', '.join(_RESERVED[:-1])} or {_RESERVED[-1]}, and one is {name!r}; rename it, "
                "or give learning_rate= itself"
            )
        try:
            is_number = not isinstance(value, bool | str | bytes)
            number = float(jax.device_get(value)) if is_number else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ModelError(
                f"{who}: a hyperparameter must be a finite number, and {name!r} is {value!r}; give "
                "a number"
            )
        if not any(callable(one) and accepted_kwargs(one, {name: value}) for one in functions):
            raise ModelError(
                f"{who}: a hyperparameter must be a parameter of predict, loss, augment, a metric "
                f"or a function that makes the optimizer, and {name!r} is one of none; add it "
                "there, or leave it out"
            )


def refuse_mixup(mixup: Any, who: str) -> None:
    """Refuse an alpha that is no finite number from 0 on."""
    is_number = isinstance(mixup, numbers.Real) and not isinstance(mixup, bool)
    if not (is_number and 0 <= mixup < math.inf):
        raise ModelError(
            f"{who}: mixup must be a finite number from 0 on, and it is {mixup!r}; give 0.2, say, "
            "or leave it out"
        )
