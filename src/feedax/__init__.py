"""PyTorch picks the examples. JAX does the arithmetic.

Public names are imported when they are first used, so that ``import feedax`` costs next to
nothing and a data-loading process never sees JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feedax import augment as augment
    from feedax import data as data
    from feedax import datasets as datasets
    from feedax import errors as errors
    from feedax import feed as feed
    from feedax import loggers as loggers
    from feedax import presets as presets
    from feedax import train as train
    from feedax.data import *  # noqa: F403
    from feedax.feed import prefetch_to_device as prefetch_to_device
    from feedax.report.diagrams import augmented as augmented
    from feedax.report.diagrams import confusion_matrix as confusion_matrix
    from feedax.report.diagrams import first_layer as first_layer
    from feedax.report.diagrams import mistakes as mistakes
    from feedax.report.diagrams import reliability_diagram as reliability_diagram
    from feedax.report.diagrams import residuals as residuals
    from feedax.report.diagrams import weight_histograms as weight_histograms
    from feedax.report.figures import plot as plot
    from feedax.report.model_report import write_report as write_report
    from feedax.train import *  # noqa: F403

__version__ = "0.3.0"
"""The version of this package."""

_HOMES = {
    "feedax.data": (
        "ArrayDataset",
        "FlattenAndCast",
        "LoaderStats",
        "NumpyLoader",
        "Plan",
        "numpy_collate",
        "register_arrays",
    ),
    "feedax.feed": ("prefetch_to_device",),
    "feedax.report.diagrams": (
        "augmented",
        "confusion_matrix",
        "first_layer",
        "mistakes",
        "reliability_diagram",
        "residuals",
        "weight_histograms",
    ),
    "feedax.report.figures": ("plot",),
    "feedax.report.model_report": ("write_report",),
    "feedax.train": (
        "Batch",
        "Checkpoints",
        "Ended",
        "EpochEnded",
        "History",
        "Metric",
        "Model",
        "ModelSummary",
        "Network",
        "NetworkEnded",
        "NetworksStarted",
        "Predictions",
        "Saved",
        "Started",
        "Stepped",
        "StopTraining",
        "Stopped",
        "Summary",
        "Sweep",
        "TrainState",
        "accuracy",
        "batched_predict",
        "build_optimizer",
        "build_schedule",
        "cross_entropy",
        "evaluate",
        "evaluate_arguments",
        "fit",
        "fit_arguments",
        "from_linen",
        "from_nnx",
        "he_normal",
        "init_mlp",
        "init_network_params",
        "init_state",
        "loss",
        "mlp",
        "mlp_with_dropout",
        "one_hot",
        "predict",
        "predictions",
        "random_layer_params",
        "relu",
        "smoothed_cross_entropy",
        "summary",
        "sweep",
        "train_step",
        "tutorial_loss",
        "update",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("augment", "data", "datasets", "errors", "feed", "loggers", "presets", "train")

__all__ = [*sorted((*_HOME, *_MODULES)), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"feedax.{name}")
    else:
        raise AttributeError(f"module 'feedax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
