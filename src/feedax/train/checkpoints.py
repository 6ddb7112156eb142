"""Checkpoints: when a run is saved, where, and what it is resumed from."""

import contextlib
import copy
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from feedax.errors import CheckpointError
from feedax.files import (
    BackgroundWriter,
    lock,
    not_written,
    open_folder,
    remove_file,
    remove_folder,
    remove_leftovers,
)
from feedax.storage.checkpoint_file import (
    LargerError,
    decode,
    read_content,
    unreadable,
    write_checkpoint,
)
from feedax.storage.safetensors_file import MAX_HEADER
from feedax.storage.snapshot import Snapshot, nbytes, snapshot

MOST_COPIES = 64
"""Times the bytes of the parameters that a state has, with any optimizer, and more."""

LOGGER = logging.getLogger("feedax")
_NAME = re.compile(r"step-(\d{9,})\.safetensors")


class Checkpoint(NamedTuple):
    """A checkpoint that was read, and that is whole.

    Attributes:
        path: the file.
        content: its bytes.
        arrays: the state's arrays.
        about: what is no array.
    """

    path: Path
    content: bytes
    arrays: Snapshot
    about: dict[str, Any]


class Checkpoints:
    """A folder of checkpoints for `fit`, which resumes from the newest one that is whole.

    A run is saved at these intervals, at its end, and when a callback stops it.

    A checkpoint is one file, ``step-000000120.safetensors``: parameters, the model's state, the
    optimizer's, the random key, the metrics so far, the place in the epoch, the rows of the
    epochs before it. It is complete or absent, and its SHA-256 is in it. There is no code in it.

    Args:
        folder: where they lie; it is made if need be. One run at a time may use it.
        every_steps: save after each so many steps, counted from the run's first.
        every_seconds: save when so many seconds have passed since the last one.
        every_epochs: save after each so many epochs. 1 if none of the three is given.
        keep: how many to keep, the latest; the one of the best epoch is kept too.
        run: a name of the run. A checkpoint with another one is not used.

    Raises:
        CheckpointError: an interval or `keep` is not a number above 0.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from feedax.train import fit
    >>> batches = [(np.eye(2, dtype=np.float32), np.arange(2))] * 5
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epochs in (2, 3):  # what the first call trained is not trained again
    ...         checkpoints = Checkpoints(folder, every_steps=4)
    ...         w, rows = fit(lambda w, x: w @ x, jnp.zeros((2, 2)), batches, epochs=epochs,
    ...                       checkpoints=checkpoints)
    ...         print(len(rows), checkpoints.newest().path.name)
    2 step-000000010.safetensors
    3 step-000000015.safetensors
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        every_epochs: int | None = None,
        keep: int = 3,
        run: str = "",
    ) -> None:
        given = {"every_steps": every_steps, "every_epochs": every_epochs, "keep": keep}
        for name, value in given.items():
            if value is not None and (type(value) is not int or value < 1):
                raise _wrong(name, "a whole number from 1 on", value)
        if every_seconds is not None and not every_seconds > 0:
            raise _wrong("every_seconds", "above 0", every_seconds)
        if every_steps is every_seconds is every_epochs is None:
            every_epochs = 1
        self.folder = Path(folder)
        self._inside: Path | None = None  # no link is followed from there on; see `open_folder`
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.every_epochs = every_epochs
        self.keep = keep
        self.run = run
        self._who = "fit"
        self._writer: BackgroundWriter | None = None
        self._saved_at = time.monotonic()
        self._damaged: list[Path] = []

    def used_by(self, who: str) -> "Checkpoints":
        """The same folder and intervals for another function than `fit`; it speaks, in an error."""
        found = copy.copy(self)
        found._who = who
        found._writer, found._damaged = None, []
        return found

    def within(self, name: str) -> "Checkpoints":
        """A folder in this one, for one of many runs, with the same intervals.

        It is a folder itself: a link in its place is not followed.

        Raises:
            CheckpointError: the name is none of a folder in this one.
        """
        if name in ("", ".", "..") or Path(name).name != name:
            raise _wrong("within", "the name of a folder, without the path to it", name)
        found = self.used_by(self._who)
        found.folder = self.folder / name
        found._inside = self._inside or self.folder
        return found

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Take the folder for one run, until its last checkpoint is written.

        Raises:
            CheckpointError: another process has taken it.
            RunFolderError: it cannot be written to, or a checkpoint could not.
        """
        with contextlib.ExitStack() as held:
            try:
                with open_folder(self.folder, self._inside, make=True) as descriptor:
                    folder = self.folder if descriptor is None else descriptor
                    held.enter_context(lock(folder, wait=False))
            except BlockingIOError:
                raise CheckpointError(
                    f"{self._who}: only one run at a time may save checkpoints in {self.folder}, "
                    "and another process does; wait for its end, or choose another folder"
                ) from None
            except OSError as error:
                raise not_written(self._who, self.folder, error) from error
            remove_leftovers(self.folder, self._inside)
            self._saved_at = time.monotonic()
            self._writer = BackgroundWriter("feedax-checkpoint")
            try:
                yield
                self._writer.wait()
            finally:
                if (lost := self._writer.close()) is not None:
                    LOGGER.warning(f"{lost}")  # training has ended by another error
                self._writer = None

    def newest(self, most: int | None = None, says: bool = True) -> Checkpoint | None:
        """The newest checkpoint that is whole and of this run; says which ones are not.

        Args:
            most: bytes that one may have; of what has more, nothing is read.
            says: whether to say it.

        Raises:
            CheckpointError: there are only those of another run, or one is larger.
        """
        self._damaged.clear()
        say = LOGGER.warning if says else LOGGER.debug
        are_others = False
        for path in reversed(self._paths().values()):
            try:
                content = self._read(path.name, most)
                arrays, about = decode(content, path)
            except OSError as error:
                what = f"{path} cannot be read ({error.strerror})"
                say(f"{self._who}: {what}; the one before it is tried")
            except LargerError:
                raise
            except CheckpointError as error:
                self._damaged.append(path)
                say(f"{error}, as {self._who} does now")
            else:
                if about.get("run") == self.run:
                    return Checkpoint(path, content, arrays, about)
                are_others = True
                say(
                    f"{self._who}: {path} must be a checkpoint of this run, and it is of another "
                    f"one; use an earlier one, as {self._who} does now"
                )
        if are_others:
            raise CheckpointError(
                f"{self._who}: a folder of checkpoints belongs to one run, and {self.folder} "
                "has those of another one; choose another folder"
            )
        return None

    def read(self, name: str, most: int | None = None) -> tuple[Snapshot, dict[str, Any]] | None:
        """A file of the folder that `write` made, or None where there is none; `most` as above.

        Raises:
            CheckpointError: it is not what was written.
        """
        try:
            return decode(self._read(name, most), self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.folder / name, error) from error

    def write(self, name: str, arrays: Snapshot, about: dict[str, Any]) -> None:
        """Write a file into the folder; see `write_checkpoint`."""
        write_checkpoint(self.folder / name, arrays, about, self._inside, who=self._who)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        remove_folder(self.folder, self._inside)

    def names(self) -> list[str]:
        """What the folder holds, if it is there."""
        try:
            with open_folder(self.folder, self._inside) as folder:
                return sorted(os.listdir(self.folder if folder is None else folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(self.folder, error) from error

    def _read(self, name: str, most: int | None) -> bytes:
        with open_folder(self.folder, self._inside) as folder:
            return read_content(self.folder / name, most, folder, self._who)

    def due_in(self, step: int) -> int | None:
        """How many steps after `step` the next save by steps is due; None if none is.

        >>> Checkpoints("runs/a", every_steps=100).due_in(130)
        70
        """
        return None if self.every_steps is None else self.every_steps - step % self.every_steps

    def is_due_at(self, step: int) -> bool:
        """Whether to save after so many steps.

        Raises:
            RunFolderError: the last checkpoint could not be written, as is known by now.
        """
        if self._writer is not None:
            self._writer.check()
        return self.every_steps is not None and step % self.every_steps == 0

    def is_due_by_time(self) -> bool:
        """Whether the last save was long ago."""
        waited = time.monotonic() - self._saved_at
        return self.every_seconds is not None and waited >= self.every_seconds

    def is_due_after(self, epochs: int) -> bool:
        """Whether to save after so many epochs."""
        return self.every_epochs is not None and epochs % self.every_epochs == 0

    def save(self, tree: Any, about: dict[str, Any], keep_step: int) -> Path:
        """Copy a state to the host; another thread writes it during the next steps.

        Args:
            tree: the state.
            about: what is no array, with ``step``.
            keep_step: a step whose checkpoint is not to be removed.

        Raises:
            RunFolderError: the checkpoint before could not be written.
        """
        assert self._writer is not None
        self._writer.wait()
        path = self.folder / f"step-{about['step']:09}.safetensors"
        arrays = snapshot(tree)
        about = {"run": self.run, **about}
        self._writer.submit(self._write, path, arrays, about, keep_step)
        self._saved_at = time.monotonic()
        return path

    def _write(self, path: Path, arrays: Snapshot, about: dict[str, Any], keep_step: int) -> None:
        self.write(path.name, arrays, about)
        paths = self._paths()
        past = [step for step in paths if step <= about["step"]]
        old = [paths[step] for step in past[: -self.keep] if step != keep_step]
        # What was not whole when this run was resumed from an earlier one is done again.
        later = [path for step, path in paths.items() if step > about["step"]]
        for path in (*old, *(one for one in later if one in self._damaged)):
            remove_file(path, self._inside)

    def _paths(self) -> dict[int, Path]:
        """The checkpoints by step, the earliest first."""
        matches = filter(None, map(_NAME.fullmatch, self.names()))
        return dict(sorted((int(match[1]), self.folder / match[0]) for match in matches))


def most_bytes(params: Any) -> int:
    """Bytes that a checkpoint has at most: with any optimizer, copies, and what is no array."""
    return MOST_COPIES * nbytes(params) + MAX_HEADER


def _wrong(name: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(f"Checkpoints: {name} must be {rule}, and it is {value!r}; leave it out")


def refuse_no_checkpoints(given: Any, who: str) -> None:
    """Refuse a path, say, where checkpoints were meant.

    Raises:
        CheckpointError: it is not a `Checkpoints`, and not None; `who` speaks.
    """
    if not isinstance(given, Checkpoints | None):
        raise CheckpointError(
            f"{who}: checkpoints must be a feedax.Checkpoints, and it is a {type(given).__name__}; "
            "give feedax.Checkpoints('runs/mine'), say"
        )
