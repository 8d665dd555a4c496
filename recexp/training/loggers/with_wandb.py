"""Weights & Biases that never asks for a key, and never ends a run.

What cannot be sent lies in offline files below the run directory, which ``wandb sync`` uploads.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger

from recexp.distributed import is_first_process
from recexp.training.loggers.tracker import (
    PROJECT,
    Guard,
    Tracker,
    clean_tags,
    first_line,
    read_record,
    run_name,
    save_record,
)

# Seconds that W&B may take to start a run, and to send its last records. The environment variables
# WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT replace them.
TIMEOUTS = {"init_timeout": 20.0, "finish_timeout": 60.0}
RECORD = "wandb_run.json"  # in the run directory: the id of its W&B run, by which a resume goes on

log = logging.getLogger(__name__)


def wandb_logger(
    mode: Literal["auto", "online", "offline"] = "auto",
    *,
    project: str | None = PROJECT,
    save_dir: str | None = ".",
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Any = None,
    entity: str | None = None,
    notes: str | None = None,
    resumed_from: str | None = None,
    artifacts: bool = False,
) -> Tracker | None:
    """Lightning's WandbLogger, started; None where W&B cannot start.

    Also None in all processes of a run but the first.

    Where the server cannot be used, or W&B refuses a value, the run is logged offline, with one
    warning. It then stays offline, also when it is resumed.

    mode: "online", "offline", or "auto": online where a key is configured, else offline. The
        environment variable WANDB_MODE=offline or disabled goes before it.
    save_dir: the run directory. name: of the run. overrides: of the command line; those that tell
        the runs of a sweep apart are added to the name.
    tags: a text or a list. resumed_from: the checkpoint that the run goes on from; the W&B run
        goes on, too, where its ``wandb_run.json`` lies in the run directory or beside the folder
        of the checkpoint.
    artifacts: store the tested checkpoint and the ranks per user with the run.
    """
    if not is_first_process() or os.environ.get("WANDB_MODE") == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it prints where the server fails
    folder = Path(save_dir or ".")
    earlier = read_record(RECORD, folder, resumed_from)
    wanted: dict[str, Any] = {
        "project": project or PROJECT,
        "name": run_name(name, overrides or ()),
        "group": group,
        "job_type": job_type,
        "tags": clean_tags(tags),
        "entity": entity,
        "notes": notes,
    }
    run, is_online = _start(mode, folder, earlier, wanted)
    if run is None:
        return None
    logger = WandbLogger(experiment=run, project=wanted["project"], save_dir=str(folder))
    return WandbTracker(logger, Guard("W&B", _where(run, is_online)), keeps_files=artifacts)


class WandbTracker(Tracker):
    """A W&B run that is started."""

    def __init__(self, logger: WandbLogger, guard: Guard, *, keeps_files: bool = False) -> None:
        super().__init__(logger, guard, keeps_files=keeps_files)
        self.run: Any = logger.experiment
        guard(_plot_against_epochs, self.run)

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, and its processes where no other run needs them.

        Returns after at most ``finish_timeout`` seconds.
        """
        super().finish(exit_code)
        _end_processes()

    def _summarize(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(summary))

    def _keep(self, files: Mapping[str, Path]) -> None:
        import wandb

        for kind, path in files.items():
            artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
            # Immutable: a file in the run directory need not be copied before it is sent.
            artifact.add_file(str(path.absolute()), name=path.name, policy="immutable")
            self.run.log_artifact(artifact)

    def _end(self, exit_code: int) -> None:
        super()._end(exit_code)
        _finish(self.run, exit_code)


