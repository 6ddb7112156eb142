"""How a run ends on a terminal: what came out, how long it took, where it is, what to type next."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from feedax.cli.examples import TITLES
from feedax.report.run_folder import REPORT
from feedax.train.history import Row


def run_ending(folder: Path, rows: Sequence[Row], best: Row | None, then: str) -> list[str]:
    """The lines of a run.

    Args:
        folder: the run's.
        rows: of its history.
        best: the row of the parameters that are kept.
        then: a command for it.
    """
    scores = {
        f"{title} set": f"accuracy {accuracy:.4f}" if accuracy is not None else "none"
        for name, title in TITLES.items()
        if (accuracy := (best or {}).get(f"{name}_accuracy")) is not None or name == "test"
    }
    show = shlex.join(["feedax", "show", str(folder)])
    training, compiling = (
        sum(row[name] for row in rows) for name in ("seconds", "compile_seconds")
    )
    parts = f"{training:.1f} s training, {compiling:.1f} s compiling"
    return _lines(scores | {"time": _time(parts), "run": str(folder)} | _page(folder), [show, then])


def sweep_ending(folder: Path, seconds: float, then: str) -> list[str]:
    """The lines of a sweep, whose networks were trained for so many seconds in all."""
    show = shlex.join(["feedax", "show", str(folder)])
    table = {"time": _time(f"{seconds:.1f} s training"), "sweep": str(folder)}
    return _lines(table | _page(folder), [show, then])


def _page(folder: Path) -> dict[str, str]:
    return {"report": str(folder / REPORT)} if (folder / REPORT).exists() else {}


def _time(parts: str) -> str:
    return f"{parts}; {time.time() - process_started():.1f} s since the command began"


def _lines(table: Mapping[str, str], commands: Sequence[str]) -> list[str]:
    width = max(map(len, table))
    lines = [f"{name:<{width}}  {value}" for name, value in table.items()]
    return ["", *lines, "", "next:", *(f"  {command}" for command in commands)]


def process_started() -> float:
    """When this process started, in seconds since the epoch; now where Linux does not say."""
    try:
        # After the name of the program, which may hold anything; see proc_pid_stat(5), field 22.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
    return time.time() - age
