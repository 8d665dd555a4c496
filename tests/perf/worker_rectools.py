"""One measurement of RecTools in its own environment; the last line of its output is JSON.

See versus_peers.py.
"""

import itertools
import json
import os
import resource
import statistics
import sys
import time
import warnings

SPEC = json.loads(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(SPEC["threads"])
warnings.filterwarnings("ignore")


import pandas as pd  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.models import BERT4RecModel, SASRecModel  # noqa: E402

torch.set_num_threads(SPEC["threads"])
said, ends = {}, []


class Clock(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        said.setdefault("first_step_s", time.time() - SPEC["born"])
        said["steps_per_epoch"] = int(trainer.num_training_batches)
        ends.append(time.perf_counter())
        if ends[-1] - ends[0] > SPEC["train_s"]:
            trainer.should_stop = True


def trainer():
    quiet = dict(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[Clock()], **quiet)


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


began = time.perf_counter()
events = pd.read_csv(SPEC["events"], sep="\t")  # user_id item_id rating timestamp, by user and time
events["datetime"] = pd.to_datetime(events.timestamp, unit="s")
events["weight"] = 1
late = events.groupby("user_id").cumcount(ascending=False)
data = Dataset.construct(events.loc[late >= 2, ["user_id", "item_id", "weight", "datetime"]])
said["prepare_s"] = time.perf_counter() - began
size = dict(
    n_blocks=2, n_heads=2, n_factors=SPEC["width"], dropout_rate=0.1, session_max_len=SPEC["length"]
)
model = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel}[SPEC["model"]](
    **size,
    **({"mask_prob": 0.2} if SPEC["model"] == "bert4rec" else {}),
    loss="softmax",
    lr=1e-3,
    batch_size=SPEC["batch"],
    epochs=1,
    get_trainer_func=trainer,
    recommend_torch_device="cpu",
)
model.fit(data)
steps = [b - a for a, b in itertools.pairwise(ends)]
mean = statistics.mean(steps[5:] or steps)
said.update(
    step_s=mean,
    steps=len(steps),
    epoch_s=mean * said["steps_per_epoch"],
    users=events.user_id.nunique(),
    events=int((late >= 2).sum()),
)
said["peak_train_gb"] = peak_gb()
times = []
for _ in range(SPEC["rankings"]):
    began = time.perf_counter()
    model.recommend(users=events.user_id.unique(), dataset=data, k=10, filter_viewed=True)
    times.append(time.perf_counter() - began)
said.update(rank_s=statistics.median(times), peak_gb=peak_gb(), total_s=time.time() - SPEC["born"])
print("\n" + json.dumps(said))
