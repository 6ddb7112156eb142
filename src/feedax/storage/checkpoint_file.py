"""A checkpoint in one safetensors file: every array to the bit, and proof that it is whole.

The file begins with the size that it must have and the SHA-256 of all its bytes, taken with zeros
in the digest's place. Both lie at fixed positions, so that nothing is parsed before they have
proved that what is read is what was written::

    {"__metadata__": {"format": "feedax checkpoint 1", "size": "0000000000000520",
                      "sha256": "...", "dtypes": "{...}", "about": "{...}"},
     "params.w": {"dtype": "F32", ...}, ...}

Where safetensors has no dtype for an array, its bits lie there in another one, and ``dtypes`` says
what they are: a complex number is a pair of floats, an int4 takes a byte, a random key of JAX is
its uint32 key data. ``about`` is a JSON object for what is no array.

>>> import jax.numpy as jnp
>>> from feedax.storage.snapshot import restore, snapshot
>>> state = {"w": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(7)}
>>> content = b"".join(encode(snapshot(state), {"step": 100}))
>>> arrays, about = decode(content, "step-100.safetensors")
>>> arrays, about
({'key': HostArray(key<threefry2x32> ()), 'w': HostArray(bfloat16 (2,))}, {'step': 100})
>>> restore(arrays, like=state)["w"]
Array([1, 1], dtype=bfloat16)
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feedax.errors import CheckpointError, RunFolderError, reason, shown
from feedax.files import not_written, open_regular, replace_file
from feedax.storage.plain_json import load_json
from feedax.storage.safetensors_file import CODES, encode_tensors, parse_header
from feedax.storage.snapshot import HostArray, Snapshot

VERSION = 1
"""The version of this layout; a reader refuses a later one."""

_ZEROS = "0" * 64
_BEGIN = re.compile(
    rb'\{"__metadata__":\{"format":"feedax checkpoint (\d{1,4})",'
    rb'"size":"(\d{16})","sha256":"([0-9a-f]{64})"'
)
_BEGIN_BYTES = 8 + 69 + 16 + 64  # the header's length, what is fixed in it, both values

_FLOAT8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
_CARRIERS = {
    **{f"{kind}{bits}": "uint8" for kind in ("int", "uint") for bits in (2, 4)},
    **{f"float8_{kind}": "uint8" for kind in _FLOAT8},
    "float4_e2m1fn": "uint8",
    "complex64": "float32",
    "complex128": "float64",
}
"""The dtypes that safetensors lacks, and those that carry their bits."""


def encode(arrays: Snapshot, about: dict[str, Any]) -> list[bytes | memoryview]:
    """The content of a checkpoint file, in pieces to be written one after another.

    Args:
        arrays: what `snapshot` made; the pieces share its memory.
        about: everything but arrays: a JSON object of plain Python values, in which floats may be
            NaN or infinite.

    Raises:
        RunFolderError: JSON would not give `about` back unchanged, or an array's dtype is none of
            JAX's.
    """
    try:
        about_text = json.dumps(about)
        again = load_json(about_text.encode(), finite=False)
        same = isinstance(about, dict) and repr(again) == repr(about)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise RunFolderError(
            "encode: about must hold dicts with text as keys, lists, text, numbers, booleans and "
            f"None, and it is {shown(about)}; turn tuples and arrays into lists, keys into text"
        )
    carried = {name: _carried(name, array.numbers) for name, array in arrays.items()}
    dtypes = {
        name: array.dtype
        for name, array in arrays.items()
        if array.dtype != carried[name].dtype.name
    }

    def encoded(size: int, sha256: str) -> list[bytes | memoryview]:
        begin = {"format": f"feedax checkpoint {VERSION}", "size": f"{size:016}", "sha256": sha256}
        metadata = {**begin, "dtypes": json.dumps(dtypes), "about": about_text}
        return encode_tensors(carried, metadata)

    size = sum(map(len, encoded(0, _ZEROS)))
    return encoded(size, _sha256(*encoded(size, _ZEROS)))


def write_checkpoint(
    path: str | Path,
    arrays: Snapshot,
    about: dict[str, Any],
    inside: Path | None = None,
    who: str = "write_checkpoint",
) -> None:
    """Write a checkpoint, complete or not at all; see `encode` and `replace_file`.

    Raises:
        RunFolderError: it cannot be written, and nothing of it is left.
    """
    path, pieces = Path(path), encode(arrays, about)
    try:
        replace_file(path, *pieces, inside=inside)
    except OSError as error:
        raise not_written(who, path, error) from error


def decode(content: bytes, path: str | Path) -> tuple[Snapshot, dict[str, Any]]:
    """Read a checkpoint file's content, if it is what was written.

    Args:
        content: all bytes of the file.
        path: names the file in messages.

    Returns:
        The arrays, and `about`.

    Raises:
        CheckpointError: it ends too early, has been changed, or is no checkpoint that this version
            can read.
    """
    begin = _begin(content, len(content), path)
    view = memoryview(content)
    if _sha256(view[: begin.start(3)], _ZEROS.encode(), view[begin.end(3) :]).encode() != begin[3]:
        raise _unusable(path, "its content is not what was written (SHA-256)")
    if (version := int(begin[1])) != VERSION:
        raise CheckpointError(
            f"read_checkpoint: {path} must have format {VERSION}, and it has {version}; use the "
            f"version of feedax that wrote it"
        )
    try:
        # The digest keeps out accidents; what was made with intent is still only data.
        metadata, stored = parse_header(content, len(content))
        dtypes = load_json(metadata["dtypes"].encode())
        about = load_json(metadata["about"].encode(), finite=False)
        arrays = {
            name: _uncarried(stored[name].of(content), dtypes.get(name)) for name in sorted(stored)
        }
        if not isinstance(about, dict):
            raise TypeError("about is not an object")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _unusable(path, f"its layout is wrong ({reason(error)})") from error
    return arrays, about


def read_checkpoint(path: str | Path) -> tuple[Snapshot, dict[str, Any]]:
    """Read a checkpoint, if it is what was written; see `decode`.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not what was written.
    """
    try:
        content = read_content(path)
    except FileNotFoundError:
        raise _unusable(path, "it is not there") from None
    except OSError as error:
        raise unreadable(path, error) from error
    return decode(content, path)


class LargerError(CheckpointError):
    """A checkpoint is whole, but of a larger state than this run's."""


