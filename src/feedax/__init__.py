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
    from feedax import presets as presets
    from feedax import train as train
    from feedax.data import ArrayDataset as ArrayDataset
    from feedax.data import FlattenAndCast as FlattenAndCast
    from feedax.data import LoaderStats as LoaderStats
    from feedax.data import NumpyLoader as NumpyLoader
    from feedax.data import Plan as Plan
    from feedax.data import numpy_collate as numpy_collate
    from feedax.data import register_arrays as register_arrays
    from feedax.feed import prefetch_to_device as prefetch_to_device
    from feedax.train import Batch as Batch
    from feedax.train import Checkpoints as Checkpoints
    from feedax.train import EpochEnded as EpochEnded
    from feedax.train import Metric as Metric
    from feedax.train import Model as Model
    from feedax.train import Network as Network
    from feedax.train import NetworkEnded as NetworkEnded
    from feedax.train import NetworksStarted as NetworksStarted
    from feedax.train import Saved as Saved
    from feedax.train import Started as Started
    from feedax.train import Stepped as Stepped
    from feedax.train import Stopped as Stopped
    from feedax.train import StopTraining as StopTraining
    from feedax.train import Summary as Summary
    from feedax.train import Sweep as Sweep
    from feedax.train import TrainState as TrainState
    from feedax.train import accuracy as accuracy
    from feedax.train import batched_predict as batched_predict
    from feedax.train import build_optimizer as build_optimizer
    from feedax.train import build_schedule as build_schedule
    from feedax.train import cross_entropy as cross_entropy
    from feedax.train import evaluate as evaluate
    from feedax.train import evaluate_arguments as evaluate_arguments
    from feedax.train import fit as fit
    from feedax.train import fit_arguments as fit_arguments
    from feedax.train import from_linen as from_linen
    from feedax.train import from_nnx as from_nnx
    from feedax.train import he_normal as he_normal
    from feedax.train import init_mlp as init_mlp
    from feedax.train import init_network_params as init_network_params
    from feedax.train import init_state as init_state
    from feedax.train import loss as loss
    from feedax.train import mlp as mlp
    from feedax.train import mlp_with_dropout as mlp_with_dropout
    from feedax.train import one_hot as one_hot
    from feedax.train import predict as predict
    from feedax.train import random_layer_params as random_layer_params
    from feedax.train import relu as relu
    from feedax.train import smoothed_cross_entropy as smoothed_cross_entropy
    from feedax.train import sweep as sweep
    from feedax.train import train_step as train_step
    from feedax.train import tutorial_loss as tutorial_loss
    from feedax.train import update as update

__version__ = "0.1.0"

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
    "feedax.train": (
        "Batch",
        "Checkpoints",
        "EpochEnded",
        "Metric",
        "Model",
        "Network",
        "NetworkEnded",
        "NetworksStarted",
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
        "random_layer_params",
        "relu",
        "smoothed_cross_entropy",
        "sweep",
        "train_step",
        "tutorial_loss",
        "update",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("augment", "data", "datasets", "errors", "feed", "presets", "train")

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
