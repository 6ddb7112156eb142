"""Open a file that somebody names, if it is one: reading a pipe or a device may never end."""

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_WAITS_FOR_NOBODY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(path: str | os.PathLike[str], dir_fd: int | None = None) -> io.BufferedReader:
    """Open a file for reading; nobody is waited for, and a device is not so much as opened.

    Args:
        path: of the file; links are followed.
        dir_fd: an open folder that a relative path begins in.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says what it is.

    >>> open_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device: '/dev/zero'
    """
    _refuse_others(os.stat(path, dir_fd=dir_fd), path)
    descriptor = os.open(path, _FLAGS | _WAITS_FOR_NOBODY, dir_fd=dir_fd)
    try:
        _refuse_others(os.fstat(descriptor), path)  # it may have been replaced meanwhile
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: int, dir_fd: int | None = None) -> bytes:
    """The content of a file, if it is no larger than that: memory is taken for no more.

    Args:
        path: of the file; links are followed.
        most: bytes that it may have.
        dir_fd: an open folder that a relative path begins in.

    Raises:
        OSError: as of `open_regular`, or it is larger.

    >>> read_regular(__file__, most=2**20)[3:11]
    b'Open a f'
    """
    with open_regular(path, dir_fd) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
        return file.read(size)


def _refuse_others(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, _KINDS.get(kind, "it is no file"), os.fspath(path))
    # Such files say that they are empty, and some of them have no end.
    if found.st_size == 0 and Path("/proc") in Path(os.path.realpath(path)).parents:
        raise OSError(errno.EINVAL, "it is a part of the running system", os.fspath(path))
