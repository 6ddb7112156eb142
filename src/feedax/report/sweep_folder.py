"""The folder of a sweep: what was asked, and what came out of every network.

::

    runs/20260131-142501-mnist/
      config.json       the settings, the versions and the machine; written first
      networks.jsonl    one network a line, with its rows; grows as the sweep does
      summary.json      what the networks of each setting have in common
      curves.png        loss and accuracy by epoch, for each setting
      report.html       a page about them
      networks/         the parameters of every network, and checkpoints of those at work

Reading one executes nothing.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from feedax.errors import NotANumberError
from feedax.files import read_regular
from feedax.report.run_folder import MAX_ROWS, RULES, RunFolder
from feedax.storage.plain_json import (
    COUNT,
    TEXT,
    WORDS,
    Rule,
    is_list_of,
    is_number,
    is_row,
    json_bytes,
    or_none,
)

if TYPE_CHECKING:
    from feedax.train.networks import Summary

Record = dict[str, Any]
"""A line of networks.jsonl: ``name``, ``setting``, ``seed``, ``seconds`` of training, ``error`` or
None, ``params`` (the file, from the sweep's folder), ``result`` (the row of the epoch whose
parameters they are, or None) and ``rows``."""


SETTING: Rule = (
    "values by name",
    lambda value: (
        isinstance(value, dict)
        and all(one is None or isinstance(one, str) or is_number(one) for one in value.values())
    ),
)
RECORD: dict[str, Rule] = {
    "name": TEXT,
    "setting": SETTING,
    "seed": COUNT,
    "seconds": ("a number", is_number),
    "error": or_none(TEXT),
    "params": TEXT,
    "result": or_none(("a row", is_row)),
    "rows": ("a list of rows", is_list_of(is_row)),
}
"""What each entry of a `Record` must be."""


def _are(rules: Mapping[str, Rule]) -> Callable[[Any], bool]:
    """Whether a value has all these entries, each as it must be."""
    return lambda value: (
        isinstance(value, dict)
        and all(name in value and holds(value[name]) for name, (_, holds) in rules.items())
    )


class SweepFolder(RunFolder):
    """A sweep's folder; its rows are `Record`s."""

    command: ClassVar[str] = "feedax sweep"
    rules: ClassVar[Mapping[str, Rule]] = RULES | {
        "settings": (
            "a list of settings with their arguments",
            is_list_of(_are({"setting": SETTING, "arguments": WORDS})),
        )
    }
    row: ClassVar[Rule] = (
        "a network with its rows and its result",
        lambda value: _are(RECORD)(value) and (value["result"] is None) == (not value["rows"]),
    )

    metrics_name: ClassVar[str] = "networks.jsonl"
    checkpoints_name: ClassVar[str] = "networks"

    def whole_records(self) -> list[Record]:
        """The networks that networks.jsonl holds; what a kill has left of a last line goes."""
        with self._reading():
            there = self.metrics_path.exists()
            content = read_regular(self.metrics_path, MAX_ROWS) if there else b""
        self.write(self.metrics_path, content[: content.rfind(b"\n") + 1])
        return self.rows()

    def save_summary(self, records: Sequence[Record], is_complete: bool) -> None:
        """Write summary.json and curves.png."""
        from feedax.report.figures import sweep_curves_png

        found: list[dict[str, Any]] = []
        for some in by_setting(records):
            scores = {column: summaries(some, column)[0]._asdict() for column in columns(some)}
            for score in scores.values():
                del score["setting"], score["failed"]
            found.append(
                {
                    "setting": some[0]["setting"],
                    "networks": len(some),
                    "failed": sum(one["error"] is not None for one in some),
                    "seconds": mean_seconds(some),
                    **scores,
                }
            )
        summary = {"is_complete": is_complete, "settings": found}
        self.write(self.path / "summary.json", json_bytes(summary, indent=2))
        if any(one["rows"] for one in records):
            self.write(self.curves_path, sweep_curves_png(records, title=self.path.name))


def by_setting(records: Sequence[Record]) -> list[list[Record]]:
    """The networks of each setting, in order."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for one in records:
        found.setdefault(tuple(one["setting"].items()), []).append(one)
    return list(found.values())


def columns(records: Sequence[Record]) -> list[str]:
    """The columns of losses and accuracies that the results have; of the sets, if there are any."""
    names = dict.fromkeys(name for one in records for name in one["result"] or ())
    of_sets = [name for name in names if name.endswith(("_loss", "_accuracy"))]
    return of_sets or [name for name in ("loss", "accuracy") if name in names]


def summaries(records: Sequence[Record], column: str) -> "list[Summary]":
    """What a column of the networks' results is, for each setting that has it; see `Summary`."""
    from feedax.train.history import History
    from feedax.train.networks import Network, Sweep

    networks = [
        Network(one["seed"], one["setting"], None, History(_rows(one)), _error(one))
        for some in by_setting(records)
        # One that failed may have no row at all, or one without the scores of the test set.
        if any(one["error"] is not None or column in (one["result"] or ()) for one in some)
        for one in some
    ]
    return Sweep(networks, True).summaries(column)


def mean_seconds(records: Sequence[Record]) -> float:
    """Seconds of training a network, of those that ended well; NaN if none did."""
    seconds = [one["seconds"] for one in records if one["error"] is None]
    return statistics.fmean(seconds) if seconds else math.nan


def own_rows(record: Record) -> list[dict[str, Any]]:
    """The rows of a network, with its share of the seconds: of networks side by side, each row has
    those of all of them.

    >>> record = {"seconds": 1.0, "rows": [{"epoch": 0, "seconds": 4.0, "compile_seconds": 8.0}]}
    >>> own_rows(record)
    [{'epoch': 0, 'seconds': 1.0, 'compile_seconds': 2.0}]
    """
    whole = sum(row.get("seconds") or 0.0 for row in record["rows"])
    share = record["seconds"] / whole if whole else 1.0
    return [
        {
            name: value * share if value and name.endswith("seconds") else value
            for name, value in row.items()
        }
        for row in record["rows"]
    ]


def _rows(record: Record) -> list[dict[str, float]]:
    # JSON has no NaN: it was written as null.
    result = record["result"] or {}
    row = {name: math.nan if value is None else value for name, value in result.items()}
    return [row] if row else []


def _error(record: Record) -> NotANumberError | None:
    return None if record["error"] is None else NotANumberError(record["error"])
