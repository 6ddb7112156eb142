"""Scalars by name, given to the functions that have a parameter of that name.

They are arguments of the compiled step, so that one program serves many values.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax

from feedax.errors import ModelError

Hyperparams = Mapping[str, Any]

_RESERVED = ("key", "train", "learning_rate")
"""Names that have another meaning."""


def taken(function: Callable[..., Any], hyperparams: Hyperparams) -> dict[str, Any]:
    """The hyperparameters that a function has parameters of these names for.

    >>> taken(lambda params, x, dropout: x, {"dropout": 0.5, "weight_decay": 0.1})
    {'dropout': 0.5}
    """
    try:
        names = inspect.signature(function).parameters if hyperparams else {}
    except ValueError:  # some built-in functions do not say
        names = {}
    return {name: value for name, value in hyperparams.items() if name in names}


def refuse_hyperparams(hyperparams: Hyperparams, *functions: Any) -> None:
    """Refuse hyperparameters that are no numbers, or that none of the functions takes.

    Raises:
        ModelError: there is one.
    """
    for name, value in hyperparams.items():
        if name in _RESERVED:
            raise ModelError(
                "fit: a hyperparameter must not be named "
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
                f"fit: a hyperparameter must be a finite number, and {name!r} is {value!r}; give "
                "a number"
            )
        if not any(callable(one) and taken(one, {name: value}) for one in functions):
            raise ModelError(
                "fit: a hyperparameter must be a parameter of predict, loss, augment, a metric or "
                f"a function that makes the optimizer, and {name!r} is one of none; add it there, "
                "or leave it out"
            )


def refuse_mixup(mixup: Any) -> None:
    """Refuse an alpha that is none.

    Raises:
        ModelError: it is not a finite number from 0 on.
    """
    is_number = isinstance(mixup, numbers.Real) and not isinstance(mixup, bool)
    if is_number and 0 <= mixup < math.inf:
        return
    raise ModelError(
        f"fit: mixup must be a finite number from 0 on, and it is {mixup!r}; give 0.2, say, or "
        "leave it out"
    )
