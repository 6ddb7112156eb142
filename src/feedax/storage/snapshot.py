"""A tree's leaves copied to the host, and put back to the bit.

>>> taken = snapshot({"w": jnp.ones(2), "keys": jax.random.split(jax.random.key(0), 3)})
>>> taken
{'keys': HostArray(key<threefry2x32> (3,)), 'w': HostArray(float32 (2,))}
>>> restore(taken, like={"w": jnp.zeros(2), "keys": jax.random.split(jax.random.key(1), 3)})["w"]
Array([1., 1.], dtype=float32)
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import CheckpointError, RunFolderError
from feedax.storage.safetensors_file import arrays_by_name, listed

Tree = TypeVar("Tree")

_NARROW = {
    **{f"{kind}64": f"{kind}32" for kind in ("int", "uint", "float")},
    "complex128": "complex64",
}
"""What JAX makes of 64 bits without jax_enable_x64."""


@dataclass(frozen=True, eq=False)
class HostArray:
    """One leaf of a tree, in memory that is its own.

    Attributes:
        numbers: the array; of random keys, their uint32 key data.
        key_impl: the name of the keys' implementation, or None for an array of numbers.
    """

    numbers: np.ndarray
    key_impl: str | None = None

    @property
    def dtype(self) -> str:
        return f"key<{self.key_impl}>" if self.key_impl else self.numbers.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape[:-1] if self.key_impl else self.numbers.shape

    def __repr__(self) -> str:
        return f"HostArray({self.dtype} {self.shape})"


Snapshot = dict[str, HostArray]
"""A tree's leaves by name."""


def snapshot(tree: Any) -> Snapshot:
    """Copy a tree's leaves to the host.

    The copies share no memory with the tree: the next step may take its buffers (donation) while
    another thread still writes the copies to the disk.

    Args:
        tree: a PyTree of arrays, of JAX's random keys, and of Python numbers, which become arrays
            of the dtypes that JAX gives them. None is not a leaf. An array over several devices
            must be whole on each of them, or all of them this process's.

    Returns:
        The leaves by name, in the tree's order.

    Raises:
        RunFolderError: a leaf is none of these, or two have one name.
    """
    sources = {
        name: _source(name, leaf) for name, leaf in arrays_by_name(tree, who="snapshot").items()
    }
    for array, _ in sources.values():
        if isinstance(array, jax.Array):
            array.copy_to_host_async()  # start all copies before waiting for the first
    return {
        name: HostArray(_own_copy(array), key_impl) for name, (array, key_impl) in sources.items()
    }


def restore(arrays: Snapshot, like: Tree, *, source: str | Path = "the checkpoint") -> Tree:
    """Make a tree of a snapshot's arrays.

    Args:
        arrays: what `snapshot` made or `read_checkpoint` read.
        like: a tree with the names, shapes and dtypes to expect: a state, or the
            `jax.ShapeDtypeStruct` that `jax.eval_shape` makes of its initialisation.
        source: names the checkpoint in messages.

    Returns:
        The tree of `like`, with copies of the arrays: NumPy arrays where `like` has them, and on
        JAX's default device otherwise; weakly typed where `like` is, since that changes the
        dtypes that JAX computes in.

    Raises:
        CheckpointError: the arrays are not those of `like`.
    """
    expected = arrays_by_name(like, who="restore")
    remedy = "resume with the model, the optimizer and the settings that it was saved with"
    lacking, extra = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
    if lacking or extra:
        parts = [f"lacks {listed(lacking)}"] * bool(lacking)
        parts += [f"also holds {listed(extra)}"] * bool(extra)
        raise CheckpointError(
            f"restore: {source} must hold the arrays of the state, and it {' and '.join(parts)}; "
            f"{remedy}"
        )
    wanted = {name: _expected(leaf) for name, leaf in expected.items()}
    found = {name: (arrays[name].dtype, arrays[name].shape) for name in wanted}
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong:
        (dtype, shape), (found_dtype, found_shape) = wanted[wrong[0]], found[wrong[0]]
        if dtype == _NARROW.get(found_dtype):
            remedy = "resume with JAX_ENABLE_X64=1, as it was saved"
        elif found_dtype == _NARROW.get(dtype):
            remedy = "resume with JAX_ENABLE_X64=0, as it was saved"
        others = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"restore: {wrong[0]} of {source} must be {dtype} {shape}, and it is {found_dtype} "
            f"{found_shape}{others}; {remedy}"
        )
    leaves = [_like(leaf, arrays[name]) for name, leaf in expected.items()]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)


def _source(name: str, leaf: Any) -> tuple[Any, str | None]:
    """What to copy: an array, and the implementation if it is key data."""
    key_impl = None
    if isinstance(leaf, jax.Array):
        if is_key(leaf):
            key_impl, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        if not (leaf.is_fully_replicated or leaf.is_fully_addressable):
            raise RunFolderError(
                f"snapshot: every array must be whole in every process, and {name} is spread over "
                f"several; replicate it with jax.device_put first"
            )
    elif isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        with contextlib.suppress(OverflowError):  # larger than JAX's integers: refused below
            leaf = np.asarray(leaf, jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype))
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    if not is_array or not (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)):
        found = f"an array of {leaf.dtype}" if is_array else f"a {type(leaf).__name__}"
        raise RunFolderError(
            f"snapshot: every leaf must be an array of numbers or random keys, and {name} is "
            f"{found}; take it out of the tree"
        )
    return leaf, key_impl


def _own_copy(array: Any) -> np.ndarray:
    host = jax.device_get(array) if isinstance(array, jax.Array) else array
    numbers = np.array(host, order="C", copy=True)
    return numbers if numbers.dtype.isnative else numbers.astype(numbers.dtype.newbyteorder("="))


def _expected(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape that a leaf's array must have."""
    if is_key(leaf):
        # A `jax.ShapeDtypeStruct` does not tell its implementation, a key does.
        with jax.transfer_guard("allow"):
            key = jnp.empty((), leaf.dtype)
        return f"key<{jax.random.key_impl(key)}>", leaf.shape
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not isinstance(leaf, np.ndarray | np.generic):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype.name, np.shape(leaf)


def _like(leaf: Any, array: HostArray) -> Any:
    numbers = array.numbers
    if isinstance(leaf, np.ndarray | np.generic):
        return numbers[()] if isinstance(leaf, np.generic) else numbers.copy()
    if array.key_impl:
        return jax.random.wrap_key_data(jax.device_put(numbers.copy()), impl=array.key_impl)
    if getattr(leaf, "weak_type", type(leaf) in (int, float, complex)):
        # Only Python's numbers make a weakly typed array, in the dtypes that JAX gives them.
        zero = jax.device_put(numbers.dtype.type(0).item())
        if zero.dtype == numbers.dtype:
            return jnp.broadcast_to(zero, numbers.shape).at[...].set(jax.device_put(numbers))
    return jax.device_put(numbers.copy())


def nbytes(tree: Any) -> int:
    """The bytes of a tree's leaves, arrays or `jax.ShapeDtypeStruct`.

    >>> nbytes({"w": jnp.ones((2, 3)), "scale": 1.0})
    32
    """
    leaves = jax.tree.leaves(tree)
    return sum(np.size(leaf) * getattr(leaf, "dtype", np.dtype(float)).itemsize for leaf in leaves)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is one of JAX's typed random keys, or an array of them."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
