"""What a sweep trained: its networks, and what they have in common."""

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from feedax.errors import ModelError, NotANumberError
from feedax.train.best import best_row
from feedax.train.events import Row

LONGEST = 200
"""Letters of a name; file systems take 255 bytes, with what is added to it."""

Setting = dict[str, float]
"""The values of the hyperparameters that differ within a sweep, by name."""


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
    history: list[Row]
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


def network_name(seed: int, setting: Setting) -> str:
    """The name of a network, which no other one of its sweep has."""
    return ",".join([*(f"{name}={value!r}" for name, value in setting.items()), f"seed={seed}"])


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
        return [self._summary(setting, column) for setting in settings]

    def _summary(self, setting: Setting, column: str) -> Summary:
        networks = [one for one in self.networks if one.setting == setting]
        results = [one.result for one in networks if one.error is None]
        rows = [row for row in results if row is not None]
        for row in rows:
            if column not in row:
                raise ModelError(
                    f"sweep: a summary must be of a column of the rows, and it is of {column!r}; "
                    f"they have {', '.join(row)}"
                )
        values = [row[column] for row in rows]
        nan = math.nan
        return Summary(
            setting,
            len(values),
            statistics.fmean(values) if values else nan,
            statistics.stdev(values) if len(values) > 1 else nan,
            min(values, default=nan),
            max(values, default=nan),
            sum(one.error is not None for one in networks),
        )
