"""The runs of a folder, read again and again while others write, tear or remove them.

Any of them may come from somebody else. Names come from the folder's own listing, links are not
followed, what is read has a bound and is checked, and nothing is written.
"""

import contextlib
import hashlib
import itertools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from feedax.errors import RunFolderError, reason, shortened, shown
from feedax.files import is_locked, open_folder, open_regular
from feedax.report.run_folder import REPORT, RunFolder
from feedax.report.sweep_folder import SweepFolder
from feedax.storage.plain_json import json_bytes, load_json

MOST_RUNS = 500
"""That are listed, the latest changed."""

MOST_BYTES = 2**22
"""Of a run's rows that are read at once; the rest is read the next time."""

MOST_REPORT = 2**26
"""Bytes of a report."""

MOST_SETTINGS = 1000
"""Of a sweep whose means are kept."""

MOST_ENTRIES = 300
"""Of a configuration that are sent."""

UNCOMPARED = ("name", "out", "log")
"""Flags that say nothing of what is computed."""


class NoSuchRunError(RunFolderError):
    """There is no run of that name, any more or ever."""


@dataclass
class Rows:
    """Complete lines of a file that grows.

    Attributes:
        version: changes when the file is another one, so that its rows begin anew.
        offset: the byte after the last line that was read.
        found: the rows.
        torn: what is wrong with what follows them, in words.
    """

    version: str
    offset: int
    found: list[dict[str, Any]] = field(default_factory=list)
    torn: str | None = None


@dataclass
class Summary:
    """What the rows of a run say together; it grows with them.

    Attributes:
        kept: the row of the epoch whose parameters are kept.
        best: its value of the column that chooses it, or None.
        best_at: how many rows are before it.
        means: of a sweep's settings, by their digests, the mean accuracy and how many networks it
            is of.
    """

    version: str = ""
    offset: int = 0
    count: int = 0
    seconds: float = 0.0
    kept: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_at: int = -1
    means: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], best: str | None) -> None:
        """Take over a row; `best` is the column by which the run keeps its parameters."""
        self.seconds += row.get("seconds") or 0.0
        # As `feedax.train.history.Best`, which loads JAX.
        value = None if best is None else row.get(best)
        sign = -1 if best is not None and best.endswith(("loss", "error")) else 1
        if self.best is None or (value is not None and sign * value > sign * self.best):
            self.kept, self.best, self.best_at = row, value, self.count
        self.count += 1

    def add_network(self, record: dict[str, Any]) -> None:
        """Take over a network of a sweep."""
        self.seconds += record["seconds"]
        self.count += 1
        if record["error"] is not None:  # its accuracy is that of before it failed
            return
        accuracy = _last_set(record["result"] or {})["accuracy"]
        # Of one length, whatever a file says.
        setting = hashlib.sha256(json_bytes(record["setting"])).hexdigest()
        if accuracy is not None and (setting in self.means or len(self.means) < MOST_SETTINGS):
            mean, count = self.means.get(setting, (0.0, 0))
            self.means[setting] = mean + (accuracy - mean) / (count + 1), count + 1


