"""The header of a safetensors file, checked before anything is made of what it says."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from feedax.storage.leaf_names import RESERVED
from feedax.storage.plain_json import load_json

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
"""The dtypes that arrays are saved in, by the codes of safetensors."""

MOST_HEADER = 100_000_000
"""Bytes that a header may have, for safetensors too."""


class Stored(NamedTuple):
    """An array in a file: what it is, and from which byte to which it lies there."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def header_end(first: bytes, size: int) -> int:
    """Where the header of a file ends.

    Args:
        first: the file's first 8 bytes.
        size: of the file.

    Raises:
        ValueError: not in the file.
    """
    end = 8 + int.from_bytes(first[:8], "little")
    if size < 8 or end > min(size, MOST_HEADER):
        raise ValueError(f"its header ends at {end} of {size} bytes")
    return end


def parse_header(header: bytes, size: int) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the arrays of a file, if they are what the file has room for.

    Every array takes the bytes of its shape, from where the one before it ended, and the last one
    ends with the file.

    Args:
        header: the file's first bytes, up to `header_end`.
        size: of the file.

    Raises:
        ValueError: they are not, or the header says something else than such files say.
    """
    found = load_json(header[8:])
    if not isinstance(found, dict):
        raise ValueError("its header is no JSON object")
    metadata = found.pop(RESERVED, {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{RESERVED} is no JSON object")
    arrays = {name: _stored(name, entry, len(header)) for name, entry in found.items()}
    order = sorted((one.begin, one.end) for one in arrays.values())
    ends = [len(header), *(end for _, end in order)]
    if [begin for begin, _ in order] != ends[:-1] or ends[-1] != size:
        raise ValueError("its arrays do not lie one after another, up to its end")
    return metadata, arrays


def array_of(content: bytes, stored: Stored) -> np.ndarray:
    """An array of a file's content, which it shares the memory of."""
    count = math.prod(stored.shape)
    flat = np.frombuffer(content, stored.dtype, count, stored.begin) if count else np.empty(0)
    return flat.astype(stored.dtype, copy=False).reshape(stored.shape)


def _stored(name: str, entry: Any, start: int) -> Stored:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or entry.keys() != keys:
        raise ValueError(f"{name[:80]!r} is no array with a dtype, a shape and offsets")
    code, shape, offsets = (entry[key] for key in ("dtype", "shape", "data_offsets"))
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= 64
    if not lists or len(offsets) != 2 or not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name[:80]!r} is no array with a dtype, a shape and offsets")
    if any(type(one) is not int or not 0 <= one < 2**63 for one in itertools.chain(shape, offsets)):
        raise ValueError(f"{name[:80]!r} has a size that is none")
    dtype = np.dtype(DTYPES[code])
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name[:80]!r} has another size than its shape")
    return Stored(dtype, tuple(shape), start + begin, start + end)
