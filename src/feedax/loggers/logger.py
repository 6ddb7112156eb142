"""What all loggers share: what is logged, and when. The libraries' classes only write it."""

import atexit
import contextlib
import io
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np

from feedax.errors import LoggerError, first_line, reason
from feedax.storage.params_file import encode_params
from feedax.train import processes
from feedax.train.events import (
    Ended,
    EpochEnded,
    Event,
    NetworkEnded,
    Started,
    Stepped,
    Stopped,
    StopTraining,
)
from feedax.train.history import Row
from feedax.train.model import partition
from feedax.train.networks import Network

LOGGER = logging.getLogger("feedax")

Pictures = Callable[[Any], Mapping[str, Any]]
Status = Literal["finished", "stopped", "failed"]

STEP, ROW, END = range(3)
"""What is logged after a step, in this order: the step, its epoch's row, the end of the run."""


def place(step: int, kind: int) -> int:
    """Where an entry stands in a log: places grow from entry to entry."""
    return 3 * step + kind


@dataclass(frozen=True)
class Log:
    """One log, as a library begins it.

    Attributes:
        name: of the run.
        config: plain values by name.
        resumed_at: the step that the run is resumed from; None for a new run.
        sweep: the name of the sweep that the run is a network of, or None.
    """

    name: str
    config: Mapping[str, bool | int | float | str]
    resumed_at: int | None = None
    sweep: str | None = None


