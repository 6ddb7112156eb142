"""The callback of `fit` that writes a run's folder while the run trains."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from feedax.files import BackgroundWriter
from feedax.report.run_folder import RunFolder
from feedax.train.events import EpochEnded, Event, Started


class Recorder:
    """Writes the rows and the parameters of every epoch; a callback of `fit`.

    Args:
        folder: the run's.
        best: the column by which parameters are kept, or None to keep the last ones.
        note: says what a person should know.
        resumed: the arguments of `RunFolder.mark_resumed`; None for a new run.

    Attributes:
        compile_seconds: spent on compiling in this process.
    """

    def __init__(
        self,
        folder: RunFolder,
        best: str | None,
        note: Callable[[str], None],
        resumed: tuple[list[str], dict[str, Any]] | None = None,
    ) -> None:
        self.compile_seconds = 0.0
        self._began_at = -1
        self._epochs = 0
        self._folder = folder
        self._best = best
        self._note = note
        self._resumed = resumed
        self._writer = BackgroundWriter("feedax-params")

    def __call__(self, event: Event) -> None:
        match event:
            case Started(history=history, checkpoint=checkpoint, step=step):
                self._began_at = step
                if checkpoint is not None:
                    self._note(f"resumed after step {step}, from {checkpoint}")
                elif self._resumed is not None:
                    self._note("there is no checkpoint to resume from, so it starts at step 0")
                # Not before: another process may train the same run, which `fit` has found out.
                if self._resumed is not None:
                    self._folder.mark_resumed(*self._resumed)
                    self._folder.write_rows(history)
            case EpochEnded(row=row, params=params, is_best=is_best):
                self._epochs += 1
                self.compile_seconds += row["compile_seconds"]
                self._writer.wait()
                if is_best or self._best is None:
                    # Training reuses the memory of these while a thread writes a copy.
                    copy = jax.tree.map(lambda leaf: np.array(leaf, copy=True), params)
                    self._writer.submit(self._folder.save_params, copy)
                self._folder.append_row(row)

    def found_the_end(self, steps: int | None) -> bool:
        """Whether a run, of so many steps if that is known, was resumed with no step left."""
        return self._resumed is not None and (self._epochs == 0 or self._began_at == steps)

    def end(self, params: Any, failed: bool) -> None:
        """Write what is left to write when training has ended."""
        self._writer.wait()
        self._writer.close()
        if self._best is None or not failed:
            self._folder.save_params(params)
        self._folder.save_curves()
