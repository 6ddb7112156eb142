"""report.html: one file that a browser shows without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import feedax
from feedax.files import not_written, replace_file
from feedax.report.content import RunReport, sections
from feedax.web import page


def write_page(
    path: Path,
    title: str,
    *,
    subtitle: str = "",
    run: RunReport | None = None,
    heading: str = "",
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Write the page of one run, or of several.

    Args:
        path: the file, which is replaced.
        title: the page's.
        subtitle: below it.
        run: whose sections are shown.
        heading: above these sections, where there are others too.
        comparison: of several runs, see `feedax.report.comparison`.

    Raises:
        RunFolderError: the file cannot be written.
    """
    shown = None if run is None else sections(run)
    charts: dict[str, Any] = {}
    if shown is not None:
        charts |= {f"curves-{i}": one for i, one in enumerate(shown["curves"])}
        if shown["numbers"] is not None:
            charts["predicted"] = shown["numbers"]["predicted"]
    if comparison is not None:
        for name, key in (("compared", "curves"), ("rates", "rates")):
            charts |= {f"{name}-{i}": one for i, one in enumerate(comparison[key])}
    canvas = None if shown is None or isinstance(shown["canvas"], str) else shown["canvas"]
    text = page(
        "report.html.jinja",
        {"charts": charts, "canvas": canvas},
        title=title,
        subtitle=subtitle,
        run=shown,
        heading=heading,
        comparison=comparison,
        version=feedax.__version__,
    )
    try:
        replace_file(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise not_written("report", path, error) from error
