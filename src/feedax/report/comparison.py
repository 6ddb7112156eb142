"""What a report says of several runs, or of a sweep's networks: plain values for the page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from feedax.report.columns import OTHERS, column_label, column_of
from feedax.report.content import DASHES, chart, percent, seconds_of
from feedax.report.sweep_folder import Record, by_setting, columns, summaries
from feedax.train.history import Row
from feedax.train.networks import setting_name

MOST_LINES = 8
"""There are so many colours; of more runs or settings, the best are drawn."""
MEASURES = ("loss", "accuracy")


@dataclass(frozen=True)
class ComparedRun:
    """One of several runs.

    Attributes:
        name: that no other one has.
        history: its rows.
        result: the row of the epoch whose parameters were kept; empty before the first ended.
        values: its configuration, by name.
    """

    name: str
    history: Sequence[Row]
    result: Row
    values: Mapping[str, Any]


def compared_runs(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Curves over each other, a table of results, and what differs in their configuration."""
    found = []
    for measure in MEASURES:
        column = column_of([row for run in runs for row in run.history], measure)
        if column is not None:
            found.append(_lines(column, measure, runs))
    names = list(dict.fromkeys(name for run in runs for name in run.values))
    different = [name for name in names if len({repr(run.values.get(name)) for run in runs}) > 1]
    scores = list(dict.fromkeys(name for run in runs for name in run.result if name not in OTHERS))
    scores.sort(key=_place)
    rows = []
    for run in runs:
        seconds = sum(row.get("seconds") or 0.0 for row in run.history)
        rows.append(
            [
                cell(run.name),
                cell(len(run.history)),
                *[cell(run.result.get(name), name) for name in scores],
                cell(seconds, "seconds"),
            ]
        )
    return {
        "command": None,
        "curves": found,
        "settings": None,
        "dots": [],
        "rates": [],
        "results": {
            "columns": ["run", "epochs", *map(column_label, scores), "training"],
            "rows": rows,
        },
        "differences": {
            "columns": ["", *[run.name for run in runs]],
            "rows": [[name, *[_text(run.values.get(name)) for run in runs]] for name in different],
        },
    }


def compared_networks(records: Sequence[Record], command: str | None) -> dict[str, Any]:
    """The networks of a sweep: by setting, one by one, and against the learning rate.

    Those that failed are counted and listed, and are in no mean and no curve.

    Args:
        records: the networks.
        command: what made them.
    """
    ended_well = [one for one in records if one["error"] is None and one["result"]]
    groups = by_setting(ended_well)
    scores = columns(records)
    accuracies = [name for name in scores if name.endswith("accuracy")]
    found = []
    for measure in MEASURES:
        rows = [row for one in ended_well for row in one["rows"]]
        if (column := column_of(rows, measure)) is not None:
            found.append(_bands(column, measure, groups))
    summary_rows, dots = [], []
    for column in accuracies or scores[:1]:
        label = column_label(column)
        marks = []
        for one in summaries(records, column):
            name = setting_name(one.setting) or "every network"
            numbers = (one.mean, one.sd, one.minimum, one.maximum)
            summary_rows.append(
                [name, label, str(one.count), *map(_share, numbers), str(one.failed)]
            )
            values = [
                network["result"].get(column)
                for network in ended_well
                if network["setting"] == one.setting
            ]
            marks.append((name, [value for value in values if _is_number(value)], one.mean))
        dots.append(_dots(label, marks))
    keys = list(records[0]["setting"]) if records else []
    rows = [
        [
            cell(one["name"]),
            *[cell((one["result"] or {}).get(name), name) for name in scores],
            cell(one["seconds"], "seconds"),
            cell(one["error"] or "", "error"),
        ]
        for one in records
    ]
    return {
        "command": command,
        "curves": found,
        "settings": {
            "columns": ["setting", "of", "networks", "mean", "sd", "min", "max", "failed"],
            "rows": summary_rows,
        },
        "dots": dots,
        "rates": [
            _rates(ended_well, column) for column in (accuracies if "learning_rate" in keys else ())
        ],
        "results": {
            "columns": ["network", *map(column_label, scores), "training", "failed with"],
            "rows": rows,
        },
        "differences": None,
    }


def _place(column: str) -> int:
    """What was not trained on comes first, and what was measured in training last."""
    starts = ("test_", "validation_", "train_")
    return next((i for i, start in enumerate(starts) if column.startswith(start)), len(starts))


