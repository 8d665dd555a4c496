"""Comet: online where a key is configured, otherwise an archive in the run directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CometLogger

from recexp.training.loggers.tracker import (
    PROJECT,
    Guard,
    Tracker,
    clean_tags,
    flat,
    read_record,
    run_name,
    save_record,
    started,
)

RECORD = "comet_run.json"  # in the run directory: the key of its Comet experiment
# Comet records no output, no code and no environment variables, and prints no summary.
QUIET: dict[str, Any] = {
    "log_code": False,
    "log_env_details": True,  # system metrics
    "auto_output_logging": False,
    "parse_args": False,
    "display_summary_level": 0,
}


def comet_logger(
    mode: Literal["auto", "online", "offline"] = "auto",
    *,
    project: str = PROJECT,
    workspace: str | None = None,
    save_dir: str = ".",
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Any = None,
    resumed_from: str | None = None,
    artifacts: bool = False,
) -> Tracker | None:
    """Lightning's CometLogger, started; None where it cannot start, and in all processes but one.

    mode: "online", "offline" (``comet upload SAVE_DIR/comet/*.zip`` uploads later), or "auto":
        online where a key is configured, else offline.
    The others: as of ``wandb_logger``; group and job_type become fields of the experiment.
    """

    def start() -> Tracker:
        folder = Path(save_dir)
        earlier = read_record(RECORD, folder, resumed_from)
        wants_online = mode == "online" or (mode == "auto" and _has_key())
        is_online = wants_online and earlier.get("mode") != "offline"
        # Lightning looks this up; Comet prints its progress otherwise.
        os.environ.setdefault("COMET_LOGGING_CONSOLE", "ERROR")
        logging.getLogger("comet_ml").setLevel(logging.ERROR)
        comet = _Comet(
            workspace=workspace,
            project=project,
            experiment_key=earlier.get("id"),
            mode="get" if earlier else "create",
            online=is_online,
            offline_directory=str(folder / "comet"),
            name=run_name(name, overrides or ()),
            tags=clean_tags(tags),
            **QUIET,
        )
        place = "at Comet" if is_online else f"in {folder / 'comet'}; upload with: comet upload"
        tracker = CometTracker(comet, Guard("Comet", f"Its records lie {place}."), artifacts)
        tracker.experiment.log_others({"group": group, "job_type": job_type})
        kind = "online" if is_online else "offline"
        save_record("Comet", folder / RECORD, tracker.experiment.get_key(), kind)
        return tracker

    return started("Comet", start)


class _Comet(CometLogger):
    """Lightning's; it disables every offline experiment, which then would record nothing."""

    def _create_experiment(self) -> None:
        import comet_ml

        self._comet_config = comet_ml.ExperimentConfig(**self._kwargs)
        super()._create_experiment()


class CometTracker(Tracker):
    """The summary's metrics are called ``summary/...``, because Comet shows the last values."""

    def __init__(self, logger: CometLogger, guard: Guard, keeps_files: bool) -> None:
        super().__init__(logger, guard, keeps_files=keeps_files)
        self.experiment: Any = logger.experiment

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        super()._log_settings(flat(settings))

    def _summarize(self, summary: Mapping[str, Any]) -> None:
        for name, value in summary.items():
            if isinstance(value, str):
                self.experiment.log_other(name, value)
            else:
                self.experiment.log_metric(f"summary/{name}", value)

    def _keep(self, files: Mapping[str, Path]) -> None:
        for kind, path in files.items():
            self.experiment.log_asset(str(path), file_name=f"{kind}/{path.name}")

    def _end(self, exit_code: int) -> None:
        super()._end(exit_code)
        self.experiment.end()


def _has_key() -> bool:
    """Is a key for Comet configured?"""
    import comet_ml

    return bool(comet_ml.get_config("comet.api_key"))
