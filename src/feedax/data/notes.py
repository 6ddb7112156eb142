"""What becomes of a batch's values on the device, in words. JAX itself is not to be asked here."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def narrowing(dtypes: Iterable[np.dtype]) -> list[str]:
    """What JAX does to 64-bit values."""
    wide = sorted({str(dtype) for dtype in dtypes} & set(_NARROW))
    if not wide:
        return []
    return [
        f"Its {' and '.join(wide)} values reach a device as "
        f"{' and '.join(_NARROW[name] for name in wide)} unless jax_enable_x64 is set"
    ]


def batch_notes(batch: Any) -> tuple[str, ...]:
    """What a batch tells about the way to a device; a sentence each."""
    leaves = _named_leaves(batch, "")
    notes = narrowing(leaf.dtype for _, leaf in leaves if isinstance(leaf, np.ndarray))
    texts = [name for name, leaf in leaves if isinstance(leaf, str | bytes)]
    if len(texts) == 1:
        notes.append(f"{_spoken(texts)} text: kept as a list, which does not go to a device")
    elif texts:
        notes.append(f"{_spoken(texts)} text: kept as lists, which do not go to a device")
    return tuple(notes)


def _named_leaves(tree: Any, field: str) -> list[tuple[str, Any]]:
    """The leaves of a batch, each with its path; a list of texts is one leaf."""
    parts: list[tuple[str, Any]]
    if isinstance(tree, Mapping):
        parts = [(f"{field}[{key!r}]", tree[key]) for key in tree]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree)]
        parts = [(f"{field}.{name}", getattr(tree, name)) for name in names]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = [(f"{field}.{name}", getattr(tree, name)) for name in tree._fields]
    elif isinstance(tree, list) and tree and all(isinstance(text, str | bytes) for text in tree):
        return [(field, tree[0])]
    elif isinstance(tree, list | tuple):
        parts = [(f"{field}[{i}]", part) for i, part in enumerate(tree)]
    else:
        return [(field, tree)]
    return [leaf for name, part in parts for leaf in _named_leaves(part, name)]


def _spoken(fields: list[str]) -> str:
    if fields == [""]:
        return "An example is"
    verb = "is" if len(fields) == 1 else "are"
    return f"Its field{'s' * (len(fields) > 1)} {' and '.join(fields)} {verb}"