def read_content(
    path: str | Path, most: int | None = None, dir_fd: int | None = None, who: str = "fit"
) -> bytes:
    """The bytes of a checkpoint file, read only if it has as many as it says.

    Args:
        path: the file.
        most: the most bytes that it may have.
        dir_fd: a descriptor of its folder; None to follow the path.
        who: speaks, in an error.

    Raises:
        CheckpointError: it has fewer or more; a `LargerError` if more than `most`.
        OSError: it cannot be opened or read.
    """
    with open_regular(path if dir_fd is None else Path(path).name, dir_fd) as file:
        size, first = os.fstat(file.fileno()).st_size, file.read(_BEGIN_BYTES)
        _begin(first, size, path)
        if most is not None and size > most:
            raise LargerError(
                f"{who}: {path} must be a checkpoint of this model and optimizer, which takes at "
                f"most {most} bytes, and it has {size}; resume with the model that it was saved "
                "with, or choose another folder"
            )
        file.seek(0)
        return file.read(size)


def unreadable(path: str | Path, error: OSError) -> CheckpointError:
    """The error for a checkpoint that the operating system refuses to read."""
    return _unusable(path, f"the system says {error.strerror!r}")


def _begin(content: bytes, size: int, path: str | Path) -> "re.Match[bytes]":
    """The beginning of a checkpoint file, if it agrees with the file's size."""
    begin = _BEGIN.match(content, 8)
    if not begin:
        short = size < _BEGIN_BYTES
        raise _unusable(path, f"it ends after {size} bytes" if short else "it is not one")
    if size != (said := int(begin[2])):
        verb = "ends after" if size < said else "has"
        raise _unusable(path, f"it {verb} {size} bytes instead of {said}")
    return begin


def _carried(name: str, numbers: np.ndarray) -> np.ndarray:
    """The same bits in a dtype that safetensors has; the parts of a number get a last axis."""
    if numbers.dtype.name in CODES:
        return numbers
    carrier = _CARRIERS.get(numbers.dtype.name)
    if carrier is None:
        raise RunFolderError(
            f"encode: an array must have one of JAX's dtypes, and {name} has {numbers.dtype.name}; "
            f"convert it"
        )
    if numbers.itemsize == np.dtype(carrier).itemsize:
        return numbers.view(carrier)
    return numbers[..., None].view(carrier)


def _uncarried(numbers: np.ndarray, dtype: str | None) -> HostArray:
    if dtype is None:
        return HostArray(numbers)
    if key := re.fullmatch(r"key<(\w+)>", dtype):
        impl = key[1]
        jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=impl), numbers)
        return HostArray(numbers, impl)
    if numbers.dtype.name != _CARRIERS[dtype]:
        raise TypeError(f"{dtype} in {numbers.dtype.name}")
    if numbers.itemsize == np.dtype(dtype).itemsize:
        return HostArray(numbers.view(dtype))
    return HostArray(numbers.view(dtype).squeeze(-1))


def _sha256(*pieces: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _unusable(path: str | Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"read_checkpoint: {path} must be a whole checkpoint, and {what}; use an earlier one"
    )
