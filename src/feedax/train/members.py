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
    values = {"learning_rate": learning_rate, **hyperparams}
    choices = {name: _choice(name, value) for name, value in values.items()}
    swept = [name for name, value in values.items() if _are_many(value)]
    found = []
    for combination in itertools.product(*choices.values()):
        scalars = dict(zip(choices, combination, strict=True))
        setting = {name: scalars[name] for name in swept}
        rate = scalars.pop("learning_rate")
        found += [Member(seed, setting, rate, scalars) for seed in _seeds(seeds)]
    return found


def _choice(name: str, value: Any) -> list[Any]:
    if not _are_many(value):
        return [value]
    found = [float(one) for one in value]
    if not found or len(set(found)) < len(found):
        raise ModelError(
            f"sweep: the values of {name} must be one or more, each once, and they are {found}; "
            "leave it out, or give others"
        )
    return found


def _are_many(value: Any) -> bool:
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0


def _seeds(seeds: Any) -> list[int]:
    try:
        found = list(range(seeds)) if isinstance(seeds, int) else [*map(operator.index, seeds)]
    except TypeError:
        found = []
    if found and len(set(found)) == len(found) and min(found) >= 0:
        return found
    raise ModelError(
        f"sweep: seeds must be whole numbers from 0 on, each once, or how many, and they are "
        f"{seeds!r}; give 5, say"
    )
