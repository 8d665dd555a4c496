"""Pointwise examples against loops over users and items."""

import pytest
import torch
import torch.nn.functional as F

from recexp.contracts import BranchMasked
from recexp.errors import RecexpError
from recexp.objectives.losses import MSE
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import Uniform
from recexp.testing import worlds
from tests.support.stub_models import PairScores

THREE = dict(behaviors=("view", "cart", "buy"), explicit=(False, True, True))


def labeled(store):
    """(user, item, behaviors the user ever showed on the item in training, as bits) per training
    event.
    """
    events = list(
        zip(
            store.train.user.tolist(),
            store.train.item.tolist(),
            store.train.mask.tolist(),
            strict=True,
        )
    )
    ever = {}
    for user, item, mask in events:
        ever[user, item] = ever.get((user, item), 0) | mask
    return [(user, item, ever[user, item]) for user, item, _ in events]


STORE = worlds.random_store(**THREE)
EVENTS = labeled(STORE)
OWN = {u: {i for v, i, _ in EVENTS if v == u} for u in range(STORE.schema.n_users)}


def objective(K=2, history=3, store=STORE, **options):
    task = Pointwise(Uniform(), **options)
    model = PairScores(store.schema.n_users, store.schema.V, K, history)
    task.bind(model, store)
    return task, model


def batch_of(task, store=STORE, seed=0, rows=None):
    return task.batch(
        store, task.rows(store) if rows is None else rows, torch.Generator().manual_seed(seed)
    )


def test_every_event_comes_with_its_past_and_items_the_user_has_not():
    task, _ = objective(n_negatives=4)
    batch = batch_of(task)
    for row, (user, item, _) in enumerate(EVENTS):
        before = [i for u, i, _ in EVENTS[:row] if u == user][-3:]
        assert [i for i in batch.query.item_BL[row].tolist() if i] == before
        assert batch.item_BC[row, 0] == item
        assert not OWN[user] & set(batch.item_BC[row, 1:].tolist())
    assert batch.item_BC.shape == (len(EVENTS), 5)
    assert batch.query.without_B is None and batch.did_BCT is None


@pytest.mark.parametrize(
    ("positives", "bits"), [("any", 0b111), ("explicit", 0b110), ("strongest", 0b100)]
)
def test_the_events_to_learn_from_can_be_chosen(positives, bits):
    task, _ = objective(positives=positives)
    assert task.rows(STORE).tolist() == [
        row for row, mask in enumerate(STORE.train.mask.tolist()) if mask & bits
    ]


def test_negatives_follow_the_generator():
    task, _ = objective()
    assert torch.equal(batch_of(task, seed=1).item_BC, batch_of(task, seed=1).item_BC)
    assert not torch.equal(batch_of(task, seed=1).item_BC, batch_of(task, seed=2).item_BC)


@pytest.mark.parametrize(
    ("K", "levels", "bits"),
    [
        (1, None, [0b111]),
        (2, None, [0b111, 0b110]),
        (3, None, [0b001, 0b010, 0b100]),
        (1, ["buy"], [0b100]),
        (3, ["any", "explicit", "buy"], [0b111, 0b110, 0b100]),
    ],
)
def test_labels_say_which_levels_the_pair_reaches(K, levels, bits):
    task, _ = objective(K, levels=levels)
    y = batch_of(task).y_BCK
    assert y[:, 0].tolist() == [[float(mask & b != 0) for b in bits] for _, _, mask in EVENTS]
    assert not y[:, 1:].any()


@pytest.mark.parametrize("explicit_neg", ["unobserved", "clicked_only", "both"])
def test_weights_say_which_pairs_count_for_the_explicit_level(explicit_neg):
    task, _ = objective(explicit_neg=explicit_neg, n_negatives=2)
    w = batch_of(task).w_BCK
    assert (w[..., 0] == 1).all()
    for row, (_, _, mask) in enumerate(EVENTS):
        bought = bool(mask & 0b110)
        expected = {
            "unobserved": [
                bought,
                bought,
                bought,
            ],  # only positives of the level, with the items drawn for them
            "clicked_only": [
                True,
                False,
                False,
            ],  # positives, and what was met without reaching the level
            "both": [True, True, True],
        }[explicit_neg]
        assert w[row, :, 1].tolist() == [float(x) for x in expected]


