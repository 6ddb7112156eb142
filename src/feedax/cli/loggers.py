"""``--log``: the loggers of a run or a sweep."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from feedax import loggers
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags, recipe_of
from feedax.cli.parse import field_of, flag_values
from feedax.cli.report import UNCOMPARED
from feedax.errors import ModelError
from feedax.files import open_folder
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import Record
from feedax.report.trained_run import TrainedRun
from feedax.train import NetworkEnded, predictions
from feedax.train.history import History
from feedax.train.networks import Network

CLASSES = {
    "tensorboard": loggers.TensorBoard,
    "wandb": loggers.WandB,
    "mlflow": loggers.MLflow,
}
FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlruns"}
"""Where the logs are, in the run's folder."""


def refuse_missing(names: Sequence[str]) -> None:
    """Refuse a logger whose library is not installed, before there is a folder.

    Raises:
        LoggerError: it is not.
    """
    for name in names:
        CLASSES[name](".")


def loggers_of(
    names: Sequence[str],
    folder: RunFolder,
    flags: TrainFlags,
    pictures: Callable[[Any], Mapping[str, Any]] | None = None,
) -> list[loggers.Logger]:
    """The loggers of these names, which keep their logs in a run's folder.

    Raises:
        RunFolderError: the folder, which may be somebody else's, has a link there.
    """
    values = {
        field_of(name): value
        for name, value in flag_values(flags).items()
        if name not in UNCOMPARED and value is not None
    }
    given: dict[str, Any] = {
        "config": values | {"folder": str(folder.path)},
        "pictures": pictures,
    }
    name = f"{folder.path.resolve().name}-{folder.setting('run')[:8]}"
    found: list[loggers.Logger] = []
    for kind in dict.fromkeys(names):
        place = folder.path / FOLDERS[kind]
        with contextlib.suppress(OSError), open_folder(place, folder.path, make=True):
            pass  # what cannot be written there, the logger tells
        match kind:
            case "tensorboard":
                found.append(loggers.TensorBoard(place, **given))
            case "wandb":  # which adds its folder itself
                found.append(loggers.WandB(folder.path, name=name, **given))
            case "mlflow":
                server = os.environ.get("MLFLOW_TRACKING_URI")
                found.append(loggers.MLflow(server or place, name=name, **given))
    return found


def pictures_of(
    trained: TrainedRun, flags: TrainFlags, examples: Examples
) -> Callable[[Any], dict[str, Any]]:
    """A function of the parameters that draws what the report shows of a network."""

    def pictures(params: Any) -> dict[str, Any]:
        from feedax.report import diagrams  # matplotlib

        sets = examples.loaders()
        some = next(sets[name] for name in ("test", "validation", "train") if name in sets)
        precision = recipe_of(flags).precision
        found = predictions(trained.predict, params, some, precision=precision)
        shape, names = trained.image_shape, trained.class_names
        drawn = {
            "confusion matrix": diagrams.confusion_matrix(found, names),
            "mistakes": diagrams.mistakes(found, shape, names),
            "reliability": diagrams.reliability_diagram(found),
            "weights": diagrams.weight_histograms(params),
        }
        if shape is not None:
            with contextlib.suppress(ModelError):  # channels that are no colours
                drawn["first layer"] = diagrams.first_layer(params, shape)
        return drawn

    return pictures


def also_logged(
    record_of: Callable[[Network, int], Record], some: Sequence[loggers.Logger]
) -> Callable[[Network, int], Record]:
    """A function that makes the record of a sweep's network, and logs it.

    The log has the network's name in the whole sweep, and the scores that only the record has.
    """

    def record(network: Network, side_by_side: int) -> Record:
        found = record_of(network, side_by_side)
        result = found["result"] or {}
        rows = History(
            result if row["epoch"] == result["epoch"] else row for row in network.history
        )
        for logger in some:
            logger(NetworkEnded(replace(network, setting=found["setting"], history=rows)))
        return found

    return record
