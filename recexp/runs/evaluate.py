"""``python -m recexp.evaluate RUN_DIR PROTOCOL``: a finished run's model under another protocol, without training again."""

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
from recexp.data.cache import prepare, write_json
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.runs.assembly import assemble
from recexp.runs.loading import check_fit, read_config, read_result
from recexp.runs.result import describe, git_state, save_ranks, show_table


def evaluate(
    run_dir: Path,
    name: str,
    *,
    own_split: bool = False,
    raw_dir: str | None = None,
    cache_dir: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Rank the test users of ``run_dir``'s model (its best checkpoint, or the refitted one) under the protocol ``name``.

    Writes ``result.json`` and ``ranks.parquet`` below ``run_dir/name`` and returns the result, which says by which protocol the epoch was
    chosen. own_split: the targets stay those of the run's own protocol; candidates, histories and the rest are ``name``'s. raw_dir, cache_dir:
    where the data lies now, if not where the run found it.

    Raises RecexpError where the run is unfinished, or the protocol unknown, or one that splits the data otherwise: the model may have been
    trained on the new protocol's targets.
    """
    started = time.perf_counter()
    old, cfg = read_result(run_dir / "result.json"), read_config(run_dir / "config.yaml")
    path = CONF / "protocol" / f"{name}.yaml"
    if not path.is_file():
        raise RecexpError(
            f"There is no protocol {name!r}; choose one of {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}."
        )
    check_config(cfg)  # before anything of it is built
    split, cfg.protocol = build(cfg.protocol).split, OmegaConf.load(path)
    cfg.dataset.raw_dir, cfg.cache_dir = (
        raw_dir or cfg.dataset.raw_dir,
        cache_dir or _cache(cfg, old["data"]["fingerprint"]),
    )
    check_config(cfg)
    protocol = build(cfg.protocol)
    if own_split:
        protocol = replace(protocol, split=split)
    elif protocol.split != split:
        raise RecexpError(
            f"{run_dir} was trained on another split of the data than {name} has ({split} against {protocol.split}): run it anew, or keep its own "
            "targets (--own-split)."
        )
    folder = run_dir / (f"{name}-own-split" if own_split else name)
    if folder.is_symlink():
        raise RecexpError(
            f"{folder} is a link: results are written into the run's own folder only. Remove the link."
        )
    if threads:
        torch.set_num_threads(threads)

    store = Store.open(prepare(build(cfg.dataset, _recursive_=False), split, cfg.cache_dir))
    if store.meta["fingerprint"] != old["data"]["fingerprint"]:
        raise RecexpError(
            f"The data at {cfg.dataset.raw_dir} are not those that {run_dir} was trained on: their fingerprints differ."
        )
    refit = run_dir / "checkpoints" / "refit.ckpt"
    checkpoint = refit if refit.is_file() else run_dir / "checkpoints" / "best.ckpt"
    module, data = assemble(cfg, protocol, store, ())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    module.load_state_dict(check_fit(checkpoint, module)["state_dict"])
    trainer.test(module, data, verbose=False)
    result = old | {
        "protocol": f"{name} of {old['protocol']}'s targets" if own_split else name,
        "protocol_id": protocol.id(store.meta),
        "selection": f"{old['selection']}, by {old['protocol']}",
        "metrics": {f"test/{k}": v for k, v in module.results["test"].items()},
        "data": old["data"] | {"simulated": store.meta["simulated"]},
        "left_out": store.meta["left_out"],
        "evaluated": {
            "git": git_state(),
            "wall_time_s": time.perf_counter() - started,
            **describe(),
        },
    }
    folder.mkdir(exist_ok=True)
    result["ranks_sha256"] = save_ranks(folder / "ranks.parquet", {"test": module.ranks})
    write_json(folder / "result.json", result)
    show_table(result, folder)
    return result


def _cache(cfg: DictConfig, fingerprint: str) -> str:
    """Where the run found its data, if they are still there; else ``cache``: a foreign config chooses no place to write to."""
    return (
        cfg.cache_dir
        if (Path(cfg.cache_dir) / f"{cfg.dataset.name}-{fingerprint}").is_dir()
        else "cache"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.evaluate", description=evaluate.__doc__.splitlines()[0]
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
    a = parser.parse_args()
    try:
        evaluate(
            a.run_dir,
            a.protocol,
            own_split=a.own_split,
            raw_dir=a.raw_dir,
            cache_dir=a.cache_dir,
            threads=a.threads,
        )
    except RecexpError as error:
        sys.exit(f"error: {error}")
