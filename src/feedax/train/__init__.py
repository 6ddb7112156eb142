"""JAX's side: model, loss, steps and epochs. Nothing here imports torch.

Batches come from anything that yields NumPy arrays: a `NumpyLoader`, or a plain list.
"""

from feedax.feed import Batch
from feedax.train.evaluation import evaluate
from feedax.train.events import EpochEnded, Started, Stepped, StopTraining
from feedax.train.loop import fit
from feedax.train.losses import cross_entropy, tutorial_loss
from feedax.train.mlp import (
    accuracy,
    batched_predict,
    init_network_params,
    loss,
    one_hot,
    predict,
    random_layer_params,
    relu,
    update,
)
from feedax.train.step import Model, TrainState, init_state, train_step

__all__ = [
    "Batch",
    "EpochEnded",
    "Model",
    "Started",
    "Stepped",
    "StopTraining",
    "TrainState",
    "accuracy",
    "batched_predict",
    "cross_entropy",
    "evaluate",
    "fit",
    "init_network_params",
    "init_state",
    "loss",
    "one_hot",
    "predict",
    "random_layer_params",
    "relu",
    "train_step",
    "tutorial_loss",
    "update",
]
