"""One measurement of the GRU4Rec code of its authors; the last line of its output is JSON.

SPEC: gru4rec (the folder of gru4rec_pytorch.py), events (a file of user_id, item_id, rating,
timestamp, as versus_peers.py converts it), width, batch, negatives, threads, born.
"""

import contextlib
import io
import json
import os
import re
import resource
import sys
import time

SPEC = json.loads(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(SPEC["threads"])
sys.path.insert(0, SPEC["gru4rec"])

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from gru4rec_pytorch import GRU4Rec  # noqa: E402

torch.set_num_threads(SPEC["threads"])
began = time.perf_counter()
events = pd.read_csv(SPEC["events"], sep="\t")
events.columns = ["SessionId", "ItemId", "rating", "Time"]
# All events but the last two of each user; users adjoin, in order of time.
events = events[events.groupby("SessionId").cumcount(ascending=False) >= 2].reset_index(drop=True)
said = {"prepare_s": time.perf_counter() - began}
model = GRU4Rec(
    layers=[SPEC["width"]],
    loss="bpr-max",
    batch_size=SPEC["batch"],
    dropout_p_embed=0.5,
    dropout_p_hidden=0.05,
    n_sample=SPEC["negatives"],
    sample_alpha=0.75,
    constrained_embedding=True,
    n_epochs=1,
    device=torch.device("cpu"),
)
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    model.fit(events)
match = re.search(r"Epoch1 --> .*\(([\d.]+)s\)\s*\[([\d.]+) mb/s", printed.getvalue())
said.update(
    epoch_s=float(match[1]),
    step_s=1 / float(match[2]),
    events=len(events),
    peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    total_s=time.time() - SPEC["born"],
)
print("\n" + json.dumps(said))
