"""Show that a clean-up changed no number: record fixed runs before it and after it, and compare the
records.

    python -m tests.neutrality record before.json
    python -m tests.neutrality record after.json
    python -m tests.neutrality compare before.json after.json

A record holds, per run, the metrics of ``result.json`` and the losses of ``metrics.csv`` to the
last digit, the protocol id, and the checksums of the prepared arrays. One run per model YAML uses a
small simulated shop; six use real data where ``RECEXP_DATA`` names the folder that holds them. Runs
go through the command line only, so that the script survives moves of the code. Both records must
come from the same machine and library versions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
COMMON = ["logger=none", "threads=1", "seed=0"]
SHOP = [
    "dataset=simulated_shop",
    "dataset.source.users=150",
    "dataset.source.items=200",
    "dataset.source.categories=10",
    "protocol=p1_uniform999",
    "protocol.candidates.n=50",
    "batch_size=64",
    "trainer.max_epochs=2",
]
FIRST_STEP = ["trainer.max_epochs=1", "+trainer.limit_train_batches=1"]
# What a model needs beyond the defaults on the shop.
EXTRA = {
    "mfpr": ["objective.levels=[1,2,3]"],
    "nmtr": ["model.n_behaviors=2"],
    **{name: ["preset=tuned"] for name in ("ite", "bert_ite", "bert_ite_si")},
}
REAL = {
    "ml_100k bpr_mf p5": ["dataset=ml_100k", "ml-100k", "model=bpr_mf", "protocol=p5_sasrec100"],
    "ml_1m item_knn p3": ["dataset=ml_1m", "ml-1m", "model=item_knn", "protocol=p3_popular100"],
    "ml_1m sasrec full_unseen": [
        "dataset=ml_1m",
        "ml-1m",
        "model=sasrec",
        "protocol=full_unseen",
        "model.max_len=50",
    ],
    "ml_100k gru4rec_plus p3": [
        "dataset=ml_100k",
        "ml-100k",
        "model=gru4rec_plus",
        "protocol=p3_popular100",
        "objective.n_negatives=256",
    ],
    "retailrocket bert_ite p1": [
        "dataset=retailrocket",
        "retailrocket-2174",
        "model=bert_ite",
        "protocol=p1_uniform999",
        "model.n_layers=1",
    ],
    "taobao mf_mmlp p2": [
        "experiment=real/taobao_31882",
        "taobao-31882",
        "model=mf_mmlp",
        "protocol=p2_uniform99",
    ],
}
REAL_LIMITS = ["trainer.max_epochs=1", "+trainer.limit_train_batches=20"]


def runs(work: Path) -> dict[str, list[str]]:
    """Overrides of every run, by name. Real data are left out where ``RECEXP_DATA`` is not set."""
    chosen = {}
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml")):
        model = path.stem
        line = [*COMMON, *SHOP, f"model={model}", f"dataset.raw_dir={work / 'shop'}"]
        line += EXTRA.get(model, [])
        chosen[f"shop {model}"] = line
        chosen[f"shop {model}, first step"] = line + FIRST_STEP
    data = os.environ.get("RECEXP_DATA")
    if data is None:
        print("RECEXP_DATA is not set: the runs on real data are left out", file=sys.stderr)
        return chosen
    for name, (dataset, folder, *rest) in REAL.items():
        place = f"dataset.raw_dir={Path(data).resolve() / folder}"
        chosen[name] = [*COMMON, *REAL_LIMITS, dataset, place, *rest]
    return chosen


def measure(overrides: list[str], folder: Path, cache: Path) -> dict[str, Any]:
    """Run once; returns what must not change, or the last line of the error where the run fails."""
    line = [
        sys.executable,
        "-m",
        "recexp",
        *overrides,
        f"hydra.run.dir={folder}",
        f"cache_dir={cache}",
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    result = json.loads((folder / "result.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [{k: v for k, v in row.items() if k.startswith("train/loss")} for row in rows]
    fingerprint = result["data"]["fingerprint"]
    meta = json.loads(next(cache.glob(f"*-{fingerprint}/meta.json")).read_text())
    return {
        "protocol_id": result["protocol_id"],
        "metrics": {k: repr(v) for k, v in result["metrics"].items()},
        "losses": losses,
        "arrays": {k: v for k, v in meta["arrays"].items() if k.endswith(".npy")},
    }


def record(out: Path, only: str) -> None:
    """Write the record of every run whose name contains ``only``."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        chosen = {
            name: line
            for name, line in runs(work).items()
            if any(word in name for word in only.split("|"))
        }
        for number, (name, line) in enumerate(tqdm(chosen.items(), unit="run")):
            found[name] = measure(line, work / str(number), work / "cache")
    out.write_text(json.dumps(found, indent=1) + "\n")


def differences(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """Every leaf that is not equal in both, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted(before.keys() | after.keys()):
            lines += differences(before.get(key), after.get(key), f"{path}/{key}")
        return lines
    return [] if before == after else [f"{path}: {before} -> {after}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.neutrality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run everything and write a record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--only", default="", help="only runs whose name contains this")
    comparing = commands.add_parser("compare", help="print what differs; exit 1 if anything does")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.out, arguments.only)
        return
    before, after = (json.loads(p.read_text()) for p in (arguments.before, arguments.after))
    lines = differences(before, after)
    print("\n".join(lines) or f"{len(before)} runs: no difference")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
