"""What all experiment trackers have in common: guarded calls, names, records for a resumed run."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.io import write_json
from recexp.training.callbacks import EpochTable
from recexp.training.checkpoints import best_row
from recexp.training.signals import Interrupted

PROJECT = "recexp"
MAX_NAME = 128  # characters, W&B's limit
MAX_TAG = 64
CHECKSUM = 8  # characters that tell names apart that had to be cut
# Overrides that the name says already, and those that change no number of a run.
NOT_IN_NAME = re.compile(
    r"[+~]*((model|dataset|protocol|seed)=|(logger|group|tags|threads|cache_dir|run_dir|ckpt_path"
    r"|resume|plugins|evaluation|hydra|dataset\.(raw_dir|download))([./@][^=]*)?=)"
)
# Packages of which a logger needs one, by the function that makes it.
PACKAGES = {
    "tensorboard_logger": ("tensorboard", "tensorboardX"),
    "mlflow_logger": ("mlflow",),
    "comet_logger": ("comet_ml",),
}
ELSEWHERE = "metrics.csv and result.json hold everything."

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Guard:
    """Calls a tracker; the first error ends its logging, with one warning, but not the run.

    tracker: its name. where: what the warning says about the records so far.
    """

    def __init__(self, tracker: str, where: str = "") -> None:
        self.tracker = tracker
        self.where = where
        self.is_closed = False

    def __call__(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result | None:
        if self.is_closed:
            return None
        try:
            return call(*arguments, **named)
        except Exception as error:  # trackers raise many kinds, and none is worth losing the run
            self.close()
            words = f"{self.where} {ELSEWHERE}".strip()
            log.warning(f"{self.tracker} failed ({first_line(error)}); the run goes on. {words}")
            return None

    def close(self) -> None:
        self.is_closed = True


class Tracker(Logger):
    """One of Lightning's loggers, started; no call of it raises.

    Metrics have the same names in all trackers: ``val/ndcg@10`` is ``val/ndcg_at_10`` there,
    because W&B cannot sort by, and MLflow refuses, other characters.

    keeps_files: whether ``keep`` gets the files of the run.
    """

    def __init__(self, logger: Logger, guard: Guard, *, keeps_files: bool = False) -> None:
        super().__init__()
        self.logger = logger
        self.guard = guard
        self.keeps_files = keeps_files

    @property
    def name(self) -> str | None:
        return self.guard(lambda: self.logger.name)

    @property
    def version(self) -> int | str | None:
        return self.guard(lambda: self.logger.version)

    @property
    def save_dir(self) -> str | None:
        return self.guard(lambda: self.logger.save_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.guard(self._log_metrics, _sortable(metrics), step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Add settings, a nested mapping."""
        self.guard(self._log_settings, params)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Set values that stand for the whole run; later ones replace earlier ones."""
        self.guard(self._summarize, _sortable(summary))

    def keep(self, files: Mapping[str, Path]) -> None:
        """Store files with the run, each under its name."""
        self.guard(self._keep, files)

    def finalize(self, status: str) -> None:
        """Lightning's call after the training, and again after the test; ``finish`` ends a run."""

    def finish(self, exit_code: int = 0) -> None:
        """Write the last records; nothing is logged afterwards."""
        self.guard(self._end, exit_code)
        self.guard.close()

    # What a kind of tracker does in its own way.

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        self.logger.log_metrics(dict(metrics), step)

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        self.logger.log_hyperparams(dict(settings))

    def _summarize(self, summary: Mapping[str, Any]) -> None:
        """Without an own way, only the curves are logged."""

    def _keep(self, files: Mapping[str, Path]) -> None:
        """Without an own way, files stay where they are."""

    def _end(self, exit_code: int) -> None:
        self.logger.finalize("success" if exit_code == 0 else "failed")


def started(tracker: str, start: Callable[[], Tracker]) -> Tracker | None:
    """What ``start`` returns; None, with a warning, where it fails, and in other processes."""
    if not is_first_process():
        return None
    try:
        return start()
    except Exception as error:  # as in Guard
        reason = first_line(error)
        log.warning(f"{tracker} records nothing of this run ({reason}). {ELSEWHERE}")
        return None


def check_installed(targets: Iterable[str]) -> None:
    """Raise RecexpError where a package is missing that a logger needs.

    targets: the ``_target_`` of loggers.
    """
    for target in targets:
        packages = PACKAGES.get(target.rpartition(".")[2], ())
        if packages and not any(map(find_spec, packages)):
            package = packages[0].replace("_", "-")
            raise RecexpError(
                f"logger={package.partition('-')[0]} needs the package {package}: "
                f"pip install {package}, or recexp[tracking] for all trackers."
            )


