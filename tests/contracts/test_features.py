"""Models that read features of items, users and events fulfill the contract that they fulfill
without.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from recexp.config.build import build
from recexp.testing import ModelContract
from recexp.types import moved
from tests.contracts.harness import contestant, small_config
from tests.support import features
from tests.support.pretend import DEVICE, pretend, values

STORE = features.store()
EVENTS = "model.event_side=[value,behavior,device,dwell,gap]"
SEQUENCE = ("model.item_side=all", EVENTS)
MODELS = {
    "sasrec": SEQUENCE,
    "gru4rec": SEQUENCE,
    "fpmc": (*SEQUENCE, "model.user_side=all"),
    "bert4rec": SEQUENCE,
    "bert4rec_vae": SEQUENCE,
    "gru4rec_plus": SEQUENCE,
    "ite": ("model.item_side=all", "model.user_side=all"),
    "bert_ite": ("model.item_side=all", "model.user_side=all", EVENTS),
    "nova_bert": ("model.side=[category,text,value,device,dwell,time,gap]",),
    "dif_sr": ("model.side=[category,text,value,device,dwell,gap]",),
    "invasive_bert": ("model.side=all",),
}
CASES = [pytest.param(name, marks=[] if name == "fpmc" else pytest.mark.slow) for name in MODELS]


class TestModelsWithFeatures(ModelContract):
    store = STORE

    @pytest.fixture(autouse=True, params=CASES)
    def choose(self, request):
        cfg = small_config(request.param, *MODELS[request.param], "model.side_vectors=trained")
        self.model = lambda schema: build(cfg.model, schema=schema)
        self.objective = lambda: build(cfg.objective)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "gru4rec" else pytest.mark.slow) for n in MODELS]
)
def test_losses_and_gradients_on_a_device_are_those_of_the_cpu(name):
    entry = contestant(name, STORE, *MODELS[name], dropout=False)
    objective, model = entry.objective, entry.model.train()
    if objective.independent_rows:
        rows = objective.rows(STORE)[:8]
    else:
        rows = next(iter(objective.batches(STORE, 8, 0)))
    batch = objective.batch(STORE, rows, torch.Generator().manual_seed(0))
    far_objective = copy.deepcopy(objective)
    loss = objective.losses(model, batch)["loss"]
    loss.backward()
    with pretend():
        far = copy.deepcopy(entry.model).to(DEVICE)
        far.zero_grad()
        far_loss = far_objective.losses(far, moved(batch, DEVICE))["loss"]
        far_loss.backward()
        assert far_loss.device == DEVICE
        gradients = [values(p.grad) for p in far.parameters() if p.grad is not None]
    assert values(far_loss) == pytest.approx(float(loss.detach()), rel=1e-4)
    own = [p.grad for p in model.parameters() if p.grad is not None]
    for found, expected in zip(gradients, own, strict=True):
        assert torch.allclose(torch.as_tensor(found), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "fpmc"])
def test_features_of_events_to_predict_are_not_in_the_input(name):
    entry = contestant(name, STORE, *MODELS[name])
    rows = STORE.train.ptr[1:11]  # one past the last event of a user
    if name in ("gru4rec", "fpmc"):
        rows = rows - 1
    before = entry.objective.batch(STORE, rows, torch.Generator().manual_seed(3))
    at = rows if name in ("gru4rec", "fpmc") else rows - 1
    if name == "bert4rec":
        masked_BL = before.query.item_BL == STORE.schema.V
        length = masked_BL.shape[1]
        at = (rows[:, None] - length + torch.arange(length))[masked_BL]
    hit = torch.zeros(len(STORE.train), dtype=torch.bool)
    hit[at] = True
    changed = {n: torch.where(hit, 1 + x, x) for n, x in STORE.train.features.items()}
    other = replace(STORE, train=replace(STORE.train, features=changed))
    after = entry.objective.batch(other, rows, torch.Generator().manual_seed(3))
    assert any(x.any() for x in before.query.features_BL.values())
    for feature, column in before.query.features_BL.items():
        assert torch.equal(column, after.query.features_BL[feature])
