"""Run directories made up for tests of the report, with known figures."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.report.papers import settings

ML = {
    "dataset": "ml_1m",
    "protocol": "p3_popular100",
    "data": {"users": 6040, "items": 3416, "interactions": 999611},
}


def set_papers(monkeypatch, folder: Path, *rows: str) -> None:
    """Replace the table of the papers' settings by these rows."""
    path = folder / "settings.csv"
    path.write_text("\n".join([",".join(settings.COLUMNS), *rows]) + "\n")
    monkeypatch.setattr(settings, "FILE", path)
    monkeypatch.setattr(settings, "_rows", cache(settings._rows.__wrapped__))


def write_run(
    folder: Path,
    ndcg: float = 0.4,
    *,
    model: str = "pop",
    dataset: str = "shop",
    protocol: str = "full",
    protocol_id: str = "aaa",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
    better: list[int] | None = None,
    curve: list[float] | None = None,
    **changes: Any,
) -> Path:
    """A finished run: test NDCG@10 and MRR ndcg, HR@k 2 ndcg. better: ranks of its users, from
    which test/mrr is then taken.

    config: settings over the model's YAML, dotted keys. curve: val/ndcg@10 of each epoch, 100 steps
    long. changes: other keys of ``result.json``.
    """
    folder.mkdir(parents=True)
    values = OmegaConf.create({"seed": seed, "selection": "val"})
    if (path := CONF / "model" / f"{model}.yaml").is_file():
        values = OmegaConf.merge(values, OmegaConf.load(path))
    values.pop("defaults", None)
    for key, value in (config or {}).items():
        OmegaConf.update(values, key, value, force_add=True)
    OmegaConf.save(values, folder / "config.yaml")
    metrics = {
        f"test/{m}": v
        for m, v in (
            ("hr@5", ndcg),
            ("hr@10", 2 * ndcg),
            ("ndcg@10", ndcg),
            ("mrr", ndcg),
            ("users", 10.0),
        )
    }
    metrics |= {"val/ndcg@10": ndcg}
    if better is not None:
        metrics["test/mrr"] = sum(1 / (1 + b) for b in better) / len(better)
        users = list(range(len(better)))
        pl.DataFrame(
            {
                "user": users,
                "better": better,
                "tied": [0] * len(users),
                "candidates": [100] * len(users),
                "split": ["test"] * len(users),
            }
        ).write_parquet(folder / "ranks.parquet")
    if curve is not None:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["epoch", "step", "train/loss", "train/seconds", "val/hr@10", "val/ndcg@10"]
            )
            writer.writerows(
                [n, 100 * (n + 1), 1 / (n + 1), 1.0, 2 * v, v] for n, v in enumerate(curve)
            )
    epochs = len(curve) if curve else 4
    result = {
        "model": model,
        "dataset": dataset,
        "protocol": protocol,
        "objective": "cloze",
        "sampler": "uniform",
        "overrides": list(overrides),
        "protocol_id": protocol_id,
        "seed": seed,
        "selection": "val",
        "metrics": metrics,
        "best_epoch": max(range(epochs), key=(curve or [1] * epochs).__getitem__),
        "epochs": epochs,
        "stop_reason": "max_epochs reached",
        "wall_time_s": 1.0,
        "examples_per_s": 5.0,
        "parameters": 7,
        "reconstruction": False,
        "data": {"users": 10, "items": 20, "interactions": 30, "fingerprint": "f"},
        "git": {"commit": "0123456789", "dirty": False},
    } | changes
    (folder / "result.json").write_text(json.dumps(result))
    return folder
