"""The report of a model that was trained: from a script, or from the folder of a run."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from feedax.errors import FeedaxError, ImageError, ModelError
from feedax.feed import Source, pair
from feedax.predicting import canvas_data
from feedax.report.content import RunReport
from feedax.report.page import write_page
from feedax.train.history import Row
from feedax.train.layers import summary
from feedax.train.model import compute_dtype
from feedax.train.page_program import network_program
from feedax.train.predictions import Predictions, predictions

MOST_PROGRAM = 3_600_000
"""Bytes of a network in a page, so that the page stays below 5 MB."""


def write_report(
    path: str | Path,
    predict: Callable[..., Any],
    params: Any,
    history: Sequence[Row] = (),
    test: Iterable[Any] | None = None,
    *,
    title: str = "a model",
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    state: Any = None,
    batched: bool = False,
    precision: Literal["float32", "bfloat16"] | None = None,
    hyperparams: Mapping[str, float] | None = None,
) -> None:
    """Write a page about a trained model: one HTML file that needs no network.

    It shows how the model learned, where it errs, its layers and weights, and for 28 x 28 grey
    images a canvas to write on, which the model reads in the page itself.

    Args:
        path: the file, which is replaced.
        predict: as in `fit`.
        params: the trained parameters.
        history: as `fit` returns it.
        test: a set to look at, as in `evaluate`; without one the page has no predictions.
        title: the page's.
        class_names: of the model's outputs.
        image_shape: ``(height, width)`` or with channels, where examples are the pixels of images
            in a row.
        state, batched, precision, hyperparams: as in `fit`.

    Raises:
        BatchError, ModelError: the model does not fit the set.
        RunFolderError: the file cannot be written.

    >>> import tempfile
    >>> x, y = np.float32([[2, 0], [0, 3], [1, 0]]), np.array([0, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "report.html"
    ...     write_report(file, lambda w, x: w @ x, np.eye(2, dtype="float32"), test=[(x, y)])
    ...     "66.67 %" in file.read_text()
    True
    """
    network = {
        "predict": predict,
        "params": params,
        "state": state,
        "batched": batched,
        "hyperparams": hyperparams,
    }
    report = model_report(
        network,
        history,
        test,
        title=title,
        class_names=class_names,
        image_shape=image_shape,
        precision=precision,
    )
    write_page(Path(path), title, run=report)


def model_report(
    network: Mapping[str, Any],
    history: Sequence[Row],
    test: Iterable[Any] | None,
    *,
    title: str,
    class_names: Sequence[str] | None,
    image_shape: Sequence[int] | None,
    precision: Literal["float32", "bfloat16"] | None,
    dataset: str = "",
    **more: Any,
) -> RunReport:
    """What there is to say of a model.

    Args:
        network: predict and params, and what else `fit` is given to call predict: state, batched,
            hyperparams.
        history, test, title, class_names, image_shape, precision: as in `write_report`.
        dataset: the name of the data set, which says how drawings are framed.
        more: other attributes of the `RunReport`.
    """
    found, layers = None, None
    canvas: dict[str, Any] | str | None = None
    if test is not None:
        found = predictions(**network, batches=test, precision=precision)
    if found is not None and found.inputs:
        example = next(iter(found.inputs.values()))
        _refuse_others(found, example, class_names, image_shape)
        with contextlib.suppress(FeedaxError):  # a model may do what no table shows
            layers = summary(**network, example=example)
        shape = tuple(image_shape or np.shape(example))
        if found.is_of_classes and len(shape) in (2, 3):
            names = class_names or [str(label) for label in range(found.outputs.shape[1])]
            try:
                # A page computes in float32.
                outputs = found.outputs if compute_dtype(precision) is None else None
                canvas = _canvas(
                    network, found.inputs, outputs, _arrays(test), shape, dataset, names
                )
            except (ImageError, ModelError) as error:
                why = f"{error.rule}, and {error.found}; {error.remedy}"
                canvas = f"There is no canvas on this page: {why}."
    return RunReport(
        title=title,
        history=history,
        predictions=found,
        params=network["params"],
        class_names=class_names,
        image_shape=image_shape,
        layers=layers,
        canvas=canvas,
        **more,
    )


def _refuse_others(
    found: Predictions,
    example: Any,
    class_names: Sequence[str] | None,
    image_shape: Sequence[int] | None,
) -> None:
    """Refuse names and shapes of another model's outputs and inputs."""
    classes = found.outputs.shape[1] if found.is_of_classes else None
    if class_names is not None and classes is not None and len(class_names) != classes:
        raise ModelError(
            f"write_report: class_names must have a name for each of the {classes} outputs, and "
            f"they are {len(class_names)}; give them all, or none"
        )
    if image_shape is not None and math.prod(image_shape) != np.size(example):
        raise ModelError(
            f"write_report: image_shape must have the {np.size(example)} values of an example, and "
            f"it is {tuple(image_shape)}; give another one, or none"
        )


def _arrays(test: Any) -> Any:
    """All inputs of a set in its order, where they lie in arrays."""
    source = Source(test)
    return pair(source.arrays())[0] if source.has_arrays and source.takes_each_once else None


def _canvas(
    network: Mapping[str, Any],
    examples: Mapping[int, Any],
    outputs: np.ndarray | None,
    inputs: Any,
    shape: tuple[int, ...],
    dataset: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """What the page needs to read drawings.

    Raises:
        ImageError: the examples are no drawings.
        ModelError: the page cannot run the network.
    """
    seen = np.stack(list(examples.values()))
    if seen.min() < 0:
        raise ImageError(
            who="write_report",
            rule="a page brings a drawing to pixels from 0 to 1 or to 255",
            found=f"the examples have pixels of {seen.min():.3g}",
            remedy="scale them within predict, from pixels as they are",
        )
    white = 255.0 if seen.max() > 1 else 1.0
    # Refuses what is no drawing, before anything is traced.
    canvas_data(shape, dataset, names, {}, white)
    program = network_program(
        **network,
        example=seen[0],
        inputs=inputs,
        outputs=outputs,
        most_bytes=MOST_PROGRAM,
    )
    return canvas_data(shape, dataset, names, program, white)
