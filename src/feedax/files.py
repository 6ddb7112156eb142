"""Files: read only where they are files, written complete or not at all, locked.

Anybody may have named a file, and a run's folder may come from somebody else: reading a pipe or a
device could never end, and a link could lead anywhere.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from feedax.errors import RunFolderError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_KINDS = {
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
    stat.S_IFLNK: "it is a link",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


def open_regular(
    path: str | os.PathLike[str], dir_fd: int | None = None, follow_link: bool = True
) -> io.BufferedReader:
    """Open a file for reading: without waiting for the other end of a pipe or opening a device.

    Args:
        path: of the file.
        dir_fd: an open folder that a relative path starts from.
        follow_link: whether the file may be a link to another one.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says what it is.

    >>> open_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device: '/dev/zero'
    """
    _refuse_others(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_link), path)
    flags = _FLAGS | _NO_WAIT | (0 if follow_link else _NO_LINK)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    try:
        _refuse_others(os.fstat(descriptor), path)  # it may have been replaced in between
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(
    path: str | os.PathLike[str], most: int, dir_fd: int | None = None, follow_link: bool = True
) -> bytes:
    """The content of a file, if it is no larger than `most` bytes.

    Args:
        path: of the file.
        most: the most bytes that it may have; no more memory is taken.
        dir_fd: an open folder that a relative path starts from.
        follow_link: whether the file may be a link to another one.

    Raises:
        OSError: as for `open_regular`, or it is larger.

    >>> read_regular(__file__, most=2**20)[3:11]
    b'Files: r'
    """
    with open_regular(path, dir_fd, follow_link) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
        return file.read(size)


def replace_file(
    path: Path, *pieces: bytes | memoryview, is_new: bool = False, inside: Path | None = None
) -> None:
    """Write the pieces one after another beside `path`, then rename that file into place.

    Whoever reads `path`, and whatever stops this process or the machine, finds the old content or
    the new. A link in its place is replaced, and not the file that it leads to.

    Args:
        path: the file.
        pieces: its content.
        is_new: whether the file must not exist yet; of several processes one can create it.
        inside: a folder that it must lie in; see `open_folder`.

    Raises:
        OSError: the file cannot be written, and nothing of it is left; a FileExistsError if
            `is_new` and it exists.
    """
    # The number tells `remove_leftovers` who wrote it; no two threads or containers share a name.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}.part")
    with open_folder(path.parent, inside) as folder:
        new, name = (one if folder is None else Path(one.name) for one in (aside, path))
        try:
            with open(os.open(new, _NEW, 0o666, dir_fd=folder), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())  # a rename can reach the disk before the bytes do
            if is_new:
                _rename_new(new, name, folder)
            else:
                os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:  # Ctrl-C leaves nothing behind either
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=folder)
            raise
        _sync_folder(folder)


def append_to_file(path: Path, content: bytes) -> None:
    """Add to the end of a file, which is created if need be; a link is not followed.

    Raises:
        OSError: it is not a regular file, or the disk does not take the whole content; then the
            file is as it was.
    """
    descriptor = os.open(path, _APPEND | _NO_LINK | _NO_WAIT, 0o666)
    try:
        status = os.fstat(descriptor)
        _refuse_others(status, path)
        try:
            while content:  # os.write may take a part; the rest then meets the error
                content = content[os.write(descriptor, content) :]
        except OSError:
            os.ftruncate(descriptor, status.st_size)
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_folder(
    folder: Path, inside: Path | None = None, make: bool = False
) -> Iterator[int | None]:
    """Open a folder, so that names in it stay valid whatever happens to its path.

    Args:
        folder: its path.
        inside: a folder that it lies in; below it no link is followed, which could lead out of it.
        make: whether to create the folders that do not exist.

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
        if make:
            folder.mkdir(exist_ok=True)
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
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def remove_file(path: Path, inside: Path | None = None) -> None:
    """Remove a file, if it is there; `inside` as for `open_folder`."""
    with open_folder(path.parent, inside) as folder, contextlib.suppress(FileNotFoundError):
        os.unlink(path if folder is None else path.name, dir_fd=folder)


