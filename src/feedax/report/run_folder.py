"""The folder of one run: what was asked, what came out, and the parameters.

::

    runs/20260131-142501-mnist/
      config.json          the configuration, the versions and the machine; written first
      metrics.jsonl        one row an epoch; grows as the run does
      curves.png           loss and accuracy by epoch
      report.html          a page about it
      params.safetensors   the parameters, the best or the last ones
      checkpoints/         from which the run is resumed after it was stopped or killed

Reading one executes nothing: it is JSON, a PNG and numbers. It may come from somebody else, so its
content is checked before it is used, and writing follows no link in it.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from feedax.errors import RunFolderError, shortened, shown
from feedax.files import (
    append_to_file,
    not_written,
    open_folder,
    read_regular,
    remove_leftovers,
    replace_file,
)
from feedax.storage.plain_json import (
    TEXT,
    WORDS,
    Rule,
    broken_rule,
    is_list_of,
    is_row,
    json_bytes,
    load_json,
    or_none,
)

if TYPE_CHECKING:
    from feedax.train.history import Row

REPORT = "report.html"

FORMAT = 1
"""The version of this layout; a reader refuses a later one."""

MAX_CONFIG, MAX_ROWS = 2**24, 2**28
"""The most bytes of config.json, and of metrics.jsonl."""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _are_sizes(value: Any) -> bool:
    return is_list_of(_is_size)(value) and len(value) <= 1000


SIZES: Rule = ("a list of sizes", _are_sizes)
RULES: dict[str, Rule] = {
    "run": TEXT,
    "made_by": ("feedax train or feedax sweep", ("feedax train", "feedax sweep").__contains__),
    "arguments": WORDS,
    "dataset": TEXT,
    "layers": ("a list of sizes", lambda value: _are_sizes(value) and len(value) >= 2),
    "input_shape": SIZES,
    "image_shape": or_none(SIZES),
    "class_names": or_none(WORDS),
    "resumed": ("a list of objects", is_list_of(lambda one: isinstance(one, dict))),
}
"""What each entry of config.json that is read must be."""


class RunFolder:
    """One run's folder. Make one with `create`, read one with `open`.

    Attributes:
        command: what makes such folders; config.json names it where it is not `feedax train`.
        path: the folder.
        config: what config.json holds.
        inside: None, or a folder that it lies in, from which on reading follows no link.
    """

    command: ClassVar[str] = "feedax train"
    rules: ClassVar[Mapping[str, Rule]] = RULES
    row: ClassVar[Rule] = ("numbers by name, of an epoch", is_row)
    metrics_name: ClassVar[str] = "metrics.jsonl"
    checkpoints_name: ClassVar[str] = "checkpoints"

    def __init__(self, path: Path, config: dict[str, Any], inside: Path | None = None) -> None:
        self.path = path
        self.config = config
        self.inside = inside
        self.config_path = path / "config.json"
        self.params_path = path / "params.safetensors"
        self.curves_path = path / "curves.png"
        self.report_path = path / REPORT
        self.metrics_path = path / self.metrics_name
        self.checkpoints_path = path / self.checkpoints_name

    @classmethod
    def create(cls, config: dict[str, Any], *, path: Path | None = None, name: str = "run") -> Self:
        """Make a folder that no other run has, and write its config.json.

        Args:
            config: plain values; the format version is added.
            path: the folder, or None for ``runs/<time>-<name>``.
            name: ends the default folder's name.
        """
        folder = _new_default_folder(name) if path is None else _given_folder(path)
        run = cls(folder, {"format": FORMAT, **config})
        try:
            with _writing(folder):
                remove_leftovers(folder)
            with _writing(run.config_path):
                replace_file(run.config_path, json_bytes(run.config, indent=2), is_new=True)
            run.write_rows([])
        except FileExistsError:
            raise _taken(folder) from None
        except RunFolderError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only an empty one is removed: ours, or the one that was given
            raise
        return run

    @classmethod
    def open(cls, path: str | Path, inside: Path | None = None) -> Self:
        """Read the folder of a run; one of another command or a later feedax is refused."""
        path = Path(path)
        if not path.is_dir():
            state = "a file" if path.exists() else "not there"
            raise RunFolderError(
                f"run folder: {shortened(str(path))} must be a folder that {cls.command} made, and "
                f"it is {state}; look under runs/"
            )
        config_path = path / "config.json"
        try:
            config = load_json(cls(path, {}, inside).read(config_path.name, MAX_CONFIG))
            json_bytes(config)  # resuming writes it again
        except FileNotFoundError:
            if any(path.glob("step-*.safetensors")):
                what = "it has the checkpoints of a script"
                remedy = "resume or evaluate that run in the script, which has its model"
            elif any(path.glob("*/config.json")):
                what, remedy = "it has such folders in it", "give one of them"
            else:
                what, remedy = "it has no config.json", "look under runs/"
            raise RunFolderError(
                f"run folder: {path} must be a folder that {cls.command} made, and {what}; {remedy}"
            ) from None
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"run folder: {config_path} must be JSON, and it cannot be read ({error}); restore "
                f"it from a copy or train again"
            ) from error
        found = config.get("format") if isinstance(config, dict) else None
        if found != FORMAT:
            raise RunFolderError(
                f"run folder: {config_path} must have format {FORMAT}, and it has {shown(found)}; "
                f"use the version of feedax that wrote it"
            )
        if broken := broken_rule(config, cls.rules, config_path) or _disagreement(config):
            raise RunFolderError(
                f"run folder: {broken}; restore the file from a copy or train again"
            )
        made_by = config.get("made_by", RunFolder.command)
        if made_by != cls.command:
            raise RunFolderError(
                f"run folder: {path} must be a folder that {cls.command} made, and {made_by} made "
                f"it; give it to {made_by}"
            )
        return cls(path, config, inside)

    def read(self, name: str, most: int) -> bytes:
        """The content of a file of the folder; see `feedax.files.read_regular`."""
        if self.inside is None:
            return read_regular(self.path / name, most)
        with open_folder(self.path, self.inside) as folder:
            file = self.path / name if folder is None else name
            return read_regular(file, most, folder, follow_link=False)

    def setting(self, name: str) -> Any:
        """One entry of config.json, which must be there."""
        if name not in self.config:
            raise RunFolderError(
                f"run folder: {self.config_path} must have an entry {name!r}, and it has "
                f"none; give a folder that {self.command} made"
            )
        return self.config[name]

    def mark_resumed(self, arguments: list[str], begun: dict[str, Any]) -> None:
        """Record when and where the run is resumed, with the arguments that apply from now on."""
        remove_leftovers(self.path)  # of a process that was killed
        before = self.config.get("resumed", [])
        self.config |= {"arguments": arguments, "resumed": [*before, begun]}
        self.write(self.config_path, json_bytes(self.config, indent=2))

    def write_rows(self, rows: "list[Row]") -> None:
        """Let metrics.jsonl hold these epochs and no others."""
        self.write(self.metrics_path, *map(json_bytes, rows))

    def append_row(self, row: "Row") -> None:
        """Add one epoch to metrics.jsonl, at once and whole, or not at all."""
        with _writing(self.metrics_path):
            append_to_file(self.metrics_path, json_bytes(row))

    def rows(self) -> "list[Row]":
        """The epochs that metrics.jsonl holds, the oldest first."""
        words, is_right = self.row
        rows = []
        with self._reading():
            for line in self.read(self.metrics_name, MAX_ROWS).splitlines():
                rows.append(load_json(line))
                if not is_right(rows[-1]):
                    what = f"line {len(rows)} must be {words}, and it is {shown(rows[-1])}"
                    raise ValueError(what)
        return rows

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"run folder: {self.metrics_path} must hold one JSON row a line, and it cannot be "
                f"read ({error}); restore it from a copy or train again"
            ) from error

    def save_params(self, params: Any) -> None:
        """Write the parameters; see `feedax.storage.params_file.save_params`."""
        from feedax.storage.params_file import encode_params

        self.write(self.params_path, *encode_params(params))

    def load_params(self, like: Any) -> Any:
        """Read the parameters; see `feedax.storage.params_file.load_params`."""
        from feedax.storage.params_file import load_params

        return load_params(self.params_path, like)

    def save_curves(self) -> None:
        """Draw metrics.jsonl into curves.png; nothing before the first epoch has ended."""
        from feedax.report.figures import curves_png

        if rows := self.rows():
            self.write(self.curves_path, curves_png(rows, title=self.path.name))

    def write(self, path: Path, *pieces: bytes | memoryview) -> None:
        """Replace a file of the folder; see `feedax.files.replace_file`."""
        with _writing(path):
            replace_file(path, *pieces)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise not_written("run folder", path, error) from error


def _disagreement(config: dict[str, Any]) -> str | None:
    """What contradicts something else in config.json, in words."""
    layers, names = config.get("layers"), config.get("class_names")
    if layers is None:
        return None
    for name in ("input_shape", "image_shape"):
        shape = config.get(name)
        if shape is not None and math.prod(shape) != layers[0]:
            return (
                f"{name!r} must have as many values as the first of 'layers', {layers[0]}, and it "
                f"is {shown(shape)}"
            )
    if names is not None and len(names) > layers[-1]:
        return (
            f"'class_names' must be no more than the last of 'layers', {layers[-1]}, and they are "
            f"{len(names)}"
        )
    return None


def _new_default_folder(name: str) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    runs = Path("runs")
    for number in itertools.count(1):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError), _writing(folder):
            runs.mkdir(exist_ok=True)
            folder.mkdir()
            return folder
        if not runs.is_dir():
            break
    raise _not_a_folder(runs)


def _given_folder(path: Path) -> Path:
    try:
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise _not_a_folder(path) from None
    rows = path / "metrics.jsonl"
    if (path / "config.json").exists() or (rows.exists() and rows.stat().st_size > 0):
        raise _taken(path)
    return path


def _taken(path: Path) -> RunFolderError:
    return RunFolderError(
        f"run folder: {path} must not hold a run, and it holds one; choose another folder"
    )


def _not_a_folder(path: Path) -> RunFolderError:
    return RunFolderError(
        f"run folder: {path} must be a folder, and it is a file; choose another folder"
    )
