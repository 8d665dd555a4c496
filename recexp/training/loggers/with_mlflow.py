"""MLflow: a server, or a database in the working directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from recexp.io import file_lock
from recexp.training.loggers.tracker import (
    PROJECT,
    Guard,
    Tracker,
    at_epoch,
    clean_tags,
    flat,
    read_record,
    run_name,
    save_record,
    started,
)

RECORD = "mlflow_run.json"  # in the run directory: the id of its MLflow run
SQLITE = "sqlite:///"
DATABASE = "mlflow.db"  # in the working directory, where "mlflow ui" looks for it
# Without these a run would wait minutes for a server that does not answer, and MLflow would report
# its use to its makers.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# They tell of tables that are created and of experiments that are new.
TALKATIVE = {"mlflow": logging.WARNING, "alembic": logging.WARNING}
TALKATIVE["pytorch_lightning.loggers.mlflow"] = logging.ERROR


def mlflow_logger(
    tracking_uri: str | None = None,
    *,
    project: str = PROJECT,
    save_dir: str = ".",
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Any = None,
    resumed_from: str | None = None,
    artifacts: bool = False,
) -> Tracker | None:
    """Lightning's MLFlowLogger, started; None where it cannot start, and in all processes but one.

    tracking_uri: of a server or a database; default: the environment variable
        MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working directory.
    project: the experiment that the run is added to. group, job_type, tags: become tags.
    The others: as of ``wandb_logger``.
    """
    found = {"group": group, "job_type": job_type, "tags": ", ".join(clean_tags(tags))}
    about = {key: value for key, value in found.items() if value}
    own_name = run_name(name, overrides or ())
    default = f"{SQLITE}{Path(DATABASE).absolute()}"
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default

    def start() -> Tracker:
        folder = Path(save_dir)
        earlier = read_record(RECORD, folder, resumed_from)
        tracker = _start(uri, project, own_name, about, earlier.get("id"), artifacts)
        save_record("MLflow", folder / RECORD, tracker.run_id, "online")
        return tracker

    return started("MLflow", start)


def _start(
    uri: str,
    project: str,
    name: str | None,
    tags: dict[str, Any],
    run_id: str | None,
    artifacts: bool,
) -> MlflowTracker:
    """Start a run, or go on with ``run_id``."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import mlflow  # noqa: F401  it sets levels itself

    for name_of_logger, level in TALKATIVE.items():
        logging.getLogger(name_of_logger).setLevel(level)
    database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    # Jobs of a sweep that start at once must not create the same tables.
    lock = file_lock(database.with_name(f".{database.name}.lock")) if database else nullcontext()
    with lock:
        logger = MLFlowLogger(project, run_name=name, tracking_uri=uri, tags=tags, run_id=run_id)
        return MlflowTracker(logger, Guard("MLflow", f"Its records are in {uri}."), artifacts)


class MlflowTracker(Tracker):
    """The step of its curves is the epoch, so that runs with other batch sizes are comparable.

    The summary's metrics are called ``summary/...``, because MLflow shows the last value of a
    metric; its texts are tags.
    """

    def __init__(self, logger: MLFlowLogger, guard: Guard, keeps_files: bool) -> None:
        super().__init__(logger, guard, keeps_files=keeps_files)
        self.client: Any = logger.experiment  # starts the run
        self.run_id = str(logger.run_id)
        self.step: int | None = None  # of the last metrics

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        values, self.step = at_epoch(metrics, step)
        super()._log_metrics(values, self.step)

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        # MLflow refuses to change one, and some of a resumed run differ.
        known = self.client.get_run(self.run_id).data.params
        new = {key: value for key, value in flat(settings).items() if key not in known}
        super()._log_settings(new)

    def _summarize(self, summary: Mapping[str, Any]) -> None:
        numbers = {}
        for name, value in summary.items():
            if isinstance(value, str):
                self.client.set_tag(self.run_id, name, value)
            else:
                numbers[f"summary/{name}"] = value
        super()._log_metrics(numbers, self.step)

    def _keep(self, files: Mapping[str, Path]) -> None:
        for kind, path in files.items():
            self.client.log_artifact(self.run_id, str(path), kind)
