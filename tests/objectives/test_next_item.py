"""Next-item windows against loops, and every loss of the sequence objectives against a plain
computation.
"""

import pytest
import torch
import torch.nn.functional as F

from recexp.contracts import CatalogLoss, SampledLoss
from recexp.errors import RecexpError
from recexp.objectives import sequence
from recexp.objectives.losses import BCE, MSE, SampledSoftmax, gbce_beta
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import NoSampler, Popularity, Uniform
from recexp.testing import worlds
from tests.support.losses import loss, names_of
from tests.support.stub_models import PairScores, RunningSum

STORE = worlds.random_store(n_users=14)
HISTORY = 5
SEQUENCES = [
    STORE.train.item[STORE.train.ptr[u] : STORE.train.ptr[u + 1]].tolist()
    for u in range(STORE.schema.n_users)
]
N_TARGETS = sum(min(HISTORY, max(0, len(items) - 1)) for items in SEQUENCES)


def objective(sampler=None, **options):
    task = NextItem(sampler or Uniform(), **options)
    task.bind(RunningSum(STORE.schema.V, HISTORY), STORE)
    return task


def batch_of(task, rows=None, seed=0):
    return task.batch(
        STORE, task.rows(STORE) if rows is None else rows, torch.Generator().manual_seed(seed)
    )


def examples(batch):
    """(user, input items, targets) per row, without padding."""
    for user, inputs, targets in zip(
        batch.query.user_B.tolist(),
        batch.query.item_BL.tolist(),
        batch.target_BL.tolist(),
        strict=True,
    ):
        yield user, [i for i in inputs if i], [i for i in targets if i]


def rows_of_targets(batch):
    """The row of each target, in the order of their negatives."""
    return (batch.target_BL != 0).nonzero()[:, 0].tolist()


def test_last_windows_are_the_newest_events_shifted_by_one():
    batch = batch_of(objective())
    expected = [
        (u, s[-HISTORY - 1 : -1], s[-HISTORY:] if len(s) > HISTORY else s[1:])
        for u, s in enumerate(SEQUENCES)
        if len(s) >= 2
    ]
    assert list(examples(batch)) == expected
    assert torch.equal(batch.target_BL != 0, batch.query.item_BL != 0)
    assert batch.query.item_BL.shape[1] == HISTORY


@pytest.mark.parametrize("step", [None, 1, 3])
def test_all_windows_predict_every_event_but_the_first(step):
    task = objective(windows="all", step=step)
    rows = task.rows(STORE)
    assert len(rows.unique()) == len(rows)
    covered = set()
    for end, (user, inputs, targets) in zip(rows.tolist(), examples(batch_of(task)), strict=True):
        at = end - int(STORE.train.ptr[user])
        assert inputs == SEQUENCES[user][max(0, at - HISTORY - 1) : at - 1]
        assert targets == SEQUENCES[user][max(0, at - HISTORY - 1) + 1 : at]
        covered |= {(user, at - 1 - k) for k in range(len(targets))}
    assert covered == {(u, k) for u, s in enumerate(SEQUENCES) for k in range(1, len(s))}


def test_a_step_moves_the_windows():
    ends = {}
    for end in objective(windows="all", step=2).rows(STORE).tolist():
        ends.setdefault(int(STORE.train.user[end - 1]), []).append(end)
    assert ends
    for user, found in ends.items():
        start, n = int(STORE.train.ptr[user]), len(SEQUENCES[user])
        expected, end = {start + n}, n
        while end > HISTORY + 1:
            end = max(end - 2, HISTORY + 1)
            expected.add(start + end)
        assert set(found) == expected


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("together", [True, False])
def test_several_targets_follow_the_window(T, together):
    """Independent of the other rows: a history shorter than the window gives one event to read, and
    the others as targets.
    """
    task = objective(windows="all", targets=T)
    rows = task.rows(STORE)
    batches = (
        [batch_of(task)]
        if together
        else [batch_of(task, rows[k : k + 1]) for k in range(len(rows))]
    )
    covered = set()
    for end, (user, inputs, targets) in zip(
        rows.tolist(), [e for b in batches for e in examples(b)], strict=True
    ):
        s, at = SEQUENCES[user], end - int(STORE.train.ptr[user])
        first = max(0, at - HISTORY - T)
        cut = max(at - T, first + 1)
        assert (inputs, targets) == (s[first:cut], s[cut:at])
        covered |= {(user, k) for k in range(cut, at)}
    assert covered == {
        (u, k)
        for u, s in enumerate(SEQUENCES)
        for k in range(1, len(s))
        if k >= min(HISTORY, max(1, len(s) - T))
    }