class Runs:
    """What the page shows of a folder.

    Args:
        folder: of runs and sweeps.
        only: the name of the one that is shown, or None for all.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        self.folder = folder
        self.only = only
        self._configs: dict[str, tuple[object, RunFolder | str]] = {}
        self._summaries: dict[str, Summary] = {}
        self._lock = threading.Lock()  # of the summaries, which grow

    def listing(self) -> dict[str, Any]:
        """Every run in a few words, the newest first, and how many are left out."""
        names = self._names()
        for cache in (self._configs, self._summaries):
            for name in [*cache]:
                if name not in names:
                    cache.pop(name, None)
        with self._lock:
            entries = [entry for name in names[:MOST_RUNS] if (entry := self._entry(name))]
        entries.sort(key=lambda entry: (entry["started"], entry["name"]), reverse=True)
        return {"runs": entries, "left_out": max(0, len(names) - MOST_RUNS)}

    def rows(self, name: str, version: str, offset: int) -> dict[str, Any]:
        """The rows of a run after a byte of its file, and its configuration where that is new.

        Args:
            name: of the run.
            version: of the answer before, or "".
            offset: of the answer before, or 0.

        Raises:
            NoSuchRunError: there is no such run.
        """
        with self.opened(name) as (run, descriptor):
            rows = _read_rows(run, descriptor, version, offset)
            found: list[Any] = rows.found
            if isinstance(run, SweepFolder):
                found = [
                    {"setting": one["setting"], "seed": one["seed"], "rows": one["rows"]}
                    for one in found
                    if one["error"] is None
                ]
            answer = {"version": rows.version, "offset": rows.offset, "rows": found}
            if rows.version != version:
                answer["config"] = _in_words(run)
        return answer

    def report(self, name: str) -> bytes:
        """The report of a run.

        Raises:
            NoSuchRunError: there is no such run, or it has none.
        """
        with self.opened(name) as (run, _):
            try:
                return run.read(REPORT, MOST_REPORT)
            except OSError as error:
                raise NoSuchRunError(
                    f"show: {name} must have a report.html to be read, and it cannot be "
                    f"({reason(error)}); make it with feedax report"
                ) from error

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[RunFolder, int]]:
        """A run that is in the folder, and a descriptor of its own folder.

        Raises:
            NoSuchRunError: there is no such run, or it cannot be read.
        """
        if name not in self._names():
            raise NoSuchRunError(f"show: there is no run {shown(name)} in {self.folder}")
        try:
            with open_folder(self.folder / name, self.folder) as descriptor:
                assert descriptor is not None
                run = self._config(name, descriptor)
                if not isinstance(run, RunFolder):
                    raise NoSuchRunError(run)
                yield run, descriptor
        except OSError as error:
            raise NoSuchRunError(
                f"show: {name} must be a run that can be read, and it cannot be ({reason(error)})"
            ) from error

    def _names(self) -> list[str]:
        """The folders that are no links, the latest changed first."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    is_shown = self.only in (None, entry.name) and entry.name.isprintable()
                    if is_shown and stat.S_ISDIR(status.st_mode):
                        found.append((status.st_mtime, entry.name))
        return [name for _, name in sorted(found, reverse=True)]

    def _entry(self, name: str) -> dict[str, Any] | None:
        """A run in a few words; None for a folder that is no run."""
        try:
            with open_folder(self.folder / name, self.folder) as descriptor:
                assert descriptor is not None
                run = self._config(name, descriptor)
                if isinstance(run, str):
                    return {"name": name, "kind": "run", "state": "torn", "note": run, "started": 0}
                return self._described(run, descriptor)
        except (OSError, RunFolderError):
            return None  # it has no config.json, or is gone by now

    def _config(self, name: str, descriptor: int) -> RunFolder | str:
        """A run by its config.json, read anew where that has changed; or what is wrong with it."""
        status = os.stat("config.json", dir_fd=descriptor, follow_symlinks=False)
        signature = status.st_ino, status.st_mtime_ns, status.st_size
        if (known := self._configs.get(name)) is None or known[0] != signature:
            is_sweep = SweepFolder.metrics_name in os.listdir(descriptor)
            kind = SweepFolder if is_sweep else RunFolder
            run: RunFolder | str
            try:
                run = kind.open(self.folder / name, inside=self.folder)
            except RunFolderError as error:
                run = str(error)
            known = self._configs[name] = signature, run
            self._summaries.pop(name, None)
        return known[1]

    def _described(self, run: RunFolder, descriptor: int) -> dict[str, Any]:
        is_sweep = isinstance(run, SweepFolder)
        is_running = _is_running(run, descriptor)  # first: what it writes at its end is read then
        flags = _flags(run.config.get("arguments", []))
        summary = self._summaries.setdefault(run.path.name, Summary())
        rows = _read_rows(run, descriptor, summary.version, summary.offset)
        if rows.version != summary.version:
            summary = self._summaries[run.path.name] = Summary(rows.version)
        for row in rows.found:
            summary.add_network(row) if is_sweep else summary.add(row, flags.get("best"))
        summary.offset = rows.offset

        if is_running:
            state = "running"
        elif rows.torn is not None:
            state = "torn"
        else:
            state = "ended" if _has_ended(run, summary, flags) else "stopped"
        results = _last_set(summary.kept)
        if summary.means:  # of a sweep: that of its best setting
            results["accuracy"] = max(mean for mean, _ in summary.means.values())
        return {
            "name": run.path.name,
            "kind": "sweep" if is_sweep else "run",
            "state": state,
            "note": rows.torn if state == "torn" else None,
            "started": _started(run, descriptor),
            "dataset": shortened(run.config.get("dataset", "")),
            **results,
            "done": summary.count,
            "planned": _planned(run, flags),
            "seconds": summary.seconds,
            "has_report": is_file(REPORT, descriptor),
            "sees_pictures": (
                not is_sweep
                and run.config.get("image_shape") is not None
                and is_file(run.params_path.name, descriptor)
            ),
        }


