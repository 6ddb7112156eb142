"""The API reference: a page for each public module, made of its list of public names.

A name that feedax itself exports is described on feedax's page, and other pages link to it there.
"""

import importlib
import inspect
import sys
import textwrap
import types
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import feedax


def modules() -> list[str]:
    """feedax, and those of its public names that are modules."""
    names = (name for name in feedax.__all__ if isinstance(getattr(feedax, name), types.ModuleType))
    return ["feedax", *(f"feedax.{name}" for name in names)]


def public_names(module: str) -> list[str]:
    """What a module exports but for modules; where it has no list, the classes that it defines."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if isinstance(value, type) and value.__module__ == module
    ]
    return [name for name in names if f"{module}.{name}" not in modules()]


def home(module: str, name: str) -> str:
    """The name with the module on whose page it is described."""
    value = getattr(importlib.import_module(module), name)
    is_feedaxs = name in feedax.__all__ and getattr(feedax, name) is value
    return f"feedax.{name}" if is_feedaxs else f"{module}.{name}"


def description(module: str, name: str) -> str:
    """Its docstring, found by autodoc; of a constant or a type, the text below its definition."""
    full, value = f"{module}.{name}", getattr(importlib.import_module(module), name)
    if inspect.isclass(value) and not isinstance(value, types.GenericAlias):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return f".. {kind}:: {full}\n"
    if inspect.isfunction(inspect.unwrap(value)):
        return f".. autofunction:: {full}\n"
    return f".. py:data:: {name}\n\n{textwrap.indent(constant_text(module, name), '   ')}\n"


def constant_text(module: str, name: str) -> str:
    """What stands below the definition of a constant, in the module or in one within it.

    Raises:
        SystemExit: nothing does.
    """
    within = [other for other in sorted(sys.modules) if other.startswith(f"{module}.")]
    for place in (module, *within):
        text = ModuleAnalyzer.for_module(place).find_attr_docs().get(("", name))
        if text is not None:
            return "\n".join(text)
    sys.exit(f"{module}.{name} is public and has no docstring; write one below its definition")


def page(module: str) -> str:
    """A page in reStructuredText, the language of the docstrings."""
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", "   :no-members:", ""]
    elsewhere = []
    for name in sorted(public_names(module), key=str.lower):
        if home(module, name) == f"{module}.{name}":
            lines += [description(module, name)]
        else:
            elsewhere.append(f"`{home(module, name)}`")
    if elsewhere:
        lines += ["It also exports " + ", ".join(elsewhere) + ".", ""]
    return "\n".join(lines)


def contents() -> str:
    """The page that lists the others."""
    lines = ["API reference", "=============", "", ".. toctree::", "   :maxdepth: 2", ""]
    return "\n".join([*lines, *(f"   {module}" for module in modules()), ""])


def write(folder: Path) -> None:
    folder.mkdir()
    (folder / "index.rst").write_text(contents(), "utf-8")
    for module in modules():
        (folder / f"{module}.rst").write_text(page(module), "utf-8")