class Logger(ABC):
    """A callback of `fit` and `sweep` that writes a log.

    It writes in a thread, so a slow disk or network delays no step, and the log is complete when
    `fit` returns. Where `fit` raises, it is completed as the interpreter ends, or by `close`, or at
    the end of a ``with`` block. What cannot be written is told once, by the logger "feedax", and
    never ends a run; then nothing more is logged.

    Of `fit` it logs the loss and the examples a second, a few times a second (``step/...``), every
    column of the history (``epoch/...``), all of these by the steps done in all, the configuration,
    and at the end the curves, `pictures` and the parameters that `fit` returns. Of `sweep` every
    network is a run of its own, which is logged when it has ended, by epochs.

    A run that `fit` resumes from a checkpoint goes on in the same log, without a step twice. Of
    several processes, process 0 logs.

    Args:
        folder: where the log is kept.
        name: the run's; the folder's if None.
        config: what to note of the run, values by name; nested mappings are flattened.
        pictures: a function of the trained parameters that returns matplotlib figures by name.

    Raises:
        LoggerError: the library is not installed.
    """

    extra: ClassVar[str]
    """What installs the library: ``feedax[<extra>]``."""

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        try:
            self._import()
        except ImportError as error:
            raise LoggerError(
                who=type(self).__name__,
                rule=f"its library must be installed, feedax[{self.extra}]",
                found=f"it cannot be imported ({first_line(error)})",
                remedy=f"pip install 'feedax[{self.extra}]'",
            ) from error
        self.where = str(folder)
        self.name = Path(folder).name if name is None else name
        self.config = dict(_flat(config or {}))
        self._pictures = pictures
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedax-log")
        self._written: Future[None] | None = None
        self._has_failed = self._is_open = False
        self._steps: int | None = None  # of an epoch
        self._last = -1  # the place of the last entry
        self._status: Status = "finished"
        atexit.register(self.close)

    # What a library does; all but the import in the thread.

    @abstractmethod
    def _import(self) -> None:
        """Import the library."""

    @abstractmethod
    def _begin(self, log: Log) -> int:
        """Begin a log, or go on in that of a resumed run; the place of its last entry, or -1."""

    @abstractmethod
    def _scalars(self, step: int, place: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""

    @abstractmethod
    def _figures(self, step: int, place: int, pngs: Mapping[str, bytes]) -> None:
        """Write pictures by name."""

    @abstractmethod
    def _params(self, content: Sequence[bytes | memoryview]) -> None:
        """Keep the content of a safetensors file."""

    @abstractmethod
    def _end(self, status: Status) -> None:
        """End the log."""

    # What is logged

    def __call__(self, event: Event) -> None:
        if processes.index() != 0:
            return
        match event:
            case Started(checkpoint=checkpoint, step=step, steps=steps, history=history):
                self._steps, self._status = steps, "finished"
                at = None if checkpoint is None else step
                self._start(Log(self.name, self.config, at))
                if (
                    steps is not None
                ):  # those that a log lacks, since a kill or a full disk lost them
                    self._rows(history, last=step)
            case Stepped(total_steps=step, loss=loss, examples_per_second=rate) if self._is_open:
                self._add(step, STEP, {"step/loss": loss, "step/examples_per_second": rate})
            case EpochEnded(total_steps=step, row=row):
                self._row(step, row)
            case Stopped():
                self._status = "stopped"
            case Ended(params=params, history=history, total_steps=step):
                self._finish(step, params, history, self._status)
            case NetworkEnded(network=network):
                self._network(network)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Complete the log of a run that an exception has ended; it is noted as failed."""
        if self._is_open:
            self._is_open = False
            self._do(self._end, "failed")
        self._wait()

    def _start(self, log: Log) -> None:
        self.close()  # one that an exception has ended
        self._is_open = True
        self._do(self._open, log)

    def _open(self, log: Log) -> None:
        self._last = self._begin(log)

    def _add(self, step: int, kind: int, values: Mapping[str, float]) -> None:
        self._do(self._write, self._scalars, step, kind, values)

    def _row(self, step: int, row: Row) -> None:
        self._add(step, ROW, {f"epoch/{name}": value for name, value in row.items()})

    def _rows(self, history: Sequence[Row], last: float = math.inf) -> None:
        """Add the rows of full epochs; by epochs where steps cannot be counted."""
        for row in history:
            epoch = int(row["epoch"])
            step = epoch if self._steps is None else (epoch + 1) * self._steps
            if step <= last:
                self._row(step, row)

    def _network(self, network: Network) -> None:
        setting = {**self.config, **dict(_flat(network.setting)), "seed": network.seed}
        self._steps = None
        self._start(Log(network.name, setting, sweep=self.name))
        self._rows(network.history)
        status: Status = "finished" if network.error is None else "failed"
        last = max(0, len(network.history) - 1)
        self._finish(last, network.params, network.history, status)

    def _finish(self, step: int, params: Any, history: Sequence[Row], status: Status) -> None:
        if self._is_open and not self._has_failed:
            pngs = self._drawn(params, history)
            self._do(self._write, self._figures, step, END, pngs)
            with self._telling():
                # Only what is trained: the rest may be functions. Training reuses no memory of it.
                self._do(self._params, encode_params(partition(params)[0]))
            self._do(self._end, status)
        self._is_open = False
        self._wait()

    def _drawn(self, params: Any, history: Sequence[Row]) -> dict[str, bytes]:
        """The pictures of the end as PNGs; without those of a function that fails."""
        from feedax.report.figures import plot  # matplotlib

        figures: dict[str, Any] = {"curves": plot(history)} if history else {}
        try:
            if self._pictures is not None:
                figures |= self._pictures(_here(params))
            return {name: _png(figure) for name, figure in figures.items()}
        except StopTraining:
            raise
        except Exception as error:
            LOGGER.warning(
                f"{type(self).__name__}: pictures must return matplotlib figures by name, and it "
                f"fails ({reason(error)}); the log has the curves alone"
            )
            return {"curves": _png(figures["curves"])} if history else {}

    # How it is written

    def _write(self, write: Callable[..., None], step: int, kind: int, values: Any) -> None:
        """Write an entry, unless the log of a resumed run has it."""
        if self._last < place(step, kind):
            write(step, place(step, kind), values)
            self._last = place(step, kind)

    def _do(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write in the thread, after all that is written before."""
        if self._has_failed:
            return
        try:
            self._written = self._thread.submit(self._try, write, *arguments)
        except RuntimeError:  # the interpreter ends, and so did the thread, with all it had to do
            self._try(write, *arguments)

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        if not self._has_failed:
            with self._telling():
                write(*arguments)

    def _wait(self) -> None:
        """Wait until all is written."""
        try:
            if self._written is not None:
                self._written.result()
        except BaseException:  # Ctrl-C: what waits for a network is given up
            self._has_failed = True
            raise

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell of a failure, once; then nothing more is logged."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                LOGGER.warning(
                    f"{type(self).__name__}: the log at {self.where} must be writable, and "
                    f"it is not ({reason(error)}); training goes on, and nothing more is logged"
                )


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, bool | int | float | str]]:
    """Plain values by name, of nested mappings by names with dots.

    >>> dict(_flat({"optimizer": {"name": "adam", "rate": 0.1}, "layers": [8, 2], "seed": 0}))
    {'optimizer.name': 'adam', 'optimizer.rate': 0.1, 'layers': '8 2', 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            for inner, one in _flat(value):
                yield f"{name}.{inner}", one
        elif isinstance(value, bool | int | float | str):
            yield str(name), value
        elif isinstance(value, list | tuple):
            yield str(name), " ".join(map(str, value))
        else:
            yield str(name), str(value)


def _here(params: Any) -> Any:
    """Parameters that one of several processes can compute with by itself."""
    if processes.count() == 1:
        return params
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, params
    )


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