def _start(
    mode: str, folder: Path, earlier: Mapping[str, str], wanted: Mapping[str, Any]
) -> tuple[Any, bool]:
    """The started W&B run, or None, and whether it is online.

    What fails online is tried offline, and then without the values that W&B may refuse.
    """
    from_environment = os.environ.get("WANDB_MODE", "")
    is_online = mode == "online" or (mode == "auto" and has_key())
    is_online = is_online and from_environment not in ("offline", "dryrun")
    problem = ""
    if is_online and not has_key():
        problem = "no key is configured: set WANDB_API_KEY or run wandb login"
    elif is_online and earlier.get("mode") == "offline":
        problem = "the earlier part of the run is logged offline"
    tries: list[tuple[bool, Mapping[str, Any]]] = [
        (False, wanted),
        (False, {"project": PROJECT}),
    ]
    if is_online and not problem:
        tries.insert(0, (True, wanted))
    for online, settings in tries:
        try:
            run = _init(online, folder, earlier.get("id"), settings)
        except Exception as error:  # of W&B, pydantic, the disk or the network
            problem = problem or first_line(error)
            continue
        if problem:
            log.warning(f"W&B logs this run offline ({problem}). {_where(run, online)}")
        return run, online
    log.warning(f"W&B records nothing of this run ({problem}); metrics.csv and result.json do.")
    return None, False


def _init(is_online: bool, folder: Path, run_id: str | None, wanted: Mapping[str, Any]) -> Any:
    """Start a W&B run and note its id in the folder. Nothing is left of one that fails."""
    import wandb

    before = set(_wandb_folders(folder))
    timeouts: dict[str, Any] = {
        name: seconds
        for name, seconds in TIMEOUTS.items()
        if f"WANDB_{name.upper()}" not in os.environ
    }
    try:
        run = wandb.init(
            dir=str(folder),
            id=run_id,
            mode="online" if is_online else "offline",
            # Offline, too: wandb sync then appends to what it uploaded of the run before.
            resume="allow" if run_id else None,
            # A run that is active in this process, such as a notebook's, is another run.
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout_raises=True, **timeouts
            ),
            **wanted,
        )
    except BaseException:
        # Its process goes on trying, and its id stays in use.
        _end_processes()
        for left in set(_wandb_folders(folder)) - before:
            shutil.rmtree(left, ignore_errors=True)
        raise
    save_record("W&B", folder / RECORD, run.id, "online" if is_online else "offline")
    return run


def _finish(run: Any, exit_code: int) -> None:
    """Raises an error where not everything was sent."""
    log = Path(run.settings.log_internal)
    run.finish(exit_code=exit_code)
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return
    # W&B tells of it in its log only.
    failed = [line for line in lines if "fatal error" in line or "failed to upload" in line]
    if failed:
        raise RuntimeError(f"not everything was sent: {_message(failed[0])}")


def _message(line: str) -> str:
    """What a line of W&B's log says."""
    try:
        return str(json.loads(line)["msg"])
    except (ValueError, KeyError, TypeError):
        return line


def _end_processes() -> None:
    """End W&B's processes, unless a run of somebody else in this process needs them."""
    import wandb

    if wandb.run is None:
        # It fails where the process is gone, or ends Python with that one's exit code.
        with suppress(Exception, SystemExit):
            wandb.teardown()


def _plot_against_epochs(run: Any) -> None:
    """Curves against epochs, not steps, so that runs with other batch sizes are comparable.

    The summary is written at the end: it holds the selected epoch's values, not the last ones.
    """
    run.define_metric("epoch", summary="none")
    for pattern in ("train/*", "val/*", "test/*", "lr"):
        run.define_metric(pattern, step_metric="epoch", summary="none")


def _where(run: Any, is_online: bool) -> str:
    path = run.settings.sync_dir
    so_far = "What was logged so far lies" if is_online else "Its records lie"
    return f"{so_far} in {path}; upload with: wandb sync {path}."


def _wandb_folders(folder: Path) -> list[Path]:
    """The folders of W&B runs that began online."""
    return [*folder.glob("wandb/run-*"), *folder.glob(".wandb/run-*")]


def has_key() -> bool:
    """Is a key for the W&B server configured?"""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        path = os.environ.get("NETRC") or Path.home() / ".netrc"
        return netrc.netrc(path).authenticators(str(host)) is not None
    except (OSError, netrc.NetrcParseError, RuntimeError, ValueError):
        return False
