"""Parameters in one safetensors file: names, shapes and numbers, and no code.

An array is named by its path in the tree; see `feedax.storage.leaf_names`.
"""

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from feedax.errors import RunFolderError
from feedax.storage.leaf_names import listed, named_leaves
from feedax.storage.replace_file import replace_file

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
    leaves = named_leaves(params, who="save_params")
    arrays = {name: _as_numbers(name, leaf) for name, leaf in leaves.items()}
    content = safetensors.numpy.save(arrays, metadata={"format": "feedax params 1"})
    replace_file(Path(path), content)


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
    try:
        arrays = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise RunFolderError(
            f"load_params: {path} must be a parameters file, and it is not there; a run writes its "
            f"parameters when it ends"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RunFolderError(
            f"load_params: {path} must be a safetensors file, and it cannot be read ({error}); "
            f"restore it from a copy or train again"
        ) from error

    expected = named_leaves(like, who="load_params")
    if arrays.keys() != expected.keys():
        raise RunFolderError(
            f"load_params: {path} must hold the arrays {listed(expected)}, and it holds "
            f"{listed(arrays)}; load it into the model that it was saved from"
        )
    for name, leaf in expected.items():
        array = arrays[name]
        if array.shape != jnp.shape(leaf) or array.dtype != jnp.result_type(leaf):
            raise RunFolderError(
                f"load_params: {name} of {path} must be {jnp.result_type(leaf)} {jnp.shape(leaf)}, "
                f"and it is {array.dtype} {array.shape}; load it into the model that it was saved "
                f"from"
            )
    leaves = [jax.device_put(arrays[name]) for name in expected]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)


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
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
