"""recexp beside RecBole 1.2.1, RecTools 0.19, implicit 0.7.3 and the authors' GRU4Rec, on the same
machine, data, sizes and threads: prints and stores the ratios.

    python tests/perf/versus_peers.py --raw-dir path/to/ml-1m [--only rectools/sasrec ...] [--rounds
    1] [--out FILE]

Each peer is installed into an environment of its own below --work on first use (CPython 3.11;
RecBole needs old numpy, pandas and setuptools). Every measurement is a process of its own; the two
sides take turns. A training epoch longer than --train-s seconds is extrapolated from its mean step.
RecBole switches autograd's anomaly mode on when its sequential models are imported; it is measured
so, as shipped, and with the mode off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # recexp.runs.environment, for the hardware

TORCH = "torch==2.13.0"
PEERS = {
    "rectools": [[TORCH], ["rectools[torch]==0.19.0"]],
    "recbole": [[TORCH], ["recbole==1.2.1"], ["setuptools<81", "numpy<2", "pandas<3"]],
    "implicit": [["implicit==0.7.3"]],
    "gru4rec": [[TORCH], ["pandas<3"]],
}

TRANSFORMER = ["model.n_factors=64", "model.n_layers=2", "model.n_heads=2"]
SASREC = ["model=sasrec_softmax", "model.max_len=200", *TRANSFORMER]
BERT4REC = [
    "model=bert4rec",
    "model.max_len=200",
    *TRANSFORMER,
    "objective.step=1000000",
]  # one window per user
RECBOLE_TRANSFORMER = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "train_neg_sample_args": None,
}
ONE_NEGATIVE = {
    "train_neg_sample_args": {
        "distribution": "uniform",
        "sample_num": 1,
        "alpha": 1.0,
        "dynamic": False,
        "candidate_num": 0,
    }
}
SEQUENTIAL = {
    "rank": 8,
    "sampled": 200,
    "prepare": 10,
    "prepare, warm": 100,
    "first step": 5,
    "memory": 8,
}

# What each side trains, the batch size both take first, each side's own best, and how far ahead we
# mean to be.
CASES: dict[str, dict] = {
    "rectools/sasrec": {
        "ours": [*SASREC, "model.dropout=0.1"],
        "batch": 128,
        "best": (128, 128),
        "lists": True,
        "peer": {"model": "sasrec", "width": 64, "length": 200},
        "targets": {"epoch": 3, "rank": 3, "lists": 3, "memory": 3, "first step": 1.2},
    },
    "rectools/bert4rec": {
        "ours": [*BERT4REC, "model.dropout=0.1", "model.attention_dropout=0.1"],
        "batch": 128,
        "best": (64, 128),
        "peer": {"model": "bert4rec", "width": 64, "length": 200},
        "targets": {"epoch": 5, "rank": 3, "memory": 3, "first step": 1.2},
    },
    "recbole/sasrec": {
        "ours": [*SASREC, "model.dropout=0.5"],
        "batch": 256,
        "best": (256, 256),
        "sampled": 2,
        "peer": {"model": "SASRec", "length": 200, "settings": RECBOLE_TRANSFORMER},
        "targets": {"epoch": 400, "epoch, anomaly off": 200, **SEQUENTIAL},
    },
    "recbole/bert4rec": {
        "ours": [*BERT4REC, "model.dropout=0.2"],
        "batch": 256,
        "best": (256, 256),
        "sampled": 1,
        "peer": {"model": "BERT4Rec", "length": 200, "settings": RECBOLE_TRANSFORMER},
        "targets": {"epoch": 500, "epoch, anomaly off": 250, **SEQUENTIAL},
    },
    "recbole/gru4rec": {
        "ours": [
            "model=gru4rec",
            "model.cell=torch",
            "model.input_table=constrained",
            "model.n_factors=64",
            "model.n_layers=1",
            "model.max_len=200",
            "objective=next_item",
            "sampler=none",
            "optimizer=adam",
        ],
        "batch": 256,
        "best": (256, 256),
        "peer": {
            "model": "GRU4Rec",
            "length": 200,
            "settings": {
                "embedding_size": 64,
                "hidden_size": 64,
                "num_layers": 1,
                "train_neg_sample_args": None,
            },
        },
        "targets": {"epoch": 100, "memory": 8},
    },
    "recbole/caser": {
        "ours": [
            "model=caser",
            "model.n_factors=64",
            "model.max_len=5",
            "model.n_horizontal=8",
            "model.n_vertical=4",
            "objective.targets=1",
            "loss=bpr",
        ],
        "batch": 512,
        "best": (2048, 2048),
        "peer": {
            "model": "Caser",
            "length": 5,
            "settings": {
                "embedding_size": 64,
                "n_h": 8,
                "n_v": 4,
                "reg_weight": 1e-6,
                "dropout_prob": 0.5,
                "loss_type": "BPR",
            }
            | ONE_NEGATIVE,
        },
        "targets": {"epoch": 3},
    },
    "recbole/bpr": {
        "ours": ["model=bpr_mf", "model.n_factors=64", "model.item_bias=false"],
        "batch": 2048,
        "best": (65536, 16384),
        "peer": {"model": "BPR", "settings": {"embedding_size": 64}},
        "targets": {"epoch": 2, "epoch, own best": 4, "rank": 5},
    },
    "recbole/fpmc": {
        "ours": ["model=fpmc", "model.n_factors=64"],
        "batch": 2048,
        "best": (16384, 16384),
        "peer": {"model": "FPMC", "length": 200, "settings": {"embedding_size": 64}},
        "targets": {"epoch": 2, "epoch, own best": 4},
    },
    "recbole/neumf": {
        "ours": [
            "model=neumf",
            "model.n_factors=64",
            "model.n_layers=2",
            "objective.n_negatives=1",
            "batch_counts=positives",
        ],
        "batch": 2048,
        "best": (16384, 8192),
        "peer": {
            "model": "NeuMF",
            "settings": {
                "mf_embedding_size": 64,
                "mlp_embedding_size": 128,
                "mlp_hidden_size": [128, 64],
                "dropout_prob": 0.0,
            },
        },
        "targets": {"epoch": 1.5, "epoch, own best": 2, "rank": 8},
    },
}

WMF = ["model=wmf", "model.n_factors=64", "model.alpha=40", "model.regularization=0.1"]
CASES |= {
    "implicit/bpr": {
        "ours": ["model=bpr_mf", "model.n_factors=64"],
        "batch": 65536,
        "best": (65536, 65536),
        "passes": 4,
        "lists": True,
        "peer": {"model": "bpr", "width": 64},
        "targets": {"epoch": 1, "lists": 1},
    },
    "implicit/wmf": {
        "ours": [*WMF, "model.solver=exact"],
        "batch": 1,
        "best": (1, 1),
        "passes": 8,
        "lists": True,
        "peer": {"model": "als", "width": 64},
        "targets": {"epoch": 1.3, "lists": 1},
    },
    "implicit/wmf_cg": {
        "ours": [*WMF, "model.solver=cg"],
        "batch": 1,
        "best": (1, 1),
        "passes": 8,
        "lists": True,
        "peer": {"model": "als_cg", "width": 64},
        "targets": {"epoch": 0.8, "lists": 1},
    },
}
CASES |= {
    "gru4rec/bpr_max": {
        "ours": ["model=gru4rec_plus", "model.n_factors=64", "objective.n_negatives=256"],
        "batch": 128,
        "best": (128, 128),
        "peer": {"width": 64, "negatives": 256},
        "targets": {"epoch": 2},
    },
}

# Wall time to the best validation NDCG@10 that the peer reaches within its epochs: leave-one-out,
# full ranking. RecBole by its own defaults on ML-100K; implicit on ML-1M at the learning rate that
# serves it best of .01, .05 and .1.
RACES: dict[str, dict] = {
    "sasrec": {
        "peer": {
            "model": "SASRec",
            "batch": 256,
            "settings": {"train_neg_sample_args": None},
            "epochs": 4,
        },
        "ahead": 20,
        "epochs": 60,
        "ours": ["model=sasrec_softmax", "model.max_len=50", *TRANSFORMER, "batch_size=64"],
    },
    "bert4rec": {
        "peer": {
            "model": "BERT4Rec",
            "batch": 256,
            "settings": {"train_neg_sample_args": None},
            "epochs": 4,
        },
        "ahead": 20,
        "epochs": 200,
        "ours": ["model=bert4rec", "model.max_len=50", *TRANSFORMER, "batch_size=64"],
    },
    "bpr": {
        "peer": {"model": "BPR", "batch": 2048, "settings": {}, "epochs": 62},
        "ahead": 2,
        "epochs": 100,
        "ours": ["model=bpr_mf", "model.n_factors=64", "batch_size=2048", "optimizer.lr=0.005"],
    },
    "implicit_bpr": {
        "program": "implicit",
        "peer": {"model": "bpr", "width": 64, "passes": 60, "settings": {"learning_rate": 0.05}},
        "ahead": 1,
        "epochs": 60,
        "ours": ["model=bpr_mf", "model.n_factors=64", "batch_size=65536", "optimizer.lr=0.02"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--raw-dir", type=Path, required=True, help="the folder of ML-1M's ratings.dat"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "cache" / "peers",
        help="environments, converted data and prepared caches",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(CASES),
        choices=list(CASES),
        metavar="CASE",
        help=", ".join(CASES),
    )
    parser.add_argument(
        "--race",
        nargs="*",
        choices=list(RACES),
        metavar="MODEL",
        help="to the same validation NDCG@10, on ML-100K or ML-1M in --raw-dir",
    )
    parser.add_argument(
        "--gru4rec",
        type=Path,
        metavar="FOLDER",
        help="a clone of https://github.com/hidasib/GRU4Rec_PyTorch_Official; without it the "
        "gru4rec cases are left out",
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="times each side is measured; medians are compared"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--train-s",
        type=float,
        default=40,
        help="seconds of training after which the rest of an epoch is extrapolated",
    )
    parser.add_argument("--out", type=Path, help="JSON of everything measured")
    a = parser.parse_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.gru4rec is None:
        a.only = [case for case in a.only if not case.startswith("gru4rec/")]
    elif not (a.gru4rec / "gru4rec_pytorch.py").is_file():
        sys.exit(
            f"error: {a.gru4rec} has no gru4rec_pytorch.py; --gru4rec names the folder that has."
        )
    if a.race is not None:
        return race(a)
    convert(a.raw_dir / "ratings.dat", a.work)
    measured, lines = {}, []
    for case in a.only:
        measured[case] = measure(case, a)
        lines += rows(case, measured[case])
        print(table(lines[-len(rows(case, measured[case])) :]), flush=True)
        store(a.out, a, measured)
    print("\n" + table(lines))


def measure(case: str, a: argparse.Namespace) -> dict[str, list[dict]]:
    """Everything both sides say, round by round."""
    peer, setting = case.split("/")[0], CASES[case]
    said: dict[str, list[dict]] = {}

    def ours(key: str, *more: str, **spec) -> None:
        words = [
            "dataset=ml_1m",
            f"dataset.raw_dir={a.raw_dir.resolve()}",
            "protocol=full_unseen",
            "logger=none",
            *setting["ours"],
            *more,
        ]
        spec = {
            "overrides": words,
            "conf": str(ROOT / "conf"),
            "folder": str(a.work / "run"),
            "rankings": 3,
            "epochs": setting.get("passes", 1),
            "lists": setting.get("lists", False),
        } | spec
        said.setdefault(key, []).append(worker(Path(sys.executable), "worker_recexp.py", spec, a))

    def theirs(key: str, batch: int, **spec) -> None:
        spec = {
            "rankings": 1,
            "anomaly": True,
            "batch": batch,
            "dataset": "ml-1m",
            **setting["peer"],
            **spec,
        }
        spec |= {
            "events": str(a.work / "ml-1m.tsv"),
            "data_path": str(a.work),
            "folder": str(a.work),
            "gru4rec": str(a.gru4rec),
        }
        said.setdefault(key, []).append(
            worker(environment(peer, a.work), f"worker_{peer}.py", spec, a)
        )

    for _ in range(a.rounds):
        for cache in (a.work / "cold").glob("ml_1m-*"):
            subprocess.run(["rm", "-r", str(cache)], check=True)
        ours("ours", f"batch_size={setting['batch']}", f"cache_dir={a.work}/cold")
        theirs("peer", setting["batch"], sampled=setting.get("sampled"))
        ours("ours, warm", f"batch_size={setting['batch']}", f"cache_dir={a.work}/cold")
        if any(k.endswith("anomaly off") for k in setting["targets"]):
            theirs("peer, anomaly off", setting["batch"], anomaly=False)
        if "sampled" in setting:
            more = (
                "protocol.candidates.kind=uniform",
                "protocol.candidates.n=100",
                "protocol.candidates.seen=ranked",
            )
            ours(
                "ours, sampled",
                f"batch_size={setting['batch']}",
                f"cache_dir={a.work}/cold",
                *more,
                train_s=1,
            )
        mine, best = setting["best"]
        if mine != setting["batch"]:
            ours("ours, own best", f"batch_size={mine}", f"cache_dir={a.work}/cold", batch=mine)
        if best != setting["batch"]:
            theirs("peer, own best", best)
    return said


def race(a: argparse.Namespace) -> None:
    """The peer trains for its epochs; then we train until we are as good.

    Clocks start where training does.
    """
    lines, measured = [], {}
    on_ml_1m = (a.raw_dir / "ratings.dat").is_file()
    if on_ml_1m:
        convert(a.raw_dir / "ratings.dat", a.work)
    names = a.race or [n for n in RACES if on_ml_1m == (RACES[n].get("program") == "implicit")]
    for name in names:
        setting = RACES[name]
        program = setting.get("program", "recbole")
        spec = {
            "dataset": "ml-100k",
            "events": str(a.work / "ml-1m.tsv"),
            "folder": str(a.work),
            "length": 50,
            "anomaly": True,
            "until": True,
            "data_path": None,
            **setting["peer"],
        }
        peer = worker(environment(program, a.work), f"worker_{program}.py", spec, a)
        seconds, best = max(peer["history"], key=lambda h: h[1])
        data = ["dataset=ml_1m"] if on_ml_1m else ["dataset=ml_100k", "dataset.filters=[]"]
        words = [
            *data,
            f"dataset.raw_dir={a.raw_dir.resolve()}",
            "protocol=full_unseen",
            "logger=none",
        ]
        words += [f"cache_dir={a.work}/cold", *setting["ours"]]
        spec = {
            "conf": str(ROOT / "conf"),
            "folder": str(a.work / "run"),
            "until": best,
            "epochs": setting["epochs"],
            "training_only": program == "implicit",  # as its worker's clock
        }
        ours = worker(
            Path(sys.executable),
            "worker_recexp.py",
            spec | {"overrides": words, "train_s": seconds},
            a,
        )
        measured[name] = {"peer": peer, "ours": ours}
        reached = next((s for s, ndcg in ours["history"] if ndcg >= best), float("inf"))
        lines.append(
            (
                f"race/{name}",
                f"to NDCG@10 {best:.4f}",
                reached,
                seconds,
                seconds / reached,
                setting["ahead"],
            )
        )
        print(table(lines[-1:]), flush=True)
    store(a.out, a, measured)


def store(path: Path | None, a: argparse.Namespace, measured: dict) -> None:
    if path is None:
        return
    import torch

    from recexp.runs.environment import describe
    from recexp.version import git_state

    said = {
        "hardware": describe(torch.device("cpu")),
        "git": git_state(),
        "threads": a.threads,
        "train_s": a.train_s,
        "measured": measured,
    }
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(said, indent=1))
    temporary.replace(path)


def rows(case: str, said: dict[str, list[dict]]) -> list[tuple]:
    """(case, what, ours, theirs, ratio, target)"""

    def of(key: str, what: str) -> float:
        return statistics.median(round_[what] for round_ in said[key])

    mine, peer = (
        ("ours, own best" if "ours, own best" in said else "ours"),
        ("peer, own best" if "peer, own best" in said else "peer"),
    )
    measures = {
        "epoch": "epoch_s",
        "rank": "rank_s",
        "prepare": "prepare_s",
        "first step": "first_step_s",
        "memory": "peak_gb",
    }
    pairs = {}
    for name, key in measures.items():
        if key not in said["peer"][0]:
            continue
        pairs[name] = (of("ours", key), of("peer", key))
        if name not in ("epoch", "rank"):
            pairs[f"{name}, warm"] = (of("ours, warm", key), of("peer", key))
    if "lists_s" in said["ours"][0]:
        pairs["lists"] = of("ours", "lists_s"), of("peer", "rank_s")
    if mine != "ours" or peer != "peer":
        pairs["epoch, own best"] = (
            min(of("ours", "epoch_s"), of(mine, "epoch_s")),
            min(of("peer", "epoch_s"), of(peer, "epoch_s")),
        )
    if "peer, anomaly off" in said:
        pairs["epoch, anomaly off"] = of("ours", "epoch_s"), of("peer, anomaly off", "epoch_s")
    if "ours, sampled" in said:
        pairs["sampled"] = of("ours, sampled", "rank_s"), of("peer", "sampled_s")
    return [
        (case, what, a, b, b / a, CASES[case]["targets"].get(what))
        for what, (a, b) in pairs.items()
    ]


def table(lines: list[tuple]) -> str:
    out = [f"{'case':20}{'what':20}{'ours':>10}{'peer':>12}{'ahead':>9}{'wanted':>9}"]
    for case, what, a, b, ratio, target in lines:
        verdict = "" if target is None else f"{target:>8}x{'' if ratio >= target else '  short'}"
        out.append(f"{case:20}{what:20}{a:>10.3f}{b:>12.3f}{ratio:>8.1f}x{verdict}")
    return "\n".join(out)


def worker(python: Path, script: str, spec: dict, a: argparse.Namespace) -> dict:
    spec = {"threads": a.threads, "train_s": a.train_s, **spec}
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["PYTHONPATH"] = str(ROOT) if script == "worker_recexp.py" else ""
    spec["born"] = time.time()
    done = subprocess.run(
        [str(python), str(HERE / script), json.dumps(spec)],
        capture_output=True,
        text=True,
        env=clean,
        cwd=a.work,
        check=False,
    )
    if done.returncode:
        sys.exit(
            f"{script} with {json.dumps(spec)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"  # noqa: E501
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def environment(peer: str, work: Path) -> Path:
    """The python of the peer's own environment, made on first use."""
    folder = work / peer
    if not (folder / "complete").exists():
        print(f"installing {peer} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for packages in PEERS[peer]:
            subprocess.run(
                [
                    str(folder / "bin" / "python"),
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--disable-pip-version-check",
                    *packages,
                ],
                check=True,
            )
        (folder / "complete").touch()
    return folder / "bin" / "python"


def convert(ratings: Path, work: Path) -> None:
    """ML-1M by user, time and line in the layouts that the peers read."""
    if not ratings.is_file():
        sys.exit(f"error: {ratings} is missing; --raw-dir names the folder of ML-1M.")
    lines = (line.split("::") for line in ratings.read_text("latin-1").splitlines())
    events = sorted(
        ([int(user), item, rating, int(at)] for user, item, rating, at in lines),
        key=lambda e: (e[0], e[3]),
    )
    text = "\n".join("\t".join(map(str, e)) for e in events) + "\n"
    (work / "ml-1m").mkdir(exist_ok=True)
    (work / "ml-1m.tsv").write_text("user_id\titem_id\trating\ttimestamp\n" + text)
    (work / "ml-1m" / "ml-1m.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + text
    )


if __name__ == "__main__":
    main()
