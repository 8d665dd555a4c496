"""``python -m recexp``: Hydra composes the config, ``recexp.runs.run`` trains and evaluates."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recexp.cli import slurm
from recexp.cli.streams import make_streams_last
from recexp.cli.sweep_names import with_sweep_directory
from recexp.config import CONF
from recexp.config.build import register_resolvers
from recexp.config.overrides import resume_advice
from recexp.config.presets import apply_preset, check_choices, with_quickstart
from recexp.errors import RecexpError, shortage
from recexp.io import advice, reason
from recexp.logs import show_logs
from recexp.renamed import warn_of_renamed, with_new_words
from recexp.runs.directory import INHERITED, RUN_DIR
from recexp.training.interrupts import Stopped, enter_stage, handle_signals, says_so

if TYPE_CHECKING:
    from recexp.training.signals import Interrupted

PLUGINS = Path(__file__).parent / "plugins"
RANK_VARIABLES = ("RANK", "SLURM_PROCID")  # of torchrun and SLURM
# Variables that name a process's rank, and those that every launcher sets with them.
COMPANIONS = {
    "RANK": ("WORLD_SIZE", "MASTER_ADDR"),
    "LOCAL_RANK": ("MASTER_ADDR",),
    "SLURM_PROCID": ("SLURM_NTASKS",),
    "JSM_NAMESPACE_RANK": ("JSM_NAMESPACE_SIZE",),
}
# Options of Hydra whose next word is not an override, and those where it may be one.
OPTIONS_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--experimental-rerun"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
}
INFO = {"--info", "-i"}

log = logging.getLogger(__name__)


def main() -> None:
    """Compose the config of the command line and run it."""
    handle_signals()
    make_streams_last()
    show_logs()
    _check_working_directory()
    if INHERITED in os.environ:  # a job of a sweep
        slurm.leave_job(os.environ)
    slurm.read_task(os.environ)
    drop_stray_ranks(os.environ)
    warn_of_renamed(sys.argv[1:])
    with _errors_explained():
        words = with_sweep_directory(with_new_words(sys.argv[1:]))
        check_choices(words)
    words = slurm.with_directory(words, os.environ)
    words = with_sweeper(with_quickstart(arguments_of_rank(words, os.environ)))
    sys.argv[1:] = overrides_first(words)
    register_resolvers()
    register_plugins()
    # Hydra then raises its errors, for instance of a full disk, instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_run)
    with _errors_explained():
        start()


def arguments_of_rank(words: list[str], environment: MutableMapping[str, str]) -> list[str]:
    """The command line of one of several processes that torchrun or SLURM started alike.

    Only the first process may have a run directory; the others get it as a variable.
    """
    ranks = [environment[name] for name in RANK_VARIABLES if name in environment]
    is_first = not ranks or ranks[0] in ("", "0")
    if is_first:
        return words
    others = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra.run.dir":
            environment[RUN_DIR] = os.path.abspath(value)
        else:
            others.append(word)
    return [*others, "hydra.run.dir=.", "hydra.output_subdir=null"]


def with_sweeper(words: list[str]) -> list[str]:
    """The command line, with the sweeper that searches where it chooses a search space only."""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    if values.get("search", "null") == "null" or "hydra/sweeper" in values:
        return words
    return [*words, "hydra/sweeper=optuna"]


def overrides_first(words: Sequence[str]) -> list[str]:
    """The command line with its overrides before its options.

    Hydra's parser refuses overrides on both sides of an option.
    """
    overrides = []
    options = []
    for previous, word in pairwise(["", *words]):
        is_value = previous in OPTIONS_WITH_VALUE or (previous in INFO and "=" not in word)
        if word.startswith("-") or is_value:
            options.append(word)
        else:
            overrides.append(word)
    return overrides + options


def drop_stray_ranks(environment: MutableMapping[str, str]) -> None:
    """Remove ranks that no launcher of processes set, with a warning.

    Lightning would take the process for one of several, which write no files.
    """
    for name, companions in COMPANIONS.items():
        missing = [other for other in companions if not environment.get(other)]
        if name in environment and missing:
            value = environment.pop(name)
            log.warning(
                "warning: %s=%s is ignored, because %s is not set: this is a run of one process",
                name,
                value,
                " and ".join(missing),
            )
        elif not environment.get(name, "0").isdigit():
            sys.exit(f"error: {name}={environment[name]!r} must be a whole number at least 0.")


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(
            f"error: the working directory cannot be used ({reason(error)}): it was removed or "
            "moved. Change to one that exists (cd)."
        )


def register_plugins() -> None:
    """Make the launcher and the sweepers known to Hydra, also where recexp is not installed."""
    if not _is_importable("hydra_plugins.recexp"):
        sys.path.append(str(PLUGINS))
        importlib.invalidate_caches()
    plugins = importlib.import_module("hydra_plugins.recexp")
    for plugin in (plugins.ProcessLauncher, plugins.GridSweeper, plugins.OptunaSweeper):
        Plugins.instance().register(plugin)
    # The package hydra-optuna-sweeper stores a config under the name of ours, which Hydra would
    # take for the schema of ours.
    sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
    sweepers.pop("optuna.yaml", None)


def _is_importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the parent
        return False


def _run(cfg: DictConfig) -> float | None:
    """Returns validation NDCG@10, which searching sweepers maximize."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return _train(cfg)
    # A launcher that is not ours calls this function, often in a process that ran no ``main``.
    show_logs()
    register_resolvers()
    slurm.read_task(os.environ)
    with _failures_of_job():
        return _train(cfg)


