"""``feedax show``."""

import os
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feedax.cli import say
from feedax.cli.commands import ShowFlags
from feedax.errors import FeedaxError, RunFolderError, reason
from feedax.show.app import make_app
from feedax.show.runs import Runs
from feedax.show.server import PORT, listen, serve

if TYPE_CHECKING:  # it loads JAX, and SciPy
    from feedax.report.trained_run import TrainedRun


def run(flags: ShowFlags, arguments: Sequence[str]) -> int:
    """Serve the page until this process is stopped."""
    folder = next(iter(flags.folders), Path("runs"))
    if not folder.is_dir():
        state = "a file" if folder.exists() else "not there"
        raise RunFolderError(
            f"{folder} must be a folder of runs, or of one, and it is {state}; make one with "
            "feedax train, or name another folder"
        )
    is_run = (folder / "config.json").exists()
    place = folder.absolute()
    runs = Runs(place.parent, only=place.name) if is_run else Runs(folder)
    try:
        listening = listen(flags.port)
    except OSError as error:
        which = f"a port from {PORT} on" if flags.port is None else f"port {flags.port}"
        remedy = "give one with --port" if flags.port is None else "give another one, or none"
        raise FeedaxError(
            f"{which} must be free, and the system says {reason(error)!r}; {remedy}"
        ) from error
    port = listening.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    print(address, flush=True)
    say("feedax show", f"serves {folder} to this machine only; Ctrl-C ends it")
    if flags.open:
        # A browser of the terminal would keep this one waiting for its end.
        threading.Thread(target=_open, args=(address,), daemon=True).start()
    serve(make_app(runs, open_run, port), listening)
    return 0


def _open(address: str) -> None:
    if not webbrowser.open(address):
        say("feedax show", f"there is no browser to be opened; open {address} in yours")


def open_run(path: Path) -> "TrainedRun":
    """Open a run with its network."""
    # A run that trains needs the memory of the accelerator, of which JAX takes most.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.network import trained_run

    use_compilation_cache()
    return trained_run(path)
