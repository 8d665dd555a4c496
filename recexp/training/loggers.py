"""Weights & Biases that never asks for a key, and never ends a run.

Every call to W&B is guarded: the first failure gives one warning, and the run goes on. What cannot
be sent lies in offline files below the run directory, which ``wandb sync`` uploads.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, WandbLogger

from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.io import write_json

# Seconds that W&B may take to start a run, and to send its last records. The environment variables
# WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT replace them.
TIMEOUTS = {"init_timeout": 20.0, "finish_timeout": 60.0}
RECORD = "wandb_run.json"  # in the run directory: the id of its W&B run, by which a resume goes on
DEFAULT_PROJECT = "recexp"
MAX_TAG = 64  # characters, W&B's limit
MAX_NAME = 128
# Overrides that the name says already, or that tell no runs of a sweep apart.
NOT_IN_NAME = re.compile(
    r"\+*(model|dataset|protocol|seed|logger|group|tags|threads|cache_dir|run_dir|ckpt_path|hydra"
    r"|dataset\.raw_dir)(\.[^=]*)?="
)

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def wandb_logger(
    mode: Literal["auto", "online", "offline"] = "auto",
    *,
    project: str | None = DEFAULT_PROJECT,
    save_dir: str | None = ".",
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Any = None,
    entity: str | None = None,
    notes: str | None = None,
    resumed_from: str | None = None,
    log_model: Literal["all"] | bool = False,
) -> Logger | None:
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
    log_model: upload checkpoints as artifacts, as WandbLogger does; online only.
    """
    if not is_first_process() or os.environ.get("WANDB_MODE") == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it prints where the server fails
    folder = Path(save_dir or ".")
    earlier = _read_record(folder, resumed_from)
    wanted = {
        "project": project or DEFAULT_PROJECT,
        "name": _run_name(name, overrides or ()),
        "group": group,
        "job_type": job_type,
        "tags": _clean_tags(tags),
        "entity": entity,
        "notes": notes,
    }
    run, is_online = _start(mode, folder, earlier, wanted)
    if run is None:
        return None
    guard = _Guard(_where(run, is_online))
    return GuardedWandbLogger(
        guard,
        experiment=run,
        project=wanted["project"],
        save_dir=str(folder),
        log_model=log_model if is_online else False,
    )


