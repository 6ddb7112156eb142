"""Names for the leaves of a tree, by which a file holds them.

A leaf is named by its path. In `[(w0, b0), (w1, b1)]` the second layer's bias is ``1.1``; in
`{"dense": {"bias": b}}` it is ``dense.bias``; a tree that is a single array is ``array``.
"""

from collections.abc import Iterable
from typing import Any

import jax

from feedax.errors import RunFolderError, printable

RESERVED = "__metadata__"
"""safetensors keeps this name for itself."""


def named_leaves(tree: Any, *, who: str) -> dict[str, Any]:
    """The leaves of a PyTree by name, in the tree's order.

    Args:
        tree: a PyTree.
        who: begins the error's message.

    Raises:
        RunFolderError: two leaves have one name, or one has a name that no file can hold.

    >>> named_leaves({"dense": {"bias": 0.5}, "scale": (1, 2)}, who="save_params")
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
        if name == RESERVED or not _is_text(name):
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


def _is_text(name: str) -> bool:
    """Half of a surrogate pair is no text: UTF-8 cannot write it."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
