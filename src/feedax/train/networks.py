"""The networks of a sweep: the grid of those to train, and what came out of them."""

import hashlib
import itertools
import math
import operator
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from feedax.errors import ModelError, NotANumberError
from feedax.train.history import History, Row, best_row

LONGEST = 200
"""Letters of a name; file systems take 255 bytes, with what is added to it."""

Setting = dict[str, float]
"""The values of the hyperparameters that differ within a sweep, by name."""


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

    @property
    def name(self) -> str:
        return network_name(self.seed, self.setting)


def grid(
    seeds: int | Iterable[int],
    learning_rate: float | Iterable[float] | None,
    hyperparams: Mapping[str, float | Iterable[float]],
) -> list[Member]:
    """Every combination of values, and all seeds of each.

    Raises:
        ModelError: the seeds or the values of something are none.

    >>> [(one.name, one.hyperparams) for one in grid(1, 0.1, {"dropout": [0.0, 0.5]})]
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
        given = seeds if _are_many(seeds) else range(operator.index(seeds))
        found = [operator.index(seed) for seed in given]
    except TypeError:
        found = []
    # A larger one would be another's, of its lower 32 bits.
    if found and len(set(found)) == len(found) and 0 <= min(found) <= max(found) < 2**32:
        return found
    raise ModelError(
        f"sweep: seeds must be whole numbers from 0 to below 2**32, each once, or how many, and "
        f"they are {seeds!r}; give 5, say"
    )


@dataclass(frozen=True)
class Network:
    """One network of a sweep.

    Attributes:
        seed: of its initial parameters, of the order of its examples and of its random key.
        setting: its values of the hyperparameters that differ within the sweep.
        params: trained, as `fit` returns them.
        history: a row an epoch, as `fit` returns it.
        error: why it ended before its time, or None; `params` are then those from the start of the
            epoch in which it turned not-a-number.
        best: the column that chose the epoch of `params`, or None for the last one.
    """

    seed: int
    setting: Setting
    params: Any
    history: History
    error: NotANumberError | None = None
    best: str | None = None

    @property
    def result(self) -> Row | None:
        """The row of the epoch whose parameters these are; None before the first has ended."""
        return best_row(self.history, None if self.error else self.best)

    @property
    def name(self) -> str:
        """What tells it from the others: ``"learning_rate=0.002,seed=3"``."""
        return network_name(self.seed, self.setting)


def network_name(seed: int, setting: Mapping[str, Any]) -> str:
    """The name of a network, which no other one of its sweep has.

    >>> network_name(3, {"learning_rate": 0.002}), network_name(3, {"loss": "cross_entropy"})
    ('learning_rate=0.002,seed=3', 'loss=cross_entropy,seed=3')
    """
    return setting_name({**setting, "seed": seed})


def setting_name(setting: Mapping[str, Any]) -> str:
    """What tells a setting from the others of its sweep; empty where there is one."""
    return ",".join(f"{name}={value}" for name, value in setting.items())


def file_name(name: str) -> str:
    """A name as that of a file or a folder, none of which may be too long.

    >>> file_name("seed=3"), len(file_name("dropout=0.5," * 50))
    ('seed=3', 117)
    """
    if len(name) <= LONGEST:
        return name
    return f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class Summary(NamedTuple):
    """One column of the results of all networks of one setting.

    Attributes:
        setting: the setting.
        count: how many of them ended well: the other fields are about these.
        mean: their mean.
        sd: their standard deviation (of a sample: divided by count - 1); NaN for fewer than two.
        minimum: the lowest value.
        maximum: the highest.
        failed: how many turned not-a-number.
    """

    setting: Setting
    count: int  # type: ignore[assignment]
    mean: float
    sd: float
    minimum: float
    maximum: float
    failed: int


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns.

    Attributes:
        networks: setting by setting, seed by seed.
        is_complete: whether all of them are there; not if a callback stopped the sweep.
    """

    networks: Sequence[Network]
    is_complete: bool

    def summaries(self, column: str) -> list[Summary]:
        """What a column of the networks' results is for each setting.

        Args:
            column: of the rows, ``"test_accuracy"`` say.

        Raises:
            ModelError: they have no such column.

        >>> rows = [{"test_accuracy": 0.5}], [{"test_accuracy": 0.75}]
        >>> found = Sweep([Network(seed, {}, None, row) for seed, row in enumerate(rows)], True)
        >>> [(one.mean, round(one.sd, 4), one.count) for one in found.summaries("test_accuracy")]
        [(0.625, 0.1768, 2)]
        """
        settings: list[Setting] = []
        for network in self.networks:
            if network.setting not in settings:
                settings.append(network.setting)
        return [
            _summary([one for one in self.networks if one.setting == setting], column)
            for setting in settings
        ]


def _summary(networks: Sequence[Network], column: str) -> Summary:
    """That of the networks of one setting."""
    rows = [row for one in networks if one.error is None and (row := one.result) is not None]
    for row in rows:
        if column not in row:
            raise ModelError(
                f"sweep: a summary must be of a column of the rows, and it is of {column!r}; "
                f"they have {', '.join(row)}"
            )
    values = [row[column] for row in rows]
    nan = math.nan
    return Summary(
        networks[0].setting,
        len(values),
        statistics.fmean(values) if values else nan,
        statistics.stdev(values) if len(values) > 1 else nan,
        min(values, default=nan),
        max(values, default=nan),
        sum(one.error is not None for one in networks),
    )
