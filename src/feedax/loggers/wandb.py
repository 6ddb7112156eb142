"""Weights & Biases, online or offline."""

import io
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from feedax.files import read_regular
from feedax.loggers.logger import Log, Logger, Pictures, Status

BLOCK, HEADER = 2**15, struct.Struct("<IHB")
"""Of a file of W&B: LevelDB's log format, in blocks of records with checksum, length and type."""

MOST_BYTES = 2**31
"""Of such a file that is read."""
END_SECONDS = 10
"""How long to wait for W&B's service, which writes the end of a file after `finish` returns."""


class WandB(Logger):
    """Logs to Weights & Biases.

    It asks nothing of the network unless an account is configured (``wandb login`` or
    WANDB_API_KEY) and WANDB_MODE is not ``offline``; it never asks for one. What was logged offline
    is sent by ``wandb sync``. A run that is resumed has the id of the newest run in its folder.

    Args:
        folder: the run's; W&B keeps its files in ``wandb`` in it.
        name, config, pictures: see `Logger`.
        project: of W&B; WANDB_PROJECT if None, or "feedax".
        options: other arguments of ``wandb.init``.

    Raises:
        LoggerError: wandb is not installed.
    """

    extra = "wandb"

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pictures: Pictures | None = None,
        project: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(folder, name=name, config=config, pictures=pictures)
        self._folder = Path(folder).absolute()  # its service may work elsewhere
        self._project = project or os.environ.get("WANDB_PROJECT") or "feedax"
        self._options = options

    def _import(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline too, W&B would report
        import wandb
        from requests.utils import get_netrc_auth  # W&B needs requests
        from wandb.proto.wandb_internal_pb2 import Record

        self._wandb, self._record, self._netrc = wandb, Record, get_netrc_auth

    def _begin(self, log: Log) -> int:
        files = self._folder / "wandb"
        files.mkdir(parents=True, exist_ok=True)  # W&B would take another place, and go on
        known = self._newest_id(files) if log.resumed_at is not None else None
        last = -1 if known is None else self._last_place(files, known)
        settings = {"console": "off", "quiet": True, "x_transaction_log_flush_interval": 1.0}
        known_settings = self._wandb.Settings.model_fields
        given: dict[str, Any] = {
            "dir": str(self._folder),
            "project": self._project,
            "name": log.name,
            "group": log.sweep,
            "config": dict(log.config),
            "mode": self._mode(),
            "reinit": "create_new",  # another run of this process is left alone
            "settings": {name: one for name, one in settings.items() if name in known_settings},
        }
        if known is not None:
            given |= {"id": known, "resume": "allow"}
            # W&B names its folder by the second, and would write over that of the start before.
            while any(files.glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{known}")):
                time.sleep(0.05)
        self._run = self._wandb.init(**given | self._options)
        self._run.define_metric("step")
        self._run.define_metric("step/*", step_metric="step")
        self._run.define_metric("epoch/*", step_metric="epoch/epoch")
        return max(last, self._run.starting_step - 1)

    def _scalars(self, step: int, place: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values}, step=place, commit=True)

    def _figures(self, step: int, place: int, pngs: Mapping[str, bytes]) -> None:
        images = {
            name: self._wandb.Image(Image.open(io.BytesIO(png))) for name, png in pngs.items()
        }
        self._run.log({"step": step, **images}, step=place, commit=True)

    def _params(self, content: Sequence[bytes | memoryview]) -> None:
        artifact = self._wandb.Artifact(f"params-{self._run.id}", type="model")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "params.safetensors")
            path.write_bytes(b"".join(content))
            artifact.add_file(str(path))  # a copy
        self._run.log_artifact(artifact)

    def _end(self, status: Status) -> None:
        path = Path(self._run.settings.sync_file)
        self._run.finish(exit_code=0 if status == "finished" else 1)
        until = time.monotonic() + END_SECONDS
        while self._run.offline and path.exists() and time.monotonic() < until:
            if any(record.HasField("exit") for record in self._records_of(path)):
                break
            time.sleep(0.05)

    def _mode(self) -> str:
        """As W&B is set up; where there is no account, offline."""
        settings = self._wandb.setup().settings
        has_account = settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        mode: str = settings.mode or "online"
        if mode == "online" and not (has_account or self._netrc(settings.base_url)):
            mode = "offline"
        return mode

    def _newest_id(self, files: Path) -> str | None:
        """The id of the newest run of a folder, which its name ends in."""
        names = [
            re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", one.name) for one in files.iterdir()
        ]
        found = sorted(one.groups() for one in names if one)
        return found[-1][1] if found else None

    def _last_place(self, files: Path, number: str) -> int:
        """The last place that the files of a run have; W&B knows it only online."""
        last = -1
        for path in sorted(files.glob(f"*run-*-{number}/run-{number}.wandb")):
            for record in self._records_of(path):
                for item in record.history.item:
                    if "_step" in (item.key, *item.nested_key):
                        last = max(last, int(item.value_json))
        return last

    def _records_of(self, path: Path) -> Iterator[Any]:
        return map(self._record.FromString, _records(read_regular(path, MOST_BYTES)))


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B, up to one that a kill has cut off."""
    at, parts = len(":W&B\0\0\0"), b""
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:  # the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, at)
        at += HEADER.size + length
        if kind == 0 or at > len(content):
            return
        parts += content[at - length : at]
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
