"""A run that is started again in the directory of its interrupted self goes on from there."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.runs.directory import RUN_DIR
from recexp.runs.identity import differences
from recexp.runs.loading import read_config, read_json

LAST = "checkpoints/last.ckpt"
SHOWN = 3  # changed settings that a message names

log = logging.getLogger(__name__)


def resumed(cfg: DictConfig) -> DictConfig:
    """The config, with ``ckpt_path`` where the directory holds an interrupted run of it.

    Every process of a run decides for itself, by the same files: a process that Lightning starts
    comes after the first one has cleared the directory of what the run does not go on from.
    """
    run_dir = cfg.run_dir
    if is_first_process():
        os.environ[RUN_DIR] = os.path.abspath(run_dir)
    else:
        run_dir = os.environ.get(RUN_DIR, run_dir)
    if cfg.get("resume", "auto") == "never" or cfg.ckpt_path:
        return cfg
    last = _interrupted(Path(run_dir), cfg)
    if last is None:
        return cfg
    if is_first_process():
        log.info("goes on from %s; resume=never starts anew", last)
    cfg = cfg.copy()
    cfg.ckpt_path = str(last)
    return cfg


def _interrupted(run_dir: Path, cfg: DictConfig) -> Path | None:
    """The last checkpoint of the directory's run; None where it is complete or another run."""
    last = run_dir / LAST
    if not last.is_file() or _has_result(run_dir):
        return None
    try:
        before = _plain(read_config(run_dir / "config.yaml"))
    except RecexpError:
        return None
    changed = differences(before, _plain(cfg))
    if changed:
        if is_first_process():
            log.info(
                "starts anew: the interrupted run in %s had other settings (%s)",
                run_dir,
                ", ".join(changed[:SHOWN]),
            )
        return None
    return last


def _has_result(run_dir: Path) -> bool:
    """Did the run come to its end? A damaged file counts as a result: nothing is resumed."""
    try:
        result = read_json(run_dir / "result.json")
    except FileNotFoundError:
        return False
    except RecexpError:
        return True
    return not (isinstance(result, dict) and "interrupted" in result)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}
