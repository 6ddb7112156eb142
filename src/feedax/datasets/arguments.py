"""What the dataset functions share: the types of their arguments, and their folder."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedax.cache_folder import cache_folder
from feedax.data.array_dataset import FlattenAndCast
from feedax.errors import DatasetError, reason

AnyPath = str | os.PathLike[str]

Transform = Callable[[Any], Any]

FLATTEN = FlattenAndCast()
"""The default transform. It has no state, so all datasets share it."""

# What the operating system answers when a folder cannot take a file, as opposed to a network that
# fails: both reach us as OSError.
_FOLDER_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def root_or_cache(root: AnyPath | None) -> Path:
    """`root` with its `~` expanded, or the cache folder for None."""
    return cache_folder() if root is None else Path(os.path.expanduser(root))


def is_folder_error(error: BaseException) -> bool:
    """Whether the exception says that a folder cannot be used, rather than a network."""
    return isinstance(error, OSError) and error.errno in _FOLDER_ERRORS


def folder_error(who: str, folder: Path, error: BaseException, space: str) -> DatasetError:
    """The error to raise when `folder` cannot take the files of dataset `who`.

    >>> print(folder_error("mnist", Path("/d"), OSError(28, "No space left on device"), "55 MB"))
    mnist: the files are kept in /d, and it cannot be used (No space left on device); free 55 MB \
there or name another folder with root=DIR
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DatasetError(
        who=who,
        rule=f"the files are kept in {folder}",
        found=f"it cannot be used ({reason(error)})",
        remedy=f"{f'free {space} there or ' * full}name another folder with root=DIR",
    )
