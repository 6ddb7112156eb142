"""What the libraries themselves, or their file formats, say of a log."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Scalars = dict[str, list[tuple[int, float]]]


@dataclass
class Read:
    """A log.

    Attributes:
        scalars: the entries of each name, (step, value), in the order in which they are logged.
        config: the configuration, as text.
        pictures: the PNGs by name.
        params: the file with the parameters.
        status: how the run ended, in the library's words.
    """

    scalars: Scalars = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    params: Path | None = None
    status: Any = None


def of_tensorboard(folder: Path) -> Read:
    """As TensorBoard shows it: its accumulator of events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    read, tags = Read(params=folder / "params.safetensors"), events.Tags()
    for name in tags["scalars"]:
        read.scalars[name] = [(one.step, one.value) for one in events.Scalars(name)]
    for name in tags["images"]:
        (image,) = [one for one in events.Images(name) if one.step == last_step(read)]
        read.pictures[name] = image.encoded_image_string
    if tags["tensors"]:
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        values = HParamsPluginData.FromString(content).session_start_info.hparams
        kinds = ("string_value", "bool_value", "number_value")
        for name, value in values.items():
            kind = next(kind for kind in kinds if value.HasField(kind))
            read.config[name] = (
                f"{getattr(value, kind):g}" if kind == kinds[2] else str(getattr(value, kind))
            )
    return read


def of_mlflow(folder: Path, name: str | None = None) -> Read:
    """As its client reads it from a store in a folder."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(folder))
    experiment = client.get_experiment_by_name("feedax")
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [one for one in runs if name in (None, one.info.run_name)]
    number, artifacts = run.info.run_id, Path(run.info.artifact_uri.removeprefix("file://"))
    read = Read(config=run.data.params, status=run.info.status)
    for metric in run.data.metrics:
        history = client.get_metric_history(number, metric)
        read.scalars[metric] = [(one.step, one.value) for one in history]
    for path in sorted(artifacts.glob("pictures/*.png")):
        read.pictures[path.stem] = path.read_bytes()
    read.params = artifacts / "params.safetensors"
    return read


def of_wandb(folder: Path) -> Read:
    """What its files hold that ``wandb sync`` would send, of all starts of the newest run."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(path.resolve() for path in folder.glob("wandb/*run-*/run-*.wandb"))
    files = [path for path in dict.fromkeys(files) if path.name == files[-1].name]
    read, places = Read(), []
    for path in files:
        for content in records(path.read_bytes()):
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                read.config |= {
                    one.key: str(json.loads(one.value_json))
                    for one in record.run.config.update
                    if one.key != "_wandb"
                }
            if kind == "artifact":
                (entry,) = record.artifact.manifest.contents
                read.params = Path(entry.local_path)
            if kind == "exit":
                read.status = record.exit.exit_code
            if kind != "history":
                continue
            items = {
                "/".join(one.nested_key) or one.key: json.loads(one.value_json)
                for one in record.history.item
            }
            places.append(items["_step"])
            for name, value in items.items():
                if name.endswith("/path"):
                    png = path.parent / "files" / value
                    read.pictures[name.removesuffix("/path")] = png.read_bytes()
                elif name.startswith(("step/", "epoch/")):
                    read.scalars.setdefault(name, []).append((items["step"], value))
    assert places == sorted(set(places))  # the numbers that W&B has for entries
    return read


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format with plain checksums."""
    assert content[:4] == b":W&B"
    blocks = [content[i : i + 2**15] for i in range(0, len(content), 2**15)]
    parts = b""
    for number, block in enumerate(blocks):
        at = 0 if number else 7
        while at + 7 <= len(block):
            checksum, length, kind = struct.unpack_from("<IHB", block, at)
            part = block[at + 7 : at + 7 + length]
            assert zlib.crc32(bytes([kind]) + part) == checksum
            parts, at = parts + part, at + 7 + length
            if kind in (1, 4):
                yield parts
                parts = b""


def last_step(read: Read) -> int:
    return max(step for entries in read.scalars.values() for step, _ in entries)


def steps(read: Read, name: str) -> list[int]:
    return [step for step, _ in read.scalars[name]]


def loaded(read: Read, like: Any) -> np.ndarray:
    """The parameters, a single array."""
    from feedax.storage.params_file import load_params

    assert read.params is not None
    return np.asarray(load_params(read.params, like))
