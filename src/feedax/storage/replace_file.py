"""Write a file so that it is complete or absent."""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from feedax.errors import RunFolderError

OTHER_FOLDER = "choose another folder"
FREE_SPACE = f"free some space or {OTHER_FOLDER}"

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def replace_file(
    path: Path, *pieces: bytes | memoryview, is_new: bool = False, inside: Path | None = None
) -> None:
    """Write the pieces one after another beside `path`, then rename that file into place.

    Whoever reads `path`, and whatever stops this process or the machine, there is the old content
    or the new. A link in its place is replaced, and not what it leads to.

    Args:
        path: the file.
        pieces: its content.
        is_new: whether the file must not be there; of several processes one can make it.
        inside: a folder that it must lie in; see `opened`.

    Raises:
        RunFolderError: the file cannot be written; nothing of it is left.
        FileExistsError: it is there, and must not be.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with opened(path.parent, inside) as folder:
            new, name = (one if folder is None else Path(one.name) for one in (aside, path))
            try:
                with contextlib.suppress(FileNotFoundError):  # of an earlier process of this number
                    os.unlink(new, dir_fd=folder)
                with open(os.open(new, _NEW, 0o666, dir_fd=folder), "wb") as file:
                    file.writelines(pieces)
                    file.flush()
                    # A rename can reach the disk before the bytes do.
                    os.fsync(file.fileno())
                if is_new:
                    _name(new, name, folder)
                else:
                    os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:  # Ctrl-C leaves nothing behind either
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=folder)
                raise
            _sync_folder(folder)
    except OSError as error:
        if is_new and isinstance(error, FileExistsError):
            raise
        raise not_written(path, error) from error


@contextlib.contextmanager
def opened(folder: Path, inside: Path | None = None, make: bool = False) -> Iterator[int | None]:
    """Open a folder, to name files in it whatever becomes of its path.

    Args:
        folder: its path.
        inside: a folder that it lies in. A run's folder comes by mail: from here on no link is
            followed, since it would lead out of it.
        make: whether to make what is not there.

    Returns:
        A descriptor; None where the system (Windows) has none for folders.

    Raises:
        RunFolderError: there is a link on the way from `inside`.
        OSError: it cannot be opened.
    """
    start = folder if inside is None else inside
    names = folder.relative_to(start).parts
    if make:
        start.mkdir(parents=True, exist_ok=True)
    if os.open not in os.supports_dir_fd:
        folder.mkdir(exist_ok=True) if make else None
        yield None
        return
    descriptor = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for i, name in enumerate(names):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            if stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                raise RunFolderError(
                    f"run folder: {start.joinpath(*names[: i + 1])} must be a folder, and it is a "
                    "link, which could lead anywhere; put the folder itself there"
                )
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            inner = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def remove_file(path: Path, inside: Path | None = None) -> None:
    """Remove a file, if it is there; `inside` as of `opened`."""
    with opened(path.parent, inside) as folder, contextlib.suppress(FileNotFoundError):
        os.unlink(path if folder is None else path.name, dir_fd=folder)


def remove_folder(path: Path, inside: Path | None = None) -> None:
    """Remove a folder with what is in it, as far as it goes; `inside` as of `opened`."""
    with opened(path.parent, inside) as folder:
        # It removes links, and nothing that they lead to.
        shutil.rmtree(path if folder is None else path.name, ignore_errors=True, dir_fd=folder)


def remove_leftovers(folder: Path, inside: Path | None = None) -> list[Path]:
    """Remove what processes that were killed in `replace_file` left beside the files of a folder.

    Call it before this process writes there: what bears its number was left by an earlier process
    of that number, as the first process of every container has the number 1. What another living
    process is writing stays. `inside` is as of `opened`.

    Returns:
        The files that were removed.
    """
    removed = []
    for aside in sorted(folder.glob(".*.part")):
        writer = re.search(r"\.(\d{1,9})\.part$", aside.name)
        if writer and not _is_another_process(int(writer[1])):
            with contextlib.suppress(OSError):
                remove_file(aside, inside)
                removed.append(aside)
    return removed


def not_written(path: Path, error: OSError) -> RunFolderError:
    """The error for a file of a run folder that the operating system refuses to write."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return RunFolderError(
        who="run folder",
        rule=f"{path} must be writable",
        found=f"the system says {error.strerror!r}",
        remedy=FREE_SPACE if is_full else OTHER_FOLDER,
    )


def _name(aside: Path, path: Path, folder: int | None) -> None:
    """Rename a file, if there is none of that name."""
    try:
        os.link(aside, path, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        # Some file systems have no links, and cannot tell two processes of one moment apart.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(path, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.replace(aside, path, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(aside, dir_fd=folder)


def _sync_folder(folder: int | None) -> None:
    """The rename lies in the folder, which reaches the disk apart from the file."""
    try:
        if folder is not None:
            os.fsync(folder)
    except OSError as error:
        # Some file systems do not sync a folder.
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
