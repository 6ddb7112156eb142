"""Pictures answered by a run's network."""

import base64
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedax.errors import ImageError
from feedax.show.runs import NoSuchRunError, Runs, is_file

if TYPE_CHECKING:  # it loads JAX, and SciPy
    from feedax.report.trained_run import TrainedRun

KEPT = 4
"""Networks in memory, those that were asked last."""


class Networks:
    """The networks of runs, opened when they are first asked.

    Args:
        runs: where the runs are.
        open_run: opens one by its folder.
    """

    def __init__(self, runs: Runs, open_run: "Callable[[Path], TrainedRun]") -> None:
        self._runs = runs
        self._open_run = open_run
        self._opened: OrderedDict[str, tuple[object, TrainedRun]] = OrderedDict()
        self._lock = threading.Lock()

    def canvas(self, name: str) -> dict[str, Any]:
        """What ``feedax.canvas`` needs to know of a run; see `feedax.predicting.canvas_data`.

        Raises:
            ImageError: the run's examples are no pictures.
            FeedaxError: the run cannot be opened.
        """
        from feedax.predicting import canvas_data

        with self._lock:
            run = self._network(name)
        return canvas_data(run.known_image_shape(), run.dataset, run.class_names)

    def answer(self, name: str, picture: bytes) -> dict[str, Any]:
        """What the network of a run sees in a picture.

        Args:
            name: of the run.
            picture: the bytes of a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.

        Returns:
            ``pixels`` of what it saw in base64, their ``shape``, whether they are ``transposed``,
            ``notes``, and the ``names`` and the ``probabilities`` of the classes.

        Raises:
            ImageError: the picture cannot be used, or the run's examples are no pictures.
            FeedaxError: the run cannot be opened.
        """
        from feedax.predicting import FRAMINGS, Framing, doubts

        # A large picture takes memory, and a network all cores: one at a time.
        with self._lock, tempfile.TemporaryDirectory(prefix="feedax-show-") as folder:
            run = self._network(name)
            path = Path(folder, "picture")
            path.write_bytes(picture)
            try:
                prepared = run.prepare(path)
            except ImageError as error:
                said = str(error).removeprefix("prepare_image: ")
                raise ImageError(said.replace(str(path), "the picture")) from None
            probabilities = run.probabilities(prepared.pixels)
        return {
            "pixels": base64.b64encode(prepared.pixels.tobytes()).decode(),
            "shape": prepared.pixels.shape,
            "transposed": FRAMINGS.get(run.dataset, Framing()).transposed,
            "notes": [*prepared.notes, *doubts(probabilities)],
            "names": list(run.class_names),
            "probabilities": probabilities.tolist(),
        }

    def _network(self, name: str) -> "TrainedRun":
        with self._runs.opened(name) as (run, descriptor):
            # Where the parameters are a link, it could lead anywhere.
            if not is_file(run.params_path.name, descriptor):
                raise NoSuchRunError(
                    f"show: {name} must have its parameters in {run.params_path.name}, and it has "
                    "none yet; wait for the end of its first epoch"
                )
            status = os.stat(run.params_path.name, dir_fd=descriptor, follow_symlinks=False)
            signature = status.st_ino, status.st_mtime_ns, run.config.get("run")
            known = self._opened.pop(name, None)
            if known is None or known[0] != signature:
                known = signature, self._open_run(run.path)
            self._opened[name] = known
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return known[1]
