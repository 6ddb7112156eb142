"""A run with its network as a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedax.errors import ImageError
from feedax.predicting import PreparedImage, prepare_image
from feedax.report.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """A run with its network.

    Attributes:
        folder: the run's, or that of the sweep that it is a network of.
        predict: a function of (params, x) for one example x, of ``(classes,)`` log-probabilities;
            nothing is drawn at random in it.
        params: the run's parameters.
        layers: sizes of the network's layers, input first.
        image_shape: of the images whose plain pixels the examples are; None for examples of
            another kind.
        class_names: of each of the network's outputs.
    """

    folder: RunFolder
    predict: Callable[[Any, Any], Any]
    params: Any
    layers: Sequence[int]
    image_shape: tuple[int, ...] | None
    class_names: Sequence[str]

    @property
    def dataset(self) -> str:
        """The name of the dataset, without its file, folder or part."""
        name: str = self.folder.setting("dataset")
        return name.partition(":")[0].replace("-", "_")

    def known_image_shape(self) -> tuple[int, ...]:
        """`image_shape`, where there is one.

        Raises:
            ImageError: the examples are of another kind.
        """
        if self.image_shape is None:
            raise ImageError(
                "the run must be trained on the plain pixels of images, and the examples of "
                f"{self.folder.setting('dataset')} are not known to be that; predict in Python"
            )
        return self.image_shape

    def prepare(self, path: str | Path) -> PreparedImage:
        """Bring an image file into the form of this run's examples.

        Raises:
            ImageError: the examples are no images, or there is no way from that file to them.
        """
        return prepare_image(path, self.known_image_shape(), self.dataset)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 ``(classes,)``, for the pixels of a prepared image."""
        # As FlattenAndCast gives them in training; that would load PyTorch for this line.
        flat = np.ravel(pixels).astype(np.float32)
        return np.exp(np.asarray(self.predict(self.params, flat)))
