"""Experiment trackers: W&B, TensorBoard, MLflow and Comet, none of which ends a run.

A new one is a function that returns a ``Tracker``, and a YAML in ``conf/logger``.
"""

from recexp.training.loggers.with_comet import comet_logger
from recexp.training.loggers.with_mlflow import mlflow_logger
from recexp.training.loggers.with_tensorboard import tensorboard_logger
from recexp.training.loggers.with_wandb import wandb_logger

__all__ = ["comet_logger", "mlflow_logger", "tensorboard_logger", "wandb_logger"]
