"""What a browser is sent: pages made of the templates, styles and scripts in this folder.

A page holds all that it needs and asks nothing of the network: its Content-Security-Policy forbids
it. uPlot, in `uplot/`, draws its charts; `make assets` fetches it.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent


def page(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """An HTML page.

    Args:
        template: the name of a template in this folder.
        data: plain values for the page's scripts, which read them by ``feedax.data()``.
        values: for the template. Text in them is escaped, unless it is ``markupsafe.Markup``.

    >>> "<title>1 &lt; 2</title>" in page("base.html.jinja", {}, title="1 < 2")
    True
    """
    return _environment().get_template(template).render(data=script_json(data), **values)


@cache
def _environment() -> Environment:
    """Templates are compiled once in a process."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["content_of"] = content_of
    return environment


def content_of(name: str) -> Markup:
    """A style or a script of this folder, as it is."""
    return Markup((FOLDER / name).read_text("utf-8"))


def script_json(data: Any) -> Markup:
    """JSON that may stand in a script element, whatever text it holds.

    >>> script_json({"name": "</script>"})
    Markup('{"name":"\\\\u003c/script>"}')
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
