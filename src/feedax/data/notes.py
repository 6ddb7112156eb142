"""What becomes of a batch's values on the device, in words. JAX itself is not to be asked here."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from feedax.tree import is_text, named_leaves

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
    leaves = list(named_leaves(batch, is_text))
    notes = narrowing(leaf.dtype for _, leaf in leaves if isinstance(leaf, np.ndarray))
    texts = [name for name, leaf in leaves if is_text(leaf)]
    if len(texts) == 1:
        notes.append(f"{_spoken(texts)} text: kept as a list, which does not go to a device")
    elif texts:
        notes.append(f"{_spoken(texts)} text: kept as lists, which do not go to a device")
    return tuple(notes)


def _spoken(fields: list[str]) -> str:
    if fields == [""]:
        return "An example is"
    verb = "is" if len(fields) == 1 else "are"
    return f"Its field{'s' * (len(fields) > 1)} {' and '.join(fields)} {verb}"
