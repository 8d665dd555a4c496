"""``python -m tests.fuzz``: many generated inputs in several processes, or one alone (``--seed``).

See ``make fuzz``. Inputs that hang or kill their process are found too: the parent knows the seed
that each worker runs, and starts a new worker at the next seed.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

LIMIT = 120  # seconds for one input
MOST_SHOWN = 20


def work(seeds: range, at, counts, said, folder: str) -> None:
    """Run the seeds. at: the seed being run and when it began; counts: read, refused, wrong."""
    from tests.fuzz.trial import Wrong, trial

    for seed in seeds:
        at[0], at[1] = seed, time.time()
        try:
            counts[("read", "refused").index(trial(seed, Path(folder)))] += 1
        except Wrong as error:
            counts[2] += 1
            said.put(str(error))
        except Exception as error:  # of the test itself
            counts[2] += 1
            said.put(f"seed {seed}: {type(error).__name__}: {error}")
    at[0] = seeds.stop


class Worker:
    """A process and its share of the seeds."""

    def __init__(self, context, seeds: range, said, folder: Path):
        self.context, self.seeds, self.said, self.folder = context, seeds, said, folder
        self.counts, self.at = context.Array("q", 3, lock=False), context.Array("d", 2, lock=False)
        self.start(seeds)

    def start(self, seeds: range) -> None:
        """Run these seeds in a new process."""
        self.at[:] = [seeds.start, time.time()]
        self.process = self.context.Process(
            target=work,
            args=(seeds, self.at, self.counts, self.said, str(self.folder)),
            daemon=True,
        )
        self.process.start()

    def look(self) -> bool:
        """Whether seeds are left. A worker that hangs or died is replaced, from the next seed
        on.
        """
        seed, since = int(self.at[0]), self.at[1]
        late = self.process.is_alive() and time.time() - since > LIMIT
        if late:
            self.process.kill()
            self.process.join()
        if self.process.is_alive():
            return True
        if seed >= self.seeds.stop:
            return False
        self.counts[2] += 1
        self.said.put(
            f"seed {seed} ran longer than {LIMIT} s"
            if late
            else f"seed {seed} ended its process ({self.process.exitcode})"
        )
        if seed + 1 < self.seeds.stop:
            self.start(range(seed + 1, self.seeds.stop))
        return seed + 1 < self.seeds.stop


def fuzz(inputs: int, start: int, jobs: int, folder: Path) -> int:
    """Print the inputs with a wrong outcome; returns their number."""
    context = mp.get_context("spawn")
    said, shown = context.Queue(), 0
    edges = [start + inputs * n // jobs for n in range(jobs + 1)]
    workers = [
        Worker(context, range(a, b), said, folder / str(a)) for a, b in pairwise(edges) if b > a
    ]
    with tqdm(total=inputs, unit=" inputs", desc="fuzz", mininterval=1) as bar:
        while True:
            going = [worker.look() for worker in workers]
            counts = [sum(worker.counts[n] for worker in workers) for n in range(3)]
            while not said.empty():
                shown += 1
                text = said.get()
                if shown <= MOST_SHOWN:
                    bar.write(f"WRONG {text}\n", file=sys.stderr)
            bar.set_postfix(read=counts[0], refused=counts[1], wrong=counts[2], refresh=False)
            bar.update(sum(counts) - bar.n)
            if not any(going) and said.empty():
                break
            time.sleep(0.5)
    print(
        f"{sum(counts):,} inputs: {counts[0]:,} read and compared, "
        f"{counts[1]:,} refused with one clear error, {counts[2]:,} wrong"
    )
    return counts[2]


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Generated raw files for every reader and the preparation behind it.",
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--seed", type=int, help="run this input alone and leave its files in ./fuzz-<seed>"
    )
    args = parser.parse_args()
    if args.seed is not None:
        from tests.fuzz.trial import trial

        print(trial(args.seed, Path(f"fuzz-{args.seed}")))
        return
    os.environ.setdefault(
        "POLARS_MAX_THREADS", "1"
    )  # the inputs are small: one process each is faster
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="recexp-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        sys.exit(fuzz(args.inputs, args.start, max(1, args.jobs), Path(folder)) > 0)
