"""``python -m recexp.evaluate RUN_DIR PROTOCOL``: test a trained model under another protocol.

The command line also takes the predictions of other programs (``recexp.runs.predictions``).

Nothing is trained. The run may come from another person: its files say what was trained, and
choose no place to read data from or to write to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.build import build
from recexp.config.check import check_config
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from recexp.logs import printable_lines, show_logs
from recexp.runs.accelerators import Accelerator, add_accelerator, device_of
from recexp.runs.assembly import assemble
from recexp.runs.environment import describe
from recexp.runs.finished import FinishedRun, check_size, open_data, open_run, training_data
from recexp.runs.outputs import save_result, show_table
from recexp.runs.predictions import Missing, evaluate_predictions
from recexp.runs.predictions import Split as HeldOut
from recexp.runs.result import RunResult
from recexp.runs.tested import save_test, settings_of
from recexp.training.checkpoints import read_matching_checkpoint
from recexp.training.module import RecModule
from recexp.version import add_version, git_state

# Options that make no sense without a run, and without predictions.
OF_RUN = (
    "own_split",
    "raw_dir",
    "cache_dir",
    "plugins",
    "threads",
    "accelerator",
    "keep_top",
    "groups",
)
OF_PREDICTIONS = ("out", "name", "seed", "split", "partial", "missing")
# Keys of a result that kept lists.
OF_LISTS = ("list_metrics", "list_candidates", "lists_sha256", "list_values_sha256")


def evaluate(
    run_dir: Path,
    name: str,
    *,
    own_split: bool = False,
    raw_dir: str | None = None,
    cache_dir: str | None = None,
    threads: int | None = None,
    accelerator: Accelerator = "cpu",
    plugins: Sequence[str] = (),
    keep_top: int | None = None,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Test the model of a finished run (its best epoch, or the refitted one) under a protocol.

    Writes ``result.json`` and ``ranks.parquet`` below ``run_dir/name`` and returns the result,
    which says by which protocol the epoch was chosen.

    name: of a protocol in ``conf/protocol``. own_split: the targets stay those of the run's own
    protocol; candidates, histories and the rest are those of ``name``. raw_dir, cache_dir: where
    raw and prepared data lie; the defaults are those of ``conf``, never those of the run. plugins:
    own packages whose code the run may name. keep_top, groups: as ``evaluation.keep_top`` and
    ``evaluation.groups`` of a run, whose own values do not count.

    Raises RecexpError where there is no such device, the run is unfinished, its data or its
    checkpoint are not found, the protocol is unknown, or it splits the data otherwise: the model
    may have been trained on the new protocol's targets.
    """
    device = device_of(accelerator)  # before any work
    run_dir = Path(run_dir)
    started = time.perf_counter()
    run = open_run(run_dir, raw_dir=raw_dir, cache_dir=cache_dir, plugins=plugins)
    trained = run.result
    protocol, split = _replace_protocol(run.cfg, name, run_dir, own_split)
    run.cfg.evaluation = {"keep_top": keep_top, "groups": list(groups)}
    check_config(run.cfg)
    settings = settings_of(run.cfg)
    folder = _output_folder(run_dir, name, own_split)
    if threads:
        torch.set_num_threads(threads)

    store = open_data(run, split)
    settings.check(store)
    module = _test(run, protocol, training_data(run, store, split), accelerator)
    changes = {
        "protocol": f"{name} of {trained.protocol}'s targets" if own_split else name,
        "protocol_id": protocol.id(store.meta),
        "selection": f"{trained.selection}, by {trained.protocol}",
        "metrics": {f"test/{k}": value for k, value in module.results["test"].items()},
        "data": trained.data.model_dump(exclude_unset=True)
        | {"simulated": store.meta["simulated"]},
        "left_out": store.meta["left_out"],
        "evaluated": {
            "git": git_state(),
            "wall_time_s": time.perf_counter() - started,
            **describe(device),
        },
    }
    folder.mkdir(exist_ok=True)
    saved = save_test(folder, module, settings)
    changes |= saved | {"metrics": changes["metrics"] | saved["metrics"]}
    kept = {key: value for key, value in trained.to_dict().items() if key not in OF_LISTS}
    result = RunResult.parse(kept | changes)
    save_result(folder / "result.json", result)
    show_table(result, folder)
    return result.to_dict()


def _replace_protocol(
    cfg: DictConfig, name: str, run_dir: Path, own_split: bool
) -> tuple[Protocol, Split]:
    """Put the protocol into the config; returns it and the split that the run was trained on."""
    path = CONF / "protocol" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise RecexpError(f"There is no protocol {name!r}; choose one of {known}.")
    split: Split = build(cfg.protocol).split
    cfg.protocol = OmegaConf.load(path)
    check_config(cfg)
    protocol: Protocol = build(cfg.protocol)
    if own_split:
        return replace(protocol, split=split), split
    if protocol.split != split:
        raise RecexpError(
            f"{run_dir} was trained on another split of the data than {name} has ({split} against "
            f"{protocol.split}): train it anew, or keep its own targets (--own-split)."
        )
    return protocol, split


