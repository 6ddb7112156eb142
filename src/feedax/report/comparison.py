"""What a report says of several runs, or of a sweep's networks: plain values for the page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        lines = [
            (run.name, {int(row["epoch"]): row.get(column) for row in run.history})
            for run in runs
            if column is not None
        ]
        if column is not None:
            found.append(_lines(column_label(column), measure, lines[:MOST_LINES]))
    names = list(dict.fromkeys(name for run in runs for name in run.values))
    different = [name for name in names if len({repr(run.values.get(name)) for run in runs}) > 1]
    scores = list(dict.fromkeys(name for run in runs for name in run.result if name not in OTHERS))
    scores.sort(key=_place)
    rows = []
    for run in runs:
        seconds = sum(row["seconds"] for row in run.history)
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

    Args:
        records: the networks.
        command: what made them.
    """
    groups = by_setting(records)
    scores = columns(records)
    accuracies = [name for name in scores if name.endswith("accuracy")]
    found = []
    for measure in MEASURES:
        rows = [row for one in records for row in one["rows"]]
        if (column := column_of(rows, measure)) is not None:
            found.append(_bands(column, measure, _best(groups, column)))
    summary_rows, dots = [], []
    for column in accuracies or scores[:1]:
        label = column_label(column)
        marks = []
        for one, networks in zip(summaries(records, column), groups, strict=False):
            name = setting_name(one.setting) or "every network"
            numbers = (one.mean, one.sd, one.minimum, one.maximum)
            summary_rows.append(
                [name, label, str(one.count), *map(_share, numbers), str(one.failed)]
            )
            values = [network["result"].get(column) for network in networks if network["result"]]
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
            _rates(records, column) for column in (accuracies if "learning_rate" in keys else ())
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


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _lines(
    title: str, measure: str, lines: Sequence[tuple[str, Mapping[int, float | None]]]
) -> dict[str, Any]:
    epochs = sorted({epoch for _, values in lines for epoch in values})
    series = [
        {"label": name, "values": [values.get(epoch) for epoch in epochs]} for name, values in lines
    ]
    return chart(title, epochs, series, log=measure == "loss")


def _best(groups: Sequence[Sequence[Record]], column: str) -> list[Sequence[Record]]:
    """The settings that there are colours for."""

    def mean(networks: Sequence[Record]) -> float:
        values = [(one["result"] or {}).get(column) for one in networks]
        known = [value for value in values if value is not None and math.isfinite(value)]
        sign = 1 if column.endswith("loss") else -1
        return sign * statistics.fmean(known) if known else math.inf

    chosen = sorted(range(len(groups)), key=lambda i: mean(groups[i]))[:MOST_LINES]
    return [groups[i] for i in sorted(chosen)]


def _bands(column: str, measure: str, groups: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """The mean of each setting's networks, and a band from the lowest to the highest."""
    epochs = sorted({int(row["epoch"]) for some in groups for one in some for row in one["rows"]})
    series: list[dict[str, Any]] = []
    for i, networks in enumerate(groups):
        every = [
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
            values = [reduced(some) if some else None for some in every]
            series.append({"label": f"{name} ({part})", "values": values, "width": 0, **style})
        series[start] |= {"width": 2, "label": name}
        series[start + 1] |= {"band": start + 2}
    return chart(column_label(column), epochs, series, log=measure == "loss")


def _rates(records: Sequence[Record], column: str) -> dict[str, Any]:
    """The learning rate against the result: each network, and the mean of each rate."""
    pairs = sorted(
        (one["setting"]["learning_rate"], value)
        for one in records
        if one["result"] and _is_number(value := one["result"].get(column))
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
