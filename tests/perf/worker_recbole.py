"""One measurement of RecBole in its own environment; the last line of its output is JSON.

See versus_peers.py.
"""

import contextlib
import itertools
import json
import logging
import os
import resource
import statistics
import sys
import time
import warnings

SPEC = json.loads(sys.argv[1])
os.environ |= {"OMP_NUM_THREADS": str(SPEC["threads"]), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
warnings.filterwarnings("ignore")
sys.argv = sys.argv[:1]  # RecBole reads it

import torch  # noqa: E402

torch.set_num_threads(SPEC["threads"])

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_logger, init_seed  # noqa: E402

os.chdir(SPEC["folder"])
said, ends = {}, []


class Enough(Exception):
    """The time allowed for training is over."""


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def config(mode):
    settings = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "show_progress": False,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": mode,
        },
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "epochs": SPEC.get("epochs", 1),
        "eval_step": 1,
        "MAX_ITEM_LIST_LENGTH": SPEC.get("length", 50),
        "train_batch_size": SPEC["batch"],
    }
    if SPEC["data_path"]:  # else data that RecBole brings
        settings["data_path"] = SPEC["data_path"]
    return Config(
        model=SPEC["model"], dataset=SPEC["dataset"], config_dict=settings | SPEC["settings"]
    )


def prepared(mode):
    c = config(mode)
    init_seed(c["seed"], c["reproducibility"])
    init_logger(c)
    logging.getLogger().setLevel(logging.ERROR)
    dataset = create_dataset(c)
    return c, dataset, *data_preparation(c, dataset)


began = time.perf_counter()
c, dataset, train, valid, test = prepared("full")
said.update(
    prepare_s=time.perf_counter() - began,
    users=dataset.user_num - 1,
    targets=len(train._dataset),
    steps_per_epoch=len(train),
)
model = get_model(c["model"])(c, train._dataset).to(c["device"])
said["anomaly_mode"] = torch.is_anomaly_enabled()
if not SPEC["anomaly"]:
    torch.autograd.set_detect_anomaly(False)
trainer = get_trainer(c["MODEL_TYPE"], c["model"])(c, model)

if "until" in SPEC:  # wall time to a validation NDCG@10
    history = []

    def after_epoch(epoch, score):
        history.append((time.perf_counter() - began, float(score)))
        if time.perf_counter() - began > SPEC["train_s"]:
            raise Enough

    began = time.perf_counter()
    with contextlib.suppress(Enough):
        trainer.fit(
            train, valid, verbose=False, saved=False, show_progress=False, callback_fn=after_epoch
        )
    said.update(history=history, peak_gb=peak_gb())
    print("\n" + json.dumps(said, default=float))
    sys.exit()

loss = model.calculate_loss


def timed_loss(interaction):
    ends.append(time.perf_counter())  # a step ends where the next begins
    if len(ends) == 2:
        said["first_step_s"] = time.time() - SPEC["born"]
    if ends[-1] - ends[0] > SPEC["train_s"] and len(ends) > 3:
        raise Enough
    return loss(interaction)


model.calculate_loss = timed_loss
began = time.perf_counter()
try:
    trainer._train_epoch(train, 0, show_progress=False)
    said["whole_epoch_s"] = time.perf_counter() - began
except Enough:
    pass
model.calculate_loss = loss
steps = [b - a for a, b in itertools.pairwise(ends)]
steps = steps[1:] or steps
said.update(
    step_s=statistics.mean(steps),
    steps=len(steps),
    epoch_s=statistics.mean(steps) * len(train),
    peak_train_gb=peak_gb(),
)


def ranked(loader, rounds):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        trainer.evaluate(loader, load_best_model=False, show_progress=False)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


said.update(rank_s=ranked(test, SPEC["rankings"]), peak_gb=peak_gb())
if SPEC.get("sampled"):
    del train, valid, test, dataset
    *_, valid, test = prepared("uni100")

    class First:
        """The first batches of a loader: sampled evaluation of all users would take an hour."""

        def __init__(self, loader, batches):
            self.loader, self.batches = loader, batches

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def __iter__(self):
            for i, batch in enumerate(self.loader):
                if i == self.batches:
                    return
                yield batch

    batches = min(SPEC["sampled"], len(test))
    began = time.perf_counter()
    trainer.evaluate(First(test, batches), load_best_model=False, show_progress=False)
    said["sampled_s"] = (time.perf_counter() - began) * len(test) / batches
said["total_s"] = time.time() - SPEC["born"]
print("\n" + json.dumps(said, default=float))