def _output_folder(run_dir: Path, name: str, own_split: bool) -> Path:
    """The folder for the results. Raises RecexpError where it holds or is a link."""
    folder = run_dir / (f"{name}-own-split" if own_split else name)
    inside = list(folder.iterdir()) if folder.is_dir() else []
    for path in (folder, *inside):
        if path.is_symlink():
            raise RecexpError(
                f"{path} is a link: results are written into the run's own folder only. Remove "
                "the link."
            )
    if folder.exists() and not folder.is_dir():
        raise RecexpError(
            f"{folder} is a file, where a folder for the results is to be: remove it."
        )
    return folder


def _test(
    run: FinishedRun, protocol: Protocol, store: Store, accelerator: Accelerator
) -> RecModule:
    """The run's module after ``trainer.test`` under the protocol."""
    check_size(run, store)
    module, data = assemble(run.cfg, protocol, store, ())
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    content = read_matching_checkpoint(run.checkpoint, module)
    module.load_state_dict(content["state_dict"])
    trainer.test(module, data, verbose=False)
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recexp.evaluate``."""
    reader = parser()
    options = reader.parse_intermixed_args(arguments)
    if options.predictions is None and len(options.words) != 2:
        reader.error("name RUN_DIR and PROTOCOL, or --predictions FILE with dataset= and protocol=")
    of_file = options.predictions is not None
    for name in OF_RUN if of_file else OF_PREDICTIONS:
        if getattr(options, name) != reader.get_default(name):
            kind = "of a finished run" if of_file else "of --predictions"
            reader.error(f"--{name.replace('_', '-')} is an option {kind} only")
    show_logs()
    try:
        if options.predictions is None:
            _evaluate_run(options)
        else:
            _evaluate_file(options)
    except RecexpError as error:
        sys.exit(printable_lines(f"error: {error}"))


def _evaluate_run(options: argparse.Namespace) -> None:
    run_dir, name = options.words
    evaluate(
        Path(run_dir),
        name,
        own_split=options.own_split,
        raw_dir=options.raw_dir,
        cache_dir=options.cache_dir,
        threads=options.threads,
        accelerator=options.accelerator,
        plugins=options.plugins,
        keep_top=options.keep_top,
        groups=options.groups,
    )


def _evaluate_file(options: argparse.Namespace) -> None:
    if options.out is None and options.split == "test":
        raise RecexpError("--predictions needs --out RUN_DIR, a new directory for the result.")
    result = evaluate_predictions(
        options.predictions,
        options.words,
        name=options.name,
        out=options.out,
        split=options.split,
        missing=options.missing,
        partial=options.partial,
        seed=options.seed,
    )
    if options.split == "val":
        for metric, value in result["metrics"].items():
            print(f"{metric:24} {value:.6f}")


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.evaluate``."""
    made = argparse.ArgumentParser(
        prog="python -m recexp.evaluate",
        usage="%(prog)s RUN_DIR PROTOCOL [options]\n"
        "       %(prog)s --predictions FILE dataset=NAME protocol=NAME --out RUN_DIR [options]",
        description="Test the model of a finished run under another protocol, or rank held-out "
        "items by the predictions of another program.",
    )
    add_version(made)
    words = "a run and a name from conf/protocol; with --predictions overrides of python -m recexp"
    made.add_argument("words", nargs="+", metavar="WORD", help=words)
    of_run_group = made.add_argument_group("of a finished run")
    of_run = of_run_group.add_argument
    of_run(
        "--own-split",
        action="store_true",
        help="keep the run's own targets, where the protocol would split the data otherwise",
    )
    of_run("--raw-dir", help="where the raw data lie, if not where conf/dataset looks for them")
    of_run("--cache-dir", help="where prepared data are kept, if not in cache")
    of_run("--plugins", nargs="+", default=[], metavar="PACKAGE", help="own code that the run uses")
    of_run("--threads", type=int)
    add_accelerator(of_run_group)
    of_run("--keep-top", type=int, metavar="K", help="keep the K best items of each user's list")
    of_run(
        "--groups",
        nargs="+",
        default=[],
        metavar="GROUPING",
        help="metrics per group: popularity, activity, or a feature of items or users",
    )
    of_file = made.add_argument_group("of predictions").add_argument
    of_file(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="csv or parquet with user, item and score (of all candidates) or rank (lists)",
    )
    of_file("--out", type=Path, metavar="RUN_DIR", help="a new directory for the result")
    of_file("--name", default="", help="of the system in reports (default: the file's name)")
    of_file("--seed", type=int, default=0, help="of the other program's run (default: 0)")
    of_file("--split", choices=get_args(HeldOut), default="test", help="val is printed only")
    of_file(
        "--partial",
        action="store_true",
        help="candidates that the file does not have score lower than those it has",
    )
    of_file(
        "--missing",
        choices=get_args(Missing),
        default="error",
        help="worst: rank targets last where the user is missing or a list too short",
    )
    return made
