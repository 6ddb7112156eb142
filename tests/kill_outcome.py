"""What a run leaves in its folder, to compare with what another one leaves."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import timeless

from feedax.storage.checkpoint_file import read_checkpoint


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, apart from the time it took.

    Attributes:
        params: the bytes of params.safetensors.
        arrays: those of the last checkpoint: parameters, optimizer state, key, metrics.
        about: of the last checkpoint.
        rows: of metrics.jsonl.
        files: those in the run's folder.
    """

    params: bytes
    arrays: dict[str, tuple[str, tuple[int, ...], bytes]]
    about: dict[str, Any]
    rows: list[dict[str, float]]
    files: list[str]
    seconds: float

    @classmethod
    def of(cls, run: Path, seconds: float = 0.0) -> "Outcome":
        arrays, about = read_checkpoint(run / "checkpoints" / checkpoint_names(run)[-1])
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return cls(
            (run / "params.safetensors").read_bytes(),
            {
                name: (array.dtype, array.numbers.shape, array.numbers.tobytes())
                for name, array in arrays.items()
            },
            {
                name: [timeless(row) for row in value] if name == "history" else value
                for name, value in about.items()
                if name not in ("seconds", "run")
            },
            [timeless(row) for row in rows],
            sorted(path.name for path in run.iterdir()),
            seconds,
        )


def assert_equal(found: Outcome, wanted: Outcome, who: str) -> None:
    """Equal to the bit."""
    assert found.rows == wanted.rows, f"{who}: {found.rows} should be {wanted.rows}"
    assert found.about == wanted.about, f"{who}: {found.about} should be {wanted.about}"
    assert found.arrays.keys() == wanted.arrays.keys(), who
    others = [name for name in wanted.arrays if found.arrays[name] != wanted.arrays[name]]
    assert not others, f"{who}: the bits of {others} differ"
    assert found.params == wanted.params, f"{who}: the bits of params.safetensors differ"
    assert found.files == wanted.files, f"{who}: {found.files} should be {wanted.files}"


def checkpoint_names(run: Path) -> list[str]:
    """The earliest first."""
    return sorted(name for name in _names(run / "checkpoints") if name.startswith("step-"))


def step_of(checkpoint: str) -> int:
    return int(checkpoint.removeprefix("step-").removesuffix(".safetensors"))


def parts(folder: Path) -> list[str]:
    """Files that are being written."""
    return [name for name in _names(folder) if name.endswith(".part")]


def row_count(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
