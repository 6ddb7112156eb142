"""Loggers: callbacks of `fit` and `sweep` that write to TensorBoard, Weights & Biases or MLflow."""

from feedax.loggers.logger import Logger
from feedax.loggers.mlflow import MLflow
from feedax.loggers.tensorboard import TensorBoard
from feedax.loggers.wandb import WandB

__all__ = ["Logger", "MLflow", "TensorBoard", "WandB"]