def test_prefixes_are_the_targets_of_the_last_window_each_in_a_row_of_its_own():
    """The newest events but a user's first, each after the events before it that are read."""
    task = objective(windows="prefixes", targets=1)
    rows = task.rows(STORE)
    expected = [
        (u, s[max(0, at - HISTORY) : at], [s[at]])
        for u, s in enumerate(SEQUENCES)
        for at in range(max(1, len(s) - HISTORY), len(s))
    ]
    assert list(examples(batch_of(task))) == expected
    assert list(examples(batch_of(task, rows[5:6]))) == expected[5:6]
    last = [(u, target) for u, _, targets in examples(batch_of(objective())) for target in targets]
    assert [(u, target) for u, _, (target,) in expected] == last


@pytest.mark.parametrize("targets", [None, 2])
def test_prefixes_have_one_target(targets):
    with pytest.raises(RecexpError, match=r"set objective\.targets=1"):
        objective(windows="prefixes", targets=targets)


@pytest.mark.parametrize("bias", [True, False])
def test_many_negatives_are_scored_by_the_vectors_of_the_catalog(bias, monkeypatch):
    """With the same loss and gradients as by vectors of their own."""
    asked, found = [], []
    for many in (20, 21):
        monkeypatch.setattr(sequence, "MANY", many)
        task = objective(loss=BCE(), n_negatives=20)
        model = RunningSum(STORE.schema.V, HISTORY, bias=bias)
        asked.append([])
        vectors = model.item_vectors

        def recorded(item=None, vectors=vectors, shapes=asked[-1]):
            shapes.append(None if item is None else item.dim())
            return vectors(item)

        monkeypatch.setattr(model, "item_vectors", recorded)
        loss_ = task.losses(model, batch_of(task))["loss"]
        loss_.backward()
        found.append([loss_.detach(), *(p.grad for p in model.parameters())])
    assert asked == [[1, None], [1, 2]]  # the targets, then the catalog or the negatives
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_one_state_serves_all_targets_of_its_window():
    task = objective(NoSampler(), windows="all", targets=3)
    model = RunningSum(STORE.schema.V, HISTORY, one_state=True)
    batch = batch_of(task)
    vectors, bias = model.item_vectors()
    h = model.encode(batch.query)[:, 0]
    terms = [
        F.cross_entropy((h[row] @ vectors.T + bias)[None], torch.tensor([target - 1]))
        for row, targets in enumerate(batch.target_BL.tolist())
        for target in targets
        if target
    ]
    assert task.losses(model, batch)["loss"].item() == pytest.approx(
        torch.stack(terms).mean().item(), rel=1e-9
    )


def test_users_with_a_single_event_or_none_have_no_window():
    for options in ({}, dict(windows="all"), dict(windows="all", targets=3)):
        assert {int(u) for u in batch_of(objective(**options)).query.user_B} == {
            u for u, s in enumerate(SEQUENCES) if len(s) >= 2
        }


@pytest.mark.parametrize(
    ("shared", "shape"), [("position", (N_TARGETS, 4)), ("row", (12, 4)), ("batch", (4,))]
)
def test_negatives_are_drawn_per_target_row_or_batch(shared, shape):
    batch = batch_of(objective(loss=BCE(), n_negatives=4, shared=shared))
    drawn = {"position": batch.negative_Nn, "row": batch.negative_Bn, "batch": batch.negative_n}
    assert tuple(drawn.pop(shared).shape) == shape
    assert all(x is None for x in drawn.values())
    if shared != "batch":
        row_N = range(len(batch.query)) if shared == "row" else rows_of_targets(batch)
        item = batch.negative_Nn if shared == "position" else batch.negative_Bn
        for row, negatives in zip(row_N, item.tolist(), strict=True):
            assert not set(negatives) & set(SEQUENCES[int(batch.query.user_B[row])])


