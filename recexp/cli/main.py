"""The command line: Hydra composes, ``run`` works."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import hydra
import hydra._internal.utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recexp.cli.launcher import ProcessLauncher
from recexp.cli.sweeper import GridSweeper
from recexp.config import CONF
from recexp.config.build import register_resolvers
from recexp.config.presets import apply_preset, with_quickstart
from recexp.errors import RecexpError
from recexp.io import disk_trouble, reason

register_resolvers()
for plugin in (ProcessLauncher, GridSweeper):
    Plugins.instance().register(
        plugin
    )  # first: it imports the real hydra_plugins, if any plugin is installed
    # Hydra looks plugins up by name in this namespace only; ours need no package of their own there.
    for name in ("hydra_plugins", plugin.__module__):
        sys.modules.setdefault(name, ModuleType(name))
    setattr(sys.modules[plugin.__module__], plugin.__name__, plugin)


@contextmanager
def _disk_trouble(run_dir: str) -> Iterator[None]:
    # Wherever it comes up: a full disk is no bug, and a traceback would say that it is one.
    try:
        yield
    except OSError as error:
        if not disk_trouble(error):
            raise
        sys.exit(
            f"error: {reason(error)}. Make room for {run_dir}, or choose another place that can be written: hydra.run.dir=..."
        )


def _report(work: Callable[[], Any]) -> Any:
    # Hydra writes to the run directory before us.
    def guarded() -> Any:
        with _disk_trouble("the run directory"):
            return work()

    return run_and_report(guarded)


run_and_report, hydra._internal.utils.run_and_report = hydra._internal.utils.run_and_report, _report


def _follow(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """The command line of one of several processes that torchrun or SLURM started alike: only the first one may have a run directory."""
    rank = next((environment[key] for key in ("RANK", "SLURM_PROCID") if key in environment), "0")
    return (
        words
        if rank in ("", "0")
        else [w for w in words if not w.startswith("hydra.run.dir=")]
        + ["hydra.run.dir=.", "hydra.output_subdir=null"]
    )


def main() -> float | None:
    """Entry point of ``python -m recexp``."""
    sys.argv[1:] = with_quickstart(_follow(sys.argv[1:], os.environ))
    return _main()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _main(cfg: DictConfig) -> float | None:
    """Returns validation NDCG@10, what sweepers that search maximise, under launchers other than ours."""
    # After Hydra has parsed: --help and typing errors need not wait for torch.
    from pytorch_lightning.utilities import rank_zero_only

    from recexp.runs.run import run
    from recexp.training.signals import Interrupted

    try:
        with _disk_trouble(cfg.run_dir):
            cfg = apply_preset(cfg, HydraConfig.get())
            return run(cfg).get("metrics", {}).get("val/ndcg@10")
    except RecexpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OmegaConfBaseException as error:  # such as ${nosuch}
        print(f"error: {error.full_key or 'config'}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        last = stop.run_dir / "checkpoints" / "last.ckpt"
        advice = (
            f"to go on: the same command with ckpt_path={last}"
            if last.exists()
            else "nothing was saved yet"
        )
        if rank_zero_only.rank == 0:
            print(f"{stop}; {advice}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        sys.exit(130)
