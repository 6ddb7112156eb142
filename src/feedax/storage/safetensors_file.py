"""The layout of a safetensors file: names, dtypes and shapes in a header, then the bytes.

An array is named by its path in its tree. In `[(w0, b0), (w1, b1)]` the second layer's bias is
``1.1``; in `{"dense": {"bias": b}}` it is ``dense.bias``; a tree that is a single array is
``array``. A header is checked before anything is made of what it says.

The library safetensors reads these files, and writes others: its metadata come in random order, and
where a name has two values it takes one.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from feedax.errors import RunFolderError, printable, shown
from feedax.storage.plain_json import load_json

METADATA = "__metadata__"
"""The name that safetensors keeps for itself."""

DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "C64": "complex64",
}
"""The dtypes that arrays are saved in, by their codes in safetensors."""

CODES = {dtype: code for code, dtype in DTYPES.items()}

MAX_HEADER = 100_000_000
"""The most bytes of a header, as in safetensors."""


def arrays_by_name(tree: Any, *, who: str) -> dict[str, Any]:
    """The leaves of a PyTree by name, in the tree's order.

    Args:
        tree: a PyTree.
        who: the function that speaks in an error.

    Raises:
        RunFolderError: two leaves have one name, or one has a name that no file can hold.

    >>> arrays_by_name({"dense": {"bias": 0.5}, "scale": (1, 2)}, who="save_params")
    {'dense.bias': 0.5, 'scale.0': 1, 'scale.1': 2}
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # A tree that is a single array has the empty path.
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "array"
        if name in leaves:
            raise RunFolderError(
                f"{who}: every array needs a name of its own, and two are named {name!r}; "
                f"take the dots out of the keys"
            )
        # UTF-8 cannot write half of a surrogate pair.
        if name == METADATA or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise RunFolderError(
                f"{who}: every array needs a name that safetensors can hold, and one is named "
                f"{name!r}; give it another key"
            )
        leaves[name] = leaf
    return leaves


def listed(names: Iterable[str], at_most: int = 8) -> str:
    """The first names, and how many more there are.

    >>> listed(["c", "a", "b"], at_most=2)
    'a, b and 1 more'
    """
    found = sorted(names)
    more = f" and {len(found) - at_most} more" if len(found) > at_most else ""
    return ", ".join(printable(name) for name in found[:at_most]) + more


class Stored(NamedTuple):
    """An array in a file: what it is, and from which byte to which it lies there."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def of(self, content: bytes) -> np.ndarray:
        """The array, in the memory of the file's content."""
        return np.ndarray(self.shape, self.dtype, content, self.begin)


def encode_tensors(
    arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> list[bytes | memoryview]:
    """The content of a file of these arrays, in pieces to be written one after another.

    Args:
        arrays: of dtypes in `CODES`, in C order; the pieces share their memory.
        metadata: texts by name.
    """
    entries: dict[str, Any] = {METADATA: metadata}
    pieces: list[memoryview] = []
    end = 0
    # The widest first, as in safetensors, so that each lies at a multiple of its width.
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = arrays[name]
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
        pieces.append(array.reshape(-1).view(np.uint8).data)
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *pieces]


def header_end(first: bytes, size: int) -> int:
    """Where the header ends in a file of this size, as its first 8 bytes say.

    Raises:
        ValueError: outside the file.
    """
    end = 8 + int.from_bytes(first[:8], "little")
    if size < 8 or end > min(size, MAX_HEADER):
        raise ValueError(f"its header ends at {end} of {size} bytes")
    return end


def parse_header(content: bytes, size: int) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the arrays of a file, if they fill the file.

    Every array takes the bytes of its shape, from the end of the one before it, and the last one
    ends with the file.

    Args:
        content: of the file, at least its header.
        size: of the file.

    Raises:
        ValueError: they do not, or it is not such a header.
    """
    start = header_end(content, size)
    found = load_json(content[8:start])
    if not isinstance(found, dict):
        raise ValueError("its header is not a JSON object")
    metadata = found.pop(METADATA, {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{METADATA} is not a JSON object")
    arrays = {name: _stored(name, entry, start) for name, entry in found.items()}
    order = sorted((one.begin, one.end) for one in arrays.values())
    ends = [start, *(end for _, end in order)]
    if [begin for begin, _ in order] != ends[:-1] or ends[-1] != size:
        raise ValueError("its arrays do not lie one after another, up to its end")
    return metadata, arrays


def _stored(name: str, entry: Any, start: int) -> Stored:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end]} if (
            len(entry) == 3 and code in DTYPES and len(shape) <= 64
        ):
            dtype = np.dtype(DTYPES[code])
        case _:
            raise ValueError(f"{shown(name)} is not an array with a dtype, a shape and offsets")
    if any(type(one) is not int or not 0 <= one < 2**63 for one in (*shape, begin, end)):
        raise ValueError(f"{shown(name)} has an impossible size")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{shown(name)} does not have the size of its shape")
    return Stored(dtype, tuple(shape), start + begin, start + end)