def _read_rows(run: RunFolder, descriptor: int, version: str, offset: int) -> Rows:
    """The complete lines after a byte of a run's rows."""
    try:
        file: BinaryIO = open_regular(run.metrics_name, descriptor, follow_link=False)
    except FileNotFoundError:
        return Rows("", 0)
    except OSError as error:
        return Rows("", 0, torn=f"{run.metrics_path} cannot be read ({reason(error)})")
    with file:
        status = os.fstat(file.fileno())
        # A run that is resumed puts another file in its place.
        started = len(run.config.get("resumed", []))
        rows = Rows(f"{status.st_ino}-{started}", offset)
        if rows.version != version or offset > status.st_size:
            rows.offset = 0
            if rows.version == version:
                rows.version += f"-{status.st_size}"
        file.seek(rows.offset)
        content = file.read(MOST_BYTES)
    words, is_right = run.row
    whole, newline, rest = content.rpartition(b"\n")
    for line in whole.split(b"\n") if newline else ():
        try:
            row = load_json(line)
            if not is_right(row):
                raise ValueError(f"it is {shown(row)}")
        except ValueError as error:
            rows.torn = f"{run.metrics_path} must hold {words} on each line, and {error}"
            return rows
        rows.found.append(row)
        rows.offset += len(line) + 1
    if rest and len(content) < MOST_BYTES:
        rows.torn = f"{run.metrics_path} ends within a line"
    elif rest and not newline:
        rows.torn = f"{run.metrics_path} has a line of more than {MOST_BYTES} bytes"
    return rows


def _is_running(run: RunFolder, descriptor: int) -> bool:
    """Whether a process trains it: that locks the folder of its checkpoints, or of its sweep."""
    if isinstance(run, SweepFolder):
        return is_locked(descriptor)
    try:
        with open_folder(run.checkpoints_path, run.inside) as checkpoints:
            return checkpoints is not None and is_locked(checkpoints)
    except (OSError, RunFolderError):
        return False


def _number(flags: dict[str, str], name: str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(flags.get(name, ""))
    return None


def _planned(run: RunFolder, flags: dict[str, str]) -> int | None:
    """Epochs, or networks, that were asked for."""
    if isinstance(run, SweepFolder):
        seeds = _number(flags, "seeds")
        return None if seeds is None else seeds * len(run.config.get("settings", []))
    return _number(flags, "epochs")


def _has_ended(run: RunFolder, summary: Summary, flags: dict[str, str]) -> bool:
    """Whether nothing is left to train."""
    planned, patience = _planned(run, flags), _number(flags, "patience")
    if planned is not None and summary.count >= planned:
        return True
    if patience is not None and summary.count - 1 - summary.best_at >= patience > 0:
        return True
    steps = _number(flags, "steps")
    if steps is None:
        return False
    name = f"step-{steps:09}.safetensors"
    try:
        with open_folder(run.checkpoints_path, run.inside) as checkpoints:
            return checkpoints is not None and is_file(name, checkpoints)
    except (OSError, RunFolderError):
        return False


def is_file(name: str, descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
    return False


def _started(run: RunFolder, descriptor: int) -> float:
    """Seconds since the epoch; by the file's date where config.json does not say."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromisoformat(run.config.get("started", "")).timestamp()
    return os.stat("config.json", dir_fd=descriptor, follow_symlinks=False).st_mtime


def _last_set(row: dict[str, Any]) -> dict[str, Any]:
    """Loss and accuracy of the set that was not trained on, the test set before all others."""
    sets = [name.removesuffix("_loss") for name in row if name.endswith("_loss")]
    names = [name for name in ("test", "validation", *sets, "") if name in (*sets, "")]
    prefix = f"{names[0]}_" if names[0] else ""
    return {"accuracy": row.get(f"{prefix}accuracy"), "loss": row.get(f"{prefix}loss")}


def _in_words(run: RunFolder) -> dict[str, str]:
    """The flags of a run, or of all settings of a sweep, its layers and where it was trained."""
    values: dict[str, list[str]] = {}
    settings = run.config.get("settings", []) if isinstance(run, SweepFolder) else []
    for words in (run.config.get("arguments", []), *(one["arguments"] for one in settings)):
        for name, value in _flags(words).items():
            some = values.setdefault(name, [])
            some.extend([value] * (value not in some))
    about: dict[str, Any] = {"layers": run.config.get("layers"), "cpus": run.config.get("cpus")}
    for group in ("device", "versions"):
        if isinstance(entries := run.config.get(group), dict):
            about |= {f"{group}: {name}": value for name, value in entries.items()}
    for name, value in about.items():
        if value is not None:
            values[name] = [" ".join(map(str, value)) if isinstance(value, list) else str(value)]
    return {
        shortened(name): shortened(", ".join(some))
        for name, some in itertools.islice(values.items(), MOST_ENTRIES)
        if name not in UNCOMPARED
    }


def _flags(words: Sequence[str]) -> dict[str, str]:
    """The flags among words, each with its values.

    >>> _flags(["--hidden", "8", "9", "--no-shuffle", "--cache"])
    {'hidden': '8 9', 'shuffle': 'off', 'cache': 'on'}
    """
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            values = found[name.removeprefix("no-")] = ["off"] if name.startswith("no-") else []
        elif found:
            values.append(word)
    return {name: " ".join(values) or "on" for name, values in found.items()}
