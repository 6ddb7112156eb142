"""Which networks a sweep has."""

import itertools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feedax.errors import ModelError
from feedax.train.networks import Setting, network_name


@dataclass(frozen=True)
class Member:
    """A network of a sweep, before it is trained.

    Attributes:
        seed: its seed.
        setting: its values of what differs within the sweep.
        learning_rate: its learning rate, as in `fit`.
        hyperparams: all its hyperparameters, as in `fit`.
    """

    seed: int
    setting: Setting
    learning_rate: float | None
    hyperparams: Setting

    @cached_property
    def name(self) -> str:
        return network_name(self.seed, self.setting)


def members(
    seeds: int | Iterable[int],
    learning_rate: float | Iterable[float] | None,
    hyperparams: Mapping[str, float | Iterable[float]],
) -> list[Member]:
    """Every combination of values, and all seeds of each.

    Raises:
        ModelError: the seeds or the values of something are none.

    >>> [(one.name, one.hyperparams) for one in members(1, 0.1, {"dropout": [0.0, 0.5]})]
    [('dropout=0.0,seed=0', {'dropout': 0.0}), ('dropout=0.5,seed=0', {'dropout': 0.5})]
    """
    chosen = _seeds(seeds)
    values = {"learning_rate": learning_rate, **hyperparams}
    choices = {name: _choice(name, value) for name, value in values.items()}
    swept = [name for name, value in values.items() if _are_many(value)]
    found = []
    for combination in itertools.product(*choices.values()):
        scalars = dict(zip(choices, combination, strict=True))
        setting = {name: scalars[name] for name in swept}
        rate = scalars.pop("learning_rate")
        found += [Member(seed, setting, rate, scalars) for seed in chosen]
    return found


def _choice(name: str, value: Any) -> list[Any]:
    if value is None:
        return [None]
    given = list(value) if _are_many(value) else [value]
    try:
        found = [float(one) for one in given]
    except (TypeError, ValueError):
        found = []
    if found and len(set(found)) == len(found):
        return found
    raise ModelError(
        f"sweep: the values of {name} must be numbers, one or more, each once, and they are "
        f"{given}; leave it out, or give others"
    )


def _are_many(value: Any) -> bool:
    is_one = isinstance(value, str) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Iterable) and not is_one


def _seeds(seeds: Any) -> list[int]:
    try:
        found = (
            [operator.index(seed) for seed in seeds]
            if _are_many(seeds)
            else list(range(operator.index(seeds)))
        )
    except TypeError:
        found = []
    # A larger one would be another's, of its lower 32 bits.
    if found and len(set(found)) == len(found) and 0 <= min(found) <= max(found) < 2**32:
        return found
    raise ModelError(
        f"sweep: seeds must be whole numbers from 0 to below 2**32, each once, or how many, and "
        f"they are {seeds!r}; give 5, say"
    )
