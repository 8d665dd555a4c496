"""The loss of a model that scores all items alike, compared with the loss computed on batches."""

from __future__ import annotations

import pytest
import torch

from recexp.contracts import CatalogLoss, SampledLoss, SessionState
from recexp.objectives.closed_form import FitPass
from recexp.objectives.cloze import Cloze
from recexp.objectives.losses import MSE, SampledSoftmax
from recexp.objectives.next_item import NextItem
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import InBatch, NoSampler, Uniform
from recexp.objectives.session_parallel import SessionParallel
from recexp.testing import worlds
from tests.support.losses import loss, names_of
from tests.support.stub_models import PairScores, RunningSum

STORE = worlds.random_store(
    n_users=23, n_items=40, behaviors=("view", "cart", "buy"), explicit=(False, True, True)
)
SCORES = torch.linspace(-6, 6, 481)


class Alike(RunningSum, SessionState):
    """All items score ``bias``."""

    def __init__(self):
        super().__init__(STORE.schema.V, history=6)
        with torch.no_grad():
            self.item.zero_()

    def initial_state(self, slots):
        return torch.zeros(1, slots, 4, dtype=torch.float64)

    def step(self, item_S, state_1SD):
        return state_1SD[0], state_1SD

    def head(self, h):
        return h


def least(task, model, parameter, batches) -> float:
    """The least mean loss over common scores."""
    losses = []
    with torch.no_grad():
        for score in SCORES:
            parameter.fill_(score)
            values = [float(task.losses(model, batch)["loss"]) for batch in batches]
            losses.append(sum(values) / len(values))
    return min(losses)


@pytest.mark.parametrize("name", [*names_of(CatalogLoss), *names_of(SampledLoss)])
@pytest.mark.parametrize("kind", [NextItem, Cloze])
def test_sequence_losses(kind, name):
    task = kind(NoSampler() if name == "ce" else Uniform(), loss=loss(name), n_negatives=3)
    model = Alike()
    task.bind(model, STORE)
    batch = task.batch(STORE, task.rows(STORE), torch.Generator().manual_seed(0))
    assert task.constant_loss(STORE, 8) == pytest.approx(
        least(task, model, model.bias, [batch]), rel=1e-3
    )
    assert task.instances() is None


def test_a_corrected_softmax_stands_for_the_catalog():
    task = NextItem(Uniform(), loss=SampledSoftmax(log_q=True), n_negatives=400, shared="batch")
    model = Alike()
    task.bind(model, STORE)
    batch = task.batch(STORE, task.rows(STORE), torch.Generator().manual_seed(0))
    assert task.constant_loss(STORE, 8) == pytest.approx(
        least(task, model, model.bias, [batch]), rel=0.02
    )


@pytest.mark.parametrize("name", [n for n in names_of(SampledLoss) if n != "gbce"])
def test_losses_of_sessions_side_by_side(name):
    """Approximate: equal targets are left out, and the last steps have fewer sessions, for which
    another common score is best.
    """
    task = SessionParallel(InBatch(), loss=loss(name))
    model = Alike()
    task.bind(model, STORE)
    steps = task.batches(STORE, 12, seed=0)
    batches = [task.batch(STORE, rows, torch.Generator()) for rows in steps]
    task._hidden = None
    found = least(task, model, model.bias, batches)
    assert task.constant_loss(STORE, 12) == pytest.approx(
        found, rel=0.07 if name == "bce" else 0.02
    )
    assert task.instances() is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_negatives": 1, "loss": MSE()},
        {"weights": [0.5, 1.0]},
        {"explicit_neg": "unobserved"},
        {"explicit_neg": "clicked_only", "reduction": "weights"},
        {"explicit_neg": "unobserved", "reduction": "weights", "balance": 1.0},
        {"positives": "strongest", "balance": 0.5},
        {"levels": ["view", "cart", "buy"], "weights": [1.0, 2.0, 3.0]},
    ],
)
def test_pointwise_losses(options):
    levels = len(options.get("levels", "12"))
    task, model = (
        Pointwise(Uniform(), **options),
        PairScores(STORE.schema.n_users, STORE.schema.V, levels, 3),
    )
    task.bind(model, STORE)
    batch = task.batch(STORE, task.rows(STORE), torch.Generator().manual_seed(0))
    weights, model.table.data = options.get("weights") or [1.0] * levels, model.table.data.double()
    with torch.no_grad():
        total = 0.0
        for k in range(levels):  # levels are judged one by one: each has its own best constant
            values = []
            for score in torch.linspace(-1, 2, 601) if task.loss == MSE() else SCORES:
                model.table.fill_(score)
                values.append(float(task.losses(model, batch)[f"loss_{k}"]))
            total += weights[k] * min(values)
    assert task.constant_loss(STORE, 8) == pytest.approx(total, rel=1e-3)
    assert task.instances() == 1 + task.n_negatives


@pytest.mark.parametrize("name", names_of(SampledLoss))
def test_pairwise_losses(name):
    task, model = (
        Pairwise(Uniform(), loss=loss(name), n_negatives=3),
        PairScores(STORE.schema.n_users, STORE.schema.V),
    )
    task.bind(model, STORE)
    batch = task.batch(STORE, task.rows(STORE), torch.Generator().manual_seed(0))
    found = least(task, model, model.table, [batch])
    assert task.constant_loss(STORE, 8) == pytest.approx(found, rel=1e-3)
    assert task.instances() == 3  # (user, positive, negative) triples


def test_what_has_no_loss_has_no_mark():
    assert FitPass().constant_loss(STORE, 8) is None and FitPass().instances() is None
