"""``python -m recexp.evaluate RUN_DIR PROTOCOL``: test a trained model under another protocol.

Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.check import build, check_config
from recexp.data.cache import prepare, prepared_folder
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from recexp.logs import show_logs
from recexp.runs.assembly import assemble
from recexp.runs.environment import describe, git_state
from recexp.runs.loading import read_config, read_result
from recexp.runs.outputs import save_ranks, save_result, show_table
from recexp.runs.result import RunResult
from recexp.training.checkpoints import read_matching_checkpoint
from recexp.training.module import RecModule


def evaluate(
    run_dir: Path,
    name: str,
    *,
    own_split: bool = False,
    raw_dir: str | None = None,
    cache_dir: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Test the model of a finished run (its best epoch, or the refitted one) under a protocol.

    Writes ``result.json`` and ``ranks.parquet`` below ``run_dir/name`` and returns the result,
    which says by which protocol the epoch was chosen.

    name: of a protocol in ``conf/protocol``. own_split: the targets stay those of the run's own
    protocol; candidates, histories and the rest are those of ``name``. raw_dir, cache_dir: where
    the data lie now, if not where the run found them.

    Raises RecexpError where the run is unfinished, the protocol is unknown, or it splits the data
    otherwise: the model may have been trained on the new protocol's targets.
    """
    run_dir = Path(run_dir)
    started = time.perf_counter()
    trained = read_result(run_dir / "result.json")
    cfg = read_config(run_dir / "config.yaml")
    check_config(cfg)  # before anything of it is built
    cfg.dataset.raw_dir = raw_dir or cfg.dataset.raw_dir
    cfg.cache_dir = cache_dir or _trusted_cache(cfg, trained.data.fingerprint)
    protocol, split = _replace_protocol(cfg, name, run_dir, own_split)
    folder = _output_folder(run_dir, name, own_split)
    if threads:
        torch.set_num_threads(threads)

    store = Store.open(prepare(build(cfg.dataset, _recursive_=False), split, cfg.cache_dir))
    if store.meta["fingerprint"] != trained.data.fingerprint:
        raise RecexpError(
            f"The data at {cfg.dataset.raw_dir} are not those that {run_dir} was trained on: their "
            "fingerprints differ."
        )
    module = _test(cfg, protocol, store, run_dir)
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
            **describe(),
        },
    }
    folder.mkdir(exist_ok=True)
    changes["ranks_sha256"] = save_ranks(folder / "ranks.parquet", {"test": module.ranks})
    result = RunResult.parse(trained.to_dict() | changes)
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


def _trusted_cache(cfg: DictConfig, fingerprint: str | None) -> str:
    """The run's cache if the run's data are still there, else ``cache``.

    The config may come from another person, so it must not choose a place to write to.
    """
    cache: str = cfg.cache_dir
    is_there = prepared_folder(cache, cfg.dataset.name, str(fingerprint)).is_dir()
    return cache if is_there else "cache"


def _output_folder(run_dir: Path, name: str, own_split: bool) -> Path:
    folder = run_dir / (f"{name}-own-split" if own_split else name)
    if folder.is_symlink():
        raise RecexpError(
            f"{folder} is a link: results are written into the run's own folder only. Remove the "
            "link."
        )
    return folder


def _test(cfg: DictConfig, protocol: Protocol, store: Store, run_dir: Path) -> RecModule:
    """The run's module after ``trainer.test`` under the protocol."""
    refitted = run_dir / "checkpoints" / "refit.ckpt"
    best = run_dir / "checkpoints" / "best.ckpt"
    module, data = assemble(cfg, protocol, store, ())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    content = read_matching_checkpoint(refitted if refitted.is_file() else best, module)
    module.load_state_dict(content["state_dict"])
    trainer.test(module, data, verbose=False)
    return module


def main() -> None:
    """Entry point of ``python -m recexp.evaluate``."""
    parser = argparse.ArgumentParser(
        prog="python -m recexp.evaluate",
        description="Test the model of a finished run under another protocol.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("protocol", metavar="PROTOCOL", help="a name from conf/protocol")
    parser.add_argument(
        "--own-split",
        action="store_true",
        help="keep the run's own targets, where the protocol would split the data otherwise",
    )
    parser.add_argument("--raw-dir", help="where the raw data lie, if not where the run found them")
    parser.add_argument(
        "--cache-dir", help="where prepared data are kept, if not where the run kept them"
    )
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    show_logs()
    try:
        evaluate(
            options.run_dir,
            options.protocol,
            own_split=options.own_split,
            raw_dir=options.raw_dir,
            cache_dir=options.cache_dir,
            threads=options.threads,
        )
    except RecexpError as error:
        sys.exit(f"error: {error}")