def remove_folder(path: Path, inside: Path | None = None) -> None:
    """Remove a folder and what is in it, as far as possible; `inside` as for `open_folder`."""
    with open_folder(path.parent, inside) as folder:
        # rmtree removes links, and not what they lead to.
        shutil.rmtree(path if folder is None else path.name, ignore_errors=True, dir_fd=folder)


def remove_leftovers(folder: Path, inside: Path | None = None) -> list[Path]:
    """Remove what processes that were killed in `replace_file` left in a folder.

    Call it before this process writes there: a file with its number was left by an earlier process
    of that number (the first process of every container has the number 1). What another living
    process is writing stays. `inside` is as for `open_folder`.

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


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems without locks say, some of them on networks."""

_LOCKED: set[int] = set()

_MOMENTS = 25
"""Times that a lock is tried which nobody should hold: `is_locked` holds it for a moment."""


@contextlib.contextmanager
def lock(path: Path | int, *, wait: bool) -> Iterator[None]:
    """Hold a lock on a file or folder, which the operating system releases with the process.

    Where there are no locks (Windows, some network file systems), the body runs without one.

    Args:
        path: of the file or folder, or a descriptor of it.
        wait: whether to wait while another process holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        OSError: it cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock(Path(folder), wait=False):
    ...     print("alone")
    alone
    """
    if fcntl is None:
        yield
        return
    descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_RDONLY)
    _LOCKED.add(descriptor)
    try:
        try:
            _take(descriptor, wait)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        if descriptor in _LOCKED:  # else this is a forked child, which has closed it
            _LOCKED.remove(descriptor)
            os.close(descriptor)


def _take(descriptor: int, wait: bool) -> None:
    for _ in range(0 if wait else _MOMENTS - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_locked(descriptor: int) -> bool:
    """Whether somebody holds the `lock` of an open file or folder; False where there are no locks.

    Whoever wants that lock in the moment of asking gets it nevertheless: `lock` tries again.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _close_locked() -> None:
    """A forked child has its parent's descriptors, and would keep their locks after it."""
    while _LOCKED:
        os.close(_LOCKED.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locked)


def not_written(who: str, path: Path, error: OSError) -> RunFolderError:
    """The error for a file or folder that the operating system refuses to write."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return RunFolderError(
        who=who,
        rule=f"{path} must be writable",
        found=f"the system says {error.strerror!r}",
        remedy="free some space or " * is_full + "choose another folder",
    )


class BackgroundWriter:
    """Writes one file after another in a thread of its own, while training continues.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Wait for the previous write, and start this one.

        Raises:
            Exception: the previous one failed with it.
        """
        self.wait()
        self._pending = self._thread.submit(write, *arguments)

    def check(self) -> None:
        """Raise the error of the last write, if it has failed already."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last write, and raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> BaseException | None:
        """End the thread after its last write; return the error that nobody has seen yet."""
        self._thread.shutdown()
        return None if self._pending is None else self._pending.exception()


def _refuse_others(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, _KINDS.get(kind, "it is not a file"), os.fspath(path))
    # Such files report a size of 0, and some of them have no end.
    if found.st_size == 0 and Path("/proc") in Path(os.path.realpath(path)).parents:
        raise OSError(errno.EINVAL, "it is a part of the running system", os.fspath(path))


def _rename_new(aside: Path, path: Path, folder: int | None) -> None:
    """Rename a file, unless the name is taken."""
    try:
        os.link(aside, path, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        # Some file systems have no links; there, of two processes at one moment both succeed.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(path, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.replace(aside, path, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(aside, dir_fd=folder)


def _sync_folder(folder: int | None) -> None:
    """Bring the rename to the disk: it lies in the folder, not in the file."""
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
        return True  # it exists, and is another user's
    return True
