"""Time and memory against events, users, items, sequence length and processes, on simulated data:
one plot each, and growth.json.

    python tests/perf/growth.py --out docs/results/speed/growth [--only events items]

No curve should rise faster than the number of operations: the dashed line of a plot starts at its
first point and has the slope of that number.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.perf.shapes import overrides, write_events  # noqa: E402
from tests.perf.versus_peers import store, worker  # noqa: E402

SASREC = ["model=sasrec_softmax", "model.n_factors=64", "model.n_layers=2"]
SASREC += ["model.n_heads=1", "batch_size=128"]
SAMPLED = [
    "loss=sampled_softmax",
    "objective.n_negatives=256",
    "objective.shared=batch",
    "sampler=popularity",
    "model.max_len=50",
]
BPR = ["model=bpr_mf", "batch_size=8192"]
WMF = ["model=wmf", "model.n_factors=64"]  # a step is a pass over all data
# ITE needs an implicit and an explicit behavior, which the simulated shop has.
BERT_ITE = ["model=bert_ite", "model.n_factors=32", "batch_size=640"]
BERT_ITE += ["dataset=simulated_shop", "dataset.source.users=2000", "dataset.source.items=2000"]
BERT_ITE += ["protocol.candidates.kind=uniform", "protocol.candidates.n=100"]
BERT_ITE += ["protocol.candidates.seen=ranked"]

# axis -> its points: (value, users, items, events, words); 0 events: words name a data set
AXES = {
    "events": [(n, max(100, n // 100), 20_000, n, BPR) for n in (10**5, 10**6, 10**7, 10**8)],
    "users": [
        (n, n, 10_000, 50 * n, [*BPR, "optimizer=row_adam"]) for n in (10**3, 10**4, 10**5, 10**6)
    ],
    "users_wmf": [(n, n, 10_000, 50 * n, WMF) for n in (10**3, 10**4, 10**5, 10**6)],
    "items": [(n, 40_000, n, 4 * 10**6, [*SASREC, *SAMPLED]) for n in (10**3, 10**4, 10**5, 10**6)],
    "length": [
        (n, 6_000, 3_700, 10**6, [*SASREC, f"model.max_len={n}"]) for n in (25, 50, 100, 200, 400)
    ],
    "length_bert_ite": [
        (n, 2_000, 2_000, 0, [*BERT_ITE, f"model.max_len={n}"]) for n in (5, 10, 20, 40)
    ],
}
PROCESSES = [n for n in (1, 2, 4, 8, 16) if n <= len(os.sched_getaffinity(0))]  # one thread each
SHOWN = {
    "prepare_s": "preparation, s",
    "step_s": "training step, s",
    "rank_s": "ranking, s",
    "peak_gb": "peak memory, GB",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[*AXES, "processes"], choices=[*AXES, "processes"]
    )
    parser.add_argument("--most", type=float, default=1e8, help="no more events than this")
    parser.add_argument("--work", type=Path, default=Path("cache/growth"))
    parser.add_argument("--out", type=Path, default=Path("growth"), help="folder")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--train-s", type=float, default=8)
    a = parser.parse_args()
    a.work, a.out = a.work.resolve(), a.out.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "growth.json"
    said = json.loads(path.read_text())["measured"] if path.exists() else {}
    for axis in a.only:
        said[axis] = processes(a) if axis == "processes" else []
        for value, users, items, events, words in AXES.get(axis, []):
            if events > a.most:
                continue
            data = []
            if events:
                folder = a.work / f"u{users}-i{items}-e{events}"
                data = overrides(write_events(folder, users, items, events))
            shutil.rmtree(a.work / "cache", ignore_errors=True)  # every point prepares its data
            # Ranking takes time in proportion to users times items: a thousand users tell it.
            spec = {
                "overrides": [
                    *data,
                    *words,
                    "protocol=full_unseen",
                    "logger=none",
                    f"cache_dir={a.work}/cache",
                ],
                "conf": str(ROOT / "conf"),
            }
            one = worker(
                Path(sys.executable),
                "worker_recexp.py",
                spec
                | {
                    "folder": str(a.work / "run"),
                    "rankings": 1,
                    "rank_users": 1024,
                    "epochs": 3 if words is WMF else 1,  # the time between two steps is measured
                },
                a,
            )
            said[axis].append({"value": value} | one)
            print(
                axis,
                f"{value:>12,}",
                *(f"{name} {one[key]:.3g};" for key, name in SHOWN.items()),
                flush=True,
            )
        store(path, a, said)
    for axis, points in said.items():
        draw(axis, points, a.out / f"{axis}.png")


def processes(a: argparse.Namespace) -> list[dict]:
    """Seconds of SASRec's second epoch, its validation left out, shared by so many processes, each
    with batches of 128.
    """
    data = overrides(write_events(a.work / "u6000-i3700-e1000000", 6_000, 3_700, 10**6))
    points = []
    for n in PROCESSES:
        run_dir = a.work / f"processes-{n}"
        words = [
            *data,
            *SASREC,
            "model.max_len=100",
            "protocol=full_unseen",
            "logger=none",
            f"cache_dir={a.work}/cache",
            "threads=1",
        ]
        words += [
            "trainer=ddp",
            "trainer.accelerator=cpu",
            f"trainer.devices={n}",
            "trainer.max_epochs=2",
            f"hydra.run.dir={run_dir}",
        ]
        subprocess.run(
            [sys.executable, "-m", "recexp", *words],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        with (run_dir / "metrics.csv").open() as f:
            points.append(
                {"value": n, "epoch_s": float(list(csv.DictReader(f))[-1]["train/seconds"])}
            )
        print("processes", points[-1], flush=True)
    return points


def draw(axis: str, points: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown, slope = ({"epoch_s": "training epoch, s"}, -1) if axis == "processes" else (SHOWN, 1)
    figure, axes = plt.subplots(
        1, len(shown), figsize=(3.2 * len(shown), 3), constrained_layout=True, squeeze=False
    )
    axes, x = axes[0], [p["value"] for p in points]
    for plot, (key, name) in zip(axes, shown.items(), strict=True):
        y = [p[key] for p in points]
        plot.plot(x, y, "o-")
        plot.plot(
            x, [y[0] * (v / x[0]) ** slope for v in x], "--", color="gray", label="in proportion"
        )
        plot.set(xscale="log", yscale="log", xlabel=axis, title=name)
        plot.set_ylim(min(y) / 2, max(y) * 2)
        plot.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
