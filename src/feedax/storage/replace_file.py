"""Write a file so that it is complete or absent."""

import contextlib
import errno
import os
import re
from pathlib import Path

from feedax.errors import RunFolderError


def replace_file(path: Path, *pieces: bytes | memoryview, is_new: bool = False) -> None:
    """Write the pieces one after another beside `path`, then rename that file into place.

    Whoever reads `path`, and whatever stops this process or the machine, there is the old content
    or the new.

    Args:
        path: the file.
        pieces: its content.
        is_new: whether the file must not be there; of several processes one can make it.

    Raises:
        RunFolderError: the file cannot be written; nothing of it is left.
        FileExistsError: it is there, and must not be.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with aside.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                # A rename can reach the disk before the bytes do.
                os.fsync(file.fileno())
            if is_new:
                _name(aside, path)
            else:
                aside.replace(path)
        except BaseException:  # Ctrl-C leaves nothing behind either
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if is_new and isinstance(error, FileExistsError):
            raise
        raise not_written(path, error) from error


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what processes that were killed in `replace_file` left beside the files of a folder.

    Call it before this process writes there: what bears its number was left by an earlier process
    of that number, as the first process of every container has the number 1. What another living
    process is writing stays.

    Returns:
        The files that were removed.
    """
    removed = []
    for aside in sorted(folder.glob(".*.part")):
        writer = re.search(r"\.(\d{1,9})\.part$", aside.name)
        if writer and not _is_another_process(int(writer[1])):
            with contextlib.suppress(OSError):
                aside.unlink()
                removed.append(aside)
    return removed


def not_written(path: Path, error: OSError) -> RunFolderError:
    """The error for a file of a run folder that the operating system refuses to write."""
    return RunFolderError(
        f"run folder: {path} must be writable, and the system says {error.strerror!r}; free some "
        f"space or choose another folder with --out"
    )


def _name(aside: Path, path: Path) -> None:
    """Rename a file, if there is none of that name."""
    try:
        os.link(aside, path)
    except OSError as error:
        # Some file systems have no links, and cannot tell two processes of one moment apart.
        if path.exists() or error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        aside.replace(path)
    else:
        aside.unlink()


def _sync_folder(folder: Path) -> None:
    """The rename lies in the folder, which reaches the disk apart from the file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems do not sync a folder, and Windows does not open one.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


def _is_another_process(number: int) -> bool:
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is there, and another user's
    return True
