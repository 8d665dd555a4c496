"""Properties of all collaborative and several-behavior models."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from recexp.config.build import build as build_config
from recexp.contracts import ClosedForm, MultiBehavior, Recommender
from recexp.errors import RecexpError
from recexp.models import common
from recexp.models.fpmc import FPMC
from recexp.models.item_knn import ItemKNN
from recexp.models.mf import MF
from recexp.models.mfpr import MFPR
from recexp.models.mmlp import MMLP
from recexp.models.mtmf import MTMF
from recexp.models.neumf import NeuMF
from recexp.models.nmtr import NMTR
from recexp.models.pop import Pop
from recexp.models.replay import Replay
from recexp.models.wmf import WMF
from recexp.testing import toy, worlds
from recexp.types import Schema
from tests.config.test_check import composed

SCHEMA = toy.schema(side=False)
QUERY = toy.query([0, 1, 4, 3, 0], [[1, 2, 5], [7], [], [3, 3, 9, 2, 12, 4], [1, 2, 6]])


def events(rows, n_users, behavior=None):
    """A store with the training events only: rows of (user, item, behavior code), in time order
    within a user.
    """
    rows = sorted(rows, key=lambda row: row[0])
    user, item, code = torch.tensor(rows).T
    ptr = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(user, minlength=n_users).cumsum(0)]
    )
    train = SimpleNamespace(
        ptr=ptr,
        user=user,
        item=item.int(),
        behavior=code.to(torch.int8),
        mask=(1 << (code - 1)).int(),
    )
    sets = {}
    for u, i, b in rows:
        seen = sets.setdefault((u, i), [0, 0])
        seen[0], seen[1] = seen[0] | 1 << (b - 1), seen[1] + 1
    keys = sorted(sets)
    pairs = SimpleNamespace(
        user=torch.tensor([u for u, _ in keys]),
        item=torch.tensor([i for _, i in keys], dtype=torch.int32),
        mask=torch.tensor([sets[k][0] for k in keys], dtype=torch.int32),
        count=torch.tensor([sets[k][1] for k in keys], dtype=torch.int32),
    )
    return SimpleNamespace(schema=SCHEMA, train=train, train_pairs=pairs)


def random_store(n_users=toy.N_USERS, n_items=toy.N_ITEMS, n_events=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    user, item = (
        torch.randint(0, n_users, (n_events,), generator=g),
        torch.randint(1, n_items + 1, (n_events,), generator=g),
    )
    code = 1 + (torch.rand(n_events, generator=g) < 0.3).long()
    return events(torch.stack([user, item, code], 1).tolist(), n_users)


STORE = random_store()
TRAINED = {
    "mf": (MF, dict(n_factors=4)),
    "bpr_mf": (MF, dict(n_factors=4, item_bias=True)),
    "gmf": (NeuMF, dict(n_factors=4, interaction="gmf")),
    "mlp": (NeuMF, dict(n_factors=2, interaction="mlp")),
    "neumf": (NeuMF, dict(n_factors=2)),
    "fpmc": (FPMC, dict(n_factors=4)),
    "mmlp": (MMLP, dict(mf_part=False)),
    "mf_mmlp": (MMLP, dict()),
    "mfpr": (MFPR, dict(n_factors=4)),
    "nmtr": (NMTR, dict(n_factors=4)),
    "nmtr_prob_gmf": (NMTR, dict(n_factors=4, carry="prob", interaction="gmf")),
    "mtmf": (MTMF, dict(n_factors=4)),
    "mtmf_sum": (MTMF, dict(n_factors=4, score_by="sum", implicit_share=0.3)),
}
SWEPT = {
    "pop": (Pop, dict()),
    "item_knn": (ItemKNN, dict()),
    "replay": (Replay, dict(max_len=4)),
    "wmf": (WMF, dict(n_factors=4)),
}
ALL = {**TRAINED, **SWEPT}


def build(name, schema=SCHEMA, **more):
    kind, knobs = ALL[name]
    return kind(schema, **{**knobs, **more})


def ready(name):
    torch.manual_seed(0)
    model = toy.randomise(build(name))
    if name in SWEPT:
        model.fit_pass(STORE)
    model.bind(STORE)
    return model


@pytest.mark.parametrize("name", ALL)
def test_whole_catalogue_equals_all_candidates(name):
    model = ready(name)
    everything = torch.arange(1, SCHEMA.V).expand(len(QUERY), -1)
    torch.testing.assert_close(
        model.score(QUERY), model.score(QUERY, everything), rtol=1e-10, atol=1e-12
    )
    assert model.score(QUERY).shape == (len(QUERY), SCHEMA.n_items)
    assert len(model.score(QUERY)[0].unique()) > 2


@pytest.mark.parametrize("name", ALL)
def test_candidates_are_scored_one_by_one_and_rows_apart(name):
    model = ready(name)
    candidates = torch.stack(
        [
            torch.randperm(SCHEMA.n_items, generator=torch.Generator().manual_seed(r))[:6] + 1
            for r in range(5)
        ]
    )
    score = model.score(QUERY, candidates)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    torch.testing.assert_close(
        model.score(QUERY, candidates[:, order]), score[:, order], rtol=1e-10, atol=1e-12
    )
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(
        model.score(QUERY[rows], candidates[rows]), score[rows], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ALL)
def test_padding_and_float32(name):
    model = ready(name)
    torch.testing.assert_close(
        model.score(toy.padded(QUERY, 3)), model.score(QUERY), rtol=1e-10, atol=1e-12
    )
    empty = toy.query([2, 0], [[], []])
    assert model.score(empty).isfinite().all()
    assert model.float().score(QUERY).dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_protocols_and_state(name, tmp_path):
    model, other = ready(name), build(name)
    assert isinstance(model, Recommender)
    assert isinstance(model, ClosedForm if name in SWEPT else MultiBehavior)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.double().eval().load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.bind(STORE)
    assert torch.equal(other.score(QUERY), model.score(QUERY))


@pytest.mark.parametrize("name", TRAINED)
def test_logits_agree_with_the_ranking_and_reach_every_parameter(name):
    model = ready(name)
    candidates = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [2, 4, 6]])
    z_BCK = model.logits(QUERY, candidates)
    assert z_BCK.shape == (5, 3, model.n_behaviors)
    if name != "mtmf_sum":
        torch.testing.assert_close(
            z_BCK[..., -1], model.score(QUERY, candidates), rtol=1e-10, atol=1e-12
        )
    model.train()
    z_BCK = model.logits(QUERY, candidates)
    (
        z_BCK
        * torch.randn(z_BCK.shape, generator=torch.Generator().manual_seed(1), dtype=z_BCK.dtype)
    ).sum().backward()
    assert toy.without_gradient(model) == []


@pytest.mark.parametrize("name", TRAINED)
def test_padding_row_never_learns(name):
    model = ready(name).train()
    tables = [
        m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx == 0
    ]
    candidates = torch.tensor([[0, 1]] * 5)
    (model.logits(QUERY, candidates).square().sum() + model.penalty(QUERY, candidates)).backward()
    assert tables and all(
        not table.weight.grad[0].any() and not table.weight[0].any() for table in tables
    )


@pytest.mark.parametrize("name", TRAINED)
def test_penalty_is_the_mean_square_of_what_was_looked_up(name):
    model = ready(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    candidates = torch.tensor([[1, 2]] * 5)
    used = (
        QUERY if name != "fpmc" else QUERY[torch.tensor([0, 1, 3, 4, 0])]
    )  # an empty history looks up the padding row
    assert model.penalty(used, candidates).item() == pytest.approx(0.25)
    model.zero_grad()
    model.penalty(QUERY, candidates).backward()
    touched = {
        int(u)
        for p in model.parameters()
        if p.grad is not None and p.shape[0] == SCHEMA.n_users
        for u in p.grad.any(-1).nonzero()
    }
    assert touched == {0, 1, 3, 4}


@pytest.mark.parametrize("name", ["neumf", "mf_mmlp", "nmtr", "item_knn", "replay"])
def test_chunks_change_nothing(name, monkeypatch):
    model = ready(name)
    candidates = torch.arange(1, SCHEMA.V).flip(0).expand(len(QUERY), -1)
    whole, some = model.score(QUERY), model.score(QUERY, candidates)
    home = inspect.getmodule(type(model)) if name in SWEPT else common
    monkeypatch.setattr(home, "_SCORED" if name in SWEPT else "SCORE_BLOCK", 1)
    torch.testing.assert_close(model.score(QUERY), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.score(QUERY, candidates), some, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model.score(QUERY), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TRAINED)
def test_ranking_all_items_without_gradients_changes_nothing(name):
    """That is how a run ranks, and some models then compute their scores in another way."""
    model = ready(name)
    plain = model.score(QUERY)
    with torch.no_grad():
        torch.testing.assert_close(model.score(QUERY), plain, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model.float().score(QUERY), plain.float(), rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                model.score(QUERY).float(), plain.float(), rtol=5e-2, atol=5e-2
            )


@pytest.mark.parametrize("name", TRAINED)
def test_overfits_a_toy_shop(name):
    """A model that learns ranks its own training items first."""
    torch.manual_seed(0)
    model = build(name, Schema(20, 60, ("view", "buy"), (False, True)), n_factors=8, init_std=0.1)
    likes = torch.stack([torch.randperm(60)[:3] + 1 for _ in range(20)])
    model.bind(events([(u, int(i), 2) for u in range(20) for i in likes[u]], 20))
    query = toy.query(list(range(20)), [[]] * 20)
    label = torch.zeros(20, 60).scatter_(1, likes - 1, 1.0)
    everything = torch.arange(1, 61).expand(20, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        z = model.logits(query, everything)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            z, label.unsqueeze(-1).expand_as(z)
        ).backward()
        optimizer.step()
    model.eval()
    best = model.score(query).topk(10).indices + 1
    hit = (best.unsqueeze(2) == likes.unsqueeze(1)).any(1).float().mean().item()
    assert hit > 0.95


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: MF(SCHEMA, n_factors=0), "n_factors"),
        (lambda: NeuMF(SCHEMA, interaction="dot"), "interaction"),
        (lambda: NeuMF(SCHEMA, n_layers=0), "n_layers"),
        (lambda: NMTR(SCHEMA, carry="sum"), "carry"),
        (lambda: NMTR(SCHEMA, n_factors=5), "even"),
        (lambda: NMTR(SCHEMA, n_behaviors=0), "level"),
        (lambda: MTMF(SCHEMA, score_by="implicit"), "score_by"),
        (lambda: WMF(SCHEMA, alpha=0.0), "alpha"),
        (lambda: ItemKNN(SCHEMA, decay=1.5), "decay"),
        (lambda: Pop(SCHEMA, behaviors=["cart"]), "cart"),
        (lambda: Pop(Schema(1, 1, ("view",), (False,)), behaviors="explicit"), "explicit"),
        (lambda: MFPR(SCHEMA).score(QUERY), "bind"),
    ],
)
def test_wrong_knobs_are_named(build, word):
    with pytest.raises(RecexpError, match=word):
        build()


def test_dead_branches_are_counted():
    m = MMLP(SCHEMA, n_factors=4).train()
    with torch.no_grad():
        last = [layer for layer in m.branches[0].modules() if isinstance(layer, torch.nn.Linear)][
            -1
        ]
        last.weight.zero_()
        last.bias.fill_(-1.0)
    m.score(QUERY, torch.tensor([[1, 2]]).expand(len(QUERY), -1))
    shares = m.diagnostics()
    assert shares["active_branch_0"] == 0 and len(shares) == len(SCHEMA.behaviors)
    assert all(0 <= float(x) <= 1 for x in shares.values()) and max(map(float, shares.values())) > 0


def test_nmtr_draws_each_behaviors_negatives_for_its_own_positives():
    """Items that the user has through weaker behaviors only are not negatives of stronger
    behaviors.
    """
    cfg = composed("model=nmtr", "dataset=table")
    opened, task = worlds.random_store(), build_config(cfg.objective)
    task.bind(build_config(cfg.model, schema=opened.schema), opened)
    batch = task.batch(opened, task.rows(opened), torch.Generator().manual_seed(0))
    bought = batch.y_BCK[:, 0, 1]
    assert 0 < bought.sum() < len(bought)
    assert torch.equal(batch.w_BCK[..., 1], bought[:, None].expand_as(batch.w_BCK[..., 1]))
    assert bool((batch.w_BCK[..., 0] == 1).all())
