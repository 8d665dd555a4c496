"""Hydra sweeper: search for hyper-parameters with Optuna.

The sweeper alone talks to the study. A trial is a run like any other, in a process of the launcher
and without Optuna: the sweeper reads the validation values in its ``metrics.csv`` and ends it by a
signal where the pruner says so. A worker that is killed leaves runs behind that can go on, and the
next start of the same command takes their trials up.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from recexp.cli.launcher import ProcessLauncher
from recexp.config.presets import apply_preset
from recexp.errors import RecexpError
from recexp.io import write_json
from recexp.logs import printable
from recexp.runs.identity import differences, key_of, material
from recexp.runs.loading import read_epoch_table, read_json
from recexp.search.best import check_preset_path, preset_values, write_preset
from recexp.search.options import Options
from recexp.search.space import Space, read_space
from recexp.search.trial_file import State, TrialFile
from recexp.training.interrupts import SIGNALS

if TYPE_CHECKING:
    from recexp.search.study import Best, SharedStudy, Trial

CHECK = 2.0  # seconds between two checks for trials that other workers left
MOST_KILLS = 3  # starts of a trial whose process is killed while its worker lives
MOST_FAILURES = 3  # trials that fail before any finishes
NAMES = ("model", "dataset", "protocol")
NEEDED = ("optuna", "cmaes", "sqlalchemy", "alembic")
SHOWN = 3  # changed settings that a message names

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """``hydra/sweeper=optuna``: see ``conf/hydra/sweeper/optuna.yaml`` for what its keys mean."""

    def __init__(self, params: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.params = params
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``sweep``."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; ``arguments`` are the overrides of the command line.

        Returns the number, value and values of the best trial. Whatever can be wrong is an error
        before the first trial starts.
        """
        assert self.hydra_context and self.config and self.launcher, "setup comes first"
        study_class = _import_study()
        if not isinstance(self.launcher, ProcessLauncher):
            raise RecexpError(
                "hydra/sweeper=optuna needs hydra/launcher=processes. On a cluster, start the same "
                "command in several jobs with one hydra.sweeper.storage."
            )
        options = Options.checked(dict(self.options))
        preset = check_preset_path(options.preset)
        search = _Search(self.config, self.hydra_context, self._space(arguments))
        metric = search.metric(options.metric)
        search.check_space()
        name = options.study or " ".join(search.names.values())
        study = study_class(options, name, search.space, search.about(metric))
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        log.info(_line(f"{name}: {study.plan()}, {metric} is maximized, {options.storage}"))
        trials = _Trials(study, search, metric, folder)
        try:
            self.launcher.launch_each(trials)
        finally:
            study.leave()
        best = trials.conclude()
        search.write_preset(preset, best)
        return {"trial": best.number, "value": best.value, "values": best.values}

    def _space(self, arguments: Sequence[str]) -> Space:
        assert self.hydra_context
        if self.params is not None and not isinstance(self.params, Mapping | DictConfig):
            raise RecexpError(f"hydra.sweeper.params={self.params!r}: must be keys with sweeps.")
        params = OmegaConf.to_container(OmegaConf.create(dict(self.params or {})))
        assert isinstance(params, dict)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        # What search=... says is in params.
        words = [word for word in arguments if key_of(word) != "search"]
        return read_space({str(key): value for key, value in params.items()}, words, parser)


def _import_study() -> type[SharedStudy]:
    try:
        from recexp.search.study import SharedStudy
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise RecexpError(
            f"hydra/sweeper=optuna needs {error.name}, which is not installed: "
            "pip install 'recexp[search]', or pip install optuna cmaes."
        ) from None
    return SharedStudy


