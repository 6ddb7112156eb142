"""Compiled functions that know how long their compilation took."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


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
            return self._function(first, *others)
        leaves, structure = jax.tree.flatten(first)
        kinds = tuple((np.shape(a), a.dtype, getattr(a, "sharding", None)) for a in leaves)
        key = (structure, kinds)
        if key not in self._forms:
            started = time.perf_counter()
            self._forms[key] = self._jitted.lower(first, *others).compile()
            self.seconds += time.perf_counter() - started
        return self._forms[key](first, *others)
