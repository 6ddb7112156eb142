"""The folder that datasets are kept in, and writing to it safely."""

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from feedax.cache_folder import cache_folder
from feedax.datasets.arguments import AnyPath
from feedax.datasets.words import reason
from feedax.errors import DatasetError

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


def write_whole(path: Path, payload: bytes) -> None:
    """Make `path` hold `payload`: whoever looks sees the old file or the new one, never a part.

    The bytes go to a file of a unique name in the same folder, so any number of processes may
    write the same path at once. Missing folders are made.

    Raises:
        OSError: the file could not be written; nothing is left of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "new" / "file", b"bytes")
    ...     (Path(folder) / "new" / "file").read_bytes()
    b'bytes'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(aside, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on missing bytes
        os.replace(aside, path)
    except BaseException:  # Ctrl-C too must not leave 47 MB under a name that nobody looks for
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


@contextlib.contextmanager
def one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for, on a hidden file in `folder`.

    The operating system drops the lock with the process, however it ends. Where there are no such
    locks (Windows, some network file systems) the body runs without one.

    Raises:
        OSError: the lock file cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, one_process_at_a_time(Path(folder)):
    ...     print("alone")
    alone
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".feedax-download.lock", "ab") as file:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_folder_error(error: BaseException) -> bool:
    """Whether the exception says that a folder cannot be used, rather than a network."""
    return isinstance(error, OSError) and error.errno in _FOLDER_ERRORS


def folder_error(who: str, folder: Path, error: BaseException, space: str) -> DatasetError:
    """The error to raise when `folder` cannot take the files of dataset `who`.

    >>> print(folder_error("mnist", Path("/d"), OSError(28, "No space left on device"), "55 MB"))
    mnist: the files are kept in /d, and it cannot be used (No space left on device); free 55 MB \
there or name another folder with root=DIR (--root DIR)
    """
    return DatasetError(
        f"{who}: the files are kept in {folder}, and it cannot be used ({reason(error)}); free "
        f"{space} there or name another folder with root=DIR (--root DIR)"
    )
