"""What the commands for finished runs share: the run, and where its data lie."""

from __future__ import annotations

import argparse
from pathlib import Path

from recexp.runs.accelerators import Accelerator
from recexp.runs.trained import Trained, load
from recexp.version import add_version


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``loaded``, but the number of threads."""
    add_version(parser)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--raw-dir", help="where the raw data lie, if not where conf/dataset looks for them")
    add("--cache-dir", help="where prepared data are kept, if not in cache")
    add("--plugins", nargs="+", default=[], metavar="PACKAGE", help="own code that the run uses")


def loaded(options: argparse.Namespace, accelerator: Accelerator = "cpu") -> Trained:
    """The trained model that the options name. Raises RecexpError as ``load`` does."""
    return load(
        options.run_dir,
        raw_dir=options.raw_dir,
        cache_dir=options.cache_dir,
        threads=options.threads,
        accelerator=accelerator,
        plugins=options.plugins,
    )
