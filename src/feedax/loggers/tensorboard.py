"""TensorBoard: its event files, written without TensorFlow."""

import io
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedax.files import append_to_file, replace_file
from feedax.loggers.logger import END, ROW, STEP, Log, Logger, Pictures, Status, place
from feedax.train.networks import file_name

BEGINNING = "events.out.tfevents."
"""Of the names of event files; TensorBoard reads them in the order of their names."""


class TensorBoard(Logger):
    """Logs to TensorBoard: ``tensorboard --logdir runs``.

    A run that is resumed adds a file that takes back what was logged after its checkpoint; one that
    begins anew in the same folder replaces what is shown of the one before. The configuration is in
    the tab HParams, and the parameters are in ``params.safetensors``.

    Args:
        folder: the run's, with its event files. Each network of a sweep has a folder in it.
        name: of a folder in that one, in place of it.
        config, pictures: see `Logger`.

    Raises:
        LoggerError: tensorboard is not installed.

    >>> import feedax, numpy as np, tempfile
    >>> x = np.eye(2, dtype=np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = TensorBoard(folder, config={"note": "two points"})
    ...     _ = feedax.fit(lambda w, x: w @ x, x, [(x, x.argmax(1))], callbacks=[logger])
    ...     sorted(path.name[:6] for path in Path(folder).iterdir())
    ['events', 'params']
    """

    extra = "tensorboard"

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        folder = folder if name is None else Path(folder, name)
        super().__init__(folder, config=config, pictures=pictures)
        self._folder = self._here = Path(folder).absolute()

    def _import(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._hparams = summary_pb2.Summary, hparams_pb
        self._record_writer = RecordWriter

    def _begin(self, log: Log) -> int:
        self._here = self._folder if log.sweep is None else self._folder / file_name(log.name)
        self._here.mkdir(parents=True, exist_ok=True)
        last = -1 if log.resumed_at is None else self._last_place(log.resumed_at)
        stamp = int(time.time())
        while any(self._here.glob(f"{BEGINNING}{stamp}.*")):
            stamp += 1
        self._path = self._here / f"{BEGINNING}{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._add_event(file_version="brain.Event:2")
        # Readers forget what was logged from this step on, in the files before.
        start = 0 if log.resumed_at is None else log.resumed_at + 1
        self._add_event(step=start, session_log=self._session(status=self._session.START))
        if last < 0 and log.config:
            self._add_event(step=start, summary=self._hparams(dict(log.config)))
        return last

    def _scalars(self, step: int, place: int, values: Mapping[str, float]) -> None:
        self._add_values(
            step, [self._summary.Value(tag=name, simple_value=one) for name, one in values.items()]
        )

    def _figures(self, step: int, place: int, pngs: Mapping[str, bytes]) -> None:
        for name, png in pngs.items():
            width, height = struct.unpack(">II", png[16:24])
            image = self._summary.Image(
                height=height, width=width, colorspace=4, encoded_image_string=png
            )
            self._add_values(step, [self._summary.Value(tag=name, image=image)])

    def _params(self, content: Sequence[bytes | memoryview]) -> None:
        replace_file(self._here / "params.safetensors", *content)

    def _end(self, status: Status) -> None:
        pass

    def _add_values(self, step: int, values: list[Any]) -> None:
        self._add_event(step=step, summary=self._summary(value=values))

    def _add_event(self, **content: Any) -> None:
        event, record = self._event(wall_time=time.time(), **content), io.BytesIO()
        self._record_writer(record).write(event.SerializeToString())
        append_to_file(self._path, record.getvalue())

    def _last_place(self, most: int) -> int:
        """The last place that the files of the run have, up to a step."""
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        found = -1
        for path in sorted(self._here.glob(f"{BEGINNING}*")):
            if not path.is_file():
                continue
            for event in LegacyEventFileLoader(str(path)).Load():
                if event.HasField("session_log"):
                    found = min(found, place(event.step - 1, END))
                for value in event.summary.value if event.step <= most else ():
                    kind = END if value.HasField("image") else STEP
                    kind = ROW if value.tag.startswith("epoch/") else kind
                    found = max(found, place(event.step, kind))
        return found
