"""Parameters in one safetensors file: names, shapes and numbers, and no code."""

import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import RunFolderError
from feedax.files import not_written, open_regular, replace_file
from feedax.storage.safetensors_file import (
    CODES,
    Stored,
    arrays_by_name,
    encode_tensors,
    header_end,
    listed,
    parse_header,
)

Params = TypeVar("Params")


def save_params(path: str | Path, params: Any) -> None:
    """Write a tree of arrays to one file, complete or not at all.

    Args:
        path: the file; one that is there is replaced.
        params: a PyTree whose leaves are arrays or numbers; they are saved in the dtype that JAX
            gives them, float32 for a Python number.

    Raises:
        RunFolderError: a leaf is not an array, two have one name, or the file cannot be written.
    """
    path, pieces = Path(path), encode_params(params)
    try:
        replace_file(path, *pieces)
    except OSError as error:
        raise not_written("save_params", path, error) from error


def encode_params(params: Any) -> list[bytes | memoryview]:
    """The content of a file of parameters, in pieces; see `save_params`."""
    leaves = arrays_by_name(params, who="save_params")
    arrays = {name: _as_numbers(name, leaf) for name, leaf in leaves.items()}
    return encode_tensors(arrays, {"format": "feedax params 1"})


def load_params(path: str | Path, like: Params) -> Params:
    """Read what `save_params` wrote.

    Args:
        path: the file.
        like: a tree with the names, shapes and dtypes to expect: parameters, or the
            `jax.ShapeDtypeStruct` that `jax.eval_shape` makes of their initialisation.

    Returns:
        The tree of `like`, its leaves the file's arrays on the default device.

    Raises:
        RunFolderError: the file is missing or corrupt, or holds other arrays than `like`.
    """
    expected = arrays_by_name(like, who="load_params")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            start += file.read(header_end(start, size) - 8)
            _, stored = parse_header(start, size)
            _refuse_others(stored, expected, path)  # before more of it is read
            file.seek(0)
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"it ends after {len(content)} bytes instead of {size}")
    except FileNotFoundError:
        raise RunFolderError(
            f"load_params: {path} must be a parameters file, and it is not there; a run "
            f"writes its parameters when it ends"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"load_params: {path} must be a safetensors file, and it cannot be read ({error}); "
            f"restore it from a copy or train again"
        ) from error
    leaves = [jax.device_put(stored[name].of(content)) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _refuse_others(stored: dict[str, Stored], expected: dict[str, Any], path: str | Path) -> None:
    """Refuse a file of other arrays than are expected."""
    if stored.keys() != expected.keys():
        raise RunFolderError(
            f"load_params: {path} must hold the arrays {listed(expected)}, and it holds "
            f"{listed(stored)}; load it into the model that it was saved from"
        )
    for name, leaf in expected.items():
        found = stored[name]
        if found.shape != jnp.shape(leaf) or found.dtype != jnp.result_type(leaf):
            raise RunFolderError(
                f"load_params: {name} of {path} must be {jnp.result_type(leaf)} {jnp.shape(leaf)}, "
                f"and it is {found.dtype} {found.shape}; load it into the model that it was saved "
                f"from"
            )


def _as_numbers(name: str, leaf: Any) -> np.ndarray:
    try:
        # order="C": safetensors writes the bytes as they lie, and a transposed view lies otherwise.
        host = jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf
        array = np.asarray(host, order="C")
    except TypeError:  # one of JAX's random keys
        array = np.asarray(None)
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
        raise RunFolderError(
            f"save_params: every leaf must be an array of numbers, and {name} is a "
            f"{type(leaf).__name__}; take it out of the tree (a key: jax.random.key_data)"
        )
    held = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype)).newbyteorder("=")
    if held.name not in CODES:
        raise RunFolderError(
            f"save_params: every array must have a dtype that safetensors holds, and {name} is "
            f"{held}; convert it, to complex64 say"
        )
    return array.astype(held, copy=False)