class _Search:
    """The configs of a search's trials."""

    def __init__(self, master: DictConfig, context: HydraContext, space: Space) -> None:
        self._master = master
        self._loader = context.config_loader
        self.space = space
        self.first = self.composed(next(space.corners()))
        choices = self.first.hydra.runtime.choices
        self.names = {group: str(choices[group]) for group in NAMES}

    def composed(self, words: Sequence[str], *, is_plain: bool = False) -> DictConfig:
        """The config of a trial, Hydra's node included.

        is_plain: without the fixed overrides, for what a preset has to say.
        """
        fixed = () if is_plain else self.space.fixed
        try:
            config = self._loader.load_sweep_config(self._master, [*fixed, *words])
            return apply_preset(config)
        except HydraException as error:
            lines = " ".join(str(error).split("\n"))
            raise RecexpError(f"The search cannot set {' '.join(words)}: {lines}") from error

    def names_of(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Model, data set and protocol of a trial; the model may be searched."""
        return {name: str(values.get(name, chosen)) for name, chosen in self.names.items()}

    def check_space(self) -> None:
        """Raise RecexpError where a value of the space is refused, or search= sets more."""
        from recexp.config.check import check_config  # imports torch

        for number, words in enumerate(self.space.corners()):
            config = self.composed(words) if number else self.first.copy()
            with open_dict(config):
                config.hydra.runtime.output_dir = str(config.hydra.sweep.dir)
                config.hydra.job.num = 0
                config.hydra.job.id = "0"
            HydraConfig.instance().set_config(config)
            try:
                check_config(_without_hydra(config))
            except RecexpError as error:
                raise RecexpError(f"The search would try {' '.join(words)}: {error}") from error
        self._check_search_file()

    def _check_search_file(self) -> None:
        """The trials are composed without ``search=``, so it may hold hydra.sweeper only."""
        chosen = self._master.hydra.runtime.choices.get("search")
        if not chosen:
            return
        changed = differences(
            _settings(self.composed([])), _settings(self.composed([f"search={chosen}"]))
        )
        if changed:
            raise RecexpError(
                f"search={chosen} also sets {', '.join(changed[:SHOWN])}: a file of search/ may "
                "hold hydra.sweeper only; put other settings into an experiment."
            )

    def metric(self, name: str | None) -> str:
        """The metric to maximize: the one asked for, else that which chooses a run's epoch.

        Raises RecexpError for a metric that no validation has.
        """
        from recexp.config.check import known_metrics, monitored  # imports torch

        if name is None:
            return monitored(self.first)
        known = [metric for metric in known_metrics(self.first) if metric.startswith("val/")]
        if name not in known:
            raise RecexpError(f"hydra.sweeper.metric={name}: must be one of {', '.join(known)}.")
        return name

    def about(self, metric: str) -> dict[str, Any]:
        """What two starts of a search must have in common."""
        settings = material(_settings(self.first))
        for key in self.space.parameters:
            _remove(settings, key)
        content: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return {"metric": metric, "params": self.space.to_dict(), "settings": content}

    def write_preset(self, path: Path, best: Best) -> None:
        """Write the best trial's values, and say how to use them."""
        trial = self.composed(self.space.words(best.values))
        names = trial.hydra.runtime.choices
        words = [f"{key}={names[key]}" for key in self.names]
        plain = self.composed([*words, "preset=none"], is_plain=True)
        values = preset_values(_settings(plain, resolve=False), _settings(trial, resolve=False))
        write_preset(path, names.dataset, names.model, values)
        command = f"--config-dir {path.parent.parent} preset={path.stem} {' '.join(words)}"
        log.info(_line(f"written to {path}; to use it: python -m recexp {command}"))


def _without_hydra(config: DictConfig) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config


def _settings(config: DictConfig, *, resolve: bool | None = None) -> dict[str, Any]:
    settings = OmegaConf.to_container(config, resolve=bool(resolve))
    assert isinstance(settings, dict)
    settings.pop("hydra", None)
    return {str(key): value for key, value in settings.items()}


def _remove(settings: dict[str, Any], key: str) -> None:
    """Take a searched key, or the whole of a searched group, out of the settings."""
    *above, last = key.lstrip("+").replace("/", ".").split(".")
    node: Any = settings
    for part in above:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(last, None)


@dataclass
class _Running:
    """words: what the trial sets. seen: time of the last change of metrics.csv that was read.

    n_kills: of its process.
    """

    trial: Trial
    words: list[str]
    seen: int = 0
    n_kills: int = 0


class _Trials:
    """The trials as a source of jobs for the launcher."""

    def __init__(self, study: SharedStudy, search: _Search, metric: str, folder: Path) -> None:
        self.study = study
        self.search = search
        self.metric = metric
        self.folder = folder
        self._running: dict[int, _Running] = {}
        self._again: list[int] = []
        self._looked = -CHECK
        self._over = False

    def next(self) -> tuple[int, list[str], Path] | None:
        """A trial to run; one that is only to be told of is told of here."""
        if self._again:
            return self._job(self._again.pop())
        if time.monotonic() - self._looked < CHECK:
            return None
        trial = self.study.claim(self.folder)
        if trial is None:
            self._looked = time.monotonic()
            counts = self.study.counts()
            self._over = counts.total >= self.study.n_trials and not counts.running
            return None
        self._running[trial.number] = _Running(trial, self.search.space.words(trial.values))
        if trial.pruned is not None:
            self._finish(trial, "pruned", None)
            return None
        self._write(trial, "running", None)
        return self._job(trial.number)

    def _job(self, number: int) -> tuple[int, list[str], Path]:
        one = self._running[number]
        return number, [*self.search.space.fixed, *one.words], one.trial.folder

    def is_over(self) -> bool:
        """Are all trials at their ends, also those of other workers?"""
        return self._over

    def must_end(self, number: int) -> bool:
        """Report the new epochs; says once whether the pruner ends the trial."""
        one = self._running[number]
        if one.trial.pruned is not None:
            return False
        table = one.trial.folder / "metrics.csv"
        try:
            changed = table.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if changed == one.seen:
            return False
        one.seen = changed
        return self._report(one)

    def _report(self, one: _Running) -> bool:
        """Does the pruner end the trial after one of its new epochs?"""
        n_epochs = _n_epochs(one.trial.folder)
        for row in _epochs(one.trial.folder):
            epoch = int(row["epoch"]) + 1
            if epoch <= one.trial.n_reported or self.metric not in row:
                continue
            # After the last epoch the run is about to have its result.
            may_end = epoch < n_epochs
            if self.study.report(one.trial, epoch, row[self.metric], may_end=may_end):
                return True
        return False

    def end(self, number: int, code: int, result: dict[str, Any] | None, reason: str) -> None:
        """Tell the study how the trial ended, or let it go on where its process was killed."""
        one = self._running[number]
        trial = one.trial
        if result is None and trial.pruned is not None:
            self._finish(trial, "pruned", None)
            return
        if result is None and _by_signal(code) and one.n_kills + 1 < MOST_KILLS:
            one.n_kills += 1
            self._again.append(number)
            log.warning(_line(f"trial {number} goes on, for its process was ended: {reason}"))
            return
        if result is None:
            self._finish(trial, "failed", None, reason)
            return
        self._report(one)
        value = result.get("metrics", {}).get(self.metric)
        if isinstance(value, int | float) and math.isfinite(value):
            self._finish(trial, "finished", float(value))
        else:
            self._finish(trial, "failed", None, f"its result has {self.metric}={value}")

    def _finish(self, trial: Trial, state: State, value: float | None, reason: str = "") -> None:
        from optuna.trial import TrialState

        states = {
            "finished": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        if state == "pruned":
            reason = f"ended by the pruner after epoch {trial.pruned}"
            _mark_pruned(trial.folder, reason)
        self._write(trial, state, value, reason)
        self.study.finish(trial, states[state], value, reason)
        del self._running[trial.number]
        self._say(trial, state, value, reason)
        self._check_failures(state, reason, trial)

    def _say(self, trial: Trial, state: State, value: float | None, reason: str) -> None:
        counts = self.study.counts()
        best = self.study.best()
        parts = [f"trial {trial.number} {state}"]
        parts.append(f"{self.metric} {value:.4f}" if value is not None else reason)
        if best is not None:
            parts.append(f"best {best.value:.4f} (trial {best.number})")
        n_done = counts.total - counts.running
        log.info(_line(f"{', '.join(parts)}; {n_done} of {self.study.n_trials} done"))

    def _check_failures(self, state: State, reason: str, trial: Trial) -> None:
        """Raise RecexpError where trials fail and none has ever ended otherwise."""
        counts = self.study.counts()
        if state != "failed" or counts.finished or counts.pruned:
            return
        if counts.failed >= min(MOST_FAILURES, self.study.n_trials):
            raise RecexpError(
                f"The first {counts.failed} trials failed, so the search ends; the last one: "
                f"{reason} ({trial.folder}/log.txt). Start again with another "
                "hydra.sweeper.study=... when the cause is gone."
            )

    def _write(self, trial: Trial, state: State, value: float | None, reason: str = "") -> None:
        rows = _epochs(trial.folder)
        TrialFile(
            search=self.study.name,
            number=trial.number,
            state=state,
            **self.search.names_of(trial.values),
            metric=self.metric,
            value=value,
            values=trial.values,
            epochs=len(rows),
            updates=_n_updates(trial.folder, rows),
            reason=reason,
        ).write(trial.folder)

    def conclude(self) -> Best:
        """The best trial, said to the user.

        Raises RecexpError where no trial finished.
        """
        counts = self.study.counts()
        best = self.study.best()
        summary = f"{counts.finished} finished, {counts.pruned} pruned, {counts.failed} failed"
        if best is None:
            raise RecexpError(f"No trial of the search finished ({summary}).")
        log.info(_line(f"{self.study.name}: {summary}"))
        values = " ".join(self.search.space.words(best.values))
        log.info(
            _line(f"best {self.metric} {best.value:.4f}, trial {best.number} in {best.folder}")
        )
        log.info(_line(f"with {values}"))
        return best


def _by_signal(code: int) -> bool:
    """Was the process ended from outside? A run exits with 128 and the signal that ends it."""
    return code < 0 or code in {128 + signum for signum in SIGNALS}


def _epochs(folder: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``; none where there is no table, or a damaged one."""
    try:
        return read_epoch_table(folder / "metrics.csv")
    except (FileNotFoundError, RecexpError):
        return []


def _n_epochs(folder: Path) -> float:
    """The epochs that the trial may train, as the launcher wrote them down."""
    settings = read_json(folder / "job.json")["config"]
    most = settings.get("trainer", {}).get("max_epochs")
    return most if isinstance(most, int) and most >= 0 else math.inf


def _n_updates(folder: Path, rows: Sequence[Mapping[str, float]]) -> int:
    """Optimizer steps: of the result, else of the last epoch."""
    try:
        result = read_json(folder / "result.json")
    except (FileNotFoundError, RecexpError):
        result = {}
    updates = result.get("updates") if isinstance(result, dict) else None
    if isinstance(updates, int):
        return updates
    return int(rows[-1].get("step", 0)) if rows else 0


def _mark_pruned(folder: Path, reason: str) -> None:
    """Let the ``result.json`` of the ended run say what ended it."""
    try:
        result = read_json(folder / "result.json")
    except (FileNotFoundError, RecexpError):
        return
    if isinstance(result, dict) and "interrupted" in result:
        write_json(
            folder / "result.json", result | {"interrupted": "the pruner", "stop_reason": reason}
        )


def _line(text: str) -> str:
    return printable(f"[search] {text}")