def _train(cfg: DictConfig) -> float | None:
    """The run of the config, unless another start of it came to its end."""
    # Imported after Hydra has parsed the command line: --help need not wait for torch.
    from recexp.runs.resume import finished
    from recexp.runs.run import run
    from recexp.training.signals import Interrupted

    hydra_config = HydraConfig.get()
    is_job = hydra_config.mode == RunMode.MULTIRUN
    # Also here, because Hydra prints the overrides when an error leaves this function.
    with _errors_explained():
        cfg = apply_preset(cfg, hydra_config)
        place = hydra_config.sweep if is_job else hydra_config.run
        requeue = slurm.Requeue(Path(str(cfg.run_dir)), is_kept=slurm.is_kept(place))
        result = finished(cfg) if is_job or slurm.was_requeued() else None
        try:
            result = run(cfg) if result is None else result
        except Interrupted as interrupted:
            _exit_interrupted(interrupted, requeue)
        finally:
            # Only the end of the process is left, where an exception would not be handled.
            enter_stage("came at the end of the program", ends_at_once=True)
    metrics: dict[str, float] = result.get("metrics", {})
    return metrics.get("val/ndcg@10")


def _exit_interrupted(interrupted: Interrupted, requeue: slurm.Requeue) -> NoReturn:
    if says_so():
        advice = "" if interrupted.has_result else f"; {resume_advice(interrupted.run_dir)}"
        print(f"{interrupted}{advice}", file=sys.stderr)
    if interrupted.has_result:
        sys.exit(128 + interrupted.signum)
    requeue.end(interrupted.signum, is_first=says_so())


@contextmanager
def _failures_of_job() -> Iterator[None]:
    """Failures inside another launcher reach the sweep.

    Hydra takes an exception for the value of a finished job: in SLURM, where each job is judged by
    its exit code, it ends the process. Elsewhere the launchers hand exceptions on, but not exits.
    """
    in_submitit = slurm.SUBMITIT in os.environ
    try:
        yield
    except Exception:
        if not in_submitit:
            raise
        traceback.print_exc()
        sys.exit(1)
    except SystemExit as end:
        if in_submitit or not isinstance(end.code, str):
            raise
        raise RuntimeError(end.code) from None


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Errors that the user can correct end the program with one message and no traceback."""
    try:
        yield
    except RecexpError as error:
        sys.exit(f"error: {error}")
    except CompactHydraException as error:  # a wrong override or choice
        cause = error.__cause__
        details = f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
        sys.exit(f"{error}{details}")
    except OmegaConfBaseException as error:  # such as ${nosuch}
        sys.exit(f"error: {error.full_key or 'config'}: {str(error).splitlines()[0]}")
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(
            f"error: {reason(error)}. {advice(error)}. hydra.run.dir= names the run directory, "
            "cache_dir= the cache, dataset.raw_dir= the raw data."
        )
    except Stopped as stop:
        if says_so():
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signum)
    except Exception as error:
        text = shortage(error)
        if text is not None:
            sys.exit(f"error: {text}. ({_first_line(error)})")
        if not _is_of_hydra(error):
            raise
        sys.exit(f"error: {_first_line(error)}. The command line was: {shlex.join(sys.argv[1:])}")


def _is_of_hydra(error: Exception) -> bool:
    """Did Hydra raise it, about the command line or a YAML, and not our code?"""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in ("hydra", "omegaconf")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
