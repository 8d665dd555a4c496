"""A run that is started again in the directory of its interrupted self goes on from there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.runs.directory import RUN_DIR
from recexp.runs.identity import differences
from recexp.runs.loading import read_config, read_json
from recexp.training.checkpoints import read_checkpoint

LAST = "checkpoints/last.ckpt"
SHOWN = 3  # changed settings that a message names
MAX_SHOWN = 1000  # characters of an error about a file

log = logging.getLogger(__name__)


def resumed(cfg: DictConfig) -> DictConfig:
    """The config, with ``ckpt_path`` where the directory holds an interrupted run of it.

    Every process of a run decides for itself, by the same files: a process that Lightning starts
    comes after the first one has cleared the directory of what the run does not go on from.
    """
    run_dir = _shared_run_dir(cfg)
    if is_first_process():
        os.environ[RUN_DIR] = os.path.abspath(run_dir)
    if cfg.get("resume", "auto") == "never" or cfg.ckpt_path:
        return cfg
    last = _interrupted(run_dir, cfg)
    if last is None:
        return cfg
    with ways_out(last):
        read_checkpoint(last)
    if is_first_process():
        log.info("goes on from %s; resume=never starts anew", last)
    cfg = cfg.copy()
    cfg.ckpt_path = str(last)
    return cfg


def finished(cfg: DictConfig) -> dict[str, Any] | None:
    """``result.json`` of the config's directory, if the same run came to its end there."""
    run_dir = _shared_run_dir(cfg)
    try:
        result = read_json(run_dir / "result.json")
        before = _plain(read_config(run_dir / "config.yaml"))
    except (FileNotFoundError, RecexpError):
        return None
    if not isinstance(result, dict) or "interrupted" in result or differences(before, _plain(cfg)):
        return None
    if is_first_process():
        log.info("has its result already, and is not trained again: %s", run_dir)
    return result


@contextmanager
def ways_out(last: Path | None) -> Iterator[None]:
    """Errors about a checkpoint say how to start without it.

    last: the checkpoint, where the run found it by itself; None: errors stay as they are.
    """
    try:
        yield
    except RecexpError as error:
        if last is None:
            raise
        raise RecexpError(
            f"The interrupted run cannot go on from {last}: {str(error)[:MAX_SHOWN]} To train from "
            "the start, add resume=never or delete the file."
        ) from error


def _shared_run_dir(cfg: DictConfig) -> Path:
    """The directory of the run, also in the processes whose config has another one."""
    if is_first_process():
        return Path(cfg.run_dir)
    return Path(os.environ.get(RUN_DIR, cfg.run_dir))


def _interrupted(run_dir: Path, cfg: DictConfig) -> Path | None:
    """The last checkpoint of the directory's run; None where it is complete.

    Raises RecexpError where it is a run of other settings.
    """
    last = run_dir / LAST
    if not last.is_file() or _has_result(run_dir):
        return None
    try:
        before = _plain(read_config(run_dir / "config.yaml"))
    except RecexpError:
        return None
    changed = differences(before, _plain(cfg))
    if changed:
        raise RecexpError(
            f"The interrupted run in {run_dir} had other settings ({', '.join(changed[:SHOWN])}), "
            f"and what it trained would be lost. ckpt_path={last} goes on from it with the new "
            "settings; resume=never trains from the start; hydra.run.dir= chooses another "
            "directory."
        )
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
