"""Tables of measured figures as charts: bars with the least and the most that was measured."""

import re
from dataclasses import dataclass
from html import escape

TABLE = re.compile(r"^\|[^\n]+\|\n\|[-:| ]+\|\n(?:\|[^\n]+\|\n)+", re.MULTILINE)
"""A table of Markdown."""
ASKED = re.compile(r"^<!-- chart: (.+) -->$", re.MULTILINE)
OURS = re.compile(r"feedax|fit\b")
"""How the labels of the rows begin that are feedax's own."""


@dataclass(frozen=True)
class Bar:
    """A row of a table: the middle one of what was measured, the least and the most."""

    label: str
    value: float
    least: float
    most: float


@dataclass(frozen=True)
class Chart:
    """A table whose first figure stands before its least and its most.

    Attributes:
        title: the header of the labels.
        unit: the header of the figures.
    """

    title: str
    unit: str
    bars: list[Bar]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def chart_of(table: str) -> Chart | None:
    """The chart of a table, if there is one in it.

    >>> chart_of("| step | ms | least | most |\\n|---|---|---|---|\\n| fit | 10 | 9 | 1,100 |").bars
    [Bar(label='fit', value=10.0, least=9.0, most=1100.0)]
    """
    header, _, *rows = table.strip().splitlines()
    names = cells(header)
    if names[2:4] != ["least", "most"]:
        return None
    bars = []
    for row in map(cells, rows):
        value, least, most = (float(cell.replace(",", "")) for cell in row[1:4])
        bars.append(Bar(row[0].replace("`", ""), value, least, most))
    return Chart(names[0], names[1], bars)


def charts(text: str) -> list[Chart]:
    """Those of a page's tables."""
    found = (chart_of(table[0]) for table in TABLE.finditer(text))
    return [chart for chart in found if chart is not None]


def html(chart: Chart) -> str:
    """The chart as HTML without a blank line, which would end it in Markdown."""
    longest = max(bar.most for bar in chart.bars)
    lines = [
        f'<figure class="bars" aria-label="{escape(chart.title)}">',
        f"<figcaption>{escape(chart.title)}: <strong>{escape(chart.unit)}</strong></figcaption>",
    ]
    for bar in chart.bars:
        value, least, most = (f"{100 * x / longest:.2f}%" for x in (bar.value, bar.least, bar.most))
        lines += [
            f'<div class="bar{" ours" if OURS.match(bar.label) else ""}" data-value="{bar.value}"'
            f' data-least="{bar.least}" data-most="{bar.most}">',
            f"<span>{escape(bar.label)}</span>",
            f'<svg aria-hidden="true"><rect y="15%" width="{value}" height="70%"/>'
            f'<line x1="{least}" x2="{most}" y1="50%" y2="50%"/></svg>',
            f"<b>{bar.value:,g}</b></div>" if bar.value < 1e6 else f"<b>{bar.value:,.0f}</b></div>",
        ]
    return "\n".join([*lines, "</figure>\n"])


def with_charts(text: str, record: str) -> str:
    """A page with a chart before each table that has one, and where the page asks for one.

    Args:
        text: the page, which asks by ``<!-- chart: TITLE -->``.
        record: the page that has the charts that are asked for.
    """
    by_title = {chart.title: chart for chart in charts(record)}

    def add(table: re.Match[str]) -> str:
        chart = chart_of(table[0])
        return table[0] if chart is None else f"{html(chart)}\n{table[0]}"

    return ASKED.sub(lambda asked: html(by_title[asked[1]]), TABLE.sub(add, text))
