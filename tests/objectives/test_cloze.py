"""Which items the Cloze task hides, how many, and that the others stay unchanged."""

import pytest
import torch
import torch.nn.functional as F

from recexp.contracts import SideEncoder
from recexp.errors import RecexpError
from recexp.objectives.cloze import Cloze
from recexp.objectives.samplers import NoSampler
from recexp.testing import worlds
from tests.support.stub_models import RunningSum

STORE = worlds.random_store(n_users=60, n_items=40)
HISTORY = 11  # windows of 12 places
MASK = STORE.schema.V
SIZES = (STORE.train.ptr[1:] - STORE.train.ptr[:-1]).tolist()


def objective(**options):
    task = Cloze(NoSampler(), **options)
    task.bind(RunningSum(STORE.schema.V, HISTORY), STORE)
    return task


def batch_of(task, seed=0, rows=None):
    return task.batch(
        STORE, task.rows(STORE) if rows is None else rows, torch.Generator().manual_seed(seed)
    )


def whole(task):
    """The windows before anything is hidden: [B, 12] rows of the store, -1 at padding."""
    rows = task.rows(STORE)
    at = rows[:, None] - torch.arange(12, 0, -1)
    return torch.where(at >= STORE.train.ptr[STORE.train.user[rows - 1]][:, None], at, -1)


def many(task, times=40):
    """(length, number of targets, whether the last item is a target) of every row, over many
    draws.
    """
    for seed in range(times):
        batch = batch_of(task, seed)
        real, hidden = batch.query.item_BL != 0, batch.target_BL != 0
        yield from zip(
            real.sum(1).tolist(), hidden.sum(1).tolist(), hidden[:, -1].tolist(), strict=True
        )


def test_windows_cover_every_event_of_users_with_two_or_more():
    at = whole(objective())
    covered = set(at[at >= 0].tolist())
    expected = {
        int(STORE.train.ptr[u]) + k for u, n in enumerate(SIZES) if n >= 2 for k in range(n)
    }
    assert covered == expected


@pytest.mark.parametrize(("step", "events"), [(0.5, 6), (3, 3), (0.1, 1)])
def test_older_windows_start_every_step(step, events):
    found = {}
    for end in objective(step=step).rows(STORE).tolist():
        found.setdefault(int(STORE.train.user[end - 1]), []).append(end)
    assert found
    for user, ends in found.items():
        start, n = int(STORE.train.ptr[user]), SIZES[user]
        expected, end = {start + n}, n
        while end > 12:
            end = max(end - events, 12)
            expected.add(start + end)
        assert set(ends) == expected


def test_targets_are_the_hidden_items_and_nothing_of_them_shows():
    task = objective(mask_prob=0.4)
    batch, at = batch_of(task), whole(task)
    at = at[:, -batch.target_BL.shape[1] :]
    hidden, query = batch.target_BL != 0, batch.query
    original = {
        "item_BL": STORE.train.item,
        "behavior_BL": STORE.train.behavior,
        "time_BL": STORE.train.time,
        "value_BL": STORE.train.value,
    }
    for name, column in original.items():
        truth, shown = torch.where(at >= 0, column[at], 0).long(), getattr(query, name)
        assert torch.equal(shown[~hidden], truth[~hidden])
        assert (shown[hidden] == (MASK if name == "item_BL" else 0)).all()
        assert (truth[hidden] != 0).all()
    assert torch.equal(batch.target_BL[hidden], STORE.train.item[at[hidden]].long())


@pytest.mark.parametrize(
    "options",
    [
        dict(mask_prob=0.05),
        dict(mask_prob=0.05, count="fixed"),
        dict(one_mask=True),
        dict(max_masked=1),
    ],
)
def test_every_row_hides_at_least_one_item(options):
    assert min(n for _, n, _ in many(objective(**options), 10)) == 1


def test_bernoulli_hides_the_wanted_share():
    task = objective(mask_prob=0.3, last_prob=0.0)
    rows = [
        (length, n) for length, n, _ in many(task) if length >= 10
    ]  # in these the forced first mask is rare
    lengths = sum(length for length, _ in rows)
    sd = (0.3 * 0.7 / lengths) ** 0.5
    assert sum(n for _, n in rows) / lengths == pytest.approx(
        0.3 + 0.7**12 / 12, abs=5 * sd + 0.002
    )
    assert len({n for _, n in rows}) > 4


