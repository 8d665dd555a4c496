"""Limits of training and settings of checkpoints with which a result could not be true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recexp.errors import RecexpError

SHOWN = 80  # characters of a wrong value that an error shows

# Settings of the trainer that are refused unless they have the neutral value, with the reason.
REFUSED = {
    "overfit_batches": (0, "it also replaces the validation data: use debug=overfit"),
    "enable_checkpointing": (True, "the epoch to test is read from a checkpoint"),
}
# Settings of a checkpoint callback on which the run relies: key -> the only value.
OF_BEST: dict[str, Any] = {
    "filename": "best",
    "mode": "max",
    "save_top_k": 1,
    "every_n_epochs": 1,
    "every_n_train_steps": None,
    "train_time_interval": None,
}
OF_LAST: dict[str, Any] = {
    "filename": "last",
    "save_top_k": 1,
    "every_n_epochs": 1,
    "every_n_train_steps": None,
    "train_time_interval": None,
    "save_weights_only": False,
}


def check_limits(cfg: DictConfig) -> None:
    """Raise RecexpError for settings that leave no epoch to test, or another than the result says.

    Each is refused by its name, before any work.
    """
    trainer = cfg.trainer
    for key, (neutral, why) in REFUSED.items():
        value = trainer.get(key)
        if value is not None and value != neutral:
            raise RecexpError(f"trainer.{key}={_short(value)} is not possible: {why}.")
    if trainer.get("max_steps") == 0:
        raise RecexpError(
            "trainer.max_steps=0 trains nothing, so no epoch could be chosen: give a number of "
            "steps, or -1 for no limit."
        )
    _check_time(trainer.get("max_time"))
    callbacks = cfg.callbacks
    if cfg.selection != "refit" or callbacks.get("checkpoint"):
        _check_callback("checkpoint", callbacks.get("checkpoint"), OF_BEST)
    _check_callback("last", callbacks.get("last"), OF_LAST)
    _check_callback("early_stopping", callbacks.get("early_stopping"), {"mode": "max"})
    for name in ("checkpoint", "last"):
        _check_folder(name, callbacks.get(name), cfg.get("run_dir"))


def _check_time(duration: Any) -> None:
    """Raise RecexpError for a duration of zero."""
    if isinstance(duration, str):
        parts = duration.split(":")
    elif isinstance(duration, Mapping | DictConfig):
        parts = [str(value) for value in duration.values()]
    else:
        return
    try:
        is_zero = not any(float(part) for part in parts)
    except ValueError:
        return  # the trainer refuses it
    if is_zero:
        raise RecexpError(
            f"trainer.max_time={_short(duration)} trains nothing, so no epoch could be chosen: "
            "give more time, or null for no limit."
        )


def _check_callback(name: str, node: DictConfig | None, needed: Mapping[str, Any]) -> None:
    """Raise RecexpError where the callback has another value than the run relies on."""
    if not node:
        return
    for key, value in needed.items():
        if key in node and node[key] != value:
            wanted = "null" if value is None else value
            raise RecexpError(
                f"callbacks.{name}.{key}={_short(node[key])} is not possible: the run relies on "
                f"{wanted}. Add a callback of your own beside it."
            )


def _check_folder(name: str, node: DictConfig | None, run_dir: str | None) -> None:
    """Raise RecexpError where the checkpoint would not lie in the run's directory."""
    if not node or run_dir is None or OmegaConf.is_missing(node, "dirpath"):
        return
    folder = node.get("dirpath")
    if folder is None or Path(folder) != Path(run_dir) / "checkpoints":
        raise RecexpError(
            f"callbacks.{name}.dirpath={_short(folder)} is not possible: the run reads its "
            "checkpoints from checkpoints/ in its own directory, which hydra.run.dir chooses."
        )


def _short(value: Any) -> str:
    """The value as text, shortened."""
    text = str(value)
    return text if len(text) < SHOWN else f"{text[: SHOWN - 3]}..."
