"""One measurement of implicit in its own environment; the last line of its output is JSON.

SPEC: events (a file of user_id, item_id, rating, timestamp, as versus_peers.py converts it), model
("als", "als_cg" or "bpr"), width, rankings, threads, train_s, born. verify: whether BPR leaves out
negatives that the user has (its default). passes: make so many passes and say, for every
pass, the seconds of training and NDCG@10 of the validation targets among unseen items. settings:
more arguments of the model. See versus_peers.py.
"""

import contextlib
import json
import os
import resource
import statistics
import sys
import time
import warnings

SPEC = json.loads(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(SPEC["threads"])
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # implicit has threads of its own and asks for this
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from implicit.cpu.als import AlternatingLeastSquares  # noqa: E402
from implicit.cpu.bpr import BayesianPersonalizedRanking  # noqa: E402
from scipy.sparse import csr_matrix  # noqa: E402

MOST_PASSES = SPEC.get("passes", 30)
said, ends, history = {}, [], []


class Enough(Exception):
    """The time for training is over."""


def on_pass_end(number, *_):
    said.setdefault("first_step_s", time.time() - SPEC["born"])
    ends.append(time.perf_counter())
    if ends[-1] - ends[0] > SPEC["train_s"]:
        raise Enough


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_events():
    """All events but the last two of each user, as a matrix of counts; the last but one of each."""
    events = np.loadtxt(SPEC["events"], delimiter="\t", skiprows=1, usecols=(0, 1), dtype=np.int64)
    _, user = np.unique(events[:, 0], return_inverse=True)
    names, item = np.unique(events[:, 1], return_inverse=True)
    length = np.bincount(user)
    place = np.arange(len(user)) - np.repeat(length.cumsum() - length, length)  # users adjoin
    is_training = place < length[user] - 2
    ones = np.ones(int(is_training.sum()), dtype=np.float32)
    shape = (len(length), len(names))
    data = csr_matrix((ones, (user[is_training], item[is_training])), shape=shape)
    is_validation = place == length[user] - 2
    return data, user[is_validation], item[is_validation]


def ndcg():
    score = trained.user_factors[target_user] @ trained.item_factors.T
    of_target = score[np.arange(len(target_user)), target_item]
    score[seen.row, seen.col] = -np.inf
    rank = (score > of_target[:, None]).sum(1)
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())


def on_pass_end_of_race(*_):
    """Seconds of training leave out those of the metric."""
    now = time.perf_counter()
    said["metric_s"] = said.get("metric_s", 0.0)
    history.append((now - began - said["metric_s"], ndcg()))
    said["metric_s"] += time.perf_counter() - now


def model():
    common = dict(
        factors=SPEC["width"],
        iterations=MOST_PASSES,
        num_threads=SPEC["threads"],
        random_state=0,
        **SPEC.get("settings", {}),
    )
    if SPEC["model"] == "bpr":
        return BayesianPersonalizedRanking(
            verify_negative_samples=SPEC.get("verify", True), **common
        )
    use_cg = {"als": False, "als_cg": True}[SPEC["model"]]
    return AlternatingLeastSquares(regularization=0.1, alpha=40.0, use_cg=use_cg, **common)


began = time.perf_counter()
data, target_user, target_item = read_events()
seen = data[target_user].tocoo()
said["prepare_s"] = time.perf_counter() - began
trained = model()
if "passes" in SPEC:
    began = time.perf_counter()
    trained.fit(data, show_progress=False, callback=on_pass_end_of_race)
    print("\n" + json.dumps(said | {"history": history, "total_s": time.time() - SPEC["born"]}))
    sys.exit()
with contextlib.suppress(Enough):
    trained.fit(data, show_progress=False, callback=on_pass_end)
passes = np.diff(ends)
said.update(
    step_s=float(np.median(passes)),
    epoch_s=float(np.median(passes)),
    steps=len(passes),
    users=data.shape[0],
    items=data.shape[1],
    events=int(data.nnz),
    peak_train_gb=peak_gb(),
)
times = []
for _ in range(SPEC["rankings"]):
    began = time.perf_counter()
    users = np.arange(data.shape[0])
    trained.recommend(users, data, N=10, filter_already_liked_items=True)
    times.append(time.perf_counter() - began)
said.update(rank_s=statistics.median(times), peak_gb=peak_gb(), total_s=time.time() - SPEC["born"])
print("\n" + json.dumps(said))