class BestSoFar(pl.Callback):
    """Trackers show the best epoch so far, also of a run that does not come to its end.

    table: stands before this one among the callbacks. monitor: the metric that chooses.
    """

    def __init__(self, table: EpochTable, monitor: str) -> None:
        self.table = table
        self.monitor = monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        rows = self.table.rows
        best = best_row(rows, self.monitor)
        if best is not None and best is rows[-1]:
            values = {name: v for name, v in best.items() if name.startswith("val/")}
            for tracker in trackers(trainer.loggers):
                tracker.summarize(values | {"best_epoch": int(best["epoch"])})


def trackers(loggers: Iterable[Logger]) -> list[Tracker]:
    return [logger for logger in loggers if isinstance(logger, Tracker)]


@contextmanager
def finished_on_failure(loggers: Sequence[Tracker]) -> Iterator[None]:
    """Finish the trackers where what is inside raises, with the reason in their summary."""
    try:
        yield
    except BaseException as error:
        reason = f"failed: {type(error).__name__}"
        if isinstance(error, Interrupted):
            reason = f"interrupted by {signal.Signals(error.signum).name}"
        for logger in loggers:
            logger.summarize({"stop_reason": reason})
            logger.finish(exit_code=1)
        raise


def run_name(name: str | None, overrides: Iterable[Any]) -> str | None:
    """The name with the overrides that tell the runs of a sweep apart.

    Of several values of a key the last counts. A name that is too long has the last parts of keys
    only, and where that is too long, too, it is cut and ends with a checksum.
    """
    if name is None:
        return None
    words = {}
    for word in map(str, overrides):
        if not NOT_IN_NAME.match(word):
            key = word.partition("=")[0].lstrip("+~")
            words[key] = word
    whole = " ".join([name, *words.values()])
    if len(whole) <= MAX_NAME:
        return whole
    short = " ".join([name, *(_short(word) for word in words.values())])
    if len(short) <= MAX_NAME:
        return short
    digest = hashlib.sha256(whole.encode()).hexdigest()[:CHECKSUM]
    return f"{short[: MAX_NAME - CHECKSUM - 1]} {digest}"


def _short(word: str) -> str:
    """ "model.n_factors=8" -> "n_factors=8"."""
    key, equals, value = word.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def clean_tags(tags: Any) -> list[str]:
    """Distinct tags of the length that trackers take. tags: a text, a list or None."""
    is_one = isinstance(tags, str) or not isinstance(tags, Iterable)
    several = [tags] if is_one else list(tags)
    texts = [str(tag).strip()[:MAX_TAG] for tag in several if tag is not None]
    return list(dict.fromkeys(text for text in texts if text))


def at_epoch(metrics: Mapping[str, float], step: int | None) -> tuple[dict[str, float], int | None]:
    """The metrics without their epoch, and that epoch as their step, if they have one."""
    others = dict(metrics)
    epoch = others.pop("epoch", None)
    return others, step if epoch is None else int(epoch)


def flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys, as the command line writes them; lists are texts."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{start}{key}.")
        else:
            is_plain = value is None or isinstance(value, str | int | float)
            found[f"{start}{key}"] = value if is_plain else str(value)
    return found


def _sortable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {sortable(name): value for name, value in values.items()}


def sortable(name: str) -> str:
    """A metric's name in trackers: letters, digits, _ and / only."""
    ascii_name = name.replace("@", "_at_").encode("ascii", "backslashreplace").decode()
    return re.sub(r"[^A-Za-z0-9_/]", "_", ascii_name)


def read_record(file: str, folder: Path, resumed_from: str | None) -> dict[str, str]:
    """What ``save_record`` wrote, where this run goes on with another's record; {} for a new one.

    file: its name. folder: the run directory. resumed_from: the checkpoint that the run goes on
    from; the record lies in the run directory, or beside the folder of the checkpoint.
    """
    if not resumed_from:
        return {}
    return record_in(folder / file) or record_in(Path(resumed_from).parent.parent / file)


def record_in(path: Path) -> dict[str, str]:
    """The id and mode that ``save_record`` wrote; {} where there is no such file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(content, dict) and re.fullmatch(r"[\w-]{1,64}", str(content.get("id"))):
        return {"id": str(content["id"]), "mode": str(content.get("mode"))}
    return {}


def save_record(tracker: str, path: Path, run_id: str, mode: str) -> None:
    """Note the tracker's id of the run, by which a resumed run goes on with it."""
    try:
        write_json(path, {"id": run_id, "mode": mode})
    except RecexpError as error:
        log.warning(f"A resumed run will be a new one in {tracker}: {error}")


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
