"""Write a file so that it is complete or absent."""

import os
from pathlib import Path

from feedax.errors import RunFolderError


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename it into place.

    Whoever reads `path`, and whatever stops this process, there is the old content or the new.

    Raises:
        RunFolderError: the file cannot be written; nothing of it is left.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            # A rename can reach the disk before the bytes do.
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> RunFolderError:
    """The error for a file of a run folder that the operating system refuses to write."""
    return RunFolderError(
        f"run folder: {path} must be writable, and the system says {error.strerror!r}; free some "
        f"space or choose another folder with --out"
    )