class GuardedWandbLogger(WandbLogger):
    """Lightning's, of a W&B run that is started; no call raises.

    Metrics get names that W&B can sort by: ``val/ndcg@10`` is ``val/ndcg_at_10`` there.
    """

    def __init__(self, guard: _Guard, **settings: Any) -> None:
        super().__init__(**settings)
        self.guard = guard
        guard(_plot_against_epochs, self.experiment)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        named = {_sortable(name): value for name, value in metrics.items()}
        self.guard(super().log_metrics, named, step)

    def log_hyperparams(self, params: Any) -> None:  # type: ignore[override]
        self.guard(super().log_hyperparams, params)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.guard(super().after_save_checkpoint, checkpoint_callback)

    def finalize(self, status: str) -> None:
        self.guard(super().finalize, status)

    def summarize(self, summary: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Set values of the run's summary, and add to its config."""
        named = {_sortable(name): value for name, value in summary.items()}
        self.guard(self.experiment.summary.update, named)
        self.guard(self.experiment.config.update, dict(config), allow_val_change=True)

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, and its processes where no other run needs them.

        Returns after at most ``finish_timeout`` seconds.
        """
        self.guard(_finish, self.experiment, exit_code)
        self.guard.close()
        _end_processes()


def finish(logger: Logger, exit_code: int = 0) -> None:
    """Have the logger write its last records; W&B does so when its run is finished."""
    logger.finalize("success" if exit_code == 0 else "failed")
    if isinstance(logger, GuardedWandbLogger):
        logger.finish(exit_code)


@contextmanager
def finished_on_failure(loggers: Sequence[Logger]) -> Iterator[None]:
    """Finish the loggers where what is inside raises."""
    try:
        yield
    except BaseException:
        for logger in loggers:
            finish(logger, exit_code=1)
        raise


class _Guard:
    """Calls W&B; the first error ends the logging, with one warning, but not the run.

    where: what the warning says about the records so far.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.is_closed = False

    def __call__(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result | None:
        if self.is_closed:
            return None
        try:
            return call(*arguments, **named)
        except Exception as error:  # W&B raises many kinds, and none is worth losing the run
            self.close()
            log.warning(
                f"W&B failed ({_first_line(error)}); the run goes on. {self.where} metrics.csv and "
                "result.json hold everything."
            )
            return None

    def close(self) -> None:
        self.is_closed = True


def _start(
    mode: str, folder: Path, earlier: Mapping[str, str], wanted: Mapping[str, Any]
) -> tuple[Any, bool]:
    """The started W&B run, or None, and whether it is online.

    What fails online is tried offline, and then without the values that W&B may refuse.
    """
    from_environment = os.environ.get("WANDB_MODE", "")
    is_online = mode == "online" or (mode == "auto" and _has_key())
    is_online = is_online and from_environment not in ("offline", "dryrun")
    problem = ""
    if is_online and not _has_key():
        problem = "no key is configured: set WANDB_API_KEY or run wandb login"
    elif is_online and earlier.get("mode") == "offline":
        problem = "the earlier part of the run is logged offline"
    tries: list[tuple[bool, Mapping[str, Any]]] = [
        (False, wanted),
        (False, {"project": DEFAULT_PROJECT}),
    ]
    if is_online and not problem:
        tries.insert(0, (True, wanted))
    for online, settings in tries:
        try:
            run = _init(online, folder, earlier.get("id"), settings)
        except Exception as error:  # of W&B, pydantic, the disk or the network
            problem = problem or _first_line(error)
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
            # Offline, W&B goes on with a run of the same id when it is uploaded.
            resume="allow" if is_online and run_id else None,
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
    try:
        write_json(folder / RECORD, {"id": run.id, "mode": "online" if is_online else "offline"})
    except RecexpError as error:
        log.warning(f"A resumed run will be a new one in W&B: {error}")
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


def _read_record(folder: Path, resumed_from: str | None) -> dict[str, str]:
    """The id and mode of the W&B run that this run goes on with; {} for a new one."""
    if not resumed_from:
        return {}
    for place in (folder, Path(resumed_from).parent.parent):
        try:
            content = json.loads((place / RECORD).read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and re.fullmatch(r"[\w-]{1,64}", str(content.get("id"))):
            return {"id": str(content["id"]), "mode": str(content.get("mode"))}
    return {}


def _run_name(name: str | None, overrides: Sequence[str]) -> str | None:
    if name is None:
        return None
    telling = [text for text in map(str, overrides) if not NOT_IN_NAME.match(text)]
    return " ".join([name, *telling])[:MAX_NAME]


def _clean_tags(tags: Any) -> list[str] | None:
    """Distinct tags of the length that W&B takes."""
    if tags is None:
        return None
    is_one = isinstance(tags, str) or not isinstance(tags, Iterable)
    several = [tags] if is_one else list(tags)
    texts = [str(tag).strip()[:MAX_TAG] for tag in several if tag is not None]
    return list(dict.fromkeys(text for text in texts if text))


def _sortable(name: str) -> str:
    """A metric's name in W&B, which sorts by names of letters, digits, _ and / only."""
    return name.replace("@", "_at_")


def _where(run: Any, is_online: bool) -> str:
    path = run.settings.sync_dir
    so_far = "What was logged so far lies" if is_online else "Its records lie"
    return f"{so_far} in {path}; upload with: wandb sync {path}."


def _wandb_folders(folder: Path) -> list[Path]:
    """The folders of W&B runs that began online."""
    return [*folder.glob("wandb/run-*"), *folder.glob(".wandb/run-*")]


def _has_key() -> bool:
    """Is a key for the W&B server configured?"""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        path = os.environ.get("NETRC") or Path.home() / ".netrc"
        return netrc.netrc(path).authenticators(str(host)) is not None
    except (OSError, netrc.NetrcParseError, RuntimeError, ValueError):
        return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
