"""``python -m recexp``: Hydra composes the config, ``recexp.runs.run`` trains and evaluates."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.config.build import register_resolvers
from recexp.config.presets import apply_preset, with_quickstart
from recexp.errors import RecexpError
from recexp.interrupts import Stopped, enter_stage, handle_signals, says_so
from recexp.io import disk_trouble, reason
from recexp.logs import show_logs
from recexp.overrides import resume_advice
from recexp.renamed import warn_of_renamed, with_new_words

if TYPE_CHECKING:
    from recexp.training.signals import Interrupted

PLUGINS = Path(__file__).parent / "plugins"
RANK_VARIABLES = ("RANK", "SLURM_PROCID")  # of torchrun and SLURM


def main() -> None:
    """Compose the config of the command line and run it."""
    handle_signals()
    show_logs()
    warn_of_renamed(sys.argv[1:])
    words = with_new_words(sys.argv[1:])
    sys.argv[1:] = with_quickstart(arguments_of_rank(words, os.environ))
    register_resolvers()
    register_plugins()
    # Hydra then raises its errors, for instance of a full disk, instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_run)
    with _errors_explained():
        start()


def arguments_of_rank(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """The command line of one of several processes that torchrun or SLURM started alike.

    Only the first process may have a run directory.
    """
    ranks = [environment[name] for name in RANK_VARIABLES if name in environment]
    is_first = not ranks or ranks[0] in ("", "0")
    if is_first:
        return words
    others = [word for word in words if not word.startswith("hydra.run.dir=")]
    return [*others, "hydra.run.dir=.", "hydra.output_subdir=null"]


def register_plugins() -> None:
    """Make the launcher and the sweeper known to Hydra, also where recexp is not installed."""
    if not _is_importable("hydra_plugins.recexp"):
        sys.path.append(str(PLUGINS))
        importlib.invalidate_caches()
    plugins = importlib.import_module("hydra_plugins.recexp")
    for plugin in (plugins.ProcessLauncher, plugins.GridSweeper):
        Plugins.instance().register(plugin)


def _is_importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the parent
        return False


def _run(cfg: DictConfig) -> float | None:
    """Returns validation NDCG@10, which searching sweepers maximize."""
    # Imported after Hydra has parsed the command line: --help need not wait for torch.
    from recexp.runs.run import run
    from recexp.training.signals import Interrupted

    # Also here, because Hydra prints the overrides when an error leaves this function.
    with _errors_explained():
        try:
            result = run(apply_preset(cfg, HydraConfig.get()))
        except Interrupted as interrupted:
            _exit_interrupted(interrupted)
        finally:
            # Only the end of the process is left, where an exception would not be handled.
            enter_stage("came at the end of the program", ends_at_once=True)
    metrics: dict[str, float] = result.get("metrics", {})
    return metrics.get("val/ndcg@10")


def _exit_interrupted(interrupted: Interrupted) -> NoReturn:
    if says_so():
        advice = "" if interrupted.has_result else f"; {resume_advice(interrupted.run_dir)}"
        print(f"{interrupted}{advice}", file=sys.stderr)
    sys.exit(128 + interrupted.signum)


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
        if not disk_trouble(error):
            raise
        sys.exit(
            f"error: {reason(error)}. Make room for the run directory, or choose another place "
            "that can be written: hydra.run.dir=..."
        )
    except Stopped as stop:
        if says_so():
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signum)