def test_fixed_counts_are_the_rounded_share():
    for length, n, _ in many(objective(mask_prob=0.3, count="fixed", last_prob=0.0), 5):
        assert n == max(1, round(0.3 * length))


def test_max_masked_caps_the_count():
    counts = [n for _, n, _ in many(objective(mask_prob=0.8, max_masked=3, last_prob=0.0), 5)]
    assert max(counts) == 3


def test_one_mask_hides_one_item_anywhere():
    drawn = list(many(objective(one_mask=True, last_prob=1.0), 60))
    assert {n for _, n, _ in drawn} == {1}
    full = [last for length, _, last in drawn if length == 12]
    assert sum(full) / len(full) == pytest.approx(1 / 12, abs=5 * (1 / 12 / len(full)) ** 0.5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_last_item_alone_is_hidden_in_the_wanted_share_of_rows(share):
    drawn = list(many(objective(mask_prob=0.9, count="fixed", last_prob=share), 20))
    alone = [last for length, n, last in drawn if n == 1 and length > 3]
    assert all(alone)
    rows = sum(length > 3 for length, _, _ in drawn)
    assert len(alone) / rows == pytest.approx(
        share, abs=5 * (0.25 / rows) ** 0.5 if 0 < share < 1 else 1e-9
    )


def test_hidden_items_are_masked_replaced_or_kept():
    task = objective(mask_prob=0.6, replace=(0.5, 0.3, 0.2), last_prob=0.0)
    total = masked = kept = 0
    for seed in range(60):
        batch = batch_of(task, seed)
        hidden = batch.target_BL != 0
        item, target = batch.query.item_BL[hidden], batch.target_BL[hidden]
        assert ((batch.query.behavior_BL[hidden] == 0) == (item == MASK)).all()
        assert (item >= 1).all()
        total, masked, kept = (
            total + len(item),
            masked + int((item == MASK).sum()),
            kept + int((item == target).sum()),
        )
    sd = 0.5 / total**0.5
    assert masked / total == pytest.approx(0.5, abs=5 * sd)
    assert kept / total == pytest.approx(0.2 + 0.3 / STORE.schema.n_items, abs=5 * sd)


def test_masks_are_drawn_anew():
    task = objective(mask_prob=0.5)
    assert torch.equal(batch_of(task, 1).target_BL, batch_of(task, 1).target_BL)
    assert not torch.equal(batch_of(task, 1).target_BL, batch_of(task, 2).target_BL)


def test_copies_fix_the_masks_once_and_for_all():
    task = objective(mask_prob=0.5, copies=3, replace=(0.6, 0.2, 0.2))
    rows = task.rows(STORE)
    assert len(rows) == 4 * len(objective().rows(STORE))
    one, again = batch_of(task, 1), batch_of(task, 2)
    assert torch.equal(one.target_BL, again.target_BL) and torch.equal(
        one.query.item_BL, again.query.item_BL
    )
    # A row's masks depend neither on its neighbors nor on the padding they bring.
    alone = batch_of(task, rows=rows[:1])
    width = alone.target_BL.shape[1]
    assert torch.equal(alone.target_BL[0], one.target_BL[0, -width:])
    masks = (one.target_BL != 0).unflatten(0, (-1, 4))
    assert (
        masks[:, 3].sum(1).eq(1).all() and masks[:, 3, -1].all()
    )  # the copy with its last item masked alone
    long = (one.query.item_BL != 0).unflatten(0, (-1, 4))[:, 0].sum(1) > 8
    assert (masks[long, 0] != masks[long, 1]).any(1).float().mean() > 0.9
    assert masks[long, :3].float().sum() / (
        3 * (one.query.item_BL != 0).unflatten(0, (-1, 4))[long, 0].sum()
    ) == pytest.approx(0.5, abs=0.06)


def test_side_information_of_hidden_items_shows_only_where_it_is_to_leak():
    class Side(RunningSum, SideEncoder):
        def encode_at(self, query, wanted_BL, side_item_BL=None):
            self.shown = query.item_BL if side_item_BL is None else side_item_BL
            return self.encode(query)[wanted_BL]

    model = Side(STORE.schema.V, HISTORY)
    for hide in (True, False):
        task = Cloze(NoSampler(), mask_prob=0.5, hide_side=hide)
        task.bind(model, STORE)
        batch = batch_of(task)
        task.losses(model, batch)
        hidden = batch.target_BL != 0
        assert (
            (model.shown == MASK)[hidden].all()
            if hide
            else torch.equal(model.shown[hidden], batch.target_BL[hidden])
        )
        assert torch.equal(model.shown[~hidden], batch.query.item_BL[~hidden])
        assert batch.query.behavior_BL[hidden].any() == (not hide)
    with pytest.raises(RecexpError, match="takes none"):
        objective(hide_side=False)


def test_loss_is_the_mean_cross_entropy_at_the_targets():
    task, model = objective(mask_prob=0.4), RunningSum(STORE.schema.V, HISTORY)
    batch = batch_of(task)
    hidden = batch.target_BL != 0
    vectors, bias = model.item_vectors()
    z = model.encode(batch.query)[hidden] @ vectors.T + bias
    assert task.losses(model, batch)["loss"].item() == pytest.approx(
        F.cross_entropy(z, batch.target_BL[hidden] - 1).item(), rel=1e-9
    )


def test_shuffled_targets_change_only_what_is_asked_for():
    plain, shuffled = (
        batch_of(objective(mask_prob=0.5)),
        batch_of(objective(mask_prob=0.5, shuffle_targets=True)),
    )
    assert torch.equal(plain.query.item_BL, shuffled.query.item_BL)
    hidden = plain.target_BL != 0
    assert torch.equal(hidden, shuffled.target_BL != 0)
    assert (plain.target_BL != shuffled.target_BL)[hidden].float().mean() > 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(mask_prob=0.0), "mask_prob"),
        (dict(mask_prob=1.0), "mask_prob"),
        (dict(last_prob=1.5), "last_prob"),
        (dict(count="poisson"), "count"),
        (dict(replace=(0.8, 0.1, 0.2)), "replace"),
        (dict(replace=(1.0, 0.0)), "replace"),
        (dict(step=0), "step"),
        (dict(max_masked=0), "max_masked"),
        (dict(copies=-1), "copies"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(RecexpError, match=text):
        objective(**options)


@pytest.mark.parametrize("options", [{}, {"last_prob": 1.0}, {"copies": 3}], ids=str)
def test_only_events_of_the_wanted_behavior_are_masked(options):
    task = objective(positives="explicit", mask_prob=0.5, **options)
    every = objective(**options).rows(STORE)
    rows = task.rows(STORE)
    hidden = batch_of(task).target_BL != 0
    at = rows // (task.copies + 1)
    at = at[:, None] - torch.arange(hidden.shape[1], 0, -1)
    can = (STORE.train.behavior[at.clamp(min=0)] == 2) & (batch_of(task).query.item_BL != 0)
    assert not (hidden & ~can).any()
    assert hidden.any(1).all()
    assert set(rows.tolist()) < set(every.tolist())
    if "last_prob" in options:
        last = [row.nonzero()[-1].item() for row in can]
        assert hidden.nonzero()[:, 1].tolist() == last


@pytest.mark.parametrize("asks", [True, False])
def test_a_masked_event_shows_its_behavior_to_models_that_ask_for_one(asks):
    model = RunningSum(STORE.schema.V, HISTORY)
    model.asks_behavior = asks
    task = Cloze(NoSampler())
    task.bind(model, STORE)
    query = batch_of(task).query
    at = task.rows(STORE)[:, None] - torch.arange(query.item_BL.shape[1], 0, -1)
    own = STORE.train.behavior[at.clamp(min=0)].long()
    is_masked = query.item_BL == MASK
    assert torch.equal(query.behavior_BL[is_masked], own[is_masked] if asks else 0 * own[is_masked])
    assert not query.time_BL[is_masked].any()
    assert not query.value_BL[is_masked].any()
