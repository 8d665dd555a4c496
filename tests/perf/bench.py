"""``make bench``: how fast recexp trains and ranks on this machine, against the floor that the
machine's own roofs set.

Data of ML-1M's shape are simulated, or ML-1M itself is taken where RECEXP_DATA names a folder that
has it. Every measurement is a process of its own; the rounds go through all cases in turn. Written
to bench.json and, as a table, to the terminal: medians and the range over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.perf.shapes import overrides, write_events
from tests.perf.versus_peers import BERT4REC, SASREC, store, worker

# Epochs where one has few steps.
PASSES = {"wmf": 8, "wmf_cg": 8, "ials": 8, "ials_cg": 8, "bpr_mf 65536": 4}
PASSES |= {"ease": 3, "slim": 2, "item_knn": 4, "item_knn cosine": 4, "v_sknn": 4, "stan": 4}
PASSES |= {"lightgcn 65536": 4, "multvae": 4, "recvae": 4}
D256 = ["model.n_factors=256", "model.n_heads=4"]
CASES = {
    "bpr_mf": ["model=bpr_mf", "batch_size=16384"],
    "bpr_mf 65536": ["model=bpr_mf", "batch_size=65536"],
    "fpmc": ["model=fpmc", "batch_size=16384"],
    "neumf": [
        "model=neumf",
        "model.n_factors=64",
        "model.n_layers=2",
        "objective.n_negatives=1",
        "batch_size=4096",
        "batch_counts=positives",
    ],
    "ite": ["model=ite", "model.n_factors=32", "batch_size=4096", "batch_counts=positives"],
    # all items as candidates of a Transformer each are no protocol of this family
    "bert_ite": [
        "model=bert_ite",
        "model.n_factors=32",
        "batch_size=256",
        "batch_counts=positives",
        "protocol.candidates.kind=uniform",
        "protocol.candidates.n=100",
        "protocol.candidates.seen=ranked",
    ],
    "caser": ["model=caser", "batch_size=2048"],
    "gru4rec": ["model=gru4rec", "batch_size=50"],
    "gru4rec_plus": [
        "model=gru4rec_plus",
        "model.n_factors=64",
        "objective.n_negatives=256",
        "batch_size=128",
    ],
    "wmf": ["model=wmf", "model.n_factors=64", "model.solver=exact"],
    "wmf_cg": ["model=wmf", "model.n_factors=64", "model.solver=cg"],
    "ials": ["model=ials", "model.n_factors=64", "model.solver=exact"],
    "ials_cg": ["model=ials", "model.n_factors=64", "model.solver=cg"],
    "ease": ["model=ease"],
    "slim": ["model=slim", "model.max_sweeps=10"],
    "item_knn": ["model=item_knn"],
    "item_knn cosine": ["model=item_knn", "model.similarity=cosine"],
    "v_sknn": ["model=v_sknn"],
    "stan": ["model=stan"],
    "sasrec": [*SASREC, "batch_size=128"],
    "sasrec d256": [*SASREC, *D256, "batch_size=128"],
    "gsasrec": ["model=gsasrec", "batch_size=128"],
    "esasrec": ["model=esasrec", "batch_size=128"],
    "hstu": ["model=hstu", "batch_size=128"],
    "fmlp_rec": ["model=fmlp_rec", "batch_size=256"],
    "bert4rec": [*BERT4REC, "batch_size=128"],
    "bert4rec d256": [*BERT4REC, *D256, "batch_size=128"],
    "nova_bert": [
        "model=nova_bert",
        "model.n_factors=64",
        "model.n_layers=2",
        "model.n_heads=2",
        "objective.step=1000000",
        "batch_size=128",
    ],
    "lightgcn": ["model=lightgcn", "batch_size=8192"],
    "lightgcn 65536": ["model=lightgcn", "batch_size=65536"],
    "multvae": ["model=multvae", "batch_size=500"],
    "recvae": ["model=recvae"],
    "dif_sr": ["model=dif_sr", "batch_size=128"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(CASES),
        choices=list(CASES),
        metavar="CASE",
        help=", ".join(CASES),
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--train-s", type=float, default=10, help="seconds of training per measurement"
    )
    parser.add_argument("--work", type=Path, default=Path("cache/bench"))
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    a = parser.parse_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    real = Path(os.environ.get("RECEXP_DATA", "")) / "ml-1m"
    if (real / "ratings.dat").is_file():
        data = ["dataset=ml_1m", f"dataset.raw_dir={real.resolve()}"]
    else:
        data = overrides(write_events(a.work / "like-ml-1m", 6040, 3706, 1_000_000))
    torch.set_num_threads(a.threads)
    roofs = {"gflops": matrix_roof(), "gb_s": copy_roof()}
    print(
        f"{a.threads} threads; roofs: {roofs['gflops']:.0f} GFLOP/s (matrix product), "
        f"{roofs['gb_s']:.1f} GB/s (copy); data: {data[0]}",
        flush=True,
    )
    said: dict[str, list[dict]] = {name: [] for name in a.only}
    for round_ in range(a.rounds):
        for name in a.only:
            words = [
                *data_for(name, data),
                "protocol=full_unseen",
                "logger=none",
                f"cache_dir={a.work}/cache",
                *CASES[name],
            ]
            root = Path(__file__).resolve().parent.parent.parent
            spec = {
                "overrides": words,
                "conf": str(root / "conf"),
                "folder": str(a.work / "run"),
                "rankings": 1,
                "count": round_ == 0,
                "epochs": PASSES.get(name, 1),
            }
            said[name].append(worker(Path(sys.executable), "worker_recexp.py", spec, a))
            if round_ == a.rounds - 1:
                print(row(name, said[name], roofs), flush=True)
        if round_ == 0:
            print(HEAD)
    store(a.out, a, {"roofs": roofs, "cases": said})
    print(f"written to {a.out}")


HEAD = (
    f"{'':16}{'rows/s':>10}{'step ms (range)':>28}{'floor':>8}{'x floor':>8}"
    f"{'% roof':>7}{'rank s':>8}{'x floor':>8}{'GB':>6}{'1st step s':>11}"
)


def row(name: str, said: list[dict], roofs: dict[str, float]) -> str:
    def of(what: str) -> list[float]:
        return sorted(s[what] for s in said)

    step, rank, first = (statistics.median(of(k)) for k in ("step_s", "rank_s", "first_step_s"))
    flops, least = (
        said[0]["step_flops"],
        max(
            said[0]["step_flops"] / roofs["gflops"] / 1e9,
            said[0]["step_bytes"] / roofs["gb_s"] / 1e9,
        ),
    )
    rank_floor = max(
        said[0]["rank_flops"] / roofs["gflops"] / 1e9, said[0]["rank_bytes"] / roofs["gb_s"] / 1e9
    )
    spread = f"{1e3 * step:.1f} ({1e3 * of('step_s')[0]:.1f}-{1e3 * of('step_s')[-1]:.1f})"
    rate = said[0]["rows"] / said[0]["steps_per_epoch"] / step
    return (
        f"{name:16}{rate:>10,.0f}{spread:>28}{1e3 * least:>8.1f}{step / max(least, 1e-9):>8.1f}"
        f"{100 * flops / step / roofs['gflops'] / 1e9:>7.0f}"
        f"{rank:>8.2f}{rank / max(rank_floor, 1e-9):>8.1f}{max(of('peak_gb')):>6.2f}{first:>11.1f}"
    )


def data_for(name: str, data: list[str]) -> list[str]:
    """The ITE family needs an implicit and an explicit kind of feedback, NOVA and DIF-SR something
    to say about items.
    """
    real, ite = data[0] == "dataset=ml_1m", "ite" in name.split()[0]
    if real and ite:
        return [
            *data,
            "dataset.value_behaviors={rated: 0, liked: 4}",
            "dataset.behaviors=[rated,liked]",
            "dataset.explicit=[liked]",
        ]
    return (
        data
        if real or not (ite or name in ("nova_bert", "dif_sr"))
        else ["dataset=simulated_shop", "dataset.source.users=6040", "dataset.source.items=3706"]
    )


def matrix_roof(n: int = 2048, rounds: int = 9) -> float:
    """GFLOP/s of one large float32 product, the best of some."""
    x, y, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    return 2 * n**3 / best(lambda: torch.mm(x, y, out=out), rounds) / 1e9


def copy_roof(bytes_: int = 2**28, rounds: int = 9) -> float:
    """GB/s of one large copy, bytes read and written."""
    x = torch.zeros(bytes_ // 4)
    y = torch.empty_like(x)
    return 2 * bytes_ / best(lambda: y.copy_(x), rounds) / 1e9


def best(action, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
