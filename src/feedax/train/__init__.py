"""JAX's side: model, loss, steps and epochs. Nothing here imports torch.

Batches come from anything that yields NumPy arrays: a `NumpyLoader`, or a plain list.
"""

from feedax.feed import Batch
from feedax.train.adapters import from_linen, from_nnx
from feedax.train.checkpoints import Checkpoints
from feedax.train.evaluation import evaluate
from feedax.train.events import (
    Ended,
    EpochEnded,
    NetworkEnded,
    NetworksStarted,
    Saved,
    Started,
    Stepped,
    Stopped,
    StopTraining,
)
from feedax.train.fit import fit
from feedax.train.history import History
from feedax.train.layers import ModelSummary, summary
from feedax.train.losses import cross_entropy, smoothed_cross_entropy, tutorial_loss
from feedax.train.mlp import (
    accuracy,
    batched_predict,
    he_normal,
    init_mlp,
    init_network_params,
    loss,
    mlp,
    mlp_with_dropout,
    one_hot,
    predict,
    random_layer_params,
    relu,
    update,
)
from feedax.train.model import Model
from feedax.train.networks import Network, Summary, Sweep
from feedax.train.optimizers import build_optimizer, build_schedule
from feedax.train.predictions import Predictions, predictions
from feedax.train.recipe import evaluate_arguments, fit_arguments
from feedax.train.step import Metric, TrainState, init_state, train_step
from feedax.train.sweep import sweep

__all__ = [
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
]