def plain_loss(name, positive, negative, *, n_items, t=0.75, bpreg=1.0):
    """One position's loss from the score of its target and the scores of its negatives, by the
    formulas of the papers.
    """
    difference = positive - negative
    if name in ("ce", "sampled_softmax"):
        return -torch.log_softmax(torch.cat([positive[None], negative]), 0)[0]
    if name == "bce":
        return -F.logsigmoid(positive) - F.logsigmoid(-negative).sum()
    if name == "gbce":
        beta = gbce_beta(t, len(negative), n_items)
        return -(beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum()) / (
            1 + len(negative)
        )
    if name == "bpr":
        return -F.logsigmoid(difference).mean()
    if name == "top1":
        return (0.5 + (torch.sigmoid(-difference) + torch.sigmoid(negative**2)).sum()) / (
            1 + len(negative)
        )
    share = negative.softmax(0)
    if name == "top1_max":
        return (share * (torch.sigmoid(-difference) + torch.sigmoid(negative**2))).sum()
    return (
        -torch.log((share * torch.sigmoid(difference)).sum()) + bpreg * (share * negative**2).sum()
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", ["position", "row", "batch"])
@pytest.mark.parametrize("name", [*names_of(CatalogLoss), *names_of(SampledLoss)])
def test_every_loss_equals_its_plain_computation(name, shared, bias):
    if name == "gbce" and shared == "batch":
        with pytest.raises(RecexpError, match="loss=GBCE counts its negatives"):
            objective(loss=loss(name), shared=shared)
        return
    task, model = (
        objective(loss=loss(name), n_negatives=5, shared=shared),
        RunningSum(STORE.schema.V, HISTORY, bias=bias),
    )
    batch = batch_of(task)
    h, (vectors, b) = model.encode(batch.query), model.item_vectors(torch.arange(STORE.schema.V))
    score_BLV = h @ vectors.T + (0 if b is None else b)
    terms = []
    for number, (row, place) in enumerate((batch.target_BL != 0).nonzero().tolist()):
        if name == "ce":
            negative = torch.arange(1, STORE.schema.V)
        elif shared == "position":
            negative = batch.negative_Nn[number]
        else:
            negative = batch.negative_Bn[row] if shared == "row" else batch.negative_n
        target, score = batch.target_BL[row, place], score_BLV[row, place]
        negative = negative[negative != target]
        terms.append(plain_loss(name, score[target], score[negative], n_items=STORE.schema.n_items))
    assert task.losses(model, batch)["loss"].item() == pytest.approx(
        torch.stack(terms).mean().item(), rel=1e-7
    )


def test_final_activation_and_head_of_the_model_are_applied():
    task, model = (
        objective(loss=BCE(), n_negatives=1),
        RunningSum(STORE.schema.V, HISTORY, bias=False),
    )
    model.head, model.final_activation = (lambda h: 2 * h), torch.tanh
    batch = batch_of(task)
    wanted = batch.target_BL != 0
    h, (vectors, _) = (
        2 * model.encode(batch.query)[wanted],
        model.item_vectors(torch.arange(STORE.schema.V)),
    )
    positive = (h * vectors[batch.target_BL[wanted]]).sum(-1).tanh()
    negative = (h * vectors[batch.negative_Nn[:, 0]]).sum(-1).tanh()
    expected = -(F.logsigmoid(positive) + F.logsigmoid(-negative)).mean()
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_log_q_subtracts_log_n_q_from_the_negatives():
    """Once from the score of each negative; the target's score stays."""
    n = 6
    options = dict(loss=SampledSoftmax(log_q=True), shared="batch", n_negatives=n)
    task = objective(Popularity(0.5), **options)
    model = RunningSum(STORE.schema.V, HISTORY)
    batch = batch_of(task)
    weight = torch.bincount(STORE.train.item, minlength=STORE.schema.V).double().sqrt()
    q = weight / weight.sum()
    torch.testing.assert_close(batch.log_prob_n.double(), q[batch.negative_n].log())
    vectors, bias = model.item_vectors(torch.arange(STORE.schema.V))
    score_BLV = model.encode(batch.query) @ vectors.T + bias
    terms = []
    for row, place in (batch.target_BL != 0).nonzero().tolist():
        target, score = batch.target_BL[row, place], score_BLV[row, place]
        negative = batch.negative_n[batch.negative_n != target]
        others = score[negative].exp() / (n * q[negative])
        terms.append(torch.log(score[target].exp() + others.sum()) - score[target])
    expected = torch.stack(terms).mean().item()
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_shuffled_targets_keep_the_inputs_and_say_nothing_about_the_user():
    plain, batch = (
        batch_of(objective(loss=BCE(), n_negatives=8)),
        batch_of(objective(loss=BCE(), n_negatives=8, shuffle_targets=True)),
    )
    assert torch.equal(plain.query.item_BL, batch.query.item_BL)
    wanted = batch.target_BL != 0
    assert torch.equal(wanted, plain.target_BL != 0)
    assert (batch.target_BL != plain.target_BL)[wanted].float().mean() > 0.7
    own = [
        i in SEQUENCES[int(batch.query.user_B[row])]
        for row, negatives in zip(rows_of_targets(batch), batch.negative_Nn.tolist(), strict=True)
        for i in negatives
    ]
    assert sum(own) > 0.1 * len(own)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(loss=MSE()), "NextItem cannot train with loss=MSE; choose one of CE, BCE, GBCE, BPR"),
        (dict(shared="user"), "shared"),
        (dict(loss=BCE(), n_negatives=0), "n_negatives"),
        (dict(loss=SampledSoftmax(log_q=True)), "objective.shared=batch"),
        (dict(windows="some"), "windows"),
        (dict(step=-1), "step"),
        (dict(targets=-3), "targets"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(RecexpError, match=text):
        objective(**options)


def test_a_model_without_states_is_refused_in_one_sentence():
    with pytest.raises(
        RecexpError,
        match=r"objective=NextItem needs a model that implements Encoder .*, "
        r"which PairScores does not",
    ):
        NextItem(Uniform()).bind(PairScores(3, 4), STORE)


def test_losses_with_negatives_need_a_sampler():
    with pytest.raises(RecexpError, match="sampler=none"):
        batch_of(objective(NoSampler(), loss=BCE()))


IS_BOUGHT = (STORE.train.behavior == 2).tolist()


@pytest.mark.parametrize("positives", ["explicit", "strongest"])
@pytest.mark.parametrize("options", [{}, {"windows": "all", "step": 2}, {"targets": 3}], ids=str)
def test_only_events_of_the_wanted_behavior_are_targets(options, positives):
    every = objective(**options)
    task = objective(**options, positives=positives)
    expected = {}
    for end, items, targets in zip(
        every.rows(STORE).tolist(),
        batch_of(every).query.item_BL.tolist(),
        batch_of(every).target_BL.tolist(),
        strict=True,
    ):
        first = end - sum(t != 0 for t in targets)
        kept = [int(STORE.train.item[e]) for e in range(first, end) if IS_BOUGHT[e]]
        if kept:
            expected[end] = ([i for i in items if i], kept)
    found = [(inputs, targets) for _, inputs, targets in examples(batch_of(task))]
    assert dict(zip(task.rows(STORE).tolist(), found, strict=True)) == expected
    assert len(expected) < len(every.rows(STORE)) or not options


def test_a_row_per_target_is_one_per_wanted_event():
    task = objective(windows="prefixes", targets=1, positives="explicit")
    ends = objective(windows="prefixes", targets=1).rows(STORE).tolist()
    assert task.rows(STORE).tolist() == [end for end in ends if IS_BOUGHT[end - 1]]
    assert (batch_of(task).target_BL != 0).all()


def test_data_without_a_wanted_event_to_predict_are_refused():
    rows = [(0, 1, 1), (0, 2, 1), (1, 3, 2), (1, 4, 1)]
    store = worlds.store(rows, n_users=2, n_items=6)
    task = NextItem(Uniform(), positives="explicit")
    task.bind(RunningSum(store.schema.V, HISTORY), store)
    with pytest.raises(RecexpError, match="no training event of such a behavior follows"):
        task.rows(store)
    views = worlds.store(rows[:2], n_users=1, n_items=6)
    with pytest.raises(RecexpError, match="no training event has such a behavior"):
        task.bind(RunningSum(views.schema.V, HISTORY), views)
    with pytest.raises(RecexpError, match="positives='bought': choose"):
        NextItem(Uniform(), positives="bought")