@pytest.mark.parametrize("reduction", ["rows", "weights"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
def test_loss_is_the_weighted_sum_of_binary_cross_entropies(reduction, weights):
    task, model = objective(
        explicit_neg="unobserved", reduction=reduction, weights=weights, n_negatives=3
    )
    batch = batch_of(task)
    expected = 0.0
    for k in range(2):
        total = count = 0.0
        for row, (user, _, _) in enumerate(EVENTS):
            for c in range(4):
                z = model.table[user, batch.item_BC[row, c], k]
                w = float(batch.w_BCK[row, c, k])
                total += w * F.binary_cross_entropy_with_logits(z, batch.y_BCK[row, c, k]).item()
                count += 1.0 if reduction == "rows" else w
        expected += (weights or [1.0, 1.0])[k] * total / count
    losses = task.losses(model, batch)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert set(losses) == {"loss", "loss_0", "loss_1"} and not losses["loss_0"].requires_grad


def test_squared_error_is_of_the_scores_themselves():
    task, model = objective(loss=MSE(), explicit_neg="unobserved", reduction="weights")
    batch = batch_of(task)
    error = (model.logits(batch.query, batch.item_BC) - batch.y_BCK) ** 2
    expected = sum(
        (error[..., k] * batch.w_BCK[..., k]).sum() / batch.w_BCK[..., k].sum() for k in range(2)
    )
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_l2_adds_the_penalty_of_the_looked_up_embeddings():
    task, model = objective()
    batch = batch_of(task)
    plain = task.losses(model, batch)["loss"].item()
    task.l2 = 0.3
    extra = 0.3 * model.penalty(batch.query, batch.item_BC).item()
    assert task.losses(model, batch)["loss"].item() == pytest.approx(plain + extra, rel=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_balance_weighs_events_by_their_users_activity(power):
    task, _ = objective(balance=power, n_negatives=1)
    w = batch_of(task).w_BCK[:, 0, 0]
    assert float(w.mean()) == pytest.approx(1.0, rel=1e-5)
    size = torch.tensor([sum(u == v for v, _, _ in EVENTS) for u, _, _ in EVENTS]).float()
    torch.testing.assert_close(w * size**power, (w[0] * size[0] ** power).expand_as(w))


def test_shuffled_targets_belong_to_other_users_events():
    task, _ = objective(shuffle_targets=True, n_negatives=6)
    batch, plain = batch_of(task), batch_of(objective(n_negatives=6)[0])
    assert torch.equal(batch.query.item_BL, plain.query.item_BL) and torch.equal(
        batch.query.user_B, plain.query.user_B
    )
    pairs = {(i, bool(m & 0b110)) for _, i, m in EVENTS}
    assert all(
        (i, bool(y)) in pairs
        for i, y in zip(batch.item_BC[:, 0].tolist(), batch.y_BCK[:, 0, 1].tolist(), strict=True)
    )
    assert (batch.item_BC[:, 0] != plain.item_BC[:, 0]).float().mean() > 0.7
    # negatives that avoided the row's user would tell what he has: his own items must be drawn like
    # any other
    own = [
        i in OWN[u]
        for (u, _, _), row in zip(EVENTS, batch.item_BC[:, 1:].tolist(), strict=True)
        for i in row
    ]
    assert sum(own) > 0.1 * len(own)


def test_target_can_be_left_out_of_the_users_side_features():
    batch = batch_of(objective(leave_target_out=True)[0])
    assert torch.equal(batch.query.without_B, batch.item_BC[:, 0])


class Branches(PairScores, BranchMasked):
    def logits(self, query, item_BC, branch_mask_BCT=None):
        return super().logits(query, item_BC)


def test_behaviors_on_the_candidates_for_models_with_branches():
    task = Pointwise(Uniform(), n_negatives=2)
    model = Branches(STORE.schema.n_users, STORE.schema.V, 1)
    task.bind(model, STORE)
    batch = batch_of(task)
    pairs = zip(
        STORE.train_pairs.user.tolist(),
        STORE.train_pairs.item.tolist(),
        STORE.train_pairs.mask.tolist(),
        strict=True,
    )
    have = {(u, i, t) for u, i, mask in pairs for t in range(3) if mask >> t & 1}
    for row, (user, _, _) in enumerate(EVENTS):
        for c, item in enumerate(batch.item_BC[row].tolist()):
            assert batch.did_BCT[row, c].tolist() == [(user, item, t) in have for t in range(3)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(explicit_neg="none"), "explicit_neg"),
        (dict(reduction="sum"), "reduction"),
        (dict(n_negatives=0), "n_negatives"),
        (dict(levels=["any"]), "predicts 2"),
        (dict(levels=["any", "liked"]), "liked"),
        (dict(weights=[1.0]), "objective.weights"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(RecexpError, match=text):
        objective(**options)


@pytest.mark.parametrize(
    ("explicit", "text"), [((False, False), "no behavior"), ((True, True), "every behavior")]
)
def test_two_levels_need_both_kinds_of_feedback(explicit, text):
    with pytest.raises(RecexpError, match=text):
        objective(store=worlds.random_store(explicit=explicit))


def test_a_user_with_all_items_has_no_negatives():
    store = worlds.store([(0, 1, 1), (0, 2, 2), (1, 1, 2)], n_users=2, n_items=2)
    with pytest.raises(RecexpError, match="all 2 items"):
        objective(store=store)