def cell(value: Any, column: str = "") -> dict[str, str]:
    """One cell of a table that can be sorted: its text, and what it is sorted by."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return {"text": "–", "value": ""}
    text = str(value)
    if column == "seconds":
        text = seconds_of(value)
    elif isinstance(value, float):
        text = _share(value) if column.endswith("accuracy") else f"{value:.4g}"
    return {"text": text, "value": str(value)}


def _share(value: float) -> str:
    return percent(value) if _is_number(value) else "–"


def _is_number(value: Any) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _lines(column: str, measure: str, runs: Sequence[ComparedRun]) -> dict[str, Any]:
    drawn = _best([[run.result] for run in runs], column)
    lines = {i: {int(row["epoch"]): row.get(column) for row in runs[i].history} for i in drawn}
    epochs = sorted({epoch for values in lines.values() for epoch in values})
    series = [
        {"label": runs[i].name, "values": [values.get(epoch) for epoch in epochs]}
        for i, values in lines.items()
    ]
    return chart(_title(column, len(drawn), len(runs)), epochs, series, log=measure == "loss")


def _title(column: str, drawn: int, count: int) -> str:
    return column_label(column) + f": the best {drawn} of {count}" * (drawn < count)


def _best(groups: Sequence[Sequence[Row]], column: str) -> list[int]:
    """Which groups of results there are colours for: those with the best means, in order."""

    def mean(rows: Sequence[Row]) -> float:
        known = [value for row in rows if _is_number(value := row.get(column))]
        sign = 1 if column.endswith("loss") else -1
        return sign * statistics.fmean(known) if known else math.inf

    return sorted(sorted(range(len(groups)), key=lambda i: mean(groups[i]))[:MOST_LINES])


def _bands(column: str, measure: str, every: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """The mean of each setting's networks, and a band from the lowest to the highest."""
    drawn = _best([[one["result"] for one in some] for some in every], column)
    groups = [every[i] for i in drawn]
    epochs = sorted({int(row["epoch"]) for some in groups for one in some for row in one["rows"]})
    series: list[dict[str, Any]] = []
    for i, networks in enumerate(groups):
        by_epoch = [
            [
                row[column]
                for one in networks
                for row in one["rows"]
                if row["epoch"] == epoch and _is_number(row.get(column))
            ]
            for epoch in epochs
        ]
        name = setting_name(networks[0]["setting"]) or "every network"
        style = {"colour": i + 1, "dash": list(DASHES[i % len(DASHES)])}
        parts = (("mean", statistics.fmean), ("highest", max), ("lowest", min))
        start = len(series)
        for part, reduced in parts:
            values = [reduced(some) if some else None for some in by_epoch]
            series.append({"label": f"{name} ({part})", "values": values, "width": 0, **style})
        series[start] |= {"width": 2, "label": name}
        series[start + 1] |= {"band": start + 2}
    return chart(_title(column, len(drawn), len(every)), epochs, series, log=measure == "loss")


def _rates(records: Sequence[Record], column: str) -> dict[str, Any]:
    """The learning rate against the result: each network, and the mean of each rate."""
    pairs = sorted(
        (one["setting"]["learning_rate"], value)
        for one in records
        if _is_number(value := one["result"].get(column))
    )
    rates = [rate for rate, _ in pairs]
    means = {
        rate: statistics.fmean(value for other, value in pairs if other == rate) for rate in rates
    }
    found = chart(
        f"learning rate against {column_label(column)}",
        rates,
        [
            {"label": "each network", "values": [value for _, value in pairs], "points": True},
            {"label": "mean", "values": [means[rate] for rate in rates]},
        ],
        x_label="learning rate",
    )
    return found | {"xLog": bool(rates) and rates[0] > 0 and rates[-1] >= 4 * rates[0]}


def _dots(label: str, marks: Sequence[tuple[str, Sequence[float], float]]) -> dict[str, Any]:
    """Every network as a dot in the row of its setting, as percentages of the width."""
    every = [value for _, values, _ in marks for value in values]
    low, high = min(every, default=0.0), max(every, default=1.0)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (value - low) / width

    return {
        "label": label,
        "low": _share(low),
        "high": _share(high),
        "rows": [
            {
                "name": name,
                "dots": [{"at": place(value), "said": _share(value)} for value in values],
                "mean": place(mean) if _is_number(mean) else None,
            }
            for name, values, mean in marks
        ],
    }
